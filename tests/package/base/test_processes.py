"""Work in several processes: none outlives the command that started it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, is_alive, wait_until

from autoplan.base import processes

READING = """
import os, time
from pathlib import Path
from autoplan.base.processes import mapper

def read(number):
    Path(f"{os.getpid()} {os.getppid()}").touch()
    time.sleep(0.1)

if __name__ == "__main__":
    with mapper(2) as each:
        list(each(read, range(10_000)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_command_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """Neither those that read images nor the server that forks them."""
    (tmp_path / "reading.py").write_text(READING)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = subprocess.Popen([sys.executable, "reading.py"], cwd=tmp_path, env=environment)
    try:
        wait_until(lambda: len(list(tmp_path.glob("[0-9]* [0-9]*"))) == 2)
    finally:
        command.send_signal(signal.SIGKILL)
        command.wait()
    pids = {int(pid) for path in tmp_path.glob("[0-9]* [0-9]*") for pid in path.name.split()}
    assert len(pids) == 3
    wait_until(lambda: not any(map(is_alive, pids)), seconds=20)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": processes.SPINS}),
        ({"PATH": "x"}, {"GOMP_SPINCOUNT": processes.SPINS}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),
        ({"GOMP_SPINCOUNT": "7"}, {}),
    ],
    ids=["nothing set", "something else", "a policy", "a count"],
)
def test_threads_do_not_spin_unless_the_user_says_how_they_wait(given, expected) -> None:
    assert processes.waiting(given) == expected
