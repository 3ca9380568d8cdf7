"""Why a training died, by its exit status and its log, and what to try."""

import re
from dataclasses import dataclass
from pathlib import Path

from autoplan.base.files import regular

START = "autoplan: started"
END = "autoplan: ended with status"
"""How the lines begin that a job adds to its log."""
TAIL_BYTES = 200_000
"""How much of a log's end is read to explain a failure."""
LAST_LINES = 200
"""How many of its lines are searched: errors that follow from the first one add their own tracebacks."""


@dataclass(frozen=True)
class Failure:
    """Why a job died: one line each for the reason and for what to try. `retry`: whether it may go well next time."""

    reason: str
    remedy: str
    retry: bool


def log_tail(path: Path) -> str:
    """The end of a log, from the line on that says that its last process started."""
    try:
        with regular(path).open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text[max(text.rfind(START), 0) :]


def last_status(tail: str) -> int:
    """The exit status that the last line of `log_tail` names; 0 if it names none."""
    found = re.findall(rf"^{END} (\d+)", tail, re.MULTILINE)
    return int(found[-1]) if found else 0


NO_MEMORY = "fewer --num_workers or --jobs at a time, or a machine with more memory"
OTHER_RECIPE = "the flags of the first time, such as --quick"
SHARED_MEMORY = (
    "the shared memory of the machine (/dev/shm) is full",
    "--num_workers 0, or a larger /dev/shm (docker run --shm-size)",
    True,
)
CAUSES = (
    (r"</torch_\w+>|No space left on device.*/dev/shm", *SHARED_MEMORY),
    (
        # torch says only that a position in the file is not what it expects, numpy how many values were written.
        r"No space left on device|Disk quota exceeded|PytorchStreamWriter|unexpected pos \d|requested and \d+ written",
        "the disk is full",
        "free space for the bundles and the cache, then the same command again",
        False,
    ),
    (r"ValueError: (this fold was (?:begun|started) with another recipe.*)$", "{0}", OTHER_RECIPE, False),
    (
        r"FloatingPointError: (.*?)(?: Try .*)?$",
        "{0}",
        "a lower --learning_rate, or --amp False",
        False,  # The training that goes on meets the same batches.
    ),
    (
        r"(?:CUDA out of memory|OutOfMemoryError)",
        "out of memory on the GPU",
        "a smaller --batch_size, or a GPU that no other program uses",
        True,
    ),
    (r"insufficient shared memory|Bus error", *SHARED_MEMORY),
    (r"DataLoader worker \(pid.*?\) is killed by signal: Killed", "a loading process was killed", NO_MEMORY, True),
    (r"((?:torch\.)?\w*Error: CUDA error: .*)$", "{0}", "nvidia-smi and the log; another GPU", True),
    (
        r"((?:OSError|BlockingIOError|ConnectionError|TimeoutError|InterruptedError|EOFError)\b.*)$",
        "{0}",
        "whether the disks of dataset, bundles and cache can be reached",
        True,
    ),
)
"""Pattern of a log's last lines, reason, what to try, whether a new start may go well. The first found counts."""
WRAPPERS = r"RuntimeError: (?:Failed to (?:evaluate|instantiate)|applying transform)"
"""Errors that MONAI puts around the one that tells."""
STOPS = (1, 2, 15)
"""Signals that ask a training to save and end: SIGHUP, SIGINT, SIGTERM."""
SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV"}


def explain(status: int, tail: str, *, out_of_memory: bool = False) -> Failure:
    """Why a job died.

    Args:
        status: exit status; 128 + n, or -n, after signal n.
        tail: what it printed last.
        out_of_memory: the system has counted a process that it killed for memory.
    """
    number = -status if status < 0 else status - 128 if 128 < status <= 192 else 0
    if number == 9:
        sure = "for lack of memory" if out_of_memory else "most likely for lack of memory"
        return Failure(f"killed by the system, {sure} (SIGKILL)", NO_MEMORY, retry=True)
    if number in STOPS:
        return Failure("stopped by a signal; everything is saved", "the same command goes on", retry=True)
    lines = [line for line in tail.splitlines() if line.strip() and not line.startswith((START, END))]
    end = "\n".join(lines[-LAST_LINES:])
    for pattern, reason, remedy, retry in CAUSES:
        if found := re.search(pattern, end, re.MULTILINE):
            return Failure(reason.format(*(g.strip() for g in found.groups())), remedy, retry)
    if number:
        return Failure(f"crashed with {SIGNALS.get(number, f'signal {number}')}", "the log", retry=True)
    errors = [line.strip() for line in lines if re.match(r"[\w.]*(?:Error|Exception|Interrupt|Exit)\b", line)]
    errors = [line for line in errors if not re.match(WRAPPERS, line)] or errors
    if status == 0:
        return Failure("ended well, but its result files are not there or do not fit", "the log", retry=False)
    said = errors[-1] if errors else lines[-1].strip() if lines else f"exit status {status}, nothing printed"
    return Failure(said[:300], "the settings, and the traceback in the log", retry=False)


def last_start(log: Path) -> str:
    """The line of a log that says how the training was last started."""
    found, wanted = b"", f"{START} training".encode()
    try:
        with regular(log).open("rb") as file:
            for line in file:
                found = line if line.startswith(wanted) else found
    except OSError:
        pass
    return found.decode("utf-8", "replace")
