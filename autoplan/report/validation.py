"""What cross-validation left of each case, measured: scores, volumes, confusion, calibration, agreement; and pictures
of reference and prediction. Kept, case by case, until a file or a network changes."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoplan.base.codec import from_dict
from autoplan.base.errors import AutoplanError, DatasetError, one_line
from autoplan.base.files import read_object
from autoplan.data import fingerprint, labels, pictures
from autoplan.data.cases import read_case
from autoplan.data.facts import Case, Dataset
from autoplan.data.geometry import bounding_box, spacing
from autoplan.data.images import case_name, image_files
from autoplan.data.pictures import to_show
from autoplan.evaluation import crossvalidation, metrics, segmenter
from autoplan.evaluation.choice import ORDER, CaseDice, Missing, Score
from autoplan.planning.values import Plan
from autoplan.report.summaries import KEPT, kept
from autoplan.training import results

FORMAT = 4
"""Version of what is kept. To be raised whenever the meaning of a number, or a picture, changes."""
BINS = 10
"""Of the calibration: intervals of probability of equal width."""
UNKNOWN = -1
"""Where a label does not say what a voxel is."""
PADDING_MM, PADDING = 8.0, 0.4
"""What a picture shows around a class: at least so many mm, and this part of its extent, on each side."""
PRELOAD = (
    "monai.metrics",
    "scipy.ndimage",
    "PIL.Image",
    "autoplan.evaluation.crossvalidation",
    "autoplan.report.validation",
)


@dataclass(frozen=True)
class Scored:
    """A validation case. Entries are those of the foreground classes, in their order.

    Attributes:
        faults: why it cannot be scored; all else is then empty.
        tolerance_mm: of the surface Dice.
        dice, surface_dice, hausdorff_95_mm: as `evaluation` has them.
        lesions: components of reference and prediction, and those that match.
        reference_ml, predicted_ml: volumes.
        confusion: (class of the reference, class of the prediction, voxels), background 0, without background on both
            sides.
        calibration: for each class `BINS` times number of voxels, sum of probabilities, voxels of the class; then the
            sum of squared differences. Of all voxels that have a class or a probability of one. Empty where the
            probabilities lie on no grid that fits the label.
        agreement: mean Dice between the predictions of the configurations, None where there is one only.
    """

    name: str
    faults: tuple[str, ...] = ()
    tolerance_mm: float = 0.0
    dice: tuple[float | None, ...] = ()
    surface_dice: tuple[float | None, ...] = ()
    hausdorff_95_mm: tuple[float | None, ...] = ()
    lesions: tuple[tuple[int, int, int], ...] = ()
    reference_ml: tuple[float, ...] = ()
    predicted_ml: tuple[float, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    calibration: tuple[tuple[float, ...], ...] = ()
    agreement: float | None = None

    @property
    def mean_dice(self) -> float | None:
        """Over the classes that the case has."""
        there = [v for v in self.dice if v is not None]
        return sum(there) / len(there) if there else None


@dataclass(frozen=True)
class Chosen:
    """What choice.json says: the candidates, best first, and the Dice of each case for each of them. `is_current`:
    the networks are those that are there now."""

    scores: tuple[Score, ...]
    cases: Mapping[str, Mapping[str, CaseDice]]
    is_distinct: bool
    is_current: bool


@dataclass(frozen=True)
class Result:
    """What is known of the predictions of one candidate: the chosen one, or, where nothing is chosen yet, the best of
    the configurations with the most finished folds.

    Attributes:
        members: configurations of the candidate.
        folds: fold of each case.
        cases: scored, in the order of their names.
        pictures: by case and number of the class that is in their middle.
        chosen: the choice, where there is one.
        missing: what is not finished, and the command that makes it.
    """

    members: tuple[str, ...]
    folds: Mapping[str, int]
    cases: tuple[Scored, ...]
    pictures: Mapping[tuple[str, int], pictures.Drawn]
    chosen: Chosen | None
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def readable(self) -> list[Scored]:
        """Cases without faults."""
        return [c for c in self.cases if not c.faults]


@dataclass(frozen=True)
class Job:
    """A case to be scored: its files of probabilities, one of each member; the segmentation of the one member, where
    it lies on disk; the segmentations of all configurations; the bundle whose code segments."""

    case: Case
    members: tuple[Path, ...]
    segmentation: Path | None
    others: tuple[Path, ...]
    bundle: Path
    number: int = -1


def read(
    plan: Plan, dataset: Dataset, folder: Path, *, num_processes: int | None = None, progress: bool | None = None
) -> Result | None:
    """The result of the chosen candidate; None where no fold is finished.

    Args:
        plan: folds and classes.
        dataset: where images and labels are.
        folder: of the task's bundles.
        num_processes: at most; None: as many as there are processors, fewer for little data.
        progress: whether to show progress bars on stderr; None: where stderr is a terminal.

    Raises:
        TemplateError: a bundle has other folds than the plan.
    """
    found, missing = crossvalidation.finished(plan, folder)
    if not found:
        return None
    chosen = _chosen(folder, found)
    members = chosen.scores[0].candidate.members if chosen is not None and chosen.is_current else _best(found)
    folds = sorted(set.intersection(*(set(found[m]) for m in members)))
    by_name = {case.name: case for case in dataset.training}
    fold_of = {name: k for k in folds for name in plan.folds[k] if name in by_name}
    jobs = {name: _job(folder, by_name[name], members, k, found) for name, k in fold_of.items()}
    keys = {name: _key(plan, dataset, by_name[name], members, k, found) for name, k in fold_of.items()}
    options: dict[str, Any] = {
        "num_processes": num_processes or fingerprint.suitable_processes(dataset), "preload": PRELOAD,
        "progress": progress,
    }  # fmt: skip
    bare, size = replace(dataset, training=(), test=()), pictures.size_for(len(dataset.training) + len(dataset.test))
    scored = kept(
        folder / KEPT / "scores.json", [(name, keys[name], job) for name, job in jobs.items()], partial(score, bare),
        Scored, title=f"{dataset.name}: scoring predictions", **options,
    )  # fmt: skip
    cases = tuple(scored[name] for name in sorted(scored))
    wanted = [
        (f"{name} {number}", f"{size} {keys[name]}", replace(jobs[name], number=number))
        for name, number in to_draw(cases)
    ]
    drawn = kept(
        folder / KEPT / "pictures.json", wanted, partial(draw, bare, size), pictures.Drawn,
        title=f"{dataset.name}: drawing predictions", **options,
    )  # fmt: skip
    by_case = {(job.case.name, job.number): drawn[name] for name, _, job in wanted if drawn[name].data}
    gaps = tuple((f"{_where(m)}: {m.what}", m.command) for m in missing)
    return Result(members, fold_of, cases, by_case, chosen, gaps)


def _where(missing: Missing) -> str:
    """`2d, folds 1, 2`."""
    numbers = ", ".join(map(str, missing.folds))
    return (
        f"{missing.configuration}, fold{'s' * (len(missing.folds) > 1)} {numbers}" if numbers else missing.configuration
    )


def _best(found: Mapping[str, Mapping[int, results.FoldResult]]) -> tuple[str, ...]:
    """The configuration with the most finished folds; of equals that of the best mean Dice."""

    def rank(name: str) -> tuple[int, float]:
        means = [fold.mean_dice for fold in found[name].values() if fold.mean_dice is not None]
        return len(found[name]), sum(means) / len(means) if means else -1.0

    return (max(sorted(found, key=ORDER.index), key=rank),)


def _chosen(folder: Path, found: Mapping[str, Mapping[int, results.FoldResult]]) -> Chosen | None:
    """What choice.json says; None where there is none, or a damaged one."""
    content = read_object(folder / crossvalidation.RESULT)
    try:
        named = [{k: v for k, v in entry.items() if k != "name"} for entry in content["scores"]]
        listed = tuple(from_dict(Score, entry) for entry in named)
        cases = {
            s.candidate.name: {
                case: from_dict(CaseDice, dice) for case, dice in content["cases"][s.candidate.name].items()
            }
            for s in listed
        }
        networks = {
            (m, int(k)): fold["model"] for m, by_fold in content["networks"].items() for k, fold in by_fold.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    now = {(m, k): fold.model for m, by_fold in found.items() for k, fold in by_fold.items()}
    is_current = all(now.get(where) == model for where, model in networks.items())
    return Chosen(listed, cases, content.get("is_distinct") is True, is_current) if listed else None


def _job(
    folder: Path, case: Case, members: Sequence[str], fold: int, found: Mapping[str, Mapping[int, results.FoldResult]]
) -> Job:
    """Where the predictions of a case lie."""
    places = [results.fold_folder(folder / name, fold) for name in members]
    written = [results.fold_folder(folder / n, fold) for n in found if fold in found[n]]
    there = tuple(path for place in written if (path := _segmentations(place).get(case.name)))
    own = _segmentations(places[0]).get(case.name)
    return Job(
        case,
        tuple(results.probabilities(place, case.name) for place in places),
        own if len(members) == 1 else None,
        there,
        folder / members[0],
    )


def _segmentations(fold: Path) -> dict[str, Path]:
    """The segmentations of the validation cases of a fold, whatever their format."""
    return {case_name(path.name): path for path in image_files(fold / "validation")}


def _key(
    plan: Plan,
    dataset: Dataset,
    case: Case,
    members: Sequence[str],
    fold: int,
    found: Mapping[str, Mapping[int, results.FoldResult]],
) -> str:
    """What scores and pictures of a case depend on."""
    networks = [(name, found[name][fold].model, found[name][fold].settings) for name in found if fold in found[name]]
    files = fingerprint.case_key(dataset, case)
    return f"{FORMAT} {dataset.labels} {plan.single_component} {list(members)} {networks} {files}"


def to_draw(cases: Sequence[Scored], *, most_classes: int = 8, worst: int = 20) -> list[tuple[str, int]]:
    """Which cases are drawn, and the class that is in the middle: of each class the worst, the median and the best
    case, and of the worst cases their worst class."""
    found = [place for number in range(most_classes) for place in landmarks(cases, number)]
    there = sorted((c for c in cases if c.mean_dice is not None), key=lambda c: (c.mean_dice, c.name))
    return list(dict.fromkeys([*found, *((c.name, worst_class(c)) for c in there[:worst])]))


def landmarks(cases: Sequence[Scored], number: int) -> list[tuple[str, int]]:
    """The worst, the median and the best case of a class."""
    there = [(c.dice[number], c.name) for c in cases if number < len(c.dice) and c.dice[number] is not None]
    names = [name for _, name in sorted(there, key=lambda pair: (pair[0] or 0.0, pair[1]))]
    chosen = [names[i] for i in (0, (len(names) - 1) // 2, len(names) - 1)] if names else []
    return [(name, number) for name in dict.fromkeys(chosen)]


def worst_class(case: Scored) -> int:
    """Number of the class of the lowest Dice."""
    return min(range(len(case.dice)), key=lambda i: (2.0 if (v := case.dice[i]) is None else v, i))


# One case.


def segmentation(job: Job) -> NDArray[Any]:
    """The candidate's segmentation of a case, label values (X, Y, Z)."""
    if job.segmentation is not None:
        return labels.read_classes(job.segmentation, what="prediction")[0]
    return segmenter.segmentations(job.members, job.bundle)[0]


