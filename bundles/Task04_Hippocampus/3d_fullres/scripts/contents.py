"""Digests of the content of files: they tell a case that was changed from one that was copied, moved or touched.

A file is read once. While its size, its times and its inode are all as they were, its digest is taken from a JSON file
that may be deleted at any time; programs that set the time of a file back cannot set back when they did so.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAME = "contents.json"
"""File in the folder of the preprocessed cases that keeps the digests."""
ABSENT = "absent"
"""Digest of what is no file that can be read."""
DIGITS = 16
MAX_THREADS = 8
Known = dict[str, list[Any]]
"""For the absolute path of each file its state, as `_state` gives it, and its digest."""


def read_known(path: Path) -> Known:
    """The digests that a file keeps; none where there is no such file, or something else in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, list)} if isinstance(found, dict) else {}


def digests(groups: Sequence[Sequence[Path]], known: Known) -> list[str]:
    """A digest of each group of files: of the content of all of them, in their order, whatever they are called.

    Args:
        groups: such as the files of an image.
        known: digests of files; those that had to be read are added.
    """
    states = {file: _state(file) for group in groups for file in group}
    files = list(states)
    unread = [file for file in files if not _is_known(known, file, states[file])]
    with ThreadPoolExecutor(max(1, min(MAX_THREADS, len(unread), os.cpu_count() or 1))) as readers:
        for file, digest in zip(unread, readers.map(_read, unread), strict=True):
            if digest != ABSENT:
                known[_name(file)] = [*states[file], digest]
    found = {file: known[_name(file)][-1] if _is_known(known, file, states[file]) else ABSENT for file in files}
    return [_joined(found[file] for file in group) for group in groups]


def names(groups: Iterable[Sequence[Path]]) -> list[str]:
    """What files are called in `Known`."""
    return [_name(file) for group in groups for file in group]


def _joined(parts: Iterable[str]) -> str:
    """One digest of several; the digest itself of one file."""
    listed = list(parts)
    return listed[0] if len(listed) == 1 else hashlib.sha256(" ".join(listed).encode()).hexdigest()[:DIGITS]


def _name(file: Path) -> str:
    return os.path.abspath(file)


def _is_known(known: Mapping[str, list[Any]], file: Path, state: list[int]) -> bool:
    entry = known.get(_name(file), [])
    return bool(state) and entry[:-1] == state and isinstance(entry[-1], str)


def _state(file: Path) -> list[int]:
    """What changes whenever a file is written: size, times of the last change of content and of anything, inode.
    Nothing for what is no regular file: reading a pipe would wait for ever."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino] if stat.S_ISREG(found.st_mode) else []


def _read(file: Path) -> str:
    """Digest of the content of a file."""
    found = hashlib.sha256()
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return ABSENT
        with file.open("rb") as opened:
            for block in iter(lambda: opened.read(1 << 20), b""):
                found.update(block)
    except (OSError, ValueError):
        return ABSENT
    return found.hexdigest()[:DIGITS]
