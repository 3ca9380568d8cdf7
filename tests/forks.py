"""MONAI's command line in processes of their own, forked from one that has imported MONAI: that takes seconds."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SERVER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "autoplan":
            raise ImportError("autoplan is not installed here")

sys.meta_path.insert(0, Blocker())
import json, os, runpy
import monai.bundle

for line in sys.stdin:
    given = json.loads(line)
    if isinstance(given, int):
        pid, status = os.waitpid(given, os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if pid else "runs", flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        break
else:
    sys.exit()
os.setsid()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for output in (1, 2):
    os.dup2(os.open(given["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), output)
os.chdir(given["folder"])
for folder, arguments in given["commands"]:
    if folder:
        os.chdir(folder)
    sys.argv = ["monai.bundle", *arguments]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""
"""It reads what to start or whose end to look for, a line each. A process that it starts leaves the loop."""


class Forks:
    """Starts `python -m monai.bundle`, where autoplan cannot be imported. Each process is a session of its own."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: object) -> str:
        """The answer to a line."""
        self.server.stdin.write(json.dumps(what) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline().strip()

    def start(self, *commands: list, folder: Path, log: Path) -> "Fork":
        """Starts commands one after the other, in a folder and with their output added to a file. A command is its
        words, or the folder to change to before it and its words."""
        told = [[str(c[0]), c[1]] if isinstance(c, tuple) else [None, c] for c in commands]
        return Fork(self, int(self.ask({"commands": told, "folder": str(folder), "log": str(log)})), log)

    def close(self) -> None:
        """Ends the process that forks."""
        self.server.stdin.close()
        self.server.wait()


@dataclass
class Fork:
    """A process that was started."""

    forks: Forks
    pid: int
    log: Path
    status: int | None = None

    def poll(self) -> int | None:
        """Its exit status, None while it runs; negative is the signal that ended it."""
        if self.status is None and (said := self.forks.ask(self.pid)) != "runs":
            self.status = int(said)
        return self.status

    def wait(self, seconds: float = 300) -> int:
        """Its exit status, at its end."""
        deadline = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < deadline, self.log.read_text()[-5000:]
            time.sleep(0.02)
        return status

    def succeed(self) -> None:
        """Waits for it; fails with its last words where it did."""
        assert self.wait() == 0, self.log.read_text()[-5000:]
