"""Patches per second of the augmentation, beside batchgeneratorsv2 and a chain of stock MONAI transforms.

    pip install -c constraints.txt --no-deps batchgeneratorsv2 pandas six
    python benchmarks/augmentation.py

All three cut patches out of the same memory-mapped volumes and draw the same kinds with the same probabilities:
rotation, scaling, elastic deformation 0.2 each, gamma 0.3, mirroring 0.5 on each axis. One torch thread per process.
Differences that remain are said in the docstrings of the chains.
"""

import argparse
import importlib.metadata
import math
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections import defaultdict

import numpy as np
import torch
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset, default_collate

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "templates"))

from scripts import augmentation

SETTINGS = (((40, 56, 40), 9, 60), ((128, 128, 128), 2, 200))
"""Patch size, batch size, edge of the volumes."""

ROTATION, SCALING, ALPHA, SIGMA, GAMMA = 15.0, (0.85, 1.25), (0.0, 900.0), (9.0, 13.0), (0.7, 1.5)


class Chain:
    """A way to make patches: seeded, then called with image, label map and the centre of the patch."""

    def __init__(self, patch_size):
        self.patch_size = patch_size

    def seed(self, seed):
        np.random.seed(seed)  # noqa: NPY002 (batchgeneratorsv2 draws from it)
        torch.manual_seed(seed)


class Ours(Chain):
    """The bundle's transforms."""

    name = "ours"

    def __init__(self, patch_size):
        super().__init__(patch_size)
        keys = ("image", "label")
        self.transforms = [
            augmentation.RandCropWarpd(keys, patch_size),
            augmentation.RandGammad("image"),
            augmentation.RandMirrord(keys),
        ]

    def seed(self, seed):
        super().seed(seed)
        for i, transform in enumerate(self.transforms):
            transform.set_random_state(seed=seed + i)

    def __call__(self, image, label, center):
        data = {"image": image, "label": label, "center": center}
        for transform in self.transforms:
            data = transform(data)
        return data["image"], data["label"]


