"""What autoplan wrote is written anew wholly or not at all, and what somebody else did there is never lost."""

import contextlib
import errno
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoplan.base import written
from autoplan.base.errors import TemplateError

MARK = "configs/m.json"
OLD = {MARK: "old", "docs/README.md": "old", "docs/gone.png": "old", "LICENSE": "same"}
NEW = {MARK: "new", "docs/README.md": "new", "scripts/x.py": "new", "LICENSE": "same"}
MINE = {"docs/notes.md": "mine", "models/fold_0/last.pt": "mine"}


def put(folder: Path, files: dict[str, str], *, force: bool = False) -> list[Path]:
    with written.anew(folder) as work:
        for name, text in files.items():
            path = work / folder.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return written.put(work / folder.name, folder, last=MARK, parts=["configs", "docs", "scripts"], force=force)


def content(folder: Path) -> dict[str, str]:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != written.RECORD)
    return {name: (folder / name).read_text() for name in names}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what autoplan wrote and what somebody added."""
    found = tmp_path / "made" / "bundle"
    put(found, OLD)
    for name, text in MINE.items():
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text(text)
    return found


class Faults:
    """Makes system calls that change files fail, from the `first` on, `times` of them."""

    CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")

    def __init__(self) -> None:
        self.calls: int | None = None
        sys.addaudithook(self._hook)

    def arm(self, first: int, times: float, error: BaseException) -> None:
        self.calls, self.first, self.times, self.error = 0, first, times, error

    def disarm(self) -> int:
        """Returns how many calls there were."""
        calls, self.calls = self.calls or 0, None
        return calls

    def _hook(self, event: str, given: tuple[object, ...]) -> None:
        if self.calls is None or not (event in self.CHANGES or (event == "open" and "w" in str(given[1]))):
            return
        self.calls += 1
        if self.first < self.calls <= self.first + self.times:
            raise self.error


FAULTS = Faults()  # an audit hook stays for the life of the process


@pytest.fixture
def faults() -> Iterator[Faults]:
    yield FAULTS
    FAULTS.disarm()


@pytest.mark.parametrize(
    ("times", "there"),
    [
        pytest.param(1, True, id="one call fails"),
        pytest.param(1, False, id="one call fails, and no folder was there"),
        pytest.param(math.inf, True, id="all fail from one on, as after a kill"),
        pytest.param(math.inf, False, id="as after a kill, and no folder was there"),
    ],
)
def test_old_or_new_whatever_fails(times: float, there: bool, folder: Path, tmp_path: Path, faults: Faults) -> None:
    """Every call that changes a file in turn, by an error of the system or Ctrl-C. What one failure leaves is whole at
    once; what a kill leaves lacks its mark at most, until the next call. In the end nothing hidden is left."""
    first, before = 0, content(folder) if there else {}
    after = {**NEW, **(MINE if there else {})}
    while True:
        target = folder if there else tmp_path / "made" / f"new_{first}"
        if there:
            put(target, OLD, force=True)
            assert content(target) == before
        faults.arm(first, times, (OSError(errno.EIO, "Input/output error"), KeyboardInterrupt())[first % 2])
        with contextlib.suppress(OSError, KeyboardInterrupt):
            put(target, NEW)
        calls, found = faults.disarm(), content(target)
        if times == 1:
            assert found in (before, after), first
        assert MARK not in found or found in (before, after), first
        written.settle(target)
        assert content(target) in (before, after), first
        assert not [path.name for path in target.parent.iterdir() if path.name.startswith(".")], first
        if calls <= first:
            break
        first += 1
    assert content(target) == after
    assert first > 12, "it did not fail at all"


def test_a_process_that_works_is_left_in_peace(folder: Path) -> None:
    """The folder of a live process stays, that of a dead one goes, and its half-done work is undone."""
    live = subprocess.Popen(["sleep", "60"])
    try:
        dead = subprocess.Popen(["true"])
        dead.wait()
        place = written._place()
        for number, pid in enumerate((live.pid, dead.pid)):
            (folder.parent / f".{place}-{pid}-0000000{number}.bundle").mkdir()
        other = folder.parent / f".{'0' * 8}-{dead.pid}-00000002.bundle"
        mine = folder.parent / ".mine.bundle"
        old = folder.parent / f".{'0' * 8}-{dead.pid}-00000003.bundle"
        for path in (other, mine, old):
            path.mkdir()
        os.utime(old, (0, 0))
        put(folder, NEW)
        left = {path.name for path in folder.parent.iterdir()}
        assert left == {f".{place}-{live.pid}-00000000.bundle", other.name, mine.name, "bundle"}
    finally:
        live.kill()
        live.wait()


@pytest.mark.parametrize("name", ["docs/README.md", "LICENSE", MARK])
def test_what_somebody_changed_is_named_and_kept(name: str, folder: Path) -> None:
    (folder / name).write_text("mine")
    before = content(folder)
    with pytest.raises(TemplateError, match=rf"{name} was changed by hand.*--force"):
        put(folder, NEW)
    assert content(folder) == before
    [kept] = put(folder, NEW, force=True)
    assert (kept, content(kept)) == (folder.with_name("bundle.before"), {name: "mine"})
    assert content(folder) == ({**NEW, **MINE} | ({name: "same"} if name == "LICENSE" else {}))


def test_what_somebody_brought_in_place_of_a_new_file_is_kept(folder: Path) -> None:
    (folder / "scripts").mkdir()
    (folder / "scripts" / "x.py").write_text("mine")
    with pytest.raises(TemplateError, match=r"scripts/x\.py"):
        put(folder, NEW)
    assert content(put(folder, NEW, force=True)[0]) == {"scripts/x.py": "mine"}


def test_what_is_not_written_any_more_stays_where_somebody_changed_it(folder: Path) -> None:
    (folder / "docs/gone.png").write_text("mine")
    put(folder, NEW)
    assert content(folder) == {**NEW, **MINE, "docs/gone.png": "mine"}
    put(folder, NEW)
    assert content(folder)["docs/gone.png"] == "mine"


def test_what_others_of_autoplan_wrote_in_the_same_folder_stays(folder: Path) -> None:
    """Such as segmentations, which are noted in the same file."""
    (folder / "case.nii.gz").write_text("predicted")
    written.record(folder, ["case.nii.gz"])
    put(folder, NEW)
    assert content(folder) == {**NEW, **MINE, "case.nii.gz": "predicted"}
    assert written.edited(folder) == []


def test_the_same_again_touches_no_file(folder: Path) -> None:
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = times()
    assert put(folder, OLD) == []
    assert times() == before


@pytest.mark.parametrize("name", ["../mine.txt", "/etc/hostname", "", "configs/../../mine.txt"])
def test_a_record_reaches_no_file_outside_its_folder(name: str, folder: Path) -> None:
    (folder.parent / "mine.txt").write_text("mine")
    written.note(folder, {name: written.file_digest(folder.parent / "mine.txt")})
    put(folder, NEW)
    assert (folder.parent / "mine.txt").read_text() == "mine"
