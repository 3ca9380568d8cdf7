"""Jobs on a local Dask cluster of real processes: a scheduler and workers, some of which are killed."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY_PLAN, Stub, is_alive, wait_until

pytest.importorskip("distributed", reason="comes with autoplan[cluster]")

from autoplan import cluster, failures, lease
from autoplan.__main__ import main
from autoplan.errors import TrainingError

TASK = TINY_PLAN.name
FOLDS = ("0", "1", "2")
WORDS = ("train", TASK, "--configurations", "2d,3d_fullres", "--folds", ",".join(FOLDS))


class Dask:
    """A scheduler and workers as processes."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder, self.processes = folder, []
        self.file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", self.file, *more)
        wait_until(self.file.is_file)
        self.address = json.loads(self.file.read_text())["address"]

    def _start(self, *words: object) -> "subprocess.Popen[bytes]":
        log = (self.folder / f"dask-{len(self.processes)}.log").open("wb")
        command = [sys.executable, "-m", "distributed.cli.dask_" + str(words[0]), *map(str, words[1:])]
        # Dask is started outside the project, and without what the test has set for trainings only.
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        self.processes.append(process)
        return process

    def worker(self, *more: str) -> "subprocess.Popen[bytes]":
        """One more worker."""
        words = ("--nthreads", "1", "--no-dashboard", "--local-directory", self.folder)
        return self._start("worker", self.address, *words, *more)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("dask-*.log")))


def end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:  # a worker may hang when its scheduler went first
        process.kill()


@pytest.fixture
def dask(tmp_path: Path, stub: Stub) -> Iterator[Dask]:
    (tmp_path / "dask").mkdir()
    started = Dask(tmp_path / "dask")
    yield started
    for process in reversed(started.processes):
        end(process)