def _read(dataset: Dataset, job: Job) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Image, label and segmentation of a case, and which voxels are known; the others are background in both. Raises
    DatasetError."""
    volumes, faults = read_case(dataset, job.case)
    if volumes.image is None or volumes.label is None:
        raise DatasetError(faults[0] if faults else f"{job.case.name} has no label")
    found = segmentation(job)
    if found.shape != volumes.label.shape:
        raise DatasetError(f"its prediction has shape {found.shape}, its label {volumes.label.shape}: predict it again")
    known = np.ones(found.shape, dtype=bool) if volumes.known is None else volumes.known
    return volumes.image, volumes.label, found * known, known


def score(dataset: Dataset, job: Job) -> Scored:
    """Scores of one case; of one that cannot be read, why."""
    try:
        image, label, found, known = _read(dataset, job)
    except (*segmenter.UNREADABLE, AutoplanError) as error:
        return Scored(job.case.name, (one_line(error).removeprefix(f"{dataset.name}, {job.case.name}: "),))
    values, mm = [value for value, _ in dataset.labels[1:]], spacing(image.affine)
    tolerance, volume = metrics.tolerance_mm(mm), math.prod(mm) / 1000
    scores = [metrics.class_scores(label == v, found == v, mm, tolerance=tolerance) for v in values]
    confused = confusion(label, found, [0, *values])
    return Scored(
        job.case.name,
        (),
        tolerance,
        tuple(s.dice for s in scores),
        tuple(s.surface_dice for s in scores),
        tuple(s.hausdorff_95_mm for s in scores),
        tuple(s.lesions for s in scores),
        tuple(volume * sum(n for t, _, n in confused if t == i) for i in range(1, len(values) + 1)),
        tuple(volume * sum(n for _, p, n in confused if p == i) for i in range(1, len(values) + 1)),
        confused,
        _calibration(job, np.where(known, label.astype(np.int32), UNKNOWN), image.affine, values),
        _agreement(job.others, values),
    )


def confusion(label: NDArray[Any], found: NDArray[Any], values: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Class of the reference, class of the prediction and number of voxels, as class numbers, without background on
    both sides; what is no class counts as background.

    Args:
        label, found: label values.
        values: of all classes, background first.
    """
    seen = (label != 0) | (found != 0)
    number = np.zeros(max(*values, int(label.max()), int(found.max())) + 1, dtype=np.int64)
    number[list(values)] = range(len(values))
    pairs = number[label[seen].astype(np.int64)] * len(values) + number[found[seen].astype(np.int64)]
    counts = np.bincount(pairs, minlength=1)
    return tuple((int(i) // len(values), int(i) % len(values), int(counts[i])) for i in np.flatnonzero(counts) if i)


def _agreement(paths: Sequence[Path], values: Sequence[int]) -> float | None:
    """Mean Dice between all pairs of segmentations."""
    try:
        arrays = [labels.read_classes(path, what="prediction")[0] for path in paths]
        pairs = [metrics.dice(metrics.class_masks(a, values), b) for a, b in itertools.combinations(arrays, 2)]
    except (AutoplanError, ValueError):
        return None
    means = [v for pair in pairs for v in pair if v is not None]
    return sum(means) / len(means) if means else None


def _calibration(
    job: Job, label: NDArray[Any], affine: NDArray[np.float64], values: Sequence[int]
) -> tuple[tuple[float, ...], ...]:
    """See `Scored.calibration`. The label, `UNKNOWN` where it does not say, is sampled where the probabilities are, at
    the nearest voxel."""
    try:
        stored = [segmenter.stored(path, job.bundle) for path in job.members]
        levels: NDArray[np.uint16] = np.stack([foreground for foreground, _ in stored]).sum(axis=0, dtype=np.uint16)
        on_grid = sampled(label, affine, stored[0][1], levels.shape[1:])
    except (*segmenter.UNREADABLE, AutoplanError):
        return ()
    if on_grid is None or len(levels) != len(values):
        return ()
    most = 255 * len(job.members)
    seen = ((levels > 0).any(axis=0) | (on_grid > 0)) & (on_grid != UNKNOWN)
    return tuple(_bins(levels[i][seen], on_grid[seen] == value, most) for i, value in enumerate(values))


def sampled(
    label: NDArray[Any], affine: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]
) -> NDArray[Any] | None:
    """A label at the nearest voxels of another grid, whose axes are those of the label in some order and direction;
    None where they are not, or where the grid leaves the label by more than a voxel."""
    mapping = np.linalg.inv(affine) @ other
    axes = np.abs(mapping[:3, :3]).argmax(axis=0)
    rest = mapping[:3, :3].copy()
    rest[axes, range(3)] = 0
    if sorted(axes) != [0, 1, 2] or np.abs(rest * shape).max() > 0.5:
        return None
    indices = []
    for i, axis in enumerate(axes):
        at = mapping[axis, i] * np.arange(shape[i]) + mapping[axis, 3]
        if at.min() < -1.5 or at.max() > label.shape[axis] + 0.5:
            return None
        indices.append(np.clip(np.floor(at + 0.5).astype(np.int64), 0, label.shape[axis] - 1))
    turned: NDArray[Any] = label.transpose(axes)[np.ix_(*indices)]
    return turned


def _bins(levels: NDArray[Any], hits: NDArray[np.bool_], most: int) -> tuple[float, ...]:
    """Numbers of one class for its calibration."""
    counts = np.bincount(levels, minlength=most + 1).astype(np.float64)
    right = np.bincount(levels[hits], minlength=most + 1).astype(np.float64)
    p = np.arange(most + 1) / most
    where = np.minimum((p * BINS).astype(int), BINS - 1)
    sums = [np.bincount(where, weights=w, minlength=BINS) for w in (counts, counts * p, right)]
    squared = float((counts * p**2 - 2 * right * p + right).sum())
    return (*(round(float(v), 3) for three in zip(*sums, strict=True) for v in three), round(squared, 3))


def draw(dataset: Dataset, size: tuple[int, int], job: Job) -> pictures.Drawn:
    """Three planes through a class of a case, at most of that size: the reference as solid outlines, the prediction as
    dashed ones; without bytes where a file cannot be read."""
    try:
        image, label, found, _ = _read(dataset, job)
    except (*segmenter.UNREADABLE, AutoplanError):
        return pictures.Drawn("", (0, 0))
    values = [value for value, _ in dataset.labels[1:]]
    shown = partial(to_show, affine=image.affine, image=job.case.images[0])
    array, truth, guess = (shown(a) for a in (image.array[..., 0], label, found))
    mask = (truth == values[job.number]) | (guess == values[job.number])
    if not mask.any():
        mask = (truth > 0) | (guess > 0)
    facts = fingerprint.case_facts(job.case.name, image, label, labels=dataset.labels)
    inside = array[truth > 0] if fingerprint.is_ct(dataset.modalities[0]) else None
    box = _around(mask, facts.spacing)
    return pictures.planes(
        array, [truth, guess], values, spacing=facts.spacing, at=pictures.center(mask.astype(np.uint8), 1, array.shape),
        grey=pictures.window(array[box], inside), box=box, width=size[0], height=size[1],
    )  # fmt: skip


def _around(mask: NDArray[np.bool_], mm: Sequence[float]) -> tuple[slice, ...]:
    """The box of a mask and what lies around it."""
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    box = []
    for part, n, step in zip(bounding_box(mask), mask.shape, mm, strict=True):
        more = math.ceil(max(PADDING_MM / step, PADDING * (part.stop - part.start)))
        box.append(slice(max(0, part.start - more), min(n, part.stop + more)))
    return tuple(box)
