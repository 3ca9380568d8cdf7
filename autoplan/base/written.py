"""What autoplan has written in a folder, so that nothing else is lost there; and writing it anew, all of it or nothing.

A folder's .written.json has a digest of each file as it was written. A file that differs from that was changed since,
and one that is not in it is somebody else's. The segmentations are noted there by the bundle that predicts.
"""

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path, PurePosixPath

from autoplan.base.errors import TemplateError
from autoplan.base.files import file_digest, read_object, write_text_atomically
from autoplan.base.processes import is_alive, this_machine

RECORD = ".written.json"
"""File in a folder: name of a file in it -> digest of the file as it was written."""
MOVES, OLD = "moves.json", "old"
"""What is moved, while it is moved, and where the files are meanwhile that others take the place of."""
MAX_SECONDS = 86400.0
"""No work on a folder takes longer: what was begun earlier on another machine has ended."""


# What is there.


def recorded(folder: Path) -> dict[str, str]:
    """Names of the files that autoplan has written in a folder, and their digests."""
    return {name: d for name, d in read_object(folder / RECORD).items() if isinstance(d, str) and _is_inside(name)}


def _is_inside(name: str) -> bool:
    """Whether a name leads to a file in the folder; a record may come from somebody else."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def foreign(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of some names that are there and are not what autoplan wrote: changed since, or somebody else's."""
    known = recorded(folder)
    return [n for n in names if os.path.lexists(folder / n) and known.get(n, "") != _digest(folder / n)]


def edited(folder: Path) -> list[str]:
    """The files that autoplan wrote in a folder and somebody has changed since."""
    return foreign(folder, recorded(folder))


def _digest(path: Path) -> str | None:
    """Digest of a file; None where there is none, or something else."""
    return file_digest(path) if path.is_file() else None


def record(folder: Path, names: Iterable[str]) -> None:
    """Note that files are there as autoplan wrote them."""
    note(folder, {name: file_digest(folder / name) for name in names})


def note(folder: Path, digests: Mapping[str, str]) -> None:
    """Note digests of files. An empty one is that of no file: it marks one that is not known to be autoplan's."""
    write_text_atomically(folder / RECORD, _text({**recorded(folder), **digests}))


def _text(digests: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(digests.items())), indent=1, ensure_ascii=False) + "\n"


def check_own(folder: Path, names: Iterable[str]) -> None:
    """Refuses to overwrite what is not as autoplan wrote it.

    Raises:
        TemplateError: it names these files.
    """
    if found := foreign(folder, names):
        were, them = ("were", "them") if len(found) > 1 else ("was", "it")
        raise TemplateError(
            f"{folder}: {', '.join(found)} {were} changed by hand, or an older autoplan wrote {them}. Move away "
            f"what you want to keep, or write over {them} with --force, which keeps a copy."
        )


def keep(folder: Path, names: Iterable[str], base: Path) -> list[Path]:
    """Copy what is not as autoplan wrote it into a new folder, before it is overwritten.

    Args:
        folder: where the files are.
        names: of the files that will be overwritten.
        base: the new folder is called as this is, with .before, .before-2 and so on behind.

    Returns:
        The new folder, if there is anything to keep.
    """
    found = foreign(folder, names)
    if not found:
        return []
    endings = chain([".before"], (f".before-{number}" for number in count(2)))
    place = next(p for e in endings if not os.path.lexists(p := base.with_name(base.name + e)))
    for file in found:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (folder / file).is_dir() else shutil.copy2
        copy(folder / file, place / file)
    return [place]


# Writing it anew.


@contextmanager
def anew(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` in which its files are made before `put` brings them there. It is removed in the
    end, and what killed processes left of theirs, too."""
    folder = folder.resolve()
    settle(folder)
    work = folder.with_name(f".{_place()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{folder.name}")
    try:
        work.mkdir(parents=True)
        yield work
    finally:
        _end(work, folder)


def settle(folder: Path) -> None:
    """Bring back the files of a folder that a process was replacing when it was killed, and remove what it left."""
    folder = folder.resolve()
    pattern = re.compile(r"\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\." + re.escape(folder.name))
    for path in sorted(folder.parent.glob(".*")):
        found = pattern.fullmatch(path.name)
        if found and _is_left(path, found[1], int(found[2])):
            _end(path, folder)


def _is_left(work: Path, place: str, pid: int) -> bool:
    """Whether the process has ended that began a hidden folder."""
    if place == _place():
        return pid == os.getpid() or not is_alive(pid)
    with suppress(FileNotFoundError):
        return time.time() - work.stat().st_mtime > MAX_SECONDS
    return False


def _place() -> str:
    """Tells the places apart where processes have their numbers."""
    return hashlib.sha256(this_machine().encode()).hexdigest()[:8]


def put(
    staged: Path,
    folder: Path,
    *,
    last: str,
    parts: Collection[str] = (),
    force: bool = False,
    base: Path | None = None,
) -> list[Path]:
    """Bring files into a folder, all or none. Others stay, but for those that autoplan wrote there before.

    Args:
        staged: folder with the files, inside one of `anew`.
        folder: where they belong.
        last: the file without which the folder is not whole: it goes first and comes last.
        parts: names in the folder, of folders as of files: what autoplan wrote there and is not among the new files is
            removed, unless somebody changed it.
        force: overwrite files that somebody has changed, or brought there; a copy of these is kept.
        base: see `keep`; `folder` if not given.

    Returns:
        The folder with the copies, if there are any.

    Raises:
        TemplateError: there are such files, and `force` is not given. Nothing is changed then.
    """
    names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    digests, known = {name: file_digest(staged / name) for name in names}, recorded(folder)
    new = [name for name in names if digests[name] != _digest(folder / name)]
    old = [name for name in known if name not in digests and name.partition("/")[0] in parts]
    gone = [name for name in old if known[name] == _digest(folder / name)]
    if not force:
        check_own(folder, new)
    kept = keep(folder, new, base or folder)
    noted = {name: digest for name, digest in {**known, **digests}.items() if name not in old}
    if new or gone:
        (staged / RECORD).write_text(_text(noted), encoding="utf-8")
        _move(staged, folder.resolve(), [*(name for name in new if name != last), RECORD, last], gone)
    elif noted != known:
        write_text_atomically(folder / RECORD, _text(noted))
    return kept


def _move(staged: Path, folder: Path, new: list[str], gone: list[str]) -> None:
    """Move `new` files into a folder, and those away whose place they take and those that are to be `gone`. What is
    noted in MOVES can be undone until that file is removed."""
    old, moves = staged.with_name(OLD), staged.with_name(MOVES)
    write_text_atomically(moves, json.dumps({"staged": staged.name, "new": new, "gone": gone}))
    for name in (*reversed(new), *gone):
        if os.path.lexists(folder / name):
            _rename(folder / name, old / name)
    for name in new:
        _rename(staged / name, folder / name)
    moves.unlink()


def _rename(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _end(work: Path, folder: Path) -> None:
    """Undo what a hidden folder says was not brought to its end, and remove it."""
    if moves := read_object(work / MOVES):
        staged = work / moves["staged"]
        for name in reversed(moves["new"]):
            if os.path.lexists(folder / name) and not os.path.lexists(staged / name):
                _rename(folder / name, staged / name)
                with suppress(OSError):  # it has other files
                    os.removedirs((folder / name).parent)
        for name in (*moves["gone"], *moves["new"]):
            if os.path.lexists(work / OLD / name):
                _rename(work / OLD / name, folder / name)
        (work / MOVES).unlink()
    shutil.rmtree(work, ignore_errors=True)