def start(dask: Dask, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "autoplan", *words, "--scheduler", dask.address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_worker_that_is_killed_costs_nothing(stub: Stub, dask: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 configurations x 3 folds on two workers, one of which is killed in the middle. The other has a memory limit
    that is smaller than a training, which does not count."""
    monkeypatch.setenv("STUB_SECONDS", "0.4")
    doomed = dask.worker("--no-nanny", "--resources", "GPU=1", "--memory-limit", "0")
    command = start(dask, *WORDS)
    wait_until(lambda: len(stub.notes("helper")) >= 2)
    dask.worker("--resources", "GPU=1", "--memory-limit", "400MB")
    victims = [pid for pid in stub.alive() if is_alive(pid)]
    doomed.kill()
    assert victims
    wait_until(lambda: not any(map(is_alive, victims)), 15)
    assert command.wait(120) == 0, command.stdout.read() + dask.logs()

    jobs = [f"{c} {fold}" for c in ("2d", "3d_fullres") for fold in FOLDS]
    ends = Counter(name for name, _ in stub.notes("end"))
    assert ends == {**{f"{step} {job}": 1 for step in ("training", "evaluating") for job in jobs}, "caching 2d -": 1}
    assert not stub.notes("clash")
    assert stub.alive() == []
    assert not list(stub.task.rglob(lease.NAME))
    before = len(stub.notes("start"))
    assert main([*WORDS]) == 0
    assert len(stub.notes("start")) == before


def test_a_scheduler_that_goes_away_is_named_and_trainings_end(
    stub: Stub, dask: Dask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SECONDS", "0.6")
    dask.worker("--no-nanny")
    command = start(dask, "train", TASK, "--folds", "0", "--configurations", "2d", "--max_epochs", "1000")
    last = stub.task / "2d" / "models" / "fold_0" / "last.pt"
    wait_until(last.is_file)
    dask.scheduler.kill()
    assert command.wait(60) == 1
    out = command.stdout.read()
    assert "Error: the scheduler" in out, out
    assert "Start the scheduler and the workers, then the same command" in out
    assert "Traceback" not in out.partition("Error: the scheduler")[2]
    wait_until(lambda: stub.alive() == [], 60)
    assert failures.last_status((last.parent / "train.log").read_text()) == 143
    assert main(["train", TASK, "--folds", "0", "--configurations", "2d", "--max_epochs", last.read_text()]) == 0


def test_a_client_that_goes_away_takes_its_trainings_along(
    stub: Stub, dask: Dask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They save, and the same command goes on with them at once."""
    monkeypatch.setenv("STUB_SECONDS", "0.2")
    dask.worker("--no-nanny")
    words = ("train", TASK, "--folds", "0", "--configurations", "2d", "--max_epochs", "8")
    first = start(dask, *words)
    wait_until((stub.task / "2d" / "models" / "fold_0" / "last.pt").is_file)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    second = start(dask, *words)
    assert second.wait(60) == 0, second.stdout.read() + dask.logs()
    assert not stub.notes("clash")
    assert [name for name, _ in stub.notes("end")] == ["training 2d 0", "evaluating 2d 0"]


def test_no_scheduler(stub: Stub, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    assert main([*WORDS, "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert "no scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


SLURM = "partition: gpu\naccount: me\ntime: '24:00:00'\nworkers: 4\ncpus: 12\nmemory: 64GB\n"


def test_a_scheduler_with_certificates(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scheduler, worker and client know each other by Dask's own configuration; without it there is one line."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with openssl")
    key, certificate, folder = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "dask"
    folder.mkdir()
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    names = {"CA_FILE": certificate}
    for who in ("SCHEDULER", "WORKER", "CLIENT"):
        names |= {f"{who}__CERT": certificate, f"{who}__KEY": key}
    for name, path in names.items():
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}", str(path))
    dask = Dask(folder, "--protocol", "tls")
    try:
        assert dask.address.startswith("tls://")
        dask.worker("--no-nanny")
        first = start(dask, "train", TASK, "--configurations", "2d", "--folds", "0")
        assert first.wait(60) == 0, first.stdout.read() + dask.logs()
        for name in names:
            monkeypatch.delenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}")
        stranger = start(dask, "train", TASK, "--configurations", "2d", "--folds", "1")
        assert stranger.wait(60) == 1
        assert "TLS needs certificates" in stranger.stdout.read()
    finally:
        for process in reversed(dask.processes):
            end(process)


def test_slurm_options(tmp_path: Path) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(SLURM)
    options = cluster.read_slurm(path)
    assert options.pop("workers") == 4
    from dask_jobqueue.slurm import SLURMJob

    script = SLURMJob("tcp://here:1", name="worker", **options).job_script()
    for line in ("-p gpu", "-A me", "--cpus-per-task=12", "-t 24:00:00", "--gres=gpu:1", "--mem=60G"):
        assert f"#SBATCH {line}\n" in script
    assert "--nthreads 1" in script
    assert "--memory-limit 0 --resources GPU=1" in script  # the last of two counts


WRONG = {
    "workers": ["x", "-1", "0", "2.5", "[4]", "", "true"],
    "partition": ["[gpu]", "{a: b}", "7", "''"],
    "account": ["[me]", "3.5"],
    "cpus": ["x", "0", "-2", "{}", ""],
    "memory": ["[32GB]", "32", ""],
    "gpus": ["x", "-1", "2", "[1]", "", "true"],
    "setup": ["module load x", "{a: b}", "[1]", "[[a]]", ""],
}
"""Values of keys of the file that are of another kind."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitoin: gpu\ntime: '1:00:00'\n", "partitoin. It may name account, cpus"),
        ("partition: gpu\n", "no time"),
        ("- gpu\n", "no mapping"),
        ("time: '1:00:00'\ngpus: 4\n", "name more workers"),
        *(
            (f"time: '1:00:00'\n{key}: {value}\n", f"{key} is .*It takes")
            for key, values in WRONG.items()
            for value in values
        ),
        ("time: 24:00:00\n", "time is .*in quotes"),
        ("time:\n", "time is None"),
        ("time: [", "cannot be read"),
    ],
)
def test_slurm_files_that_say_something_else(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=said.replace("[", r"\[")):
        cluster.read_slurm(path)


def test_without_sbatch_it_is_an_error(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm.yaml").write_text(SLURM)
    if shutil.which("sbatch"):
        pytest.skip("there is one here")
    assert main([*WORDS, "--slurm", str(tmp_path / "slurm.yaml")]) == 1
    assert "sbatch" in capsys.readouterr().err
