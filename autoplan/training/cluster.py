"""Runs jobs and reads images on the workers of a Dask cluster. Imported when one is asked for, and by its workers.

Workers see the same files under the same paths. Each runs one job at a time, in processes of its own: Dask's memory
limit does not count them, and a worker that dies takes its training along. A job that a worker is running is never
given to another; when a worker dies, the scheduler gives its job to another, which goes on from the last checkpoint.
"""

import asyncio
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from autoplan.base.errors import DatasetError, TrainingError, one_line, shortened
from autoplan.base.files import read_text
from autoplan.training import backends, machine
from autoplan.training.backends import Outcome
from autoplan.training.failures import Failure
from autoplan.training.jobs import Job

try:
    import yaml
    from dask.utils import parse_bytes
    from distributed import Client, KilledWorker, Security, get_worker
    from distributed.comm import connect as open_comm
    from distributed.comm import parse_address, parse_host_port
    from distributed.core import Status
except ImportError as missing:
    raise TrainingError(f"a cluster needs {missing.name}: pip install autoplan[cluster]") from None

logger = logging.getLogger(__name__)

GPU = "GPU"
"""The resource that a job asks for where a worker has it."""
SCHEMES = ("tcp", "tls")
"""How a scheduler may be spoken to."""
CONNECT_SECONDS = 5
LOST_SECONDS = 15.0
"""How long a scheduler may be out of reach before it counts as gone."""
CHECK_SECONDS = 1.0
"""How often it is asked whether the scheduler is there, while a result does not come."""
T = TypeVar("T")
R = TypeVar("R")


