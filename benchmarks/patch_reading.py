"""Reading a patch of a preprocessed case of 500x512x512 voxels from the cache, cold and warm.

    python benchmarks/patch_reading.py [--folder DIR]

Writes one case (float32 image, uint8 label; 0.66 GB) as a training would, then reads a 128x128x128 patch and a 512x512
slice of image and label at random places. Before a cold read the kernel is told to forget the file, and how much of it
is still in memory is checked; a warm read repeats the one before.
"""

import argparse
import ctypes
import mmap
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "templates"))

from scripts.augmentation import RandCropWarpd
from scripts.cache import CaseCache
from scripts.patches import PatchDataset, Request

SHAPE = (512, 512, 500)
PATCHES = {"128x128x128 patch": (128, 128, 128), "512x512 slice": (512, 512)}
LIMIT_MS = 100


def preprocessing(_: dict) -> dict:
    """An image of noise, which no file system compresses, and a label with a ball of two classes."""
    rng = np.random.default_rng(0)
    label = np.zeros((1, *SHAPE), np.uint8)
    label[:, 200:300, 200:300, 200:300], label[:, 240:260, 240:260, 240:260] = 1, 2
    return {"image": torch.from_numpy(rng.standard_normal((1, *SHAPE), np.float32)), "label": torch.from_numpy(label)}


def forget(path: Path) -> None:
    """Take the file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def part_in_memory(path: Path) -> float:
    """Part of the file's pages that are in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ | mmap.PROT_WRITE,
                                            flags=mmap.MAP_PRIVATE) as mapped:  # fmt: skip
        resident = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        if ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), resident):
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in resident) / pages


def milliseconds(dataset: PatchDataset, request: Request) -> float:
    """Time to cut one patch."""
    start = time.perf_counter()
    dataset[request]
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write the case; a temporary folder if not given")
    parser.add_argument("--reads", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        item = {key: str(Path(folder) / f"{key}.nii.gz") for key in ("image", "label")}
        for path in item.values():
            Path(path).touch()
        cache = CaseCache(folder, preprocessing, slice_axis=2, num_classes=3)
        [path] = cache.fill([item])
        print(f"{'what':<22}{'cold, median (max)':>22}{'warm, median (max)':>22}{'read from disk':>18}")
        for name, patch_size in PATCHES.items():
            crop = RandCropWarpd(["image", "label"], patch_size, rotation_prob=0.0, scaling_prob=0.0, elastic_prob=0.0)
            dataset = PatchDataset([item], cache, patch_size, crop)
            measure(name, dataset, path, options.reads)
        size = path.stat().st_size / 1e6
    print(f"\nfile: {size:.0f} MB on disk. Limit: {LIMIT_MS} ms for a cold read.")
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "numpy"))
    print(f"Python {platform.python_version()}, {packages}; {platform.system()} {platform.release()}")


def measure(name: str, dataset: PatchDataset, path: Path, reads: int) -> None:
    """Prints a line of the table."""
    cold, warm, read = [], [], []
    for seed in range(reads):
        request = Request(case=0, foreground=seed % 2 == 0, seed=seed)
        forget(path)
        before = part_in_memory(path)
        assert before < 0.01, f"{before:.0%} of the file could not be taken out of the page cache"
        cold.append(milliseconds(dataset, request))
        read.append(part_in_memory(path) * path.stat().st_size / 1e6)
        warm.append(milliseconds(dataset, request))
    columns = [f"{statistics.median(t):.1f} ({max(t):.1f}) ms" for t in (cold, warm)]
    print(f"{name:<22}{columns[0]:>22}{columns[1]:>22}{statistics.median(read):>15.1f} MB")


if __name__ == "__main__":
    main()
