"""Files that are whole or not there, and digests that tell files apart."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".????????.*"
"""Pattern of the names that files have while they are written."""

WRITTEN = ".written.json"
"""File in a folder of segmentations with their digests."""

FULL = "there is no space left on the disk of"
"""What is said of a full disk, before the folder."""

CONTINUED = "_continued"
"""Ending of the folder, beside that of a fold, for all that is done with weights from outside."""


def continued(folder: str | Path) -> Path:
    """That folder."""
    path = Path(folder)
    return path if path.name.endswith(CONTINUED) else path.with_name(path.name + CONTINUED)


def validation_dir(ckpt_dir: str, loader: object) -> str:
    """Folder of the predictions and scores of validation cases.

    Args:
        ckpt_dir: folder of the fold.
        loader: what loads the fold's network; None where another program has switched it off, to give weights itself.
    """
    return str((continued(ckpt_dir) if loader is None else Path(ckpt_dir)) / "validation")


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name that is then renamed. When the writing fails, nothing is left of it.

    Args:
        path: the file; its folder is made when it does not exist.
        write: writes the path that it is given.

    Raises:
        OSError: it cannot be written; of a full disk, the message names the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name ends as the file's does, for some writers go by it. It is hidden, and no other process has the same.
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, f"{FULL} {path.parent}; free some space, then go on") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_noted(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file as `write_atomically` does, and note its digest in .written.json beside it, by which it is seen when
    somebody changes it."""
    path = Path(path)

    def noted(temporary: Path) -> None:
        write(temporary)
        digests = {**_noted(path.parent), path.name: file_digest(temporary)}
        write_text_atomically(path.with_name(WRITTEN), json.dumps(digests, indent=1, ensure_ascii=False) + "\n")

    write_atomically(path, noted)


def is_changed(path: str | Path) -> bool:
    """Whether a file is not as `write_noted` wrote it any more."""
    path = Path(path)
    digest = _noted(path.parent).get(path.name)
    return digest is not None and path.is_file() and digest != file_digest(path)


def _noted(folder: Path) -> dict[str, str]:
    """Digests of the files in a folder; none where nobody has noted them, or the file is damaged."""
    try:
        found = json.loads((folder / WRITTEN).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def link_atomically(source: Path, target: str | Path) -> None:
    """Make `target` a second name of the file `source`, or a copy where the file system has no hard links."""

    def link(temporary: Path) -> None:
        try:
            os.link(source, temporary)
        except OSError:
            temporary.write_bytes(source.read_bytes())

    write_atomically(target, link)


def file_digest(path: str | Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file: which network it holds."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()[:16]
