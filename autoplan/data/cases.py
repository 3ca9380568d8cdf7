"""The image and the label of a case, read and checked together."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoplan.base.errors import DatasetError, shortened
from autoplan.base.scripts import formats
from autoplan.data import geometry, images, labels
from autoplan.data.facts import Case, Dataset
from autoplan.data.images import Volume

MAX_INTENSITY = 1e14
"""Magnitude of an intensity at most. Our choice: networks compute in float32, which the sum of the squares of a billion
such voxels still fits into."""


@dataclass(frozen=True)
class CaseVolumes:
    """The files of one case, None where faults were found. `label` is (X, Y, Z), whole numbers, 0 where the class is
    not known; `known` tells where it is, None: everywhere."""

    image: Volume | None
    label: NDArray[Any] | None
    known: NDArray[np.bool_] | None = None


def read_case(dataset: Dataset, case: Case) -> tuple[CaseVolumes, list[str]]:
    """The files of one case, each read once and in whole, and what is wrong with them.

    Returns: The volumes, and the faults as lines `Task, case: what. How to correct it.`; the volumes are None where
        there are faults.
    """
    faults: list[str] = []
    image, label = _read_image(dataset, case, faults), None
    if case.label is not None:
        label = _read_label(dataset, case, image, faults)
    lines = [f"{dataset.name}, {case.name}: {fault}" for fault in faults]
    if faults:
        return CaseVolumes(None, None), lines
    known = None if label is None or dataset.ignore is None else label != dataset.ignore
    return CaseVolumes(image, label if known is None or label is None else label * known, known), lines


def _read_image(dataset: Dataset, case: Case, faults: list[str]) -> Volume | None:
    """The image, checked for itself. None where it cannot be read."""
    channels = [_read(dataset.root, path, faults) for path in case.images]
    read = [channel for channel in channels if channel is not None]
    if len(read) < len(channels):
        return None
    read = [read[0], *(images.onto(channel, read[0].grid) for channel in read[1:])]
    for path, channel in zip(case.images[1:], read[1:], strict=True):
        faults += [f"{path}: {fault}" for fault in _geometry_faults(read[0], channel, what="channel")]
    if any(channel.shape != read[0].shape for channel in read):
        return None
    image = images.stacked(read)
    faults += _image_faults(image, dataset)
    return image


def _read_label(dataset: Dataset, case: Case, image: Volume | None, faults: list[str]) -> NDArray[Any] | None:
    """The label as whole numbers, checked for itself and against the image. None where it has none."""
    label = _read(dataset.root, str(case.label), faults)
    if label is None:
        return None
    wrong_kind = labels.label_faults(dataset.root / str(case.label), label)
    if wrong_kind:
        faults += wrong_kind
        return None
    if image is not None:
        label = images.onto(label, image.grid)
        faults += _geometry_faults(image, label)
    values, wrong = labels.whole_numbers(label.array[..., 0])
    faults += wrong if wrong else _value_faults(values, dataset)
    return values


def _read(root: Path, path: str, faults: list[str]) -> Volume | None:
    """A file, or None and one more fault."""
    try:
        return images.read_volume(root / path)
    except DatasetError as error:
        faults.append(f"{path} {error}")
    return None


def _image_faults(image: Volume, dataset: Dataset) -> Iterator[str]:
    """What is wrong with an image by itself."""
    channels = image.array.shape[3]
    if channels != len(dataset.modalities):
        yield (
            f"the image has {channels} channels, {dataset.declared} {len(dataset.modalities)} "
            f"({shortened(', '.join(dataset.modalities))}). Correct either."
        )
    if image.grid.colours:
        yield formats.PALETTE
    largest = labels.largest_magnitude(image.array)
    if not np.isfinite(largest):
        yield "the image has values that are NaN or infinite. Replace them, by 0 where there is no tissue."
    elif largest > MAX_INTENSITY:
        yield (
            f"the image has values up to {largest:.3g}; networks compute with at most {MAX_INTENSITY:g}. Check its "
            "scale (scl_slope), or divide the values of all images by one number."
        )
    elif largest == 0:
        yield "the image is zero everywhere. Replace it, or leave the case out of the dataset."


def _geometry_faults(image: Volume, label: Volume, what: str = "label") -> Iterator[str]:
    """Shapes that differ, or affines that put a corner of the volume at different places."""
    if image.shape != label.shape:
        yield (
            f"{what} shape {label.shape} differs from image shape {image.shape}. Resample the {what} to the image, or "
            "leave the case out of the dataset."
        )
        return
    if distance := geometry.apart(image.grid, label.grid):
        yield (
            f"the affines of {what} and image put a corner of the volume {distance}. Resample the {what} to the image, "
            "or copy the image's affine if they overlay."
        )


def _value_faults(label: NDArray[Any], dataset: Dataset) -> list[str]:
    """Values that no class of the dataset has."""
    found = [value for value, _ in labels.count_values(label)]
    declared = [value for value, _ in dataset.labels]
    unknown = sorted(set(found) - {*declared, dataset.ignore})
    if not unknown:
        return []
    if unknown == [255] and declared == [0, 1] and dataset.undeclared == Dataset.undeclared:
        return [
            'the label has the values 0 and 255, and dataset.json declares 0 and 1. Write "255" in place of "1" there: '
            "networks then see class 1, and segmentations have 255 as the labels do."
        ]
    if fault := labels.blend_fault(label):
        return [fault]
    listed = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
    plural = "values" if len(unknown) > 1 else "value"
    return [f"the label has the undeclared {plural} {listed}. {dataset.undeclared}"]
