"""Work that goes on beside the network."""

import threading

import pytest
from scripts.beside import Beside


def test_one_piece_at_a_time_and_in_order() -> None:
    beside, done, go = Beside(), [], threading.Event()
    beside.is_on = True

    def first() -> None:
        assert go.wait(60)
        done.append("first")

    beside.do("first", first)
    assert done == [], "whoever brings it does not wait for it"
    assert beside.errors(wait=False) == {}
    threading.Timer(0.05, go.set).start()
    beside.do("second", lambda: done.append("second"))
    assert done[0] == "first", "the next one waits until it is done"
    assert beside.errors(wait=True) == {}
    assert done == ["first", "second"]


def test_errors_are_told_once_by_name() -> None:
    beside, go = Beside(), threading.Event()
    beside.is_on = True

    def fail() -> None:
        assert go.wait(60)
        raise OSError("no space")

    beside.do("a", fail)
    assert beside.errors(wait=False) == {}, "not yet"
    go.set()
    beside.do("b", lambda: None)
    found = beside.errors(wait=False)
    assert list(found) == ["a"]
    assert str(found["a"]) == "no space"
    assert beside.errors(wait=True) == {}


def test_where_nobody_looks_at_errors_work_is_done_at_once() -> None:
    beside, done = Beside(), []
    beside.do("a", lambda: done.append(threading.current_thread()))
    assert done == [threading.current_thread()]
    with pytest.raises(ZeroDivisionError):
        beside.do("b", lambda: 1 // 0)  # type: ignore[func-returns-value]
