"""Label images: values that are classes, and what they may not be."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoplan.base.errors import DatasetError
from autoplan.base.scripts import formats
from autoplan.base.scripts.formats import (
    format_of,
)
from autoplan.data import geometry, images
from autoplan.data.images import Volume


def _raise(faults: Sequence[str]) -> None:
    """Raises what was found, if anything."""
    if faults:
        raise DatasetError("\n".join(faults))


def read_classes(
    path: Path, *, what: str = "label", on: geometry.Grid | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The whole numbers (X, Y, Z) in a file of one volume, and its affine; with the axes of the grid `on`, where the
    file has the same voxels in another order.

    Raises:
        DatasetError: the file is damaged, or holds other values; `what` says what it is.
    """
    try:
        volume = images.read_volume(path)
    except DatasetError as error:
        raise DatasetError(f"{path} {error}") from error
    volume = volume if on is None else images.onto(volume, on)
    values, faults = whole_numbers(volume.array[..., 0], what=what)
    _raise([f"{path}: {fault}" for fault in faults])
    return values, volume.affine


LABEL_TOLERANCE = 1e-4
"""Distance from a whole number that a label stored as float may have. Our choice: what a scale factor loses."""

MIN_BLENDS = 5
"""Values that must be blends of others for a label to be no label, see `blended_values`."""

MAX_LOOKED_AT = 200_000
"""Voxels that are looked at for that, where there are more."""

_SLAB_VOXELS = 2**18


def label_faults(path: Path, label: Volume) -> list[str]:
    """What keeps a file from holding one class number a voxel."""
    channels, found = label.grid.channels, format_of(path)
    if found is not None and path.suffix.lower() in found.lossy:
        return ["the label is a JPEG, which changes values. Store labels as PNG."]
    if channels == 3 and found in (formats.PICTURE, formats.TIFF):
        return ["the label is a picture of colours. Store the number of its class in each pixel, in one channel."]
    if channels != 1:
        return [f"the label has {channels} channels. Store the classes as numbers in one channel."]
    return []


def largest_magnitude(array: NDArray[Any]) -> float:
    """Largest magnitude of the values of an array that is not empty, NaN where one is NaN."""
    return max(-float(array.min()), float(array.max()))


def whole_numbers(array: NDArray[Any], *, what: str = "label") -> tuple[NDArray[Any], list[str]]:
    """A label (`what` says if it is called otherwise) as integers, and what is wrong with it."""
    if array.dtype.kind in "iu":
        return array, []
    if array.dtype.kind == "b":
        return array.astype(np.uint8), []
    if not math.isfinite(largest_magnitude(array)):
        return array, [f"the {what} has values that are NaN or infinite. Replace them by 0 or a class."]
    rounded = np.rint(array)
    distance = np.abs(array - rounded)
    if distance.max(initial=0) > LABEL_TOLERANCE:
        value = array.flat[int(distance.argmax())]
        return array, [f"the {what} has the value {value:g}, no whole number. Resample labels by nearest neighbour."]
    if np.abs(rounded).max(initial=0) >= 2**31:
        return array, [f"the {what} has values of 2^31 or more. Number the classes from 0."]
    return rounded.astype(np.int32), []


def blend_fault(label: NDArray[Any]) -> str:
    """What is wrong with a label of whole numbers that holds blends of its classes; "" where it holds none."""
    if not (blends := blended_values(label)):
        return ""
    return (
        f"the label is no mask of classes: {blends} of its values occur only between others, at their borders, as "
        "interpolation and JPEG make them. Threshold it, and resize masks by nearest neighbour."
    )


def blended_values(label: NDArray[Any]) -> int:
    """How many values of a label are no classes but blends of others, as interpolation and JPEG make them at borders; 0
    where they are few, or not most of its values.

    Nearly all voxels of a class, even of a thin one, have two neighbours or more of their own class. Those of a blend
    have not, and lie among several other values.

    Args:
        label: whole numbers, (X, Y, Z).

    Source: our choice; tests/package/data/test_images.py has what it takes for blends and what not.
    """
    counts = count_values(label)
    if len(counts) < MIN_BLENDS + 2:
        return 0
    by_frequency = sorted(counts, key=lambda pair: pair[1], reverse=True)
    values = np.array(sorted(value for value, _ in by_frequency[2:]))  # others are blends of at least two
    places = np.flatnonzero(np.isin(label, values))
    at = np.unravel_index(places[:: -(-len(places) // MAX_LOOKED_AT)], label.shape)
    own = label[at]
    equal, least, most = (
        np.zeros(len(own), dtype=np.int8),
        np.full_like(own, label.max()),
        np.full_like(own, label.min()),
    )
    for steps in itertools.product(*((-1, 0, 1) if n > 1 else (0,) for n in label.shape)):
        moved = [np.clip(i + step, 0, n - 1) for i, step, n in zip(at, steps, label.shape, strict=True)]
        other = label[tuple(moved)]
        differs = other != own
        equal += ~differs
        least, most = (
            np.where(differs, np.minimum(least, other), least),
            np.where(differs, np.maximum(most, other), most),
        )
    index = np.searchsorted(values, own)
    blends = np.bincount(index, weights=(equal < 3) & (least < most))  # a voxel is its own neighbour here
    found = int(np.count_nonzero(blends > np.bincount(index) / 2))
    return found if found >= MIN_BLENDS and found > len(counts) / 2 else 0


def count_values(label: NDArray[Any]) -> list[tuple[int, int]]:
    """Values that occur in an array of whole numbers, ascending, and how often."""
    low, high = int(label.min(initial=0)), int(label.max(initial=0))
    if low < 0 or high > np.iinfo(np.uint16).max:
        values, counts = np.unique(label, return_counts=True)
        return [(int(v), int(c)) for v, c in zip(values, counts, strict=True)]
    total = np.zeros(high + 1, dtype=np.int64)
    step = max(1, _SLAB_VOXELS * label.shape[-1] // max(1, label.size))
    for z in range(0, label.shape[-1], step):  # slab by slab: bincount needs 8 bytes a voxel
        total += np.bincount(label[..., z : z + step].ravel(order="K"), minlength=high + 1)
    return [(int(v), int(total[v])) for v in np.flatnonzero(total)]
