"""What every attack must show: one short message and exit status 0 or 1, soon, with nothing lost or left half-written.

An attack is a row of a table with a name: a way to damage a folder, or the words of a command.
"""

import copy
import os
import random
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoplan.__main__ import explained, main, visible
from autoplan.base.errors import AutoplanError

MAX_SECONDS = 60
"""Far above what any of these commands takes on a busy machine; a hang takes longer."""
MAX_LINES, MAX_CHARACTERS = 12, 4000
"""Of a message."""
HIDDEN = {".predicted_by.json", ".written.json", ".choice.partial.json"}
"""Files that a command keeps and whose names start with a dot."""
DAMAGED_JSON = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\x00\xff\xfe garbage \x80", id="garbage"),
    pytest.param(b"[]", id="list"),
    pytest.param(b"null", id="null"),
    pytest.param(b"7", id="number"),
    pytest.param(b"1e999", id="infinite number"),
    pytest.param(b"9" * 5000, id="number of 5,000 digits"),
    pytest.param(b'"text"', id="text"),
    pytest.param(b"{}", id="empty object"),
    pytest.param(b'{"a": ', id="half an object"),
    pytest.param(b"[" * 100_000 + b"]" * 100_000, id="nested 100,000 deep"),
    pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="objects nested 100,000 deep"),
    pytest.param(b'{"a": "\\ud800"}', id="half a character"),
]
"""What a JSON file may hold instead of what it should."""


KEPT = re.compile(r"(.*/)?bundles(/\w+(/readings\.jsonl|/cache(/contents\.json)?)?)?")

HOSTILE_TEXTS = [
    "", " ", "\0", "a\0b", "\n", "a\nb", "a\r\nb", "\t", "\x1b[31m", "\u2028", "\u202e", "a" * 300, "a" * 5000,
    "a/" * 3000, "/", "//", ".", "..", "../..", "../x.nii.gz", "/etc/passwd", "/dev/zero", "/dev/stdin", "C:\\x.nii.gz",
    "\\\\host\\x", "~", "-", "--", "-1", "0", "00", "1", "²", "٣", "1_0", "0x2", "1e3", "9" * 400, "9" * 5000, "nan",
    "inf", "True", "None", "null", "[]", "{}", "$import this", "@x", "%y#z", "a::b", "{0}", "%s%n", "'; rm -rf /", '"',
    '"a"b', "a,b", "a;b", "器官", "e\u0301", "é", "ß", "K", "CASE_1", "case_1", "Case_2", ".nii.gz", "x.nii.gz",
    "a_case_1.nii.gz", "labelsTr/case_1.nii.gz", "labelsTr", "imagesTr", "nowhere/x.nii.gz", "=1+1", "<b>&amp;</b>",
    "\ufeff", "\x85",
]  # fmt: skip
"""What a cell, a name, a path or a flag may hold instead of what it should."""


JSON_VALUES = [
    None, True, False, -1, 0, 1, 2, 3, 7, 0.5, -0.5, 1e-300, 1e308, float("nan"), float("inf"), 2**31, 10**30, 10**400,
    "", "x", "3d_fullres", "$import os", [], [0], [1, 1, 1], [None], [[1, 2], [3, 4]], {}, {"a": 1},
]  # fmt: skip
"""What may stand in a JSON file in place of any value."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON file lie, the file itself left out."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated(content: dict[str, Any], seed: int) -> tuple[str, dict[str, Any]]:
    """A file with one change, and what was changed."""
    draw = random.Random(seed)
    found = copy.deepcopy(content)
    path = draw.choice(list(places(content)))
    holder: Any = found
    for key in path[:-1]:
        holder = holder[key]
    kind = draw.choice(["replaced", "replaced", "replaced", "left out", "twice", "swapped"])
    value = holder[path[-1]]
    if kind == "left out":
        del holder[path[-1]]
    elif kind == "twice" and isinstance(holder, list):
        holder.insert(path[-1], copy.deepcopy(value))
    elif kind == "swapped" and isinstance(value, list):
        value.reverse()
    else:
        holder[path[-1]] = draw.choice(JSON_VALUES)
    return f"{'.'.join(map(str, path))} {kind} (seed {seed})", found


@dataclass(frozen=True)
class Outcome:
    """How a command has ended."""

    status: int
    out: str
    err: str


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Kind and content of all files below a folder; pipes and devices are not opened."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (state.st_mode, content)
    return found


@contextmanager
def no_hang(words: Sequence[str]) -> Iterator[None]:
    """Fails where what is inside takes longer than `MAX_SECONDS`, even where it waits for the system."""

    def stop(*_: object) -> None:
        pytest.fail(f"{' '.join(words)[:200]!r} does not end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(words: Sequence[str], capsys: pytest.CaptureFixture) -> Outcome:
    """Runs a command; it must end soon, with exit status 0 or 1 and without a traceback."""
    capsys.readouterr()
    with no_hang(words):
        status = main(words)
    written = capsys.readouterr()
    assert status in (0, 1)
    assert "Traceback" not in written.out + written.err
    return Outcome(status, written.out, written.err)


def outcome(made: Callable[[], Any]) -> Any:
    """What a function returns, or the message of what it refuses by: short, as the entry point would show it. Any other
    error ends the test."""
    try:
        return made()
    except AutoplanError as error:
        said = visible(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        said = visible(explained(error))
    check_message(f"Error: {said}", names="")
    return said


def refuse(
    words: Sequence[str], capsys: pytest.CaptureFixture, *, names: str, folder: Path, may_write: str = "(?!)"
) -> str:
    """Runs a command that must refuse: one short message with a pattern in it, and `folder` stays as it was, except for
    paths that begin with a pattern. Returns the message."""
    before = tree(folder)
    outcome = command(words, capsys)
    assert outcome.status == 1, outcome.out
    check_message(outcome.err, names=names)
    check_unchanged(before, tree(folder), may_write=may_write)
    return outcome.err


def check_message(err: str, *, names: str) -> None:
    """A message of few lines without control characters that names what is wrong."""
    assert err.startswith("Error: ")
    assert re.search(names, err), err
    assert len(err.splitlines()) <= MAX_LINES, err
    assert len(err) <= MAX_CHARACTERS
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", err)


def check_unchanged(before: dict, after: dict, *, may_write: str = "(?!)") -> None:
    """Nothing is lost, changed or new, except for paths that begin with a pattern and for what planning keeps of the
    cases that it could read."""
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not {path for path in changed if not re.match(may_write, path) and not KEPT.fullmatch(path)}


def check_nothing_half_written(folder: Path) -> None:
    """No temporary file is left."""
    hidden = {path.name for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")}
    assert hidden <= HIDDEN
