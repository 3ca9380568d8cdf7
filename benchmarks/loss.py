"""The loss of trainings against MONAI's DiceCELoss: memory that is kept for the gradient, and time.

    python benchmarks/loss.py [--classes 3,25,105] [--patch 64,64,64] [--batch 2] [--threads 1,2] [--repeats 9]

Forward and backward pass on random logits, the two losses in turn. Prints a table of the memory as a multiple of the
logits', the median milliseconds, and the largest difference of the gradients as a part of the largest gradient; with
machine and versions. On a GPU the time is that of the GPU, and the peak is that of the device.

On a machine that computes other things, too, OMP_WAIT_POLICY=PASSIVE keeps threads from waiting for each other in vain.
"""

import statistics
import sys
import time
from pathlib import Path

import fire
import torch
from monai.losses import DiceCELoss
from training_step import heading

sys.path.insert(0, str(Path(__file__).parents[1] / "templates"))

from scripts.cpu import keep_freed_memory
from scripts.losses import SparseDiceCELoss

SMOOTH = {"smooth_nr": 0.0, "smooth_dr": 1e-8}


def kept_bytes(loss: torch.nn.Module, logits: torch.Tensor, label: torch.Tensor) -> int:
    """Memory that is kept for the gradient, each storage once."""
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(logits, label)
    return sum(found.values())


def passes(loss: torch.nn.Module, logits: torch.Tensor, label: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds of forward and backward pass, and the gradient."""
    wait = torch.cuda.synchronize if logits.is_cuda else lambda: None
    logits.grad = None
    wait()
    start = time.perf_counter()
    loss(logits, label).backward()
    wait()
    return time.perf_counter() - start, logits.grad


def compare(logits: torch.Tensor, label: torch.Tensor, batch_dice: bool, repeats: int) -> None:
    """Prints a line of the table for each loss."""
    losses = {
        "MONAI": DiceCELoss(to_onehot_y=True, softmax=True, batch=batch_dice, **SMOOTH),
        "ours": SparseDiceCELoss(batch_dice, **SMOOTH),
    }
    times: dict[str, list[float]] = {name: [] for name in losses}
    gradients: dict[str, torch.Tensor] = {}
    for _ in range(repeats + 1):
        for name, loss in losses.items():
            seconds, gradients[name] = passes(loss, logits, label)
            times[name].append(seconds)
    largest = gradients["MONAI"].abs().max()
    difference = float((gradients["ours"] - gradients["MONAI"]).abs().max() / largest)
    for name, loss in losses.items():
        peak = ""
        if logits.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            passes(loss, logits, label)
            peak = f", peak {(torch.cuda.max_memory_allocated() - before) / logits.nbytes:4.1f}"
        kept = kept_bytes(loss, logits, label) / logits.nbytes
        middle = 1000 * statistics.median(times[name][1:])
        dice = "whole batch" if batch_dice else "each sample"
        print(f"{logits.shape[1]:4d} classes, {dice}  {name:5}  kept {kept:4.2f}{peak}  {middle:8.1f} ms", flush=True)
    print(f"{'':26} gradients differ by {difference:.1e} of the largest", flush=True)


def main(
    classes: tuple[int, ...] = (3, 25, 105),
    patch: tuple[int, ...] = (64, 64, 64),
    batch: int = 2,
    threads: tuple[int, ...] = (1, 2),
    repeats: int = 9,
) -> None:
    """Measure all and print the table."""
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for number in threads if device.type == "cpu" else (1,):
        torch.set_num_threads(number)
        print(heading(patch, batch))
        for n in classes:
            logits = torch.randn(batch, n, *patch, device=device, requires_grad=True)
            label = torch.randint(0, n, (batch, 1, *patch), device=device).float()
            for batch_dice in (False, True):
                compare(logits, label, batch_dice, repeats)


if __name__ == "__main__":
    fire.Fire(main)
