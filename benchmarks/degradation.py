"""What random mistakes in the segmentation of a cascade cost, beside the rest of the augmentation of the same patch.

    python benchmarks/degradation.py

The rest is RandCropWarpd on image, label and previous segmentation, RandGammad and RandMirrord, all with their
defaults; the previous segmentation is the label. Both are timed on every patch, one after the other, in one thread.
A ratio is that of the two sums over the patches of a round: most patches have no mistakes drawn for them.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import numpy as np
import torch
from augmentation import machine, print_table, write_volumes
from scipy import ndimage

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "templates"))

from scripts.augmentation import RandCropWarpd, RandGammad, RandMirrord
from scripts.degradation import RandDegradeSegmentationd

SETTINGS = (((40, 56, 40), 60, 1000), ((128, 128, 128), 200, 60))
"""Patch size, edge of the volumes, patches in a round."""

KEYS = ("image", "label", "lowres")


def regions(folder, edge):
    """Two classes, a twentieth of the volume each, with rough surfaces and small components everywhere."""
    write_volumes(folder, edge, num=1)
    return np.load(folder / "image0.npy"), np.load(folder / "label0.npy")


def half(folder, edge):
    """The worst case: the first class fills almost half of the volume, from end to end; the second a twentieth."""
    image, _ = regions(folder, edge)
    levels = np.quantile(image, [0.5, 0.95])
    return image, np.digitize(ndimage.gaussian_filter(image, (0, 1, 1, 1)), levels).astype(np.uint8)


def organ(folder, edge):
    """An organ, a tenth of the volume, with five tumours in it."""
    image, _ = regions(folder, edge)
    rng, axis = np.random.default_rng(0), np.linspace(-1, 1, edge, dtype=np.float32)
    x, y, z = axis[:, None, None], axis[:, None], axis
    label = ((x / 0.7) ** 2 + (y / 0.5) ** 2 + (z / 0.6) ** 2 < 1).astype(np.uint8)
    for centre in rng.uniform(-0.25, 0.25, (5, 3)):
        label[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < rng.uniform(0.03, 0.15) ** 2] = 2
    return image, label[None]


def timed(transforms, data):
    """The data after the transforms, and the milliseconds they took."""
    start = time.perf_counter()
    for transform in transforms:
        data = transform(data)
    return data, 1000 * (time.perf_counter() - start)


def measure(image, label, patch_size, num, seed):
    """(num, 4), for each patch: milliseconds of the rest and of the mistakes, whether either kind was drawn."""
    rest = [RandCropWarpd(KEYS, patch_size), RandGammad("image"), RandMirrord(KEYS)]
    mistakes = RandDegradeSegmentationd("lowres")
    for i, transform in enumerate((*rest, mistakes)):
        transform.set_random_state(seed=seed + i)
    centers = np.random.default_rng(seed).integers(image.shape[1:], size=(num, 3))
    rows = []
    for center in centers:
        data = {"image": image, "label": label, "lowres": label, "center": tuple(map(int, center))}
        data, rest_ms = timed(rest, data)
        _, mistakes_ms = timed([mistakes], data)
        rows.append((rest_ms, mistakes_ms, bool(mistakes._changes), bool(mistakes._removals)))
    return np.array(rows)


def cells(rounds):
    """Cells of a table row from a list of what `measure` returns; for one kind alone median (largest)."""
    all_rows = np.concatenate(rounds)
    rest, mistakes, changed, removed = all_rows.T
    ratios = [r[:, 1].sum() / r[:, 0].sum() for r in rounds]
    alone = [mistakes[(changed == c) & (removed == 1 - c)] for c in (1, 0)]
    return [
        *(f"{ms.mean():.3g}" for ms in (rest, mistakes)),
        f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        *(f"{np.median(ms):.3g} ({ms.max():.3g})" for ms in alone),
    ]


def main():
    """Measures everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(("torch", "monai", "numpy", "scipy")) + "\n")
    rows = [["patch", "classes", "rest, ms", "mistakes, ms", "mistakes / rest", "only operators drawn, ms"]]
    rows[0].append("only removal drawn, ms")
    for patch_size, edge, num in SETTINGS:
        for make in (organ, regions, half):
            with tempfile.TemporaryDirectory() as name:
                image, label = make(pathlib.Path(name), edge)
            measure(image, label, patch_size, num // 10, seed=999)
            rounds = [measure(image, label, patch_size, num, seed=10 * i) for i in range(args.rounds)]
            rows.append(["x".join(map(str, patch_size)), make.__name__, *cells(rounds)])
    print_table(rows)


if __name__ == "__main__":
    main()
