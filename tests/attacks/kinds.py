"""Files of another kind than their name says: ways to put one in the place of a file of a bundle."""

import os
import zipfile
from pathlib import Path

CANARY = "canary"
"""A file that code of theirs would leave."""


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**42)


def sparse_archive(path: Path) -> None:
    """A list of files at its end that says how much they are."""
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    size = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content[: at + 20] + size * 2 + content[at + 28 :])


def bomb(path: Path) -> None:
    path.unlink()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)


def code(path: Path) -> None:
    """A pickle that would run a command."""
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", f"cos\nsystem\n(S'touch {CANARY}'\ntR.".encode())
        archive.writestr("archive/version", b"3")
        archive.writestr("archive/byteorder", b"little")


KINDS = [pipe, folder, device, loop, sparse, sparse_archive, bomb, code]
