"""Scores of predicted segmentations against labels: Dice, surface Dice and the 95th percentile of the Hausdorff
distance, and which lesions were found, for every case and class.

Conventions, for every score: a class that neither the label nor the prediction of a case holds has no scores there and
is left out of the means. Where only one of the two holds it, Dice and surface Dice are 0; the distance is infinite, so
it is left out of the mean distance, and such cases are counted. The foreground mean is the mean over the classes of the
mean over the cases. Lesions are the connected components of a class; their rates are of all lesions of all cases.
"""

import csv
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from autoplan import dataset as datasets
from autoplan import images, written
from autoplan.axes import Spacing
from autoplan.errors import DatasetError, shortened
from autoplan.facts import to_dict
from autoplan.files import write_atomically, write_text_atomically
from autoplan.images import bounding_box, spacing
from autoplan.processes import MAX_PROCESSES, mapper, num_processors
from autoplan.tables import table

TOLERANCE_MM = 1.0
"""Distance up to which two surfaces count as equal, see `tolerance_mm`. Our choice; the paper scores Dice only."""
PERCENTILE = 95
"""Percentile of the Hausdorff distance. Source: custom of the field; the maximum depends on a single voxel."""
FLOAT32_SLACK = 1e-5
"""Part of the tolerance that is added to it: MONAI rounds distances to float32."""
SAVED = ("scores.csv", "scores.json")
OVERLAP = 0.5
"""Intersection over union from which on two components are the same lesion, see `lesions`. Above 0.5 no lesion can have
two partners. Source: Kirillov et al., Panoptic Segmentation, CVPR 2019 (arXiv:1801.00868), section 4.1."""
NUM_LOWEST = 5
"""Cases that the table shows, those of the lowest mean Dice."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class in one case. All None: neither has the class. `hausdorff_95_mm` alone None: one has it.
    `lesions` are the components of the label, of the prediction, and those that match."""

    dice: float | None
    surface_dice: float | None
    hausdorff_95_mm: float | None
    lesions: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case, one entry for each class. `tolerance_mm` is that of its surface Dice."""

    name: str
    tolerance_mm: float
    classes: tuple[ClassScores, ...]


@dataclass(frozen=True)
class Mean:
    """Means over the cases that have the score, None where none has. `num_cases` counts those that have a Dice, and
    `num_infinite` those of them whose distance is infinite, which is left out."""

    dice: float | None
    surface_dice: float | None
    hausdorff_95_mm: float | None
    num_cases: int
    num_infinite: int


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


@dataclass(frozen=True)
class Evaluation:
    """Scores of all cases. `labels` has value and name of each foreground class; `unpredicted` names labels that have
    no prediction; `tolerance_mm` and `overlap` are what was asked for."""

    labels: tuple[tuple[int, str], ...]
    tolerance_mm: float
    cases: tuple[CaseScores, ...]
    unpredicted: tuple[str, ...]
    overlap: float = OVERLAP

    @property
    def detections(self) -> tuple[Detection, ...]:
        """One entry for each class."""
        return tuple(detection([c.classes[i].lesions for c in self.cases]) for i in range(len(self.labels)))

    @property
    def means(self) -> tuple[Mean, ...]:
        """One entry for each class."""
        return tuple(_mean([c.classes[i] for c in self.cases]) for i in range(len(self.labels)))

    @property
    def foreground(self) -> Mean:
        """Mean over the classes of their means; the counts are sums."""
        means = self.means
        return Mean(
            _average([m.dice for m in means]),
            _average([m.surface_dice for m in means]),
            _average([m.hausdorff_95_mm for m in means]),
            sum(m.num_cases for m in means),
            sum(m.num_infinite for m in means),
        )


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
    processes = min(num_processes or min(num_processors(), MAX_PROCESSES), len(found))
    score = partial(_score, declared=declared, ignore=ignore, tolerance=tolerance, overlap=overlap)
    hidden = None if progress is None else not progress
    with mapper(processes, preload=("monai.metrics", "autoplan.evaluation")) as each:
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


def _raise(faults: Sequence[str]) -> None:
    """Raises what was found, if anything."""
    if faults:
        raise DatasetError("\n".join(faults))


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
    if distance := images.apart(label, prediction):
        return [
            f"{pair.prediction}: its affine and the label's put a corner of the volume {distance}. Resample it, or "
            "copy the label's affine if they overlay."
        ]
    return []


def _header(path: Path, faults: list[str]) -> images.Grid | None:
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


def read_classes(
    path: Path, *, what: str = "label", on: images.Grid | None = None
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
    values, faults = images.whole_numbers(volume.array[..., 0], what=what)
    _raise([f"{path}: {fault}" for fault in faults])
    return values, volume.affine


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
    values = sorted(({v for v, _ in images.count_values(truth)} | {v for v, _ in images.count_values(found)}) - {0})
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
    unknown = [(what, path, {v for v, _ in images.count_values(array)} - declared) for what, path, array in arrays]
    return [
        f"{path}: the {what} has values that dataset.json does not declare: {sorted(values)[:10]}. Declare them."
        for what, path, values in unknown
        if values
    ]


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


def _average(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there."""
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def _mean(scores: Sequence[ClassScores]) -> Mean:
    """Means of one class over the cases."""
    return Mean(
        _average([s.dice for s in scores]),
        _average([s.surface_dice for s in scores]),
        _average([s.hausdorff_95_mm for s in scores]),
        sum(s.dice is not None for s in scores),
        sum(s.dice is not None and s.hausdorff_95_mm is None for s in scores),
    )


