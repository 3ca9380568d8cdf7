"""Work on cases in several processes: how they are started, stopped, and what happens when one dies."""

import contextlib
import ctypes
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TextIO

from autoplan.base.errors import AutoplanError, DatasetError

MAX_PROCESSES = 8
"""Processes at most unless asked for: each holds one case in memory."""
LEAST_MEMORY, LEAST_FILES = 2 * 10**9, 64
"""Address space in bytes and open files that networks need. Measured: with 1.4 GB PyTorch and MONAI do not load, or
wait for ever for a thread that was not started, and with 32 files predictions fail; our choice is somewhat above."""
SPINS = "1000"
"""How often a thread of OpenMP looks again before it sleeps. Our choice; docs/benchmarks.md has the times."""
SPINNING = frozenset({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"})
"""Variables by which users say how threads wait."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent ends."""


def waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """What to set so that threads do not spin for long while they wait for each other: beside another busy process a
    training step takes twice as long then, and three to ten times as long with spinning threads. Nothing where the user
    has set any of it. PyTorch reads it once, when it is loaded."""
    return {} if SPINNING & environment.keys() else {"GOMP_SPINCOUNT": SPINS}


def check_limits() -> None:
    """Refuses to load networks where `ulimit` leaves too little.

    Raises:
        AutoplanError: it leaves less than `LEAST_MEMORY` or `LEAST_FILES`.
    """
    try:
        import resource
    except ImportError:  # on Windows
        return
    for what, kind, least, flag, unit in (
        ("of memory", resource.RLIMIT_AS, LEAST_MEMORY, "-v", 1024),
        ("open files", resource.RLIMIT_NOFILE, LEAST_FILES, "-n", 1),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < least:
            there, needed = (f"{n / 1e9:.3g} GB" if unit > 1 else str(n) for n in (limit, least))
            raise AutoplanError(
                f"this shell allows {there} {what}, and at least {needed} are needed: ulimit {flag} {least // unit}, "
                "or a job with more."
            )


@contextmanager
def mapper(num_processes: int, *, preload: Sequence[str] = (), chunksize: int = 1) -> Iterator[Any]:
    """A `map` that works in this process or in several, results in order.

    The processes are forked from a server that has no threads and has imported what they need (where there is none, on
    Windows, they are spawned): safe whatever the caller runs, and their memory is shared.

    Args:
        num_processes: 1 means this process.
        preload: modules that the server imports.
        chunksize: calls that go to a process at a time.

    Raises:
        DatasetError: a process was ended from outside.
    """
    if num_processes == 1:
        yield map
        return
    context = _context(preload)
    try:
        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin) as pool:
            try:
                yield partial(pool.map, chunksize=chunksize)
            finally:
                pool.shutdown(cancel_futures=True)
    except BrokenProcessPool as error:
        raise DatasetError(
            "a process that read the images was ended from outside, most likely for want of memory. "
            "Read fewer cases at a time, by --num_processes 1."
        ) from error


def _context(preload: Sequence[str]) -> Any:
    """How processes are started."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nibabel", "fire", *preload])
    return context


def _begin() -> None:
    """Leaves Ctrl-C to the main process, which ends this one; and ends it when the main process is killed, which the
    server that forks both does not notice: it works as long as one of its processes does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (main := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=(main,), daemon=True).start()


def _end_after(main: Any) -> None:
    main.join()
    os._exit(128 + signal.SIGKILL)


def run_printing(command: Sequence[str], folder: Path) -> int:
    """Runs a Python program in a folder; returns its exit status. Ctrl-C reaches this process alone, which ends it.

    What it prints goes through this process: a program that prints by itself fails where nobody reads any more.
    """
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, preexec_fn=dying_with(os.getpid()),
    ) as child:  # fmt: skip
        pairs = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        threads = [threading.Thread(target=_pass_on, args=pair, daemon=True) for pair in pairs]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return child.wait()
        except BaseException:
            child.kill()
            raise


def _pass_on(source: IO[bytes], target: TextIO) -> None:
    """Prints what another process prints, line by line; a line that is drawn anew (\r) stays one."""
    for line in io.TextIOWrapper(source, encoding="utf-8", errors="replace", newline=""):
        target.write(line)
        target.flush()


def dying_with(parent: int) -> Callable[[], None] | None:
    """What a child does before it becomes a command (`preexec_fn`): it has the system kill it when its parent ends,
    also by SIGKILL. None on other systems than Linux, which have no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)

    return prepare


def this_machine() -> str:
    """Tells the place apart where processes have their numbers: this start of the system, and the namespace of the
    process (Linux); elsewhere its name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine still works."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # a process that nobody has waited for yet does nothing any more
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True
