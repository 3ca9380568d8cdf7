"""A training step while other processes compute, by how the threads of OpenMP wait for each other.

    python benchmarks/waiting.py

Each row is a process of its own with two threads: the median step of a narrow network of the hippocampus (16 to 128
feature maps, one patch of 40x56x40) with the loss and the kernels of bundles. Rows go in turn, twice.
"""

import os
import subprocess
import sys
from pathlib import Path

STEPS = 10
WAYS = {"as it is": {}, "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}} | {
    count: {"GOMP_SPINCOUNT": count} for count in ("1000", "10000", "100000")
}
STEP = """
import statistics, sys, time
import torch
from monai.networks.nets import DynUNet
from scripts.losses import SparseDiceCELoss
from scripts.precision import logits

torch.manual_seed(0)
strides = [[1] * 3, [2] * 3, [2] * 3, [2] * 3]
network = DynUNet(3, 1, 3, [3] * 4, strides, strides[1:], filters=[16, 32, 64, 128])
optimizer, loss = torch.optim.Adam(network.parameters(), 3e-4, fused=True), SparseDiceCELoss(batch=True)
image, label = torch.randn(1, 1, 40, 56, 40), torch.randint(0, 3, (1, 1, 40, 56, 40)).float()
seconds = []
for _ in range(int(sys.argv[1]) + 2):
    start = time.perf_counter()
    optimizer.zero_grad()
    loss(logits(network, image, False), label).backward()
    optimizer.step()
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds[2:]))
"""


def step(way: dict[str, str], others: int) -> float:
    """Seconds of a training step beside other busy processes."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    templates = str(Path(__file__).resolve().parents[1] / "templates")
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": templates, **way}
    command = [sys.executable, "-c", STEP, str(STEPS)]
    try:
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    finally:
        for process in busy:
            process.kill()


def main() -> None:
    for others in (0, 1, 2) * 2:
        print(f"{others} other busy processes:", *(f"{name} {step(way, others):.3f} s;" for name, way in WAYS.items()))


if __name__ == "__main__":
    main()
