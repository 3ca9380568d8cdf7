"""Coarser images where time is short: what twice the spacing would take from a segmentation, seen on the labels alone.

The numbers here are our choice; docs/recipes.md has what was measured.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from autoplan.base.axes import Shape, Spacing
from autoplan.data import geometry, images, labels
from autoplan.data.facts import Dataset
from autoplan.planning import rules

NUM_CASES = 8
"""Training cases whose labels are looked at."""
SECONDS = 30.0
"""No other case is looked at after that."""
LEAST_DICE = 0.9
"""Each class keeps so much at a spacing that is worth it: more than networks reach for which time is short."""


def dice_kept(dataset: Dataset, spacing: Spacing, *, clock: Callable[[], float] = time.monotonic) -> float:
    """Dice between labels and what is left of them when they go to a spacing and back: what a network that sees images
    of this spacing can reach at most.

    Args:
        dataset: some of its training cases are looked at, spread evenly over all.
        spacing: mm along x, y and z.
        clock: counts seconds.

    Returns:
        The mean over the cases of the class that keeps least; 0 where no label has a class.

    Raises:
        DatasetError: a label is damaged.
    """
    cases = [case for case in dataset.training if case.label is not None]
    found: dict[int, list[float]] = defaultdict(list)
    start = clock()
    for case in cases[:: max(1, -(-len(cases) // NUM_CASES))]:
        label, _ = labels.read_classes(dataset.root / str(case.label))
        grid = images.read_grid(dataset.root / str(case.label))
        # A mask may not say how large its voxels are.
        affine = (grid if grid.measured else images.read_grid(dataset.root / case.images[0])).affine
        label = label.transpose(geometry.ras_order(range(label.ndim), affine))
        own = geometry.ras_order(geometry.spacing(affine), affine)
        for value, _ in dataset.labels[1:]:
            mask = label == value
            if mask.any():
                found[value].append(_kept(mask, own, spacing))
        if clock() - start > SECONDS:
            break
    return min(map(mean, found.values()), default=0.0)


def _kept(mask: NDArray[np.bool_], own: Spacing, spacing: Spacing) -> float:
    """Dice of one class of a label."""
    # Whole coarse voxels, one more on each side than the class has; all of a large image takes long.
    shape = rules.resampled_shape(mask.shape, own, target=spacing)
    steps = [-(-n // m) for n, m in zip(mask.shape, shape, strict=True)]
    box = zip(geometry.bounding_box(mask), steps, strict=True)
    mask = mask[tuple(slice(max(0, b.start // k - 1) * k, (-(-b.stop // k) + 1) * k) for b, k in box)]
    # Where half of a coarse voxel is of the class, all of it is, as for labels in the cache.
    coarse = _share(mask, rules.resampled_shape(mask.shape, own, target=spacing)) >= 0.5
    back = _share(coarse, mask.shape) > 0.5
    return 2 * int(np.count_nonzero(back & mask)) / int(np.count_nonzero(back) + np.count_nonzero(mask))


def _share(mask: NDArray[np.bool_], shape: Shape) -> NDArray[np.float32]:
    """The share of a class in each voxel of another grid, interpolated linearly as probabilities are."""
    from scipy import ndimage  # a third of a second, which commands that do not need it are spared

    zoom = [m / n for n, m in zip(mask.shape, shape, strict=True)]
    found: NDArray[np.float32] = ndimage.zoom(mask.astype(np.float32), zoom, order=1, mode="nearest", grid_mode=True)
    return found


def told(spacing: Spacing, kept: float) -> str:
    """What comes of it, in words."""
    size = " x ".join(f"{mm:.4g}" for mm in spacing)
    if kept < LEAST_DICE:
        return (
            f"Time is short, but the spacing stays: at {size} mm a class of the labels would keep a Dice of {kept:.3f}."
        )
    return (
        f"Time is short, so the task is planned again at a spacing of {size} mm. There each class of the labels keeps "
        f"a Dice of {kept:.3f} or more. Later commands keep it; plan --spacing none --force takes it back."
    )
