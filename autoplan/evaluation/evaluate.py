"""Scores of predicted segmentations against labels: Dice, surface Dice and the 95th percentile of the Hausdorff
distance, and which lesions were found, for every case and class.

Conventions, for every score: a class that neither the label nor the prediction of a case holds has no scores there and
is left out of the means. Where only one of the two holds it, Dice and surface Dice are 0; the distance is infinite, so
it is left out of the mean distance, and such cases are counted. The foreground mean is the mean over the classes of the
mean over the cases. Lesions are the connected components of a class; their rates are of all lesions of all cases.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from autoplan.base.axes import Spacing
from autoplan.base.errors import DatasetError, shortened
from autoplan.base.processes import MAX_PROCESSES, mapper
from autoplan.base.scripts.memory import processors
from autoplan.data import decathlon as datasets
from autoplan.data import geometry, images
from autoplan.data.geometry import bounding_box, spacing
from autoplan.data.labels import _raise, count_values, read_classes
from autoplan.evaluation.metrics import (
    OVERLAP,
    TOLERANCE_MM,
    ClassScores,
    class_scores,
    tolerance_mm,
)
from autoplan.evaluation.tables import CaseScores, Evaluation


@dataclass(frozen=True)
class Pair:
    """A case's label and prediction."""

    name: str
    label: Path
    prediction: Path


@dataclass(frozen=True)
class _Reading:
    """What one case gives: faults, or its scores by value of the class."""

    faults: tuple[str, ...]
    name: str = ""
    tolerance_mm: float = 0.0
    scores: tuple[tuple[int, ClassScores], ...] = ()


