"""Digests of files: what changes them, what does not, and that no file is read twice."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts import contents
from scripts.contents import ABSENT, digests


def rewritten(path: Path) -> None:
    """Other bytes, of the same number, with the time set back."""
    state = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replaced(path: Path) -> None:
    """Another file under the same name, of the same size and time, as archives restore it."""
    state, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)


def copied(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        pytest.param(lambda path: None, False, id="nothing"),
        pytest.param(os.utime, False, id="touched"),
        pytest.param(lambda path: path.chmod(0o600), False, id="other rights"),
        pytest.param(copied, False, id="a copy"),
        pytest.param(rewritten, True, id="rewritten, same size and time"),
        pytest.param(replaced, True, id="replaced, same size and time"),
        pytest.param(lambda path: path.write_bytes(b"longer than before"), True, id="longer"),
        pytest.param(Path.unlink, True, id="gone"),
    ],
)
def test_what_changes_a_digest(tmp_path: Path, change: Callable[[Path], object], changes: bool) -> None:
    path, known = tmp_path / "a.nii", {}
    path.write_bytes(b"0123456789")
    before = digests([[path]], known)
    change(path)
    assert (digests([[path]], known) != before) == changes


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text(path.name)
    known: contents.Known = {}
    before = digests([paths, paths[:1]], known)
    monkeypatch.setattr(contents, "_read", lambda path: pytest.fail(f"{path} is read again"))
    assert digests([paths, paths[:1]], known) == before
    assert len(set(before)) == 2


def test_names_do_not_count_but_the_order_does(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    one.write_text("1")
    two.write_text("2")
    other.write_text("1")
    assert digests([[one, two], [other, two], [two, one]], {})[:2] == digests([[one, two]], {}) * 2
    assert len(set(digests([[one, two], [two, one]], {}))) == 2


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert digests([[tmp_path / "pipe"], [tmp_path], [tmp_path / "none"]], {}) == [ABSENT] * 3


@pytest.mark.parametrize("text", ["", "[]", "7", '{"a": 1, "b": [1, 2]}', "[" * 100_000, "\x00"])
def test_damaged_digests_are_made_again(tmp_path: Path, text: str) -> None:
    path, kept = tmp_path / "a", tmp_path / "kept.json"
    path.write_text("a")
    kept.write_text(text.replace("a", str(path)))
    assert digests([[path]], contents.read_known(kept)) == digests([[path]], {})
