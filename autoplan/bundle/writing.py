"""Bundles as folders: what is written, and when it is complete."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from autoplan.base import written

MARKS = ("configs/train.json", "configs/inference.json")
"""The file without which a bundle is none: the first of these that the bundle has."""

GENERATED = ("configs", "scripts", "docs")
"""Folders of a bundle in which files that are not rendered any more are removed."""


def relative_path(target: Path, folder: Path) -> str:
    """`target` seen from `folder`, with forward slashes.

    Symbolic links are kept as they are written where that leads to the target. Where the folder lies behind a link, the
    system goes up from where the link leads to, so the path is counted from there.
    """
    written, behind = os.path.relpath(target.absolute(), folder.absolute()), os.path.realpath(folder)
    leads_there = os.path.realpath(os.path.join(behind, written)) == os.path.realpath(target)
    return Path(written if leads_there else os.path.relpath(target.absolute(), behind)).as_posix()


def write(folder: Path, files: Mapping[str, bytes], *, force: bool = False) -> list[Path]:
    """Write a bundle's files, all or none, and remove those of an earlier time that are not among them; see
    `written.put`, also for the errors and what is returned."""
    with written.anew(folder) as work:
        fill(work / "new", files)
        return written.put(work / "new", folder, last=mark(files), parts=GENERATED, force=force)


def fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a new folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def mark(files: Iterable[str]) -> str:
    """The file of a bundle that goes first and comes last when others take its place."""
    return next(name for name in MARKS if name in files)
