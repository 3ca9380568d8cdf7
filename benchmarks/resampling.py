"""Resampling of 300x400x400 float32 to 240x320x320, third-order spline: this project, MONAI's Spacingd, scipy's zoom.

    OMP_NUM_THREADS=1 python benchmarks/resampling.py [--repeat 3]

Each method runs in turn, `repeat` times, in one process, so that all see the same machine; the fastest run counts. The
time of Spacingd and of ResampleToSpacingd includes what they do for the affine.
"""

import argparse
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "templates"))

from scripts.resampling import ResampleToSpacingd, spline_matrix

SHAPE, NEW_SHAPE, SPACING = (300, 400, 400), (240, 320, 320), 1.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    values = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    # An origin that no rounding moves: Spacingd shifts the field of view of images whose origin is exactly 0.
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = 50
    data = {"image": MetaTensor(torch.from_numpy(values), affine=affine)}
    ours = ResampleToSpacingd("image", (SPACING,) * 3, "spline")
    spacing = {"keys": "image", "pixdim": (SPACING,) * 3, "mode": 3, "padding_mode": "nearest", "scale_extent": True}
    monai, monai_single = Spacingd(**spacing), Spacingd(**spacing, dtype=np.float32)
    factors = [m / n for m, n in zip(NEW_SHAPE, SHAPE, strict=True)]
    methods = {
        "this project": lambda: ours(data)["image"],
        "Spacingd(mode=3)": lambda: monai(data)["image"],
        "Spacingd(mode=3, dtype=float32)": lambda: monai_single(data)["image"],
        "scipy.ndimage.zoom(order=3)": lambda: ndimage.zoom(
            values[0], factors, order=3, mode="nearest", grid_mode=True
        )[None],
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    results = {}
    for _ in range(repeat):
        for name, method in methods.items():
            spline_matrix.cache_clear()
            start = time.perf_counter()
            results[name] = np.asarray(method())
            seconds[name].append(time.perf_counter() - start)
    report(seconds, results)


def report(seconds: dict[str, list[float]], results: dict[str, np.ndarray]) -> None:
    """Prints a table, the fastest run of each method, and what they ran on."""
    fastest = {name: min(times) for name, times in seconds.items()}
    own, exact = fastest["this project"], results["scipy.ndimage.zoom(order=3)"]
    print(f"{'method':<34}{'seconds':>8}{'of ours':>9}{'largest difference from zoom':>31}")
    for name, value in fastest.items():
        assert results[name].shape == (1, *NEW_SHAPE)
        print(f"{name:<34}{value:>8.2f}{value / own:>8.1f}x{np.abs(results[name] - exact).max():>31.1e}")
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "monai", "scipy", "numpy"))
    print(f"\nPython {platform.python_version()}, {packages}; {torch.get_num_threads()} thread(s), {processor()}")


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
