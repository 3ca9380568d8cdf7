"""The file that keeps a second training off a folder."""

import json
import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoplan.training import lease


def _write(folder: Path, **content: Any) -> None:
    me = {
        "host": socket.gethostname(), "machine": lease.this_machine(), "pid": os.getpid(), "heartbeat": time.time(),
        "id": "other",
    }  # fmt: skip
    (folder / lease.NAME).write_text(json.dumps({**me, **content}))


def _ended() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_one_at_a_time(tmp_path: Path) -> None:
    held = lease.acquire(tmp_path, max_epochs=3)
    assert held is not None
    assert lease.acquire(tmp_path) is None
    assert lease.holder(tmp_path).max_epochs == 3
    held.release()
    assert lease.holder(tmp_path) is None
    assert lease.acquire(tmp_path) is not None
    assert [p.name for p in tmp_path.iterdir()] == [lease.NAME]


@pytest.mark.parametrize(
    ("content", "is_free"),
    [
        pytest.param({}, False, id="alive here"),
        pytest.param({"pid": "dead"}, True, id="dead here"),
        pytest.param({"pid": "dead", "machine": "elsewhere"}, False, id="another machine, fresh"),
        pytest.param({"pid": "dead", "machine": "boot pid:[1]"}, False, id="a container of the same host name, fresh"),
        pytest.param({"pid": "dead", "machine": ""}, False, id="an older version, fresh"),
        pytest.param({"machine": "elsewhere", "heartbeat": 0.0}, True, id="another machine, stale"),
        pytest.param({"heartbeat": 0.0}, True, id="alive here, stale: the number is another's now"),
        pytest.param({"heartbeat": 1e300}, True, id="a time far in the future"),
        pytest.param({"heartbeat": float("nan")}, True, id="no time"),
    ],
)
def test_stale(tmp_path: Path, content: dict[str, Any], is_free: bool) -> None:
    _write(tmp_path, **{**content, **({"pid": _ended()} if "pid" in content else {})})
    assert (lease.acquire(tmp_path) is not None) == is_free
    assert [p.name for p in tmp_path.iterdir()] == [lease.NAME]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "7", '{"pid": "x"}', '{"pid": -1}', '{"heartbeat": []}', "[" * 100_000]
)
def test_a_damaged_file_keeps_nobody_off(tmp_path: Path, text: str) -> None:
    (tmp_path / lease.NAME).write_text(text)
    assert lease.holder(tmp_path) is None
    assert lease.acquire(tmp_path) is not None


def test_renewing(tmp_path: Path) -> None:
    held = lease.acquire(tmp_path)
    assert held is not None
    held.holder = replace(held.holder, heartbeat=held.holder.heartbeat - lease.HEARTBEAT_SECONDS - 1)
    assert held.renew()
    assert time.time() - lease.holder(tmp_path).heartbeat < 5
    _write(tmp_path)
    held.holder = replace(held.holder, heartbeat=held.holder.heartbeat - lease.HEARTBEAT_SECONDS - 1)
    assert not held.renew(), "another has taken over"
    held.release()
    assert lease.holder(tmp_path).id == "other"