def evaluate(
    labels: Path,
    predictions: Path,
    *,
    tolerance: float = TOLERANCE_MM,
    overlap: float = OVERLAP,
    num_processes: int | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Scores of the predictions in a folder. Names, shapes and affines of all cases are checked before any is scored.

    Args:
        labels: folder of images; a dataset.json in it or in the folder above it declares the classes, and perhaps
            a value to ignore. Where there is none, the classes are the values other than 0 that occur.
        predictions: folder of images with the same names. Labels without a prediction are left out and named.
        tolerance: mm, of the surface Dice; see `tolerance_mm`.
        overlap: of two components that are the same lesion; see `lesions`.
        num_processes: processes that score; None: as many as there are processors.
        progress: whether to show a progress bar on stderr; None: where stderr is a terminal.

    Raises:
        DatasetError: anything wrong with any case, one line each.
    """
    declared, ignore = _declared(labels)
    found, unpredicted = pairs(labels, predictions)
    processes = min(num_processes or min(processors(), MAX_PROCESSES), len(found))
    score = partial(_score, declared=declared, ignore=ignore, tolerance=tolerance, overlap=overlap)
    hidden = None if progress is None else not progress
    with mapper(processes, preload=("monai.metrics", "autoplan.evaluation.evaluate")) as each:
        readings = list(tqdm(each(score, found), total=len(found), desc="scoring", unit="case", disable=hidden))
    _raise([fault for reading in readings for fault in reading.faults])
    values = sorted({value for reading in readings for value, _ in reading.scores})
    classes = tuple((value, str(value)) for value in values) if declared is None else declared[1:]
    cases = tuple(_case(r, [v for v, _ in classes]) for r in readings)
    return Evaluation(classes, tolerance, cases, unpredicted, overlap)


def _case(reading: _Reading, values: Sequence[int]) -> CaseScores:
    """Scores in the order of `values`; none for a class that the case does not have."""
    scores, absent = dict(reading.scores), ClassScores(None, None, None)
    return CaseScores(reading.name, reading.tolerance_mm, tuple(scores.get(value, absent) for value in values))


# The files.


def _declared(labels: Path) -> tuple[tuple[tuple[int, str], ...] | None, int | None]:
    """Classes, and the value to ignore, that a dataset.json in the folder or above it declares; None: it does not."""
    folder = Path(os.path.abspath(labels))
    there = next((f for f in (folder, folder.parent) if os.path.isfile(f / datasets.DESCRIPTION)), None)
    if there is None:
        return None, None
    return datasets.read_labels(there)


def pairs(labels: Path, predictions: Path) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Label and prediction of each case, and the names of labels that have no prediction. Headers are read, voxels not.

    Raises:
        DatasetError: a folder without images, two files of one name, a prediction without a label, a broken
            header, shapes or affines that differ; one line each.
    """
    faults: list[str] = []
    labelled, predicted = _files(labels, "labels", faults), _files(predictions, "predictions", faults)
    images.check_packages([*labelled.values(), *predicted.values()])
    if labelled and predicted:
        faults += [
            f"{path}: there is no label of that name in {labels}. Rename the file, or take it out of the folder."
            for name, path in predicted.items()
            if name not in labelled
        ]
    found = tuple(Pair(name, labelled[name], path) for name, path in predicted.items() if name in labelled)
    faults += [fault for pair in found for fault in _grid_faults(pair)]
    _raise(faults)
    return found, tuple(name for name in labelled if name not in predicted)


def _files(folder: Path, flag: str, faults: list[str]) -> dict[str, Path]:
    """The images of a folder by case, in alphabetical order."""
    if not os.path.isdir(folder):
        faults.append(f"--{flag} {shortened(str(folder))}: there is no such folder. Name one with images.")
        return {}
    found: dict[str, Path] = {}
    for path in images.image_files(folder):
        name = images.case_name(path.name)
        if name in found:
            faults.append(f"{path}: {found[name].name} is of the same case. Remove one of the two.")
        found[name] = path
    if not found:
        faults.append(f"--{flag} {folder}: holds no image ({images.KNOWN}). Name a folder that does.")
    return found


def _grid_faults(pair: Pair) -> list[str]:
    """What the headers of a label and its prediction have wrong, by themselves and together."""
    faults: list[str] = []
    label, prediction = (_header(path, faults) for path in (pair.label, pair.prediction))
    if label is None or prediction is None:
        return faults
    prediction = images.grid_onto(prediction, label)
    if label.shape != prediction.shape:
        return [
            f"{pair.prediction}: shape {prediction.shape} differs from the label's, {label.shape}. Resample the "
            "prediction to the label's grid, by nearest neighbour."
        ]
    if distance := geometry.apart(label, prediction):
        return [
            f"{pair.prediction}: its affine and the label's put a corner of the volume {distance}. Resample it, or "
            "copy the label's affine if they overlay."
        ]
    return []


def _header(path: Path, faults: list[str]) -> geometry.Grid | None:
    """Where the voxels of a file lie, or None and one more fault."""
    try:
        grid = images.read_grid(path)
    except DatasetError as error:
        faults.append(f"{path} {error}")
        return None
    if grid.channels != 1:
        faults.append(f"{path}: {grid.channels} channels, not one volume. Store the classes as numbers in one channel.")
        return None
    return grid


# The scores.


def _score(
    pair: Pair, *, declared: tuple[tuple[int, str], ...] | None, ignore: int | None, tolerance: float, overlap: float
) -> _Reading:
    """Scores of one case, or what is wrong with its files."""
    try:
        label, _ = read_classes(pair.label)
        prediction, _ = read_classes(pair.prediction, what="prediction", on=images.read_grid(pair.label))
    except DatasetError as error:
        return _Reading((str(error),))
    if ignore is not None:
        label, prediction = (np.where(label == ignore, 0, array) for array in (label, prediction))
    faults = _undeclared(pair, label, prediction, None if declared is None else {value for value, _ in declared})
    if faults:
        return _Reading(tuple(faults))
    mm, foreground = _spacing(pair), (label != 0) | (prediction != 0)
    allowed = tolerance_mm(mm, at_least=tolerance)
    if not foreground.any():
        return _Reading((), pair.name, allowed)
    box = bounding_box(foreground)
    truth, found = label[box], prediction[box]
    values = sorted(({v for v, _ in count_values(truth)} | {v for v, _ in count_values(found)}) - {0})
    scores = (
        (value, class_scores(truth == value, found == value, mm, tolerance=allowed, overlap=overlap))
        for value in values
    )
    return _Reading((), pair.name, allowed, tuple(scores))


def _spacing(pair: Pair) -> Spacing:
    """mm a voxel of a case, by its label or, where that does not say it, by its prediction."""
    grids = [images.read_grid(path) for path in (pair.label, pair.prediction)]
    return spacing(next((grid for grid in grids if grid.measured), grids[0]).affine)


def _undeclared(pair: Pair, label: NDArray[Any], prediction: NDArray[Any], declared: set[int] | None) -> list[str]:
    """Values that dataset.json does not declare, and where there is none those below 0, which no class has."""
    arrays = (("label", pair.label, label), ("prediction", pair.prediction, prediction))
    if declared is None:
        return [
            f"{path}: the {what} has the value {int(array.min())}, and classes have 0 or more. Replace it; a value to "
            'leave out can be declared in a dataset.json beside the folder: "labels": {"background": 0, ..., '
            '"ignore": 9}.'
            for what, path, array in arrays
            if array.min(initial=0) < 0
        ]
    unknown = [(what, path, {v for v, _ in count_values(array)} - declared) for what, path, array in arrays]
    return [
        f"{path}: the {what} has values that dataset.json does not declare: {sorted(values)[:10]}. Declare them."
        for what, path, values in unknown
        if values
    ]


# What is written.
