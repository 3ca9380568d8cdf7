"""How much of a command's time is gone, over interruptions."""

import json
from pathlib import Path

import pytest

from autoplan import ledger
from autoplan.ledger import Ledger, Spent


def test_only_working_time_counts(tmp_path: Path) -> None:
    now = [1000.0]
    first = Ledger(tmp_path, "run, 100 s", 100, clock=lambda: now[0])
    with first:
        now[0] += 30
        first.decide("folds", [0, 1])
    now[0] += 5000
    other = Ledger(tmp_path, "run, 50 s", 50, clock=lambda: now[0])
    again = Ledger(tmp_path, "run, 100 s", 100, started=now[0] - 3, clock=lambda: now[0])
    assert (again.gone, again.left, again.decisions) == (33, 67, {"folds": [0, 1]})
    assert (other.left, other.decisions) == (50, {}), "another command has its own time"
    now[0] += 90
    assert again.left == -23


def test_a_kill_hides_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gone is written down again and again."""
    monkeypatch.setattr(ledger, "BEAT_SECONDS", 0.01)
    with Ledger(tmp_path, "run", 100) as held:
        held.decide("folds", [0])
        seen = set()
        while len(seen) < 4:
            seen.add(json.loads((tmp_path / ledger.NAME).read_text())["run"]["seconds"])
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


@pytest.mark.parametrize("seconds", ["NaN", "-7", "true", "1" + "0" * 400, "1e999"])
def test_seconds_that_are_none(tmp_path: Path, seconds: str) -> None:
    entry = f'{{"run": {{"budget_seconds": {seconds}, "seconds": {seconds}, "decisions": {{}}}}}}'
    (tmp_path / ledger.NAME).write_text(entry)
    assert Ledger(tmp_path, "run", 100, started=0, clock=lambda: 1).left == 99
    ledger.spent(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"run": 7}', '{"run": {"seconds": "x", "decisions": []}}', "{"])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / ledger.NAME).write_text(text)
    found = Ledger(tmp_path, "run", 100, started=0, clock=lambda: 1)
    assert (found.left, found.decisions) == (99, {})
    assert ledger.spent(tmp_path) == []
    found.decide("folds", [0])
    assert Ledger(tmp_path, "run", 100, started=0, clock=lambda: 1).left == 98


def test_what_each_command_has_used(tmp_path: Path) -> None:
    Ledger(tmp_path, "run, 2d, 7200 s", 7200, started=0, clock=lambda: 60).decide("spacing", [3, 3, 10])
    second = Ledger(tmp_path, "train, 60 s", 60, started=0, clock=lambda: 58)
    second.decide("division", {"left_out": ["folds 3, 4"]})
    second.decide("trainings", {"2d fold 0": {"seconds": 50}, "2d fold 1": {"seconds": 0}})
    left_out = ("folds 3, 4", "2d fold 1")
    assert ledger.spent(tmp_path) == [Spent("run, 2d", 7200, 60), Spent("train", 60, 58, left_out)]


def test_what_decides_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too short"), Ledger(tmp_path, "run", 100):
        raise ValueError("too short")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_end_the_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "BEAT_SECONDS", 0.01)
    held = Ledger(tmp_path, "run", 100)
    fails, write = [3], held.write

    def sometimes() -> None:
        fails[0] -= 1
        if fails[0] in (0, 1):
            raise OSError("No space left on device")
        write()

    monkeypatch.setattr(held, "write", sometimes)
    with held:
        while fails[0] > -3:
            pass
