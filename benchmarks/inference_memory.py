"""Peak memory of a bundle's inference on a large volume, against the volume itself.

    python benchmarks/inference_memory.py [--shape 400 512 512] [--classes 2] [--configuration 3d_fullres]
        [--max_memory 4GB] [--limit 4e9]

Makes a random CT volume, a bundle with a small network and random weights, and predicts with `monai.bundle run
inference`, without mirroring, in a process of its own. Counted is the peak of that process's resident memory as the
kernel knows it, above what it has after its imports; every tenth of a second, what of it is no file (the image lies in
memory that is shared with the loader's worker); and, every half second, the memory of the process and of its loader's
worker together (shared pages once).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
from predictions import random_weights, words

from autoplan.bundle.render import render_all
from autoplan.data.facts import Case, Dataset
from autoplan.planning.values import ChannelNormalization, Configuration, Plan

PATCH = (64, 64, 64)
STRIDES = ((1, 1, 1), *((2, 2, 2),) * 2)
FEATURES = (4, 8, 16)
RUN = """
import runpy, sys
import monai.bundle, monai.engines, monai.inferers, monai.transforms, monai.handlers, ignite, scipy.ndimage, nibabel
print("imported", flush=True)
sys.stdin.readline()
sys.argv = ["monai.bundle", *sys.argv[1:]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def small_plan(classes: int, spacing: float) -> Plan:
    """A plan with small networks and patches, and a first stage of half the resolution."""

    def configuration(name: str, factor: float) -> Configuration:
        return Configuration(
            name=name,  # type: ignore[arg-type]
            spacing=(spacing * factor,) * 3,
            median_shape=(400, 512, 512),
            patch_size=PATCH,
            batch_size=2,
            strides=STRIDES,
            features=FEATURES,
            batch_dice=True,
            augmentation="3d",
        )

    return Plan(
        name="Task00_Large",
        modalities=("CT",),
        labels=tuple((i, f"class{i}") for i in range(classes + 1)),
        num_training=5,
        slice_axis=2,
        normalization=(ChannelNormalization(-100.0, 300.0, 50.0, 80.0),),
        nonzero_only=False,
        single_component=(1,),
        folds=tuple((f"case_{i}",) for i in range(5)),
        configurations=tuple(
            configuration(n, f) for n, f in (("3d_fullres", 1), ("3d_lowres", 2), ("3d_cascade_fullres", 1))
        ),
        decisions=(),
    )


def write_large(folder: Path, shape: tuple[int, ...], classes: int, spacing: float) -> tuple[Plan, Path, Path]:
    """A random CT of a shape and a spacing in mm, and bundles for 1 mm: the plan, the bundles' folder, the image's."""
    images = folder / "images"
    images.mkdir()
    coarse = np.random.default_rng(0).normal(50, 100, [math.ceil(n / 8) for n in shape]).astype(np.int16)
    volume = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[tuple(map(slice, shape))]
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([spacing] * 3 + [1])), images / "large.nii.gz")
    plan = small_plan(classes, 1.0)
    cases = tuple(Case(f"case_{i}", (f"imagesTr/case_{i}.nii.gz",), f"labelsTr/case_{i}.nii.gz") for i in range(5))
    dataset = Dataset(folder / "data", plan.name, plan.modalities, plan.labels, cases, ())
    render_all(plan, dataset, folder / "bundles")
    return plan, folder / "bundles", images


def memory(pid: int) -> int:
    """Bytes of a process and its children, shared pages divided among those that share them."""
    total = 0
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    for process in (str(pid), *children):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def resident(pid: int, kind: str) -> int:
    """Bytes of a process: VmRSS is now, VmHWM the peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(400, 512, 512))
    parser.add_argument("--classes", type=int, default=2, help="foreground classes")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--overlap", type=float, default=0.25, help="less than the half that is usual saves time")
    parser.add_argument("--spacing", type=float, default=1.0, help="mm of the volume's voxels; the plan has 1 mm")
    parser.add_argument("--max_memory", help="such as 4GB")
    parser.add_argument("--limit", type=float, help="bytes that each process may have for its data (RLIMIT_DATA)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan, bundles, images = write_large(folder, tuple(given.shape), given.classes, given.spacing)
        bundle = bundles / plan.name / given.configuration
        random_weights(bundle)
        memory_given = {"max_memory": given.max_memory} if given.max_memory else {}
        settings = {"mirror": False, "overlap": given.overlap, **memory_given, "dataset_dir": images}
        arguments = words(bundle, **settings, output_dir=folder / "out")

        def limit() -> None:
            if given.limit:
                resource.setrlimit(resource.RLIMIT_DATA, (int(given.limit),) * 2)

        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RUN, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=limit,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        base, base_resident = memory(process.pid), resident(process.pid, "VmRSS")
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdin.close()
        base_anonymous = resident(process.pid, "RssAnon")
        curve: list[tuple[float, int]] = []
        highest = anonymous = 0
        reader = threading.Thread(target=lambda: print(process.stdout.read()[-2000:]))  # type: ignore[union-attr]
        reader.start()
        while process.poll() is None:
            curve.append((time.monotonic() - started, memory(process.pid) - base))
            try:
                highest = max(highest, resident(process.pid, "VmHWM") - base_resident)
                for _ in range(5):
                    anonymous = max(anonymous, resident(process.pid, "RssAnon") - base_anonymous)
                    time.sleep(0.1)
            except (OSError, StopIteration):
                break
        reader.join()
        process.wait()
        size = 4 * math.prod(given.shape)
        when, peak = max(curve, key=lambda item: item[1])
        print(json.dumps({"exit": process.returncode, "volume_MB": size / 1e6, "peak_MB": highest / 1e6,
                          "peak_volumes": highest / size,
                          "without_files_MB": anonymous / 1e6, "with_worker_volumes": peak / size, "at_s": when,
                          "seconds": curve[-1][0]}, indent=1))  # fmt: skip
        step = max(1, len(curve) // 40)
        print(" ".join(f"{seconds:.0f}s:{used / size:.1f}" for seconds, used in curve[::step]))


if __name__ == "__main__":
    main()
