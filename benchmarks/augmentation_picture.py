"""Picture of original and augmented patches with label outlines.

    python benchmarks/augmentation_picture.py DATASET:PATCH [DATASET:PATCH ...] --out docs/augmentation.png

DATASET is a folder in the form of the Medical Segmentation Decathlon, PATCH a size such as 40x56x40. Of each dataset
the first case is shown around its foreground, in two planes through the middle of the patch. A patch whose longest
edge is more than twice the shortest is augmented slice by slice.
"""

import argparse
import pathlib
import sys

import matplotlib as mpl
import nibabel
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "templates"))

from scripts.augmentation import RandCropWarpd, RandGammad, RandMirrord

mpl.use("Agg")
import matplotlib.pyplot as plt

KINDS = ("original", "rotation", "scaling", "elastic", "gamma", "mirroring", "all", "all, again")
"""Columns: each kind alone, then all at once."""

COLORS = ("#ff5a36", "#35c7ff", "#ffd23f", "#7dff7a")
"""Outlines of labels 1, 2, ..."""

GRID_COLOR = "#ffe27a"

GRID_STEP = 8
"""Voxels between the lines of the grid that is warped along with the image."""


def load_case(folder):
    """First training case: image with z-score, label map, grid lines, centre of the foreground."""
    file = sorted((folder / "imagesTr").glob("[!.]*.nii.gz"))[0]
    image = np.asarray(nibabel.load(file).dataobj, np.float32)
    label = np.asarray(nibabel.load(folder / "labelsTr" / file.name).dataobj).astype(np.uint8)
    image = np.atleast_3d(image) if image.ndim <= 3 else image[..., 0]
    image = np.clip(image, *np.percentile(image, (0.5, 99.5)))
    lines = [np.zeros(image.shape, np.float32) for _ in range(3)]
    for axis, line in enumerate(lines):
        np.moveaxis(line, axis, 0)[::GRID_STEP] = 1
    center = tuple(round(v.mean()) for v in np.nonzero(label))
    image = (image - image.mean()) / image.std()
    return {"image": image[None], "label": label[None], "grid": np.stack(lines), "center": center}


def augmented(case, patch_size, kind, seed):
    """Patch of the case with one kind of augmentation, or with all."""
    keys, everything = ("image", "label", "grid"), kind.startswith("all")
    low_resolution = max(patch_size) > 2 * min(patch_size)
    warp = RandCropWarpd(
        keys,
        patch_size,
        slice_axis=int(np.argmin(patch_size)) if low_resolution else None,
        **{f"{k}_prob": float(everything or kind == k) for k in ("rotation", "scaling", "elastic")},
    )
    gamma = RandGammad("image", prob=float(everything or kind == "gamma"))
    mirror = RandMirrord(keys, prob=0.5 * everything)
    if kind == "mirroring":
        mirror = RandMirrord(keys, prob=1.0, axes=(0,))
    data = case
    for i, transform in enumerate((warp, gamma, mirror)):
        transform.set_random_state(seed=seed + i)
        data = transform(data)
    return data


def draw(axes, data, axis, window):
    """One plane through the middle of the patch, across `axis`: image, grid lines, label outlines."""
    middle = data["label"].shape[axis + 1] // 2
    image, label, grid = (data[key].select(axis + 1, middle).numpy() for key in ("image", "label", "grid"))
    lines = np.delete(grid, axis, 0).max(0).T
    axes.imshow(image[0].T, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", interpolation="nearest")
    shown = np.zeros((*lines.shape, 4))
    shown[..., :3], shown[..., 3] = mpl.colors.to_rgb(GRID_COLOR), 0.35 * lines
    axes.imshow(shown, origin="lower", interpolation="nearest")
    for value, color in enumerate(COLORS, 1):
        if (label[0] == value).any():
            axes.contour(value == label[0].T, [0.5], colors=[color], linewidths=1.4)
    axes.set_xticks([])
    axes.set_yticks([])


def main():
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="+", metavar="DATASET:PATCH")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/augmentation.png"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows = []
    for text in args.datasets:
        name, _, size = text.rpartition(":")
        folder, patch_size = pathlib.Path(name), tuple(int(n) for n in size.split("x"))
        case = load_case(folder)
        patches = [augmented(case, patch_size, kind, args.seed + 10 * i) for i, kind in enumerate(KINDS)]
        rows += [(folder.name, patch_size, patches, across) for across in (2, 1)]
    heights = [patch_size[1 if across == 2 else 2] / patch_size[0] for _, patch_size, _, across in rows]
    width = 1.6
    figure, axes = plt.subplots(
        len(rows),
        len(KINDS),
        figsize=(1.03 * width * len(KINDS) + 0.55, width * sum(heights) + 0.1 * len(rows) + 0.3),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
        layout="constrained",
    )
    for row, (name, patch_size, patches, across) in zip(axes, rows, strict=True):
        window = np.percentile(patches[0]["image"], (1, 99))
        for ax, patch in zip(row, patches, strict=True):
            draw(ax, patch, across, window)
        size = "x".join(map(str, patch_size))
        slicewise = ", slice-wise" if max(patch_size) > 2 * min(patch_size) else ""
        planes = {2: f"{name}\n{size}{slicewise}\nplane x, y", 1: "plane x, z"}
        row[0].set_ylabel(planes[across], fontsize=8)
    for ax, kind in zip(axes[0], KINDS, strict=True):
        ax.set_title(kind, fontsize=10)
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
