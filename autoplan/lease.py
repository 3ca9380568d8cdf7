"""A file that keeps a second training off a folder: lease.json, with the host and the process that works there.

The process renews it every HEARTBEAT_SECONDS. It is stale, and may be taken over, when it was not renewed for
STALE_SECONDS, or at once when its process is no more and was on this host. The clocks of the hosts must agree to within
a minute.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
NAME = "lease.json"


class Lease:
    """A lease that this process holds, made by `acquire`."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    def renew(self) -> bool:
        """Say that the process still works here, if it has not done so lately. False when another has taken over."""
        if time.time() - self.content["heartbeat"] < HEARTBEAT_SECONDS:
            return True
        if _read(self.path).get("id") != self.content["id"]:
            return False
        self.content["heartbeat"] = time.time()
        _write(self.path, self.content).replace(self.path)
        return True

    def release(self) -> None:
        """Let others work here."""
        if _read(self.path).get("id") == self.content["id"]:
            self.path.unlink(missing_ok=True)


def acquire(folder: Path, **more: Any) -> Lease | None:
    """The lease of a folder, or None when another process holds it. `more` is written beside host, pid and time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    me = {"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": time.time(), "id": uuid.uuid4().hex, **more}
    found = _read(path)
    if path.exists():
        if not is_stale(found):
            return None
        _remove(path, found)
    temporary = _write(path, me)
    try:
        os.link(temporary, path)  # fails when another was faster
    except FileExistsError:
        return None
    finally:
        temporary.unlink()
    return Lease(path, me)


def holder(folder: Path) -> dict[str, Any] | None:
    """What the lease of a folder says, None when there is none or it is stale."""
    found = _read(folder / NAME)
    return None if not found or is_stale(found) else found


def is_stale(content: dict[str, Any], *, now: float | None = None) -> bool:
    """Whether the process that wrote a lease is gone."""
    pid = content.get("pid")
    if content.get("host") == socket.gethostname() and isinstance(pid, int) and not _is_alive(pid):
        return True
    return (time.time() if now is None else now) - float(content.get("heartbeat", 0)) > STALE_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # a process that nobody has waited for yet does nothing any more
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True


def _remove(path: Path, stale: dict[str, Any]) -> None:
    """Takes a stale lease away; puts it back if another was faster and this is its new one."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside).get("id") != stale.get("id"):
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> Path:
    """The content under a temporary name."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    return temporary
