"""Jobs and readings on a local Dask cluster of real processes: a scheduler and workers, some of which are killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY_PLAN, Stub, is_alive, wait_until, write_tiny

pytest.importorskip("distributed", reason="comes with autoplan[cluster]")

from dask import config as dask_config

from autoplan.__main__ import main
from autoplan.base.errors import DatasetError, TrainingError
from autoplan.data import readings
from autoplan.training import cluster, failures, lease

TASK = TINY_PLAN.name
FOLDS = ("0", "1", "2")
WORDS = ("train", TASK, "--configurations", "2d,3d_fullres", "--folds", ",".join(FOLDS))


class Dask:
    """A scheduler and workers as processes."""

    def __init__(self, folder: Path, *flags: object) -> None:
        self.folder, self.processes = folder, []
        self.file = folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", self.file, *flags
        )
        wait_until(lambda: self.file.is_file() and self.file.read_text().endswith("}"))
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
    monkeypatch.setenv("STUB_SECONDS", "0.2")
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
    words = ("train", TASK, "--folds", "0", "--configurations", "2d", "--max_epochs")
    last = stub.task / "2d" / "models" / "fold_0" / "last.pt"
    # More epochs than can end before the signal comes, however slow the machine is.
    first = start(dask, *words, "1000")
    wait_until(last.is_file)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    second = start(dask, *words, str(int(last.read_text()) + 10))
    assert second.wait(60) == 0, second.stdout.read() + dask.logs()
    assert not stub.notes("clash")
    assert [name for name, _ in stub.notes("end")] == ["training 2d 0", "evaluating 2d 0"]


SLOW = """from time import sleep
from autoplan.data import cases, fingerprint
fingerprint.read_case = lambda *given: sleep(0.1) or cases.read_case(*given)
"""


def test_images_are_read_by_workers_and_one_is_killed(stub: Stub, dask: Dask, tmp_path: Path) -> None:
    """The fingerprint is that of a reading here."""
    tiny = write_tiny(tmp_path / "Task91_Tiny", num_cases=12, modalities=("CT",))
    (tmp_path / "slow.py").write_text(SLOW)
    workers = [dask.worker("--no-nanny", "--preload", str(tmp_path / "slow.py")) for _ in range(2)]
    words = ("plan", str(tiny.folder), "--bundles")
    command = start(dask, *words, str(tmp_path / "there"))
    kept = tmp_path / "there" / "Task91_Tiny" / readings.NAME
    wait_until(lambda: kept.is_file() and kept.read_bytes().count(b"\n") >= 4)
    workers[0].kill()
    assert command.wait(60) == 0, command.stdout.read() + dask.logs()
    assert main([*words, str(tmp_path / "here"), "--num_processes", "1"]) == 0
    there, here = (tmp_path / place / "Task91_Tiny" / "fingerprint.json" for place in ("there", "here"))
    assert there.read_bytes() == here.read_bytes()


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_reading_that_fails_on_workers_is_one_line(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that workers do not see, a function that they do not have, a case that kills them."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent), str(Path(__file__).parents[2])]),
    )
    (tmp_path / "dask").mkdir()
    started = Dask(tmp_path / "dask")
    try:
        started.worker("--no-nanny")
        with cluster.mapper(started.address, tmp_path) as each:
            assert list(each(abs, range(-3, 0))) == [3, 2, 1]
            with pytest.raises(TrainingError, match=r"cannot read images \(.*\)\. Install the same autoplan"):
                list(each(len, [1]))
            with pytest.raises(DatasetError, match="the workers that read one of the images died"):
                list(each(_die, [1]))
        started.worker("--no-nanny")
        with pytest.raises(DatasetError, match="is not there on 1 of 1 workers"):
            wait_until(lambda: not _sees(started.address, tmp_path / "nowhere"))
    finally:
        for process in reversed(started.processes):
            end(process)


def _sees(address: str, folder: Path) -> bool:
    with cluster.mapper(address, folder):
        return True


NOT_AN_ADDRESS = "an address is like tcp://host:8786 or tls://host:8786."


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tcp://127.0.0.1:9", "no scheduler answers at tcp://127.0.0.1:9 (ConnectionRefusedError)"),
        ("127.0.0.1:9", "no scheduler answers at 127.0.0.1:9"),
        ("tcp://nowhere.invalid:9", "no scheduler answers at tcp://nowhere.invalid:9 (gaierror)"),
        ("tcp://127.0.0.1:99999", "no scheduler answers at tcp://127.0.0.1:99999"),
        ("tcp://127.0.0.1", NOT_AN_ADDRESS),
        ("x://127.0.0.1:9", NOT_AN_ADDRESS),
        ("inproc://1:2", NOT_AN_ADDRESS),
        ("tcp://:9", NOT_AN_ADDRESS),
        ("$x", NOT_AN_ADDRESS),
        ("x" * 5000, NOT_AN_ADDRESS),
    ],
)
def test_no_scheduler_is_one_line_at_once(stub: Stub, capsys: pytest.CaptureFixture, address: str, said: str) -> None:
    begun = time.monotonic()
    assert main([*WORDS, "--scheduler", address]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert time.monotonic() - begun < 3


def test_a_scheduler_that_says_nothing(stub: Stub, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert main([*WORDS, "--scheduler", f"tcp://127.0.0.1:{server.getsockname()[1]}"]) == 1
    assert "no scheduler answers" in capsys.readouterr().err


SLURM = "partition: gpu\naccount: me\ntime: '24:00:00'\nworkers: 4\ncpus: 12\nmemory: 64GB\n"


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitoin: gpu\ntime: '1:00:00'\n", "partitoin. It may name account, cpus"),
        ("partition: gpu\n", "no time"),
        ("- gpu\n", "no mapping"),
        ("1: a\nb: c\ntime: '1:00:00'\n", "1, b. It may name"),
        ("time: '1:00:00'\ngpus: 4\n", "name more workers"),
        ("time: 24:00:00\n", "time is 86400. It must be how long a worker may run, in quotes"),
        ("time: [", "cannot be read"),
    ],
)
def test_slurm_files_that_say_something_else(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=said.replace("[", r"\[")):
        cluster.read_slurm(path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/nowhere", "/"])
def test_slurm_files_that_are_none(path: str) -> None:
    with pytest.raises(TrainingError, match="cannot be read"):
        cluster.read_slurm(Path(path))


WRONG = {
    "workers": ("[2]", "{a: 1}", "null", "-1", "0", "two", "1.5", "true"),
    "partition": ("[gpu]", "{a: 1}", "null", "-1", "''", '"gpu\\n#SBATCH x"', "-x", "a b"),
    "account": ("[me]", "{a: 1}", "null", "-1", "''", "-x"),
    "time": ("[1]", "{a: 1}", "null", "-1", "'-1'", "tomorrow", "60"),
    "cpus": ("[2]", "{a: 1}", "null", "-1", "0", "many"),
    "memory": ("[2]", "{a: 1}", "null", "-1", "'-1GB'", "much", "32"),
    "gpus": ("[1]", "{a: 1}", "null", "-1", "one", "true"),
    "setup": ("module load", "{a: 1}", "null", "-1", "[1]", "[[a]]"),
}


def test_wrong_values_cover_every_key() -> None:
    assert set(WRONG) == set(cluster.SLURM_KEYS)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_wrong_value_for_slurm_is_one_line(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(f"{key}: {value}\n" + ("" if key == "time" else "time: '1:00:00'\n"))
    with pytest.raises(TrainingError, match=f"{key} is .* It must be ") as error:
        cluster.read_slurm(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\xfa", b"time: [\n", b"[" * 5000, b"time: !!bool x", b"time: !!int ''", b"time: !!float []"]
)
def test_a_slurm_file_that_is_no_yaml_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match="cannot be read") as error:
        cluster.read_slurm(path)
    assert "\n" not in str(error.value)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that is its own authority, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    made, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=autoplan"
    command = ["openssl", *words.split(), "-out", str(made), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


def tls(ca: Path, cert: Path, key: Path) -> dict[str, str]:
    """Dask's configuration of a client with certificates."""
    paths = {"ca-file": ca, "client.cert": cert, "client.key": key}
    return {f"distributed.comm.tls.{name}": str(path) for name, path in paths.items()}