# What is written.

CONVENTIONS = (
    "A class that is absent from both label and prediction is left out of the means. Absent from one of the two alone, "
    "its Dice and surface Dice are 0, and its distance, being infinite, is left out and counted as one-sided."
)


def report(evaluation: Evaluation) -> str:
    """The means as an aligned table, the cases of the lowest Dice, and what the numbers mean."""
    header = ["", "Dice", "surface Dice", "HD95 (mm)", "cases", "one-sided"]
    means = [[name, *_mean_cells(m)] for (_, name), m in zip(evaluation.labels, evaluation.means, strict=True)]
    rows = [header, *means, ["foreground mean", *_mean_cells(evaluation.foreground)[:3], "", ""]]
    names = [name for _, name in evaluation.labels]
    lowest = sorted(evaluation.cases, key=_mean_dice)[:NUM_LOWEST]
    worst = [["lowest Dice", *names], *([c.name, *(_cell(s.dice) for s in c.classes)] for c in lowest)]
    parts = [table(part, left=1) for part in (rows, _lesion_rows(evaluation), worst)]
    return "\n\n".join([f"{len(evaluation.cases)} cases", *parts, _notes(evaluation)])


def _lesion_rows(evaluation: Evaluation) -> list[list[str]]:
    """How lesions of each class were found."""
    found = [
        [name, str(d.num_lesions), _cell(d.f1), _cell(d.sensitivity), _cell(d.false_positives, digits=2)]
        for (_, name), d in zip(evaluation.labels, evaluation.detections, strict=True)
    ]
    return [["lesions", "number", "F1", "sensitivity", "false positives a case"], *found]


def _notes(evaluation: Evaluation) -> str:
    """Tolerance, conventions, and labels that were left out."""
    used = sorted({case.tolerance_mm for case in evaluation.cases})
    of_cases = f"{used[0]:g}" if len(used) == 1 else f"{used[0]:g} to {used[-1]:g}"
    lines = [
        f"Surface Dice: tolerance {evaluation.tolerance_mm:g} mm, or the finest voxel edge of a case where that is "
        f"longer: {of_cases} mm.",
        CONVENTIONS,
        f"Lesions: connected components; two match from an intersection over union of {evaluation.overlap:g} on.",
    ]
    if evaluation.unpredicted:
        count = len(evaluation.unpredicted)
        shown = ", ".join(evaluation.unpredicted[:NUM_LOWEST]) + (", ..." if count > NUM_LOWEST else "")
        lines.append(f"{count} of {count + len(evaluation.cases)} labels have no prediction and are left out: {shown}.")
    return "\n".join(lines)


