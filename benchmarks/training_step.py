"""Seconds of a training step: float32 against bfloat16, contiguous against channels-last, eager against compiled.

    python benchmarks/training_step.py [--patch 40,56,40] [--batch 2] [--steps 6] [--compile]

Prints a table of the median over the steps, with machine and versions. A step is forward, loss, backward and optimizer
on random data, for the network that is planned for Task04_Hippocampus; on a CPU it keeps freed memory, as bundles do.
"""

import platform
import statistics
import sys
import time
from pathlib import Path

import fire
import torch
from monai import __version__ as monai_version
from monai.networks.nets import DynUNet

sys.path.insert(0, str(Path(__file__).parents[1] / "templates"))

from scripts.cpu import keep_freed_memory
from scripts.losses import SparseDiceCELoss


def network_for(patch: tuple[int, ...], first: int = 30) -> torch.nn.Module:
    """The network that is planned for Task04_Hippocampus, deeper for a larger patch, with `first` features on the first
    level."""
    poolings = min(5, *((n & -n).bit_length() - 1 for n in patch))
    features = [min(first * 2**level, 320) for level in range(poolings + 1)]
    return DynUNet(
        len(patch), 1, 3, [3] * (poolings + 1), [1] + [2] * poolings, [2] * poolings, features,
        norm_name=("INSTANCE", {"affine": True}),
    )  # fmt: skip


def heading(patch: tuple[int, ...], batch: int) -> str:
    """Machine, versions and sizes."""
    return (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"monai {monai_version}, patch {'x'.join(map(str, patch))}, batch {batch}"
    )


def step_seconds(patch: tuple[int, ...], batch: int, steps: int, *, amp: bool, channels_last: bool, compiled: bool):
    """Median seconds of `steps` steps, after two to warm up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dims = len(patch)
    torch.manual_seed(0)
    network = network_for(patch).to(device)
    last = torch.channels_last_3d if dims == 3 else torch.channels_last
    layout = last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    call = torch.compile(network) if compiled else network
    loss_function = SparseDiceCELoss(smooth_nr=0.0, smooth_dr=1e-8)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4, weight_decay=3e-5, amsgrad=True)
    image = torch.randn(batch, 1, *patch, device=device).to(memory_format=layout)
    label = torch.randint(0, 3, (batch, 1, *patch), device=device)
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, enabled=amp):
            logits = call(image)
        loss_function(logits.float(), label).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def main(patch: tuple[int, ...] = (40, 56, 40), batch: int = 2, steps: int = 6, compile: bool = False) -> None:
    """Measure every combination and print the table."""
    keep_freed_memory()
    print(heading(patch, batch))
    for compiled in (False, True) if compile else (False,):
        for channels_last in (False, True):
            for amp in (False, True):
                seconds = step_seconds(
                    tuple(patch), batch, steps, amp=amp, channels_last=channels_last, compiled=compiled
                )
                kind = "autocast" if amp else "float32"
                layout = "channels-last" if channels_last else "contiguous"
                print(f"{kind:9} {layout:14} {'compiled' if compiled else 'eager':9} {seconds:7.3f} s", flush=True)


if __name__ == "__main__":
    fire.Fire(main)