class Cluster:
    """Runs jobs on a Dask cluster.

    Args:
        client: connected.
        gpu: whether jobs ask for a GPU; None where the workers that are there tell.
        owner: closed with the client: a cluster that was started for these jobs.
    """

    def __init__(self, client: Client, gpu: bool | None = None, owner: Any = None) -> None:
        self.client, self.owner, self._gpu = client, owner, gpu
        self._lost_since: float | None = None

    def _workers(self) -> list[dict[str, Any]]:
        return list(self.client.scheduler_info(n_workers=-1)["workers"].values())

    def submit(self, job: Job) -> Any:
        """Give a job to the scheduler."""
        workers = self._workers()
        gpu = self._gpu if self._gpu is not None else any(GPU in w["resources"] for w in workers)
        neighbours = dict(Counter(str(urlparse(w["host"]).hostname or w["host"]) for w in workers))
        # A key of its own: what another client, or this one before, has asked for is another task.
        key = f"{job.name.replace(' ', '-')}-{uuid.uuid4().hex[:8]}"
        resources = {GPU: 1} if gpu else None
        return self.client.submit(run_on_worker, job, neighbours, key=key, pure=False, resources=resources)

    def outcome(self, handle: Any) -> Outcome:
        """How a job ended."""
        if handle.status in ("cancelled", "lost"):
            raise self._gone()
        error = handle.exception()
        if error is None:
            found: Outcome = handle.result()
            # Or the scheduler would run the job again to have the result, should the worker die that keeps it.
            handle.release()
            return found
        if isinstance(error, KilledWorker):
            reason = f"the workers that ran it died, the last was {error.last_worker.address}"
            return Outcome("failed", Failure(reason, "the logs of the workers", retry=False))
        said = f"a worker cannot run it: {type(error).__name__}: {error}".splitlines()[0]
        return Outcome("failed", Failure(said, "the same autoplan on all machines", retry=False))

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Results of a function of the package, in order. What a worker had that died goes to another.

        Raises:
            DatasetError: one item has cost several workers.
            TrainingError: the scheduler went away, or the workers have another version of the package.
        """
        key = f"reading-{uuid.uuid4().hex[:8]}"
        handles = deque(self.client.map(function, items, key=key, pure=False))
        while handles:
            yield self._mapped(handles.popleft())

    def _mapped(self, handle: Any) -> Any:
        while not handle.done():
            with suppress(TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
                handle.exception(timeout=CHECK_SECONDS)
            self.check()
        error = handle.exception()
        if isinstance(error, KilledWorker):
            raise DatasetError(
                f"the workers that read one of the images died, the last was {error.last_worker.address}, most likely "
                "for want of memory. Start them with --memory-limit 0, fewer on a machine; their logs say more."
            )
        if error is not None:
            said = one_line(error)
            raise TrainingError(f"a worker cannot read images ({said}). Install the same autoplan on all machines.")
        try:
            return handle.result()
        except CancelledError:
            raise self._gone() from None

    def check_sees(self, folder: Path) -> None:
        """Raises DatasetError where a worker does not see a folder."""
        seen = self.client.run(os.path.isdir, str(folder.absolute()), on_error="ignore")  # one may die meanwhile
        if blind := [address for address, sees in seen.items() if not sees]:
            raise DatasetError(
                f"{folder.absolute()} is not there on {len(blind)} of {len(seen)} workers, the first is {blind[0]}. "
                "All machines must see the same files under the same paths."
            )

    def num_fillers(self) -> int:
        """One a worker that is there: all would wait else."""
        return max(1, len(self._workers()))

    def check(self) -> None:
        """Raises TrainingError when the scheduler went away."""
        if self.client.status == "running":
            self._lost_since = None
            return
        self._lost_since = self._lost_since or time.monotonic()
        if self.client.status == "closed" or time.monotonic() - self._lost_since > LOST_SECONDS:
            raise self._gone()

    def _gone(self) -> TrainingError:
        return TrainingError(
            f"the scheduler {self.client.scheduler.address} went away. Its workers save what they have and end. "
            "Start the scheduler and the workers, then the same command: it goes on from there."
        )

    def close(self) -> None:
        """Have the running jobs save and end, by leaving."""
        self.client.close(timeout=CONNECT_SECONDS)
        if self.owner is not None:
            self.owner.close()


def connect(address: str) -> Cluster:
    """A cluster that runs. The certificates for a tls:// address are those of Dask's configuration.

    Raises:
        TrainingError: no scheduler answers, or it and this command do not agree on TLS.
    """
    if address.startswith("tls://"):
        _check_certificates(address)
    scheme, _, location = address.rpartition("://")
    if scheme not in ("", *SCHEMES) or not re.search(r"[^:]:\d{1,5}$", location):
        raise TrainingError(f"--scheduler {shortened(address)}: an address is like tcp://host:8786 or tls://host:8786.")
    try:
        asyncio.run(_greet(address))
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, OverflowError, RuntimeError, asyncio.TimeoutError) as error:
        if "encryption required" in str(error):
            said = f"Dask's configuration requires encryption, and {address} has none. Use an address with tls://"
        else:
            hint = "" if address.startswith("tls://") else ". If it uses TLS, its address starts with tls://"
            said = f"no scheduler answers at {address} ({type(error).__name__}). Start one: dask scheduler{hint}"
        raise TrainingError(said) from None
    if not client.scheduler_info(n_workers=-1)["workers"]:
        logger.warning("%s has no workers yet: dask worker %s --nthreads 1 --memory-limit 0", address, address)
    return Cluster(client)


@contextmanager
def mapper(address: str, folder: Path) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` on the workers of a cluster that runs, for the images in a folder.

    Raises:
        TrainingError: see `connect`.
        DatasetError: a worker does not see the folder.
    """
    cluster = connect(address)
    try:
        cluster.check_sees(folder)
        yield cluster.map
    finally:
        cluster.close()


async def _greet(address: str) -> None:
    """One connection, closed at once. Dask's client tries again and again, and what it does in the background goes on
    when it has given up.

    Raises:
        OSError: nothing listens there, or it does not speak as this command does.
        RuntimeError: Dask's configuration requires encryption, and the address has none.
    """
    arguments = Security().get_connection_args("client")
    with socket.create_connection(parse_host_port(parse_address(address)[1]), timeout=CONNECT_SECONDS):
        pass
    comm = await asyncio.wait_for(open_comm(address, timeout=CONNECT_SECONDS, **arguments), CONNECT_SECONDS)
    comm.abort()


def _check_certificates(address: str) -> None:
    """Raises TrainingError when Dask's configuration names no certificates for a client, or none that can be read."""
    names = "distributed.comm.tls: ca-file, client.cert and client.key"
    try:
        context = Security().get_connection_args("client")["ssl_context"]
    except (OSError, ValueError, TypeError) as error:
        said = (
            f"the certificates for {address} cannot be read ({one_line(error)}). Check {names} in Dask's configuration"
        )
        raise TrainingError(said) from None
    if context is None:
        raise TrainingError(f"{address} needs certificates. Name them in Dask's configuration, {names}")


