"""How much of a command's time is gone, over interruptions."""

import json
import multiprocessing
from pathlib import Path

import pytest

from autoplan.base.errors import AutoplanError
from autoplan.budget import ledger
from autoplan.budget.ledger import Ledger, Spent


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


DAMAGED = [
    "",
    "[]",
    "{",
    "\xff",
    '{"run": 7}',
    '{"run": {"seconds": "x", "decisions": []}}',
    '{"run": {}}',
    '{"a": 1, "a": 2}',
]
DAMAGED += [
    f'{{"run": {{"budget_seconds": {seconds}, "seconds": {seconds}, "decisions": {{}}}}}}'
    for seconds in ("NaN", "-7", "true", "1" + "0" * 400, "1e999")
]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:60])
def test_a_damaged_file_is_told_and_stays(tmp_path: Path, text: str) -> None:
    """It may have held the time of other commands."""
    path = tmp_path / ledger.NAME
    path.write_text(text, encoding="latin-1")
    with pytest.raises(AutoplanError, match=r"budget\.json is damaged\. Remove it"):
        Ledger(tmp_path, "run", 100)
    ledger.spent(tmp_path)
    assert path.read_text(encoding="latin-1") == text


def test_what_is_damaged_meanwhile_is_told_and_stays(tmp_path: Path) -> None:
    held, path = Ledger(tmp_path, "run", 100), tmp_path / ledger.NAME
    path.write_text("{")
    with pytest.raises(AutoplanError, match="is damaged"):
        held.decide("folds", [0])
    assert path.read_text() == "{"


def _decide(folder: Path, key: str) -> None:
    held = Ledger(folder, key, 100)
    for number in range(20):
        held.decide("number", number)


def test_commands_at_a_time_keep_the_entries_of_each_other(tmp_path: Path) -> None:
    keys = [f"run {i}" for i in range(4)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_decide, args=(tmp_path, key)) for key in keys]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    entries = json.loads((tmp_path / ledger.NAME).read_text())
    assert {key: entry["decisions"]["number"] for key, entry in entries.items()} == dict.fromkeys(keys, 19)
    assert not list(tmp_path.glob(".*")), "no file of a lock is left"


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
