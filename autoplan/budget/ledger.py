"""The time that a command was given: how much of it is gone, and what was decided about the rest.

bundles/TASK/budget.json has an entry for each command with a budget. Only the time in which the command runs counts,
not that between an interruption and the same command again.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autoplan.base.errors import AutoplanError
from autoplan.base.files import number, read_json, read_object, write_text_atomically

NAME = "budget.json"
BEAT_SECONDS = 5.0
"""Seconds that a kill of the command may hide, once anything is decided."""


@dataclass(frozen=True)
class Spent:
    """What a command was given and has used, seconds, and what there was no time for, in words."""

    command: str
    seconds: float
    gone: float
    left_out: tuple[str, ...] = ()


def key_of(command: str, seconds: float) -> str:
    """Tells a command, with what it names, from others on a task."""
    return f"{command}, {seconds:g} s"


def spent(folder: Path) -> list[Spent]:
    """The entries in a folder of a task's bundles; what is damaged is left out."""
    found = []
    for name, entry in read_object(folder / NAME).items():
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            decisions = entry["decisions"]
            left_out = [*map(str, decisions.get("division", {}).get("left_out", ()))]
            left_out += [t for t, share in decisions.get("trainings", {}).items() if not share["seconds"]]
            seconds, gone = number(entry["budget_seconds"]), number(entry["seconds"])
            if seconds is not None and gone is not None:
                found.append(Spent(name.rpartition(", ")[0], seconds, gone, tuple(left_out)))
    return found


def _entries(path: Path) -> dict[str, Any]:
    """What a file holds, of all commands; nothing where there is no file.

    Raises:
        AutoplanError: it is damaged, and may have held the time of other commands.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _damaged(path)
    return found


def _damaged(path: Path) -> AutoplanError:
    return AutoplanError(f"{path} is damaged. Remove it to divide the time anew.")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing entries; where the system cannot lock a folder, none is kept off."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl  # not on Windows

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Ledger:
    """One entry. As a context it writes down every few seconds how much time is gone.

    Args:
        folder: of a task's bundles; it exists.
        key: tells the command from others on this task.
        seconds: that it was given.
        started: when this process began to work, by `clock`; now, if not given.
        clock: counts seconds.

    Raises:
        AutoplanError: the file is damaged, when it is read or written.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        seconds: float,
        *,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.key, self.seconds, self.clock = folder / NAME, key, seconds, clock
        self.started = clock() if started is None else started
        entry = _entries(self.path).get(key, {"seconds": 0.0, "decisions": {}})
        gone = number(entry.get("seconds")) if isinstance(entry, dict) else None
        if gone is None or gone < 0 or not isinstance(entry.get("decisions"), dict):
            raise _damaged(self.path)
        self.before, self.decisions = gone, dict[str, Any](entry["decisions"])
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    @property
    def gone(self) -> float:
        """Seconds in which the command has run."""
        return self.before + self.clock() - self.started

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 when the time is over."""
        return self.seconds - self.gone

    def decide(self, name: str, value: Any) -> None:
        """Write down a decision, a value for JSON: it holds for the rest of the time, and after an interruption."""
        with self._lock:
            self.decisions[name] = value
        self.write()

    def write(self) -> None:
        """Write down how much time is gone, once anything is decided."""
        if not self.decisions:
            return
        with self._lock, _alone(self.path.parent):
            entry = {"budget_seconds": self.seconds, "seconds": round(self.gone, 1), "decisions": self.decisions}
            text = json.dumps({**_entries(self.path), self.key: entry}, indent=1)
            write_text_atomically(self.path, text + "\n")

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, AutoplanError):  # what ends what works is said there
                self.write()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self.write()