def start(path: Path) -> Cluster:
    """Workers that Slurm starts, as a YAML file says; they end with this process.

    Raises:
        TrainingError: the file says something else, or sbatch is not there.
    """
    from dask_jobqueue import SLURMCluster

    options = read_slurm(path)
    if shutil.which("sbatch") is None:
        raise TrainingError("there is no sbatch on this machine. Start the command where Slurm jobs are submitted.")
    number = options.pop("workers")
    gpu = "--resources" in options["worker_extra_args"]
    try:
        cluster = SLURMCluster(**options)
        cluster.adapt(minimum_jobs=number, maximum_jobs=number)
        return Cluster(Client(cluster, set_as_default=False), gpu=gpu, owner=cluster)
    except (OSError, RuntimeError) as error:
        raise TrainingError(f"Slurm starts no workers: {error}") from None


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_line(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and re.fullmatch(r"[^\s-]\S*", value) is not None


def _is_time(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}|UNLIMITED", value) is not None


def _is_memory(value: object) -> bool:
    try:
        return isinstance(value, str) and _is_line(value) and parse_bytes(value) > 0
    except (ValueError, OverflowError):
        return False


def _are_lines(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_line, value))


SLURM_KEYS: dict[str, tuple[Callable[[object], bool], str]] = {
    "workers": (_is_count, "a whole number from 1"),
    "partition": (_is_name, "a name"),
    "account": (_is_name, "a name; put quotes around digits"),
    "time": (_is_time, "how long a worker may run, in quotes, such as '24:00:00'"),
    "cpus": (_is_count, "a whole number from 1"),
    "memory": (_is_memory, "a size such as 32GB"),
    "gpus": (lambda value: type(value) is int and value in (0, 1), "0 or 1: for more GPUs, name more workers"),
    "setup": (_are_lines, "a list of shell commands, each a line of text"),
}
"""What a YAML file for Slurm may say: whether a value can be taken, and what to write instead."""


def read_slurm(path: Path) -> dict[str, Any]:
    """Arguments for SLURMCluster, and the number of workers, from a YAML file.

    Raises:
        TrainingError: the file cannot be read, lacks something or says what cannot be used.
    """
    try:
        given = yaml.safe_load(read_text(path))
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise TrainingError(f"{path} cannot be read: {one_line(error)}") from None
    _check_slurm(path, given)
    gpus = given.get("gpus", 1)
    return {
        "workers": given.get("workers", 1),
        "queue": given.get("partition"),
        "account": given.get("account"),
        "walltime": given["time"],
        "cores": 1,
        "processes": 1,
        "job_cpu": given.get("cpus", 8),
        "memory": given.get("memory", "32GB"),
        "job_extra_directives": ["--gres=gpu:1"] if gpus else [],
        "job_script_prologue": given.get("setup", []),
        "worker_extra_args": ["--memory-limit", "0", *(["--resources", f"{GPU}=1"] if gpus else [])],
    }


def _check_slurm(path: Path, given: object) -> None:
    known = ", ".join(sorted(SLURM_KEYS))
    if not isinstance(given, dict):
        raise TrainingError(f"{path}: no mapping. It may name {known}.")
    if unknown := [str(key) for key in given if key not in SLURM_KEYS]:
        raise TrainingError(f"{path}: {', '.join(sorted(unknown))}. It may name {known}.")
    if "time" not in given:
        raise TrainingError(f"{path}: no time. It says how long a worker may run, such as '24:00:00'.")
    for key, value in given.items():
        fits, wanted = SLURM_KEYS[key]
        if not fits(value):
            raise TrainingError(f"{path}: {key} is {value!r}. It must be {wanted}.")


def run_on_worker(job: Job, neighbours: dict[str, int]) -> Outcome:
    """Runs a job in a worker's process, until the job, the worker or whoever asked for it ends.

    Args:
        job: what to run.
        neighbours: number of workers at each address, which share its processors.
    """
    worker = get_worker()
    key = worker.get_current_task()

    def stopped() -> bool:
        task = worker.state.tasks.get(key)
        leaving = worker.status in (Status.closing, Status.closed, Status.closing_gracefully, Status.failed)
        return leaving or task is None or task.state == "cancelled"

    # Dask sets these to 1 in its workers, which would hold for a training.
    share = os.environ.get("AUTOPLAN_NUM_THREADS") or str(machine.threads(neighbours.get(worker.ip, 1)))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return backends.run_job(job, dict.fromkeys(names, share), stopped)
