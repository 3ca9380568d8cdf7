"""Runs jobs: one by one with its retries, and all of them on the devices of this machine."""

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from autoplan.base.codec import to_dict
from autoplan.base.processes import waiting
from autoplan.base.tables import duration
from autoplan.planning.values import LOWRES
from autoplan.training import lease, supervisor
from autoplan.training.failures import OTHER_RECIPE, Failure, explain, log_tail
from autoplan.training.jobs import RETRIES, Job, caching_jobs
from autoplan.training.machine import gpus, threads
from autoplan.training.recipe import other_recipe
from autoplan.training.standing import has_results, is_done, is_trained, needs, ready, row, unfit_reason

POLL_SECONDS = 0.2
SHOW_SECONDS = 1.0
HELD_SECONDS = lease.STALE_SECONDS + supervisor.GRACE_SECONDS
"""How long a job waits for a process that is training it already, such as one that was told to end and saves."""
MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
Never: Callable[[], bool] = lambda: False  # noqa: E731


@dataclass(frozen=True)
class Outcome:
    """How a job ended: "done", "failed", or "stopped" when it was told to end."""

    state: str
    failure: Failure | None = None


class Handle(Protocol):
    """A job that was given away."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...


class Backend(Protocol):
    """What runs jobs."""

    def submit(self, job: Job) -> Any:
        """Run a job as soon as there is a place. Returns a Handle."""
        ...

    def outcome(self, handle: Any) -> Outcome:
        """How a job ended whose handle is done."""
        ...

    def num_fillers(self) -> int:
        """Jobs that fill a cache together before others start; 0 where they start one by one: the first fills it."""
        ...

    def check(self) -> None:
        """Raises TrainingError when no job can end any more."""
        ...

    def close(self) -> None:
        """End what runs; it can be taken up again."""
        ...


def run_job(job: Job, environment: Mapping[str, str], stopped: Callable[[], bool] = Never) -> Outcome:
    """Runs what a job still needs, and again where that may help, from the last checkpoint.

    Args:
        job: nothing is started when it is done on disk.
        environment: variables to set for it: its device, its share of the threads.
        stopped: asked again and again; once it is true the job saves and ends.
    """
    attempts, held_since, killed = 0, time.monotonic(), _memory_kills()
    while not (job.fold is not None and is_done(job)):
        if reason := unfit_reason(job) or other_recipe(job):
            return Outcome("failed", Failure(reason, OTHER_RECIPE, retry=False))
        status, said = _run_supervisor(job, environment, stopped)
        if stopped():
            return Outcome("stopped")
        if status in (supervisor.HELD, supervisor.LOST):
            if time.monotonic() - held_since > HELD_SECONDS:
                return Outcome("failed", _held(job))
            time.sleep(POLL_SECONDS)
            continue
        if status == 0 and (job.fold is None or is_done(job)):
            break
        attempts, held_since = attempts + 1, time.monotonic()
        tail = said or log_tail(job.log)
        failure = explain(status, tail, out_of_memory=_memory_kills() > killed)
        if attempts > RETRIES or not failure.retry:
            return Outcome("failed", failure)
    return Outcome("done")


def _run_supervisor(job: Job, environment: Mapping[str, str], stopped: Callable[[], bool]) -> tuple[int, str]:
    """Exit status of a supervisor that runs a job, and what it said itself."""
    command = [sys.executable, "-m", "autoplan.training.supervisor", json.dumps(to_dict(job))]
    # In a session of its own: Ctrl-C reaches this process, which then closes the pipe.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=_environment(environment), start_new_session=True,
    )  # fmt: skip
    try:
        while process.poll() is None and not stopped():
            time.sleep(POLL_SECONDS)
    finally:
        # The end of the pipe asks the supervisor to end the job. It says little: its errors fit into the pipe.
        _, said = process.communicate()
    return process.returncode, said


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with the package that is running now first on the path of modules, and the encoding
    that logs are read in."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **waiting(os.environ), "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **more}


def _held(job: Job) -> Failure:
    who = lease.holder(job.folder)
    reason = "another process is training it" if who is None else f"process {who.pid} on {who.host} is training it"
    return Failure(reason, f"wait for it or end it; its lease is {job.folder / lease.NAME}", retry=False)


def _memory_kills() -> int:
    """How many processes of this machine's or container's group were killed for memory; 0 where that is not told."""
    try:
        fields = dict(line.split() for line in MEMORY_EVENTS.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(fields.get("oom_kill", 0))


class Machine:
    """Runs jobs on this machine: as many at a time as there are GPUs, or one on the CPU.

    Args:
        jobs: another number of jobs at a time; they share the GPUs.
        devices: the GPUs; found if not given.
        fills: whether jobs that start together wait until their caches are filled.
    """

    def __init__(self, jobs: int | None = None, devices: Sequence[str] | None = None, *, fills: bool = True) -> None:
        found = gpus() if devices is None else list(devices)
        self.fills = fills
        self.places = jobs or max(1, len(found))
        # A number that the user has set is the user's wish for each job.
        share = os.environ.get("OMP_NUM_THREADS") or str(threads(self.places))
        self._free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for place in range(self.places):
            device = {"CUDA_VISIBLE_DEVICES": found[place % len(found)]} if found else {}
            self._free.put({"OMP_NUM_THREADS": share, **device})
        self._stop = threading.Event()
        self._executor = ThreadPoolExecutor(self.places)

    def submit(self, job: Job) -> "Future[Outcome]":
        """Run a job as soon as there is a place."""
        return self._executor.submit(self._run, job)

    def _run(self, job: Job) -> Outcome:
        environment = self._free.get()
        try:
            return Outcome("stopped") if self._stop.is_set() else run_job(job, environment, self._stop.is_set)
        finally:
            self._free.put(environment)

    def outcome(self, handle: "Future[Outcome]") -> Outcome:
        """How a job ended."""
        return handle.result()

    def num_fillers(self) -> int:
        """One where jobs start together: it uses all processors."""
        return int(self.fills and self.places > 1)

    def check(self) -> None:
        """Nothing can go away."""

    def close(self) -> None:
        """Have the running jobs save and end."""
        self._stop.set()
        self._executor.shutdown(wait=True)


def run_all(jobs: Sequence[Job], backend: Backend, show: "Display") -> dict[Job, Outcome]:
    """Runs jobs, each as soon as what it needs is done; a job that fails keeps none but those that need it.

    Args:
        jobs: those that are done on disk are not run; what they need and was not asked for is run as well.
        backend: runs them. Where jobs start together the caches are filled first, each by as many jobs as it says.
        show: is told how they stand.

    Returns:
        The outcome of each job that was begun.
    """
    todo, prerequisites = _with_prerequisites(jobs, backend.num_fillers())
    done: set[Job] = set()
    handles: dict[Job, Any] = {}
    outcomes: dict[Job, Outcome] = {}
    try:
        while True:
            for job in ready(todo, prerequisites, done=done, begun=handles):
                handles[job] = backend.submit(job)
            for job, handle in handles.items():
                if job not in outcomes and handle.done():
                    outcomes[job] = backend.outcome(handle)
                    show.ended(job, outcomes[job])
                    if outcomes[job].state == "done":
                        done.add(job)
                        break
            else:
                if len(outcomes) == len(handles):
                    return outcomes
                backend.check()
                show.update([job for job in handles if job not in outcomes], len(outcomes), len(todo))
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        show.say("The running trainings save and end.")
        raise
    finally:
        show.close()
        backend.close()


def _with_prerequisites(jobs: Sequence[Job], num_fillers: int) -> tuple[list[Job], dict[Job, list[Job]]]:
    """What is to be run: jobs that are not done, those that they need and those that fill their caches; and for each
    those that it waits for."""
    wanted = {job.folder: job for job in jobs}
    missing = {job.folder: job for job in jobs if not is_done(job)}
    prerequisites: dict[Job, list[Job]] = {}
    for job in list(missing.values()):
        others = [wanted.get(other.folder, other) for other in needs(job)]
        # What was not asked for may have been trained in any way.
        needed = [o for o in others if o.folder in missing or (o.folder not in wanted and not has_results(o))]
        missing |= {other.folder: other for other in needed}
        prerequisites[job] = needed
    todo = list(missing.values())
    untrained = [job for job in todo if not (job.folder / "last.pt").is_file() and not is_trained(job)]
    fillers = caching_jobs(untrained, num_fillers) if len(untrained) > 1 else {}
    for job, before in fillers.items():
        prerequisites[job] = [*prerequisites.get(job, []), *before]
    return [*dict.fromkeys(itertools.chain(*fillers.values())), *sorted(todo, key=_order)], prerequisites


def _order(job: Job) -> bool:
    """What others wait for comes first."""
    return job.configuration != LOWRES


class Display:
    """Shows how jobs stand: lines that are drawn anew on a terminal, one line an event in a log."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.is_terminal = self.stream.isatty()
        self._drawn = 0
        self._last = 0.0
        self._told: dict[Job, str] = {}

    def update(self, running: Sequence[Job], ended: int, total: int) -> None:
        """Show jobs that run, at most once in SHOW_SECONDS."""
        if time.monotonic() - self._last < SHOW_SECONDS:
            return
        self._last = time.monotonic()
        rows = [(job, _line(job)) for job in running if lease.holder(job.folder) is not None]
        rows = [(job, line) for job, line in rows if not line.endswith(": done")]
        if self.is_terminal:
            summary = f"{ended} of {total} jobs have ended, {len(rows)} run"
            self._draw([summary, *(f"  {line}" for _, line in rows)])
        else:
            for job, line in rows:
                without_time = line.partition(", about")[0]
                if self._told.get(job) != without_time:
                    self._told[job] = without_time
                    self._print(line)

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Say how a job ended."""
        failure = outcome.failure
        if failure is None:
            self.say(f"{job.name}: {outcome.state}")
        else:
            self.say(f"{job.name}: {outcome.state}: {failure.reason}\n  log: {job.log}\n  try: {failure.remedy}")

    def say(self, line: str) -> None:
        """Show a line in place of the jobs."""
        self._draw([])
        self._print(line)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._draw([])

    def _draw(self, lines: Sequence[str]) -> None:
        if self.is_terminal:
            width = os.get_terminal_size(self.stream.fileno()).columns
            cut = [line[: max(1, width - 1)] for line in lines]
            self.stream.write("\x1b[F\x1b[K" * self._drawn + "".join(f"{line}\n" for line in cut))
            self.stream.flush()
            self._drawn = len(cut)

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


def _line(job: Job) -> str:
    """A running job in one line."""
    if job.fold is None:
        return f"{job.name}: preprocessing"
    r = row(job)
    if r.state != "training" or not r.epoch:
        return f"{job.name}: {r.state}"
    left = "" if r.seconds_left is None else f", about {duration(r.seconds_left)} left"
    losses = ", ".join(f"{n} {v:.3f}" for n, v in (("train", r.train_average), ("val", r.val_average)) if v is not None)
    return f"{job.name}: epoch {r.epochs}, {losses}{left}"
