"""The file that keeps a second training off a folder."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from autoplan import lease


def _write(folder: Path, **content: Any) -> None:
    me = {"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": time.time(), "id": "other"}
    (folder / lease.NAME).write_text(json.dumps({**me, **content}))


def _ended() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_one_at_a_time(tmp_path: Path) -> None:
    held = lease.acquire(tmp_path, max_epochs=3)
    assert held is not None
    assert lease.acquire(tmp_path) is None
    assert lease.holder(tmp_path)["max_epochs"] == 3
    held.release()
    assert lease.holder(tmp_path) is None
    assert lease.acquire(tmp_path) is not None
    assert [p.name for p in tmp_path.iterdir()] == [lease.NAME]


@pytest.mark.parametrize(
    ("content", "is_free"),
    [
        pytest.param({}, False, id="alive on this host"),
        pytest.param({"pid": "dead"}, True, id="dead on this host"),
        pytest.param({"pid": "dead", "host": "elsewhere"}, False, id="another host, fresh"),
        pytest.param({"host": "elsewhere", "heartbeat": 0.0}, True, id="another host, stale"),
        pytest.param({"heartbeat": 0.0}, True, id="alive on this host, stale: the number is another's now"),
    ],
)
def test_stale(tmp_path: Path, content: dict[str, Any], is_free: bool) -> None:
    _write(tmp_path, **{**content, **({"pid": _ended()} if "pid" in content else {})})
    assert (lease.acquire(tmp_path) is not None) == is_free
    assert [p.name for p in tmp_path.iterdir()] == [lease.NAME]


def test_a_broken_file_is_stale(tmp_path: Path) -> None:
    (tmp_path / lease.NAME).write_text("")
    assert lease.acquire(tmp_path) is not None


def test_renewing(tmp_path: Path) -> None:
    held = lease.acquire(tmp_path)
    assert held is not None
    held.content["heartbeat"] -= lease.HEARTBEAT_SECONDS + 1
    assert held.renew()
    assert time.time() - lease.holder(tmp_path)["heartbeat"] < 5
    _write(tmp_path)
    held.content["heartbeat"] -= lease.HEARTBEAT_SECONDS + 1
    assert not held.renew(), "another has taken over"
    held.release()
    assert lease.holder(tmp_path)["id"] == "other"
