"""Wall time of six short trainings on a Dask cluster of this machine, with one worker and with two.

The tiny dataset and plan of the tests, `2d` and `3d_fullres`, folds 0 to 2, few iterations; each job trains and scores
with one thread, and most of its time is the start of MONAI, twice. The cache is full before. The times are those of the
whole command.

    python benchmarks/trainings.py
    python benchmarks/trainings.py --waiting

`--waiting` puts a stand-in for MONAI in its place that waits for 10 seconds, as a job does whose work is done by a GPU
of its own: what is left is what the running of jobs costs.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
WAITING = "--waiting" in sys.argv
sys.path.insert(0, str(TESTS))
from conftest import TINY_PLAN, write_project  # noqa: E402

TASK = TINY_PLAN.name
SETTINGS = "--max_epochs 2 --epoch_length 10 --val_batches 2 --num_workers 0 --device cpu"


def python(*words: str, folder: Path, **more: str) -> "subprocess.Popen[bytes]":
    """A process of this Python, whose output goes to a file."""
    log = (folder / "log").open("ab")
    environment = {**os.environ, "AUTOPLAN_NUM_THREADS": "1", **more}
    if WAITING:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS / "stub_monai")])
        environment |= {"PYTHONPATH": path, "STUB_SECONDS": "5", "STUB_NOTES": str(folder / "notes")}
    return subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=environment, stdout=log, stderr=log)


def finish(*words: str, folder: Path) -> float:
    """Runs a command to its end; seconds."""
    start = time.perf_counter()
    status = python(*words, folder=folder).wait()
    assert status == 0, (folder / "log").read_text()[-3000:]
    return time.perf_counter() - start


def train(folder: Path, workers: int) -> float:
    """Seconds that all jobs take on a cluster of so many workers."""
    for models in folder.glob("bundles/*/*/models"):
        shutil.rmtree(models)
    file = folder / f"scheduler-{workers}.json"
    cluster = "distributed.cli.dask_"
    processes = [python(f"{cluster}scheduler", "--port", "0", "--scheduler-file", str(file), folder=folder)]
    options = f"--scheduler-file {file} --nthreads 1 --memory-limit 0 --no-dashboard".split()
    processes += [python(f"{cluster}worker", *options, folder=folder) for _ in range(workers)]
    try:
        while not file.is_file():
            time.sleep(0.1)
        time.sleep(5)  # until the workers are there
        address = file.read_text().partition('"address": "')[2].partition('"')[0]
        words = f"autoplan train {TASK} --configurations 2d,3d_fullres --folds 0,1,2 {SETTINGS} --scheduler {address}"
        return finish(*words.split(), folder=folder)
    finally:
        for process in processes[::-1]:
            process.kill()


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder)
        finish(*f"autoplan train {TASK} --configurations 2d --folds 0 {SETTINGS}".split(), folder=folder)
        seconds = {workers: train(folder, workers) for workers in (1, 2)}
    print("| workers | seconds | of one worker |\n|--|--|--|")
    for workers, taken in seconds.items():
        print(f"| {workers} | {taken:.0f} | {taken / seconds[1]:.2f} |")


if __name__ == "__main__":
    main()
