"""What scripts/cpu.py of a bundle gains: seconds and memory of a prediction and of a training step on the CPU.

    python benchmarks/cpu.py [--patch 40,56,40] [--batch 7] [--features 30] [--rounds 4] [--repeats 5]

Four ways in turn, each in a process of its own: as torch does it; with freed memory kept; with oneDNN for single images
besides, which makes no difference in bfloat16; and with two passes of the prediction at once, whatever the size of the
window. (A bundle measures itself whether these gain anything.) A window is one patch in eight mirrorings; a step is
forward, loss and backward of a batch; the network is as for Task04_Hippocampus, with as many levels as the patch
allows. Prints the median and the fastest over all rounds, after one to warm up in each process, and the highest memory
of a process.
"""

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import fire
import torch
from training_step import heading, network_for

sys.path.insert(0, str(Path(__file__).parents[1] / "templates"))

import scripts.inferers
import scripts.precision
from scripts.cpu import _sum_at_once
from scripts.losses import SparseDiceCELoss

WAYS = ("as torch does it", "freed memory kept", "and oneDNN", "and two passes at once")


def measure(way: str, what: str, patch: tuple[int, ...], batch: int, features: int, repeats: int) -> dict[str, object]:
    """Seconds of each repetition and the memory of this process, bytes."""
    if way == WAYS[0]:
        scripts.precision.keep_freed_memory = lambda: None
    if way in WAYS[:2]:
        scripts.precision.OneDNNConvolutions = contextlib.nullcontext
    sum_of = _sum_at_once if way == WAYS[3] else lambda function, first, second: function(first) + function(second)
    scripts.inferers.SumOfHalves = lambda: lambda function, items, *_, **__: sum_of(function, items[::2], items[1::2])
    scripts.inferers.SMALL_WINDOW = float("inf")
    torch.manual_seed(0)
    network = network_for(patch, features)
    amp = scripts.precision.default_amp("cpu")
    window = scripts.inferers.MirroredWindowInferer(patch, amp=amp)
    loss_function = SparseDiceCELoss()
    image, label = torch.randn(batch, 1, *patch), torch.randint(0, 3, (batch, 1, *patch))

    def predict() -> None:
        with torch.no_grad():
            window(image[:1], network.eval())

    def train() -> None:
        logits = scripts.precision.AutocastInferer(amp)(image, network.train())
        loss_function(logits, label).backward()
        network.zero_grad()

    run = predict if what == "window" else train
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return {"seconds": times[1:], "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def main(
    patch: tuple[int, ...] = (40, 56, 40),
    batch: int = 7,
    features: int = 30,
    rounds: int = 4,
    repeats: int = 5,
    only: str = "",
) -> None:
    """Measure all and print the table; `only` is for the processes that measure one."""
    if only:
        way, what = only.split("/")
        print(json.dumps(measure(way, what, tuple(patch), batch, features, repeats)))
        return
    print(heading(patch, batch))
    found = defaultdict(list)
    for _ in range(rounds):
        for way in WAYS[: 4 if torch.get_num_threads() > 1 else 3]:  # two passes at once take two threads
            for what in ("window", "step"):
                if way == WAYS[3] and what == "step":
                    continue
                command = [sys.executable, "-W", "ignore", __file__, "--patch", ",".join(map(str, patch))]
                sizes = {"batch": batch, "features": features, "repeats": repeats}
                command += [f"--{name}={value}" for name, value in sizes.items()] + ["--only", f"{way}/{what}"]
                found[way, what].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    for (way, what), results in sorted(found.items(), key=lambda item: item[0][1], reverse=True):
        seconds = [s for result in results for s in result["seconds"]]
        memory = max(result["bytes"] for result in results)
        print(
            f"{what:7} {way:23} median {statistics.median(seconds):6.2f} s  fastest {min(seconds):6.2f} s  "
            f"{memory / 2**20:5.0f} MiB"
        )


if __name__ == "__main__":
    fire.Fire(main)
