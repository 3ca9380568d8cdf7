"""Coarser images where time is short: what twice the spacing would take from a segmentation, seen on the labels alone.

The numbers here are our choice; docs/recipes.md has what was measured.
"""

from collections.abc import Sequence
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from autoplan import evaluation, images, rules
from autoplan.axes import Shape, Spacing
from autoplan.facts import Dataset

NUM_CASES = 8
"""Training cases whose labels are looked at."""
LEAST_DICE = 0.93
"""Labels keep so much at a spacing that is worth it: more than a network reaches for which time is short."""


def dice_kept(dataset: Dataset, spacing: Spacing) -> float:
    """Mean Dice between labels and what is left of them when they go to a spacing and back: what a network that sees
    images of this spacing can reach at most.

    Args:
        dataset: some of its training cases are looked at, spread evenly over all.
        spacing: mm along x, y and z.

    Returns:
        Mean over the cases, of each the mean over its classes; 0 where no label has a class.

    Raises:
        DatasetError: a label is damaged.
    """
    cases = [case for case in dataset.training if case.label is not None]
    some = cases[:: max(1, -(-len(cases) // NUM_CASES))]
    values = [value for value, _ in dataset.labels[1:]]
    found = []
    for case in some:
        label, affine = evaluation.read_classes(dataset.root / str(case.label))
        axes = images.ras_order(range(label.ndim), affine)
        own = images.ras_order(images.spacing(affine), affine)
        found += _case(label.transpose(axes), own, spacing, values)
    return mean(found) if found else 0.0


def told(spacing: Spacing, kept: float) -> str:
    """What comes of it, in words."""
    size = " x ".join(f"{mm:.4g}" for mm in spacing)
    if kept < LEAST_DICE:
        return f"Time is short, but images of {size} mm would keep a Dice of {kept:.3f} of the labels: too little."
    return (
        f"Time is short: planned again for images of {size} mm, which keep a Dice of {kept:.3f} of the labels. "
        "With --spacing none the spacing stays as it was."
    )


def _case(label: NDArray[np.integer], own: Spacing, spacing: Spacing, values: Sequence[int]) -> list[float]:
    """The mean over the classes of a label; none where it has none."""
    foreground = np.isin(label, values)
    if not foreground.any():
        return []
    # Whole coarse voxels, one more on each side than the foreground has; all of a large image takes long.
    shape = rules.resampled_shape(label.shape, own, target=spacing)
    steps = [-(-n // m) for n, m in zip(label.shape, shape, strict=True)]
    box = zip(images.bounding_box(foreground), steps, strict=True)
    label = label[tuple(slice(max(0, b.start // k - 1) * k, (-(-b.stop // k) + 1) * k) for b, k in box)]
    coarse = rules.resampled_shape(label.shape, own, target=spacing)
    back = _resampled(_resampled(label, coarse, values), label.shape, values)
    scores = [d for d in evaluation.dice(evaluation.class_masks(label, values), back) if d is not None]
    return [mean(scores)]


def _resampled(label: NDArray[np.integer], shape: Shape, values: Sequence[int]) -> NDArray[np.integer]:
    """The class with the largest share at each voxel of another grid, the highest of equal ones, as in the cache."""
    from scipy import ndimage  # a third of a second, which commands that do not need it are spared

    zoom = [m / n for n, m in zip(label.shape, shape, strict=True)]
    largest, found = np.full(shape, -1.0, np.float32), np.zeros(shape, label.dtype)
    for value in (*sorted(values, reverse=True), 0):
        mask = (~np.isin(label, values) if value == 0 else label == value).astype(np.float32)
        part = ndimage.zoom(mask, zoom, order=1, mode="nearest", grid_mode=True)
        found[part > largest] = value
        np.maximum(part, largest, out=largest)
    return found
