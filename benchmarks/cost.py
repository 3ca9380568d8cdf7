"""The estimate of a training step's memory beside what the step takes on this CPU, for three networks.

    python benchmarks/cost.py

The same method as for a GPU, for the CPU and its precision: network, loss, backward pass and optimizer on tensors
without content. It is held against two measurements of the second of two steps: the most that PyTorch had handed out
for tensors, as its profiler counts it, and how far the memory of the process grew, as the kernel counts it, with
buffers of the libraries. Each step runs in a process of its own; freed memory goes back to the system at once.
"""

import ctypes
import json
import platform
import resource
import subprocess
import sys
from dataclasses import replace

import fire
import torch
from monai import __version__ as monai_version

from autoplan.cost import footprint
from autoplan.planning.topology import features, strides
from autoplan.planning.values import Configuration, Plan

NETWORKS = {
    "2D, 256x256, batch 12": ("2d", (256, 256), 12, 6, None),
    "3D, 40x56x40, batch 7": ("3d_fullres", (40, 56, 40), 7, 5, None),
    "3D, 96x96x96, batch 2": ("3d_fullres", (96, 96, 96), 2, 5, 320),
}
"""Name -> configuration, patch, batch, poolings at most, features at most."""


def planned(name: str) -> tuple[Plan, Configuration]:
    """A plan with one channel and three classes, and its configuration."""
    kind, patch, batch, max_pool, most = NETWORKS[name]
    steps = strides(patch, max_pool=max_pool)
    c = Configuration(
        kind, (1.0, 1.0, 1.0), patch, patch, batch, steps, features(len(steps), max_features=most), True, "3d"
    )
    labels = ((0, "background"), (1, "a"), (2, "b"))
    return Plan("T", ("MRI",), labels, 5, 2, (None,), False, (), (), (c,), ()), c


def peak_of_tensors(step: footprint.Step, before: int) -> int:
    """Bytes of tensors at the peak of a step, by PyTorch's profiler, which counts from `before` on."""
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        step()
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = before
    for size in sizes:
        total += size
        peak = max(peak, total)
    return peak


def resident() -> int:
    """Memory of this process at its peak, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str) -> dict[str, int]:
    """What a step takes in this process."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: tensors go back to the system when they are freed
    plan, c = planned(name)
    least = tuple(2 * n for n in c.must_be_divisible_by)
    small = footprint.Step(plan, replace(c, patch_size=least, batch_size=2), like="cpu")
    small.forward()  # what the libraries load at their first use
    start = resident()
    step = footprint.Step(plan, c, like="cpu")
    step()
    step()
    grown = resident() - start
    weights = footprint.FLOAT * sum(p.numel() for p in step.network.parameters())
    kept = 5 * weights + footprint.FLOAT * (step.image.numel() + step.label.numel())
    return {"grown": grown, "tensors": peak_of_tensors(step, kept)}


def main(only: int = 0) -> None:
    """Measures all and prints the table; `only` is for the processes that measure one."""
    if only:
        print(json.dumps(measure(list(NETWORKS)[only - 1])))
        return
    threads, precision = torch.get_num_threads(), footprint.half("cpu")
    print(f"{platform.machine()}, {threads} threads, {precision}, torch {torch.__version__}, monai {monai_version}\n")
    print("| network | estimate | tensors | error | process | error |")
    print("|--|--|--|--|--|--|")
    for number, name in enumerate(NETWORKS, start=1):
        words = [sys.executable, __file__, "--only", str(number)]
        found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        plan, c = planned(name)
        estimate = footprint.training_bytes(plan, c, like="cpu")
        cells = [f"{estimate / 2**20:.0f} MiB"]
        for key in ("tensors", "grown"):
            cells += [f"{found[key] / 2**20:.0f} MiB", f"{100 * (estimate / found[key] - 1):+.1f} %"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    fire.Fire(main)
