"""Time and memory of planning against the number of cases.

    python benchmarks/planning.py [--cases 50 500 5000] [--kinds MR CT CT-float] [--shape 48 48 32] [--report]
    python benchmarks/planning.py --cases 5 20 --kinds CT --shape 512 512 300

Makes a few distinct volumes of each kind and as many names for them (hard links) as there are cases, so what is read is
in the system's cache. Each line is the command `plan` with two processes on a dataset: first with three cases, which
costs the start, then with all (CPU time of all processes, of each case beyond the three; peak memory of the main
process as the kernel knows it, and of all processes, sampled, shared pages once), then with one case more, which alone
is read; with --report, also the command `report`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

DISTINCT = 5
START_CASES = 3
SAMPLE_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    """What a command took: seconds on the clock and of the processors, bytes at most."""

    wall: float
    cpu: float
    main: int
    tree: int


def write_volumes(folder: Path, kind: str, shape: tuple[int, ...]) -> None:
    """Smooth volumes with a ball in them, and noise of a few values where they are small."""
    rng = np.random.default_rng(0)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    far = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij", sparse=True)))
    for i in range(DISTINCT):
        image = 1000 * (1 - far) + 40 * i
        if far.size < 1e6:
            image += rng.normal(0, 30, shape)
        kept = image.astype(np.float32 if kind == "CT-float" else np.int16)
        label = (far < 0.3 + 0.05 * i).astype(np.uint8)
        for name, array in (("image", kept), ("label", label)):
            volume = nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]))
            with nibabel.openers.Opener(folder / f"{name}_{i}.nii.gz", "wb", compresslevel=1) as file:
                volume.to_file_map({"image": nibabel.FileHolder(fileobj=file)})


def write_dataset(folder: Path, volumes: Path, kind: str, count: int) -> None:
    """A dataset of so many names for the volumes."""
    names = [f"case_{i:05}" for i in range(count)]
    for part, name in (("imagesTr", "image"), ("labelsTr", "label")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for i, case in enumerate(names):
            with contextlib.suppress(FileExistsError):
                os.link(volumes / f"{name}_{i % DISTINCT}.nii.gz", folder / part / f"{case}.nii.gz")
    described = {
        "name": folder.name,
        "modality": {"0": kind},
        "labels": {"0": "background", "1": "ball"},
        "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(described))


def processes(root: int) -> list[int]:
    """A process and all that descend from it."""
    found, parents = [root], {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    for process in found:
        found += [pid for pid, parent in parents.items() if parent == process]
    return found


def run(*words: str) -> Run:
    """A command of autoplan, watched."""
    start = time.monotonic()
    command = subprocess.Popen([sys.executable, "-m", "autoplan", *words], stdout=subprocess.DEVNULL)
    cpu: dict[int, float] = {}
    main = tree = 0
    while command.poll() is None:
        memory = 0
        for pid in processes(command.pid):
            with contextlib.suppress(OSError, StopIteration):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                cpu[pid] = (int(fields[11]) + int(fields[12])) / TICKS
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                memory += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                if pid == command.pid:
                    status = Path(f"/proc/{pid}/status").read_text().splitlines()
                    main = max(main, next(1024 * int(s.split()[1]) for s in status if s.startswith("VmHWM")))
        tree = max(tree, memory)
        time.sleep(SAMPLE_SECONDS)
    assert command.returncode == 0
    return Run(time.monotonic() - start, sum(cpu.values()), main, tree)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--kinds", nargs="+", default=["MR", "CT", "CT-float"])
    parser.add_argument("--shape", type=int, nargs=3, default=(48, 48, 32))
    parser.add_argument("--report", action="store_true", help="also time the command report")
    given = parser.parse_args()
    print("kind cases seconds CPU-ms/case main-MB all-MB one-more-s readings-kB/case report-s", flush=True)
    for kind in given.kinds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_volumes(folder, kind, tuple(given.shape))
            write_dataset(folder / "Task00_Start", folder, kind, START_CASES)
            bundles = ("--bundles", str(folder / "bundles"))
            plan = (*bundles, "--num_processes", "2")
            started = run("plan", str(folder / "Task00_Start"), *plan)
            for count in given.cases:
                task = f"Task00_{count}"
                write_dataset(folder / task, folder, kind, count)
                found = run("plan", str(folder / task), *plan)
                size = (folder / "bundles" / task / "readings.jsonl").stat().st_size
                write_dataset(folder / task, folder, kind, count + 1)
                more = run("plan", str(folder / task), *plan, "--force")
                report = run("report", str(folder / task), *bundles) if given.report else None
                each = (found.cpu - started.cpu) / (count - START_CASES)
                print(
                    f"{kind} {count} {found.wall:.1f} {1e3 * each:.1f} {found.main / 1e6:.0f} {found.tree / 1e6:.0f} "
                    f"{more.wall:.1f} {size / count / 1e3:.1f} {f'{report.wall:.1f}' if report else '-'}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