def test_a_scheduler_with_tls(stub: Stub, tmp_path: Path, certificate: tuple[Path, Path], monkeypatch, capsys) -> None:
    """It trains with certificates; without them, or with an address for no TLS, one line says what to do."""
    cert, key = certificate
    flags = ("--protocol", "tls", "--tls-ca-file", cert, "--tls-cert", cert, "--tls-key", key)
    (tmp_path / "dask").mkdir()
    started = Dask(tmp_path / "dask", *flags)
    try:
        assert started.address.startswith("tls://")
        words = ["train", TASK, "--folds", "0", "--configurations", "2d", "--scheduler"]
        monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2)
        assert main([*words, started.address]) == 1
        assert "needs certificates" in capsys.readouterr().err
        assert main([*words, started.address.replace("tls://", "tcp://")]) == 1
        assert "If it uses TLS, its address starts with tls://" in capsys.readouterr().err
        monkeypatch.setattr(cluster, "CONNECT_SECONDS", 10)
        started.worker("--no-nanny", *map(str, flags))
        with dask_config.set(tls(cert, cert, key)):
            assert main([*words, started.address]) == 0, started.logs()
        assert [name for name, _ in stub.notes("end")] == ["training 2d 0", "evaluating 2d 0"]
    finally:
        for process in reversed(started.processes):
            end(process)


def test_certificates_that_cannot_be_read(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    for ca in (tmp_path / "missing.pem", key):
        with dask_config.set(tls(ca, cert, key)), pytest.raises(TrainingError, match="cannot be read") as error:
            cluster.connect("tls://127.0.0.1:9")
        assert "\n" not in str(error.value)


def test_encryption_that_is_required_refuses_plain_addresses() -> None:
    required = {"distributed.comm.require-encryption": True}
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with dask_config.set(required), pytest.raises(TrainingError, match="requires encryption"):
            cluster.connect(address)


def test_without_sbatch_it_is_an_error(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm.yaml").write_text(SLURM)
    if shutil.which("sbatch"):
        pytest.skip("there is one here")
    assert main([*WORDS, "--slurm", str(tmp_path / "slurm.yaml")]) == 1
    assert "sbatch" in capsys.readouterr().err
