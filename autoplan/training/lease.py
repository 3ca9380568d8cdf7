"""A file that keeps a second training off a folder: lease.json, with the host and the process that works there.

The process renews it every HEARTBEAT_SECONDS. It is stale, and may be taken over, when it was not renewed for
STALE_SECONDS, or at once when its process is gone and was one of this machine. The clocks of the machines must agree to
within a minute.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoplan.base.files import read_object
from autoplan.base.processes import is_alive, this_machine

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
MAX_TIME = 1e12
"""Seconds since 1970 that are no time any more."""
NAME = "lease.json"


@dataclass(frozen=True)
class Holder:
    """The process that works in a folder.

    Attributes:
        host: name of its machine.
        machine: tells machines, and containers with processes of their own, apart; empty in leases of older versions.
        pid: its number there.
        heartbeat: when it last said that it works, seconds since 1970.
        id: of the lease.
        max_epochs: of the training; 0 where that is unknown.
    """

    host: str
    machine: str
    pid: int
    heartbeat: float
    id: str
    max_epochs: int = 0


class Lease:
    """A lease that this process holds, made by `acquire`."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path, self.holder = path, holder

    def renew(self) -> bool:
        """Say that the process still works here, if it has not done so lately. False when another has taken over."""
        if time.time() - self.holder.heartbeat < HEARTBEAT_SECONDS:
            return True
        if not self._is_mine():
            return False
        self.holder = replace(self.holder, heartbeat=time.time())
        _write(self.path, self.holder).replace(self.path)
        return True

    def release(self) -> None:
        """Let others work here."""
        if self._is_mine():
            self.path.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        found = _read(self.path)
        return found is not None and found.id == self.holder.id


def acquire(folder: Path, *, max_epochs: int = 0) -> Lease | None:
    """The lease of a folder, or None when another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    me = Holder(socket.gethostname(), this_machine(), os.getpid(), time.time(), uuid.uuid4().hex, max_epochs)
    found = _read(path)
    if found is not None and not is_stale(found):
        return None
    if path.exists():
        _remove(path, found)
    temporary = _write(path, me)
    try:
        os.link(temporary, path)  # fails when another was faster
    except FileExistsError:
        return None
    finally:
        temporary.unlink()
    return Lease(path, me)


def holder(folder: Path) -> Holder | None:
    """Who works in a folder, None when nobody does."""
    found = _read(folder / NAME)
    return None if found is None or is_stale(found) else found


def is_stale(found: Holder, *, now: float | None = None) -> bool:
    """Whether the process that wrote a lease is gone."""
    # The number of a process says something only where it was given: a container of the same host name has others.
    here = bool(found.machine) and found.machine == this_machine()
    if here and not is_alive(found.pid):
        return True
    # Both ways: a time far in the future is damaged, or of a clock that was set back since.
    return not abs((time.time() if now is None else now) - found.heartbeat) <= STALE_SECONDS


def _remove(path: Path, stale: Holder | None) -> None:
    """Takes a stale or damaged lease away; puts it back if another was faster and this is its new one."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != stale:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _read(path: Path) -> Holder | None:
    """The holder that a file names; None where there is no file, or a damaged one."""
    found = read_object(path)
    kinds: dict[str, Any] = {
        "host": str,
        "machine": str,
        "pid": int,
        "heartbeat": (int, float),
        "id": str,
        "max_epochs": int,
    }
    found = {"machine": "", "max_epochs": 0, **found}
    if not all(isinstance(found.get(name), kind) for name, kind in kinds.items()) or found["pid"] < 1:
        return None
    if not abs(found["heartbeat"]) < MAX_TIME:
        return None
    return Holder(**{name: found[name] for name in kinds})


def _write(path: Path, holder: Holder) -> Path:
    """The holder under a temporary name."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(asdict(holder)), encoding="utf-8")
    return temporary
