"""Files that are whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name that is then renamed; when the writing fails, nothing is left of it.

    Args:
        path: the file; its folder must exist.
        write: writes the path that it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole_text(path: Path, text: str) -> None:
    """Write a text, as `write_whole` does, in UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