class Batchgenerators(Chain):
    """batchgeneratorsv2 as nnU-Net calls it: an enlarged patch is read, the transforms cut its middle out of it.

    Its amplitude of the elastic deformation is the largest displacement of the patch; 0 to 8 voxels is about what
    alpha 0 to 900 gives. Its cost does not depend on it.
    """

    name = "batchgeneratorsv2"

    def __init__(self, patch_size):
        super().__init__(patch_size)
        from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
        from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
        from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
        from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
        from batchgeneratorsv2.transforms.utils.random import RandomTransform

        # What one rotation by 15 degrees makes of the patch, over the smallest scaling factor: 184 for 128.
        c, s = math.cos(math.radians(ROTATION)), math.sin(math.radians(ROTATION))
        turned = [max(c * n + s * m for m in patch_size[:i] + patch_size[i + 1 :]) for i, n in enumerate(patch_size)]
        self.read_size = [int(n / SCALING[0]) for n in turned]
        gamma = GammaTransform(BGContrast(GAMMA), 0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1)
        self.transform = ComposeTransforms(
            [
                SpatialTransform(
                    patch_size,
                    patch_center_dist_from_border=0,
                    random_crop=False,
                    p_elastic_deform=0.2,
                    elastic_deform_scale=lambda image, dim, patch_size: (
                        float(torch.empty(1).uniform_(*SIGMA)) / patch_size[dim]
                    ),
                    elastic_deform_magnitude=(0, 8),
                    p_rotation=0.2,
                    rotation=(-math.radians(ROTATION), math.radians(ROTATION)),
                    p_scaling=0.2,
                    scaling=BGContrast(SCALING),
                    p_synchronize_scaling_across_axes=1,
                ),
                RandomTransform(gamma, 0.3),
                MirrorTransform((0, 1, 2)),
            ]
        )

    def __call__(self, image, label, center):
        start = [c - n // 2 for c, n in zip(center, self.read_size, strict=True)]
        boxes = [torch.from_numpy(augmentation.read_box(a, start, self.read_size)) for a in (image, label)]
        data = self.transform(image=boxes[0], segmentation=boxes[1].to(torch.int16))
        return data["image"].contiguous(), data["segmentation"].contiguous()


class StockMonai(Chain):
    """MONAI's own transforms one after the other, each with its own interpolation; the patch alone is read.

    Rotation leaves zero corners, because nothing outside the patch is read; labels are nearest.
    """

    name = "stock MONAI"

    def __init__(self, patch_size):
        super().__init__(patch_size)
        from monai import transforms as mt

        keys, mode, angle = ("image", "label"), ("bilinear", "nearest"), math.radians(ROTATION)
        turn = {f"range_{a}": angle for a in "xyz"}
        zoom = {"min_zoom": 1 / SCALING[1], "max_zoom": 1 / SCALING[0], "mode": ("trilinear", "nearest")}
        pad = {"padding_mode": "constant"}
        self.transform = mt.Compose(
            [
                mt.EnsureTyped(keys),
                mt.RandRotated(keys, prob=0.2, mode=mode, padding_mode="zeros", **turn),
                mt.RandZoomd(keys, prob=0.2, **zoom, **pad),
                mt.Rand3DElasticd(keys, SIGMA, ALPHA, prob=0.2, mode=mode, padding_mode="zeros"),
                mt.RandAdjustContrastd("image", prob=0.3, gamma=GAMMA, retain_stats=True),
                *(mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
            ]
        )

    def seed(self, seed):
        super().seed(seed)
        self.transform.set_random_state(seed=seed)

    def __call__(self, image, label, center):
        start = augmentation.patch_start(center, self.patch_size, image.shape[1:])
        boxes = [augmentation.read_box(a, start, self.patch_size) for a in (image, label)]
        data = self.transform({"image": boxes[0], "label": boxes[1]})
        return data["image"].as_tensor(), data["label"].as_tensor()


CHAINS = (Ours, Batchgenerators, StockMonai)


class Patches(Dataset):
    """Endless patches around random places of the volumes."""

    def __init__(self, folder, chain):
        self.files = [(f, f.with_name(f.name.replace("image", "label"))) for f in sorted(folder.glob("image*.npy"))]
        self.chain = chain

    def __len__(self):
        return 1 << 30

    def __getitem__(self, number):
        image, label = (np.load(f, mmap_mode="r") for f in self.files[number % len(self.files)])
        center = np.random.default_rng(number).integers(image.shape[1:])
        return self.chain(image, label, tuple(map(int, center)))


def write_volumes(folder, edge, num=3):
    """Image and label maps (background and two classes, a tenth of the volume) of `num` cases, as .npy files."""
    for i in range(num):
        coarse = np.random.default_rng(i).standard_normal([edge // 10] * 3)
        smooth = ndimage.zoom(coarse, edge / (edge // 10), order=1).astype(np.float32)
        smooth += np.random.default_rng(i).standard_normal(smooth.shape, np.float32) * 0.1
        np.save(folder / f"image{i}.npy", smooth[None])
        levels = np.quantile(smooth, [0.9, 0.95])
        np.save(
            folder / f"label{i}.npy", np.digitize(ndimage.gaussian_filter(smooth, 1), levels).astype(np.uint8)[None]
        )


def seed_worker(worker_id):
    """Other patches in each worker, the same in each run."""
    torch.set_num_threads(1)
    torch.utils.data.get_worker_info().dataset.chain.seed(1000 * (worker_id + 1))


def batches(dataset, batch_size, num_workers):
    """Endless batches from `num_workers` workers, or from this process where it is 0."""
    if num_workers:
        sampler = (list(range(i, i + batch_size)) for i in range(0, len(dataset), batch_size))
        yield from DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, worker_init_fn=seed_worker)
    dataset.chain.seed(0)
    for i in range(0, len(dataset), batch_size):
        yield default_collate([dataset[j] for j in range(i, i + batch_size)])


def rate(dataset, batch_size, num_workers, seconds, min_patches=32):
    """Patches per second over `seconds` and at least `min_patches` (at most four times `seconds`), after a warm-up."""
    stream = batches(dataset, batch_size, num_workers)
    for _ in range(2 * max(1, num_workers) + 1):
        next(stream)
    start, num = time.perf_counter(), 0
    while True:
        num += len(next(stream)[0])
        elapsed = time.perf_counter() - start
        if elapsed > seconds and (num >= min_patches or elapsed > 4 * seconds):
            return num / elapsed


def milliseconds_of_parts(dataset, num):
    """Mean milliseconds a patch that our chain spends in each of its parts, over `num` patches in this process."""
    spent = defaultdict(float)

    def timed(part, function):
        def wrapped(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[part] += time.perf_counter() - start
            return result

        return wrapped

    parts = {
        "reading": ["read_box"],
        "grid": ["elastic_warp", "affine_warp", "warp_points"],
        "image": ["sample_linear"],
        "labels": ["sample_labels"],
        "gamma": ["gamma_curve"],
    }
    originals = {name: getattr(augmentation, name) for names in parts.values() for name in names}
    try:
        for part, names in parts.items():
            for name in names:
                setattr(augmentation, name, timed(part, originals[name]))
        dataset.chain.seed(0)
        chain, dataset.chain = dataset.chain, timed("all", dataset.chain)
        for i in range(num):
            dataset[i]
        dataset.chain = chain
    finally:
        for name, function in originals.items():
            setattr(augmentation, name, function)
    total = spent.pop("all")
    spent["rest"] = total - sum(spent.values())
    return {part: 1000 * spent[part] / num for part in (*parts, "rest")} | {"all": 1000 * total / num}


def print_table(rows):
    """Rows of text under their heading, columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in (rows[0], ["-" * w for w in widths], *rows[1:]):
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |")


def machine(names=("torch", "monai", "batchgeneratorsv2", "numpy", "scipy")):
    """Processor, versions of packages."""
    info = pathlib.Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    model = models[0].split(":")[1].strip() if models else platform.processor()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def compare(folder, patch_size, batch_size, num_workers, *, seconds, rounds):
    """Cells of a table row: median rate of each chain, then median over the rounds of ours / theirs.

    The chains take turns, so that a ratio compares numbers taken under much the same load of the machine.
    """
    rates = np.array(
        [
            [rate(Patches(folder, c(patch_size)), batch_size, num_workers, seconds) for c in CHAINS]
            for _ in range(rounds)
        ]
    )
    ratios = rates[:, :1] / rates[:, 1:]
    spans = zip(np.median(ratios, 0), ratios.min(0), ratios.max(0), strict=True)
    return [*(f"{r:.4g}" for r in np.median(rates, 0)), *(f"{m:.1f} ({a:.1f} to {b:.1f})" for m, a, b in spans)]


def main():
    """Measures everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8, help="time for each chain in each round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each chain")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine() + "\n")
    rows = [["patch", "batch", "processes", *(f"{c.name}, patches/s" for c in CHAINS)]]
    rows[0] += [f"ours / {c.name}" for c in CHAINS[1:]]
    part_rows = []
    for patch_size, batch_size, edge in SETTINGS:
        size = "x".join(map(str, patch_size))
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_volumes(folder, edge)
            for num_workers in (2, 0):
                processes = f"{num_workers} workers" if num_workers else "1 thread"
                cells = compare(folder, patch_size, batch_size, num_workers, seconds=args.seconds, rounds=args.rounds)
                rows.append([size, str(batch_size), processes, *cells])
            num = min(2000, int(4e8 / math.prod(patch_size)))
            parts = milliseconds_of_parts(Patches(folder, Ours(patch_size)), num)
            part_rows += [] if part_rows else [["ms per patch", *parts]]
            part_rows.append([size, *(f"{ms:.2f}" for ms in parts.values())])
    print_table(rows)
    print("\nOurs, where the time goes (one thread, mean over all patches, warped or not):\n")
    print_table(part_rows)


if __name__ == "__main__":
    main()