def _mean_dice(case: CaseScores) -> float:
    """Mean over the classes that the case has; 1 where it has none, so that it does not count as bad."""
    average = _average([s.dice for s in case.classes])
    return 1.0 if average is None else average


def _mean_cells(mean: Mean) -> list[str]:
    """Cells of a line of the table."""
    scores = (_cell(mean.dice), _cell(mean.surface_dice), _cell(mean.hausdorff_95_mm, digits=2))
    return [*scores, str(mean.num_cases), str(mean.num_infinite)]


def _cell(value: float | None, *, digits: int = 4) -> str:
    """A number, or a dash for none. One that would be shown as 0 and is not has two significant digits."""
    if value is None:
        return "-"
    return f"{value:.2g}" if 0 < value < 0.5 * 10**-digits else f"{value:.{digits}f}"


def save(evaluation: Evaluation, folder: Path, *, force: bool = False) -> list[Path]:
    """Writes scores.csv (a line for each case and class, then the means) and scores.json; returns their paths, and the
    folder with a copy of what was changed by hand and is overwritten with `force`.

    Raises:
        TemplateError: one that is there was changed by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_saved(folder, force=force)
    kept = written.keep(folder, SAVED, folder / "scores")
    paths = [folder / name for name in SAVED]
    write_atomically(paths[0], lambda path: _write_csv(evaluation, path))
    write_text_atomically(paths[1], json.dumps(as_dict(evaluation), indent=1, ensure_ascii=False) + "\n")
    written.record(folder, SAVED)
    return [*paths, *kept]


def check_saved(folder: Path, *, force: bool) -> None:
    """Refuses a folder whose scores were changed by hand, unless `force`.

    Raises:
        TemplateError: it names them.
    """
    if not force:
        written.check_own(folder, SAVED)


def _write_csv(evaluation: Evaluation, path: Path) -> None:
    """One line a case and class, then one a class; nothing stands where there is no score."""
    scores = ("case", "class", "dice", "surface_dice", "hausdorff_95_mm", "tolerance_mm")
    header = (*scores, "lesions", "predicted_lesions", "matched_lesions")
    names = [name for _, name in evaluation.labels]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for case in evaluation.cases:
            for name, s in zip(names, case.classes, strict=True):
                writer.writerow(
                    (case.name, name, s.dice, s.surface_dice, s.hausdorff_95_mm, case.tolerance_mm, *s.lesions)
                )
        for name, m in zip((*names, "foreground"), (*evaluation.means, evaluation.foreground), strict=True):
            writer.writerow(("mean", name, m.dice, m.surface_dice, m.hausdorff_95_mm, "", "", "", ""))


def as_dict(evaluation: Evaluation) -> Mapping[str, Any]:
    """Plain JSON types: means, then cases."""
    names = [name for _, name in evaluation.labels]
    return {
        "conventions": CONVENTIONS,
        "classes": {name: value for value, name in evaluation.labels},
        "tolerance_mm": evaluation.tolerance_mm,
        "foreground_mean": to_dict(evaluation.foreground),
        "means": {name: to_dict(mean) for name, mean in zip(names, evaluation.means, strict=True)},
        "overlap": evaluation.overlap,
        "lesions": {name: to_dict(found) for name, found in zip(names, evaluation.detections, strict=True)},
        "cases": {
            case.name: {
                "tolerance_mm": case.tolerance_mm,
                "classes": {name: to_dict(scores) for name, scores in zip(names, case.classes, strict=True)},
            }
            for case in evaluation.cases
        },
        "unpredicted": list(evaluation.unpredicted),
    }
