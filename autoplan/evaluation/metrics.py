"""Scores of one class in one case: Dice, surfaces, lesions."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoplan.data.geometry import bounding_box

TOLERANCE_MM = 1.0
"""Distance up to which two surfaces count as equal, see `tolerance_mm`. Our choice; the paper scores Dice only."""

PERCENTILE = 95
"""Percentile of the Hausdorff distance. Source: custom of the field; the maximum depends on a single voxel."""

FLOAT32_SLACK = 1e-5
"""Part of the tolerance that is added to it: MONAI rounds distances to float32."""

OVERLAP = 0.5
"""Intersection over union from which on two components are the same lesion, see `lesions`. Above 0.5 no lesion can have
two partners. Source: Kirillov et al., Panoptic Segmentation, CVPR 2019 (arXiv:1801.00868), section 4.1."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class in one case. All None: neither has the class. `hausdorff_95_mm` alone None: one has it.
    `lesions` are the components of the label, of the prediction, and those that match."""

    dice: float | None
    surface_dice: float | None
    hausdorff_95_mm: float | None
    lesions: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Detection:
    """How lesions of one class were found, over all cases. `num_lesions` counts those of the labels; the rates are None
    where there is nothing to find, and nothing found.

    Attributes:
        num_lesions: components of the labels.
        f1: 2 matched / (components of the labels + components of the predictions).
        sensitivity: matched / components of the labels.
        false_positives: components of the predictions without a match, a case.
    """

    num_lesions: int
    f1: float | None
    sensitivity: float | None
    false_positives: float | None


def tolerance_mm(spacing: Sequence[float], *, at_least: float = TOLERANCE_MM) -> float:
    """Tolerance of a case's surface Dice in mm: `at_least`, or the finest voxel edge where that is longer.

    A distance below one voxel cannot be told from none on the case's grid. The finest edge counts and not the coarsest:
    with slices 5 mm apart the coarsest would let contours pass that are seven voxels wrong within the slice.

    Source: our choice.
    """
    return max(at_least, min(spacing))


@dataclass(frozen=True)
class ClassMask:
    """Where a label has a class: `mask`, inside `box`, which holds all its `size` voxels."""

    value: int
    size: int
    box: tuple[slice, ...]
    mask: NDArray[np.bool_]


def class_masks(label: NDArray[Any], values: Sequence[int]) -> tuple[ClassMask, ...]:
    """Where a label has each of `values`. Made once for all predictions that are compared with it."""
    masks = []
    for value in values:
        mask = label == value
        size = int(np.count_nonzero(mask))
        box = bounding_box(mask) if size else (slice(0, 0),) * mask.ndim
        masks.append(ClassMask(value, size, box, np.ascontiguousarray(mask[box])))
    return tuple(masks)


def dice(label: Sequence[ClassMask], prediction: NDArray[Any]) -> tuple[float | None, ...]:
    """Dice of each class: 2 |T and P| / (|T| + |P|). None for a class that neither has.

    Args:
        label: of `class_masks`.
        prediction: whole numbers, on the label's grid.
    """
    scores = []
    for c in label:
        size = c.size + int(np.count_nonzero(prediction == c.value))
        both = int(np.count_nonzero((prediction[c.box] == c.value) & c.mask))
        scores.append(2 * both / size if size else None)
    return tuple(scores)


def lesions(
    label: NDArray[np.bool_], prediction: NDArray[np.bool_], *, overlap: float = OVERLAP
) -> tuple[int, int, int]:
    """Components of a label, of a prediction, and how many of them are the same lesion.

    Components are connected when they touch at a face, an edge or a corner. Two match where their intersection over
    union is at least `overlap`. Each has one partner at most; those that overlap most find each other first.

    Args:
        label, prediction: masks of equal shape.
        overlap: more than 0, at most 1.

    Source: see `OVERLAP`. The order, which matters up to 0.5, is our choice.
    """
    from scipy import ndimage

    structure = np.ones((3,) * label.ndim, dtype=bool)
    (of_label, true), (of_prediction, found) = (ndimage.label(mask, structure) for mask in (label, prediction))
    both = label & prediction
    pairs, shared = np.unique(np.stack([of_label[both], of_prediction[both]]), axis=1, return_counts=True)
    sizes = [np.bincount(array.ravel(), minlength=2) for array in (of_label, of_prediction)]
    union = sizes[0][pairs[0]] + sizes[1][pairs[1]] - shared
    part = shared / np.maximum(union, 1)
    used: tuple[set[int], set[int]] = set(), set()
    for i in np.argsort(-part, kind="stable"):
        a, b = int(pairs[0, i]), int(pairs[1, i])
        if part[i] >= overlap and a not in used[0] and b not in used[1]:
            used[0].add(a)
            used[1].add(b)
    return int(true), int(found), len(used[0])


def detection(counts: Sequence[tuple[int, int, int]]) -> Detection:
    """Rates over all cases.

    Args:
        counts: of each case, as `lesions` gives them.
    """
    true, found, matched = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    return Detection(
        true,
        2 * matched / (true + found) if true + found else None,
        matched / true if true else None,
        (found - matched) / len(counts) if true + found else None,
    )


def class_scores(
    label: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing: Sequence[float],
    *,
    tolerance: float,
    overlap: float = OVERLAP,
) -> ClassScores:
    """Scores of two (X, Y, Z) masks of equal shape.

    The surface Dice is the part of both surfaces, in mm2, that is at most `tolerance` from the other one; surfaces are
    those of marching cubes, as in the Decathlon. The distance is the larger of two, label to prediction and back; each
    is the 95th percentile over the boundary voxels (those with one of six neighbours outside) of the distance to the
    nearest boundary voxel of the other mask, between centres. What touches the border of the volume ends there.

    Args:
        label, prediction: masks.
        spacing: mm.
        tolerance: mm.
        overlap: see `lesions`.
    """
    both = label | prediction
    if not both.any():
        return ClassScores(None, None, None)
    box = bounding_box(both)
    label, prediction = label[box], prediction[box]
    counts = lesions(label, prediction, overlap=overlap)
    if not label.any() or not prediction.any():
        return ClassScores(0.0, 0.0, None, counts)
    [volume] = dice(class_masks(label, [1]), prediction)
    return ClassScores(volume, *_surface_scores(label, prediction, spacing, tolerance), counts)


def _surface_scores(
    label: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """Surface Dice and distance in mm of two masks that are not empty, by MONAI."""
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    torch.set_num_threads(1)  # the processes share the processors
    y, y_pred = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (label, prediction))
    options: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
    limit = tolerance * (1 + FLOAT32_SLACK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of arguments that it sets itself
        surface = compute_surface_dice(y_pred, y, class_thresholds=[limit], use_subvoxels=True, **options)
        distance = compute_hausdorff_distance(y_pred, y, percentile=PERCENTILE, **options)
    return float(surface), float(distance)


CONVENTIONS = (
    "A class that is absent from both label and prediction is left out of the means. Absent from one of the two alone, "
    "its Dice and surface Dice are 0, and its distance, being infinite, is left out and counted as one-sided."
)
