"""Files that are whole or not there, and JSON that is read with care."""

import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoplan.base.errors import AutoplanError

NOT_GRANTED = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
"""What the system says of a file that is there and may be whole."""
LARGEST = 1e12
"""Counts, times and losses that are not below it come from a damaged file."""
MAX_TEXT_BYTES = 2**26
"""Size of a table, a license or the description of a job at most. Our choice: a row for each of 300,000 cases fits."""


def check_writable(folder: Path, flag: str) -> None:
    """Refuses a folder that could not be made or written into, before any work is done for it.

    Raises:
        AutoplanError: a part of the path is a file, or the part that exists cannot be written; `flag` names it.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise AutoplanError(f"{flag} {folder}: {there} is a file, not a folder. Name another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise AutoplanError(f"{flag} {folder}: {there} cannot be written. Name another folder.")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name that is then renamed; when the writing fails, nothing is left of it.

    Args:
        path: the file; its folder must exist.
        write: writes the path that it is given.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text in UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def granted(path: Path) -> Iterator[None]:
    """Within it, a file that the system does not give is said to be that, whatever is said of one that is damaged.

    Raises:
        AutoplanError: the file may not be read, or the disk fails.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_GRANTED:
            raise
        remedy = "Change its permissions" if error.errno in (errno.EACCES, errno.EPERM) else "Make it readable"
        what = (error.strerror or "").lower()
        raise AutoplanError(f"{path} cannot be read: {what}. {remedy}; then the same command again.") from error


def regular(path: Path) -> Path:
    """A path that is there and no pipe or device, which reading would wait for without end.

    Raises:
        OSError: it is one, or nothing is there.
        AutoplanError: the system does not give it.
    """
    with granted(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return path


def read_text(path: Path) -> str:
    """A text that a user wrote, in UTF-8.

    Raises:
        OSError: it cannot be read, is a pipe or a device, or larger than `MAX_TEXT_BYTES`.
        ValueError: it is no UTF-8.
    """
    if regular(path).stat().st_size > MAX_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_TEXT_BYTES >> 20} MiB", str(path))
    return path.read_text(encoding="utf-8-sig")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, of which Python would keep the last of two entries without a word."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has the key {key[:60]!r} twice in one object")
        found[key] = value
    return found


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        AutoplanError: the system does not give it.
        OSError: there is no such file, or it is larger than `MAX_JSON_BYTES`.
        ValueError: it is no JSON, is nested too deeply, has a key twice in one object, or holds half a character (a
            lone surrogate), which no file can be written with.
    """
    try:
        with granted(path):
            if regular(path).stat().st_size > MAX_JSON_BYTES:
                raise OSError(errno.EFBIG, f"it has more than {MAX_JSON_BYTES >> 20} MiB", str(path))
            text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_each_key_once)
        json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file, or no object in it."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def number(value: object) -> float | None:
    """A number that a file had; None for anything else, also for one that is not below `LARGEST`."""
    return float(value) if type(value) in (int, float) and abs(value) < LARGEST else None  # type: ignore[arg-type]


def file_digest(path: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file."""
    found = hashlib.sha256()
    with granted(path), regular(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()[:16]


MAX_JSON_BYTES = 2**29
"""Of a JSON file; that of 10,000 cases has some 10 MB."""
