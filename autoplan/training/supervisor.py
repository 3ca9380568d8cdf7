"""Runs what a job still needs, in a process of its own: `python -m autoplan.training.supervisor JOB`, a job as JSON.

It holds the job's lease, writes the job's log, and watches its standard input, a pipe from whoever started it: when
that ends, because the starter closed it or died in whatever way, the training is asked to save and end, and after
GRACE_SECONDS it is killed with all the processes it has started. When the supervisor itself is killed, the system ends
the training with it (Linux). So no training outlives who answers for it.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import IO

from autoplan.base.codec import from_dict
from autoplan.base.processes import dying_with
from autoplan.training import lease
from autoplan.training.failures import END, START
from autoplan.training.jobs import Job, command
from autoplan.training.recipe import max_epochs
from autoplan.training.standing import missing_steps

HELD = 75
"""Exit status when another process works on the job."""
LOST = 76
"""Exit status when another process has taken the lease over, which it does when this one stood still."""
GRACE_SECONDS = 30.0
POLL_SECONDS = 0.25


class Supervisor:
    """The state of the loop that watches a step."""

    def __init__(self, held: lease.Lease) -> None:
        self.held = held
        self.is_asked = self.is_lost = False
        signal.signal(signal.SIGTERM, self.ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def ask(self, *_: object) -> None:
        """End the step and start no other."""
        self.is_asked = True

    def run(self, command: list[str], log: IO[bytes], folder: str) -> int:
        """Runs a command to its end. Returns its exit status, 128 + n after signal n."""
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
            start_new_session=True, preexec_fn=dying_with(os.getpid()),
        )  # fmt: skip
        try:
            self._watch(child)
        finally:
            kill_session(child.pid)
        status = child.wait()
        return 128 - status if status < 0 else status

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        deadline = None
        while child.poll() is None:
            self._look()
            if self.is_lost or (deadline is not None and time.monotonic() > deadline):
                return
            if self.is_asked and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
                child.terminate()

    def _look(self) -> None:
        if self.is_asked:
            time.sleep(POLL_SECONDS)
        elif select.select([sys.stdin], [], [], POLL_SECONDS)[0] and not os.read(sys.stdin.fileno(), 1024):
            self.ask()
        self.is_lost = self.is_lost or not self.held.renew()


def kill_session(session: int) -> None:
    """Kills all processes of a session: a training and the loading processes, which have left its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if path.read_text().rpartition(")")[2].split()[3] == str(session):
                os.kill(int(path.parent.name), signal.SIGKILL)


def main(argument: str) -> int:
    """Runs the missing steps of a job. Returns the exit status of the first that fails, else 0."""
    job = from_dict(Job, json.loads(argument))
    held = lease.acquire(job.folder, max_epochs=max_epochs(job))
    if held is None:
        return HELD
    status, supervisor = 0, Supervisor(held)
    try:
        with job.log.open("ab") as log:
            for step in missing_steps(job):
                if supervisor.is_asked or status:
                    break
                words = command(job, step)
                _say(log, f"{START} {step}, {datetime.now():%Y-%m-%d %H:%M:%S}: {' '.join(words)}")
                status = supervisor.run(words, log, job.bundle)
                _say(log, f"{END} {status}")
    finally:
        held.release()
    return LOST if supervisor.is_lost else status or (128 + signal.SIGTERM if supervisor.is_asked else 0)


def _say(log: IO[bytes], line: str) -> None:
    log.write(f"{line}\n".encode())
    log.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
