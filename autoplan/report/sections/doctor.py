"""What is odd in a dataset: each kind of finding with its cases and what to do about it. Pure.

Whether something is odd is told by the other cases of the dataset: an island is one where the class is one piece in
nearly all labels, an intensity where the rest lies elsewhere. The limits are our choice; `docs/how-to/report.md` says
how often they were right.
"""

import base64
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoplan.data import layouts
from autoplan.report.blocks import Severity
from autoplan.report.summaries import Summary

USUAL = 0.75
"""Part of the cases that make something the usual thing, so that the others are odd."""
MIN_CASES = 8
"""Cases from which on the dataset says what is usual."""
SPACING_FACTOR, EXTENT_FACTOR = 2.0, 3.0
"""An axis is an outlier whose spacing or extent is this many times larger or smaller than the median."""
DEVIATIONS = 8.0
"""Robust standard deviations from the median that make an outlier. Of 1,000 normal values none lies that far."""
TINY_VOXELS, TINY_MEDIAN = 10, 50
"""A class in a case with fewer voxels, or with fewer in the median case, is tiny."""
SAME, SAME_PATIENT = 0.998, 0.93
"""Correlation of two thumbnails, without what all images share, that makes images nearly identical, or of one patient.
Measured on ACDC: pairs of one patient lie above 0.85, 9 of 10 of them above 0.95, all others below 0.65."""


@dataclass(frozen=True)
class Hit:
    """A case of a finding, what was found there, and the case that it was compared with, if one."""

    case: str
    what: str
    other: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of oddity. `kind` is its name for programs, `advice` says what to do."""

    kind: str
    severity: Severity
    title: str
    advice: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Data:
    """What is looked at: images that can be read, names of the foreground classes, and the fold of each case."""

    all: Sequence[Summary]
    classes: Sequence[str]
    folds: dict[str, int]
    absolute: Sequence[bool]

    @property
    def readable(self) -> list[Summary]:
        """Images without faults."""
        return [s for s in self.all if not s.faults]

    @property
    def training(self) -> list[Summary]:
        """Those that have a label."""
        return [s for s in self.readable if not s.is_test]


def examine(
    summaries: Sequence[Summary],
    classes: Sequence[str],
    folds: Sequence[Sequence[str]],
    absolute: Sequence[bool],
) -> list[Finding]:
    """All findings, the worst first.

    Args:
        summaries: of all images.
        classes: names of the foreground classes.
        folds: validation cases of each fold.
        absolute: for each channel, whether its values mean the same in all images, as in CT.
    """
    data = Data(summaries, classes, {name: k for k, fold in enumerate(folds) for name in fold}, absolute)
    found = [finding for check in CHECKS for finding in check(data) if finding.hits]
    order = ("error", "warning", "note", "good")
    return sorted(found, key=lambda finding: order.index(finding.severity))


# Files.


def _unreadable(data: Data) -> list[Finding]:
    hits = tuple(Hit(s.name, " ".join(s.faults)) for s in data.all if s.faults)
    return [
        Finding("unreadable", "error", "Files that cannot be used",
                "Correct or replace them, then plan again; trainings would stop at them.", hits),
    ]  # fmt: skip


# Geometry.


def _geometry(data: Data) -> list[Finding]:
    """Spacing or size far from the median of the dataset, forms that disagree."""
    hits = []
    for unit, values, factor in (
        ("spacing", [s.spacing for s in data.readable], SPACING_FACTOR),
        ("extent", [s.extent_mm for s in data.readable], EXTENT_FACTOR),
    ):
        if len(values) < 3:
            continue
        medians = [statistics.median(axis) for axis in zip(*values, strict=True)]
        for s, of_case in zip(data.readable, values, strict=True):
            far = [
                f"{unit} along {'xyz'[a]} {v:.4g} mm (median {m:.4g})"
                for a, (v, m) in enumerate(zip(of_case, medians, strict=True))
                if not 1 / factor < v / m < factor
            ]
            hits += [Hit(s.name, "; ".join(far))] if far else []
    return [
        Finding("geometry", "warning", "Geometry unlike the other images",
                "Look at the header: a wrong voxel spacing makes a wrong size, and large images fill the memory. "
                "Correct the header, or leave the case out.", _joined(hits)),
    ]  # fmt: skip


def _orientation(data: Data) -> list[Finding]:
    """Rare orientations. They are turned in preprocessing, but a rare one is often a wrong header."""
    counted = Counter(s.orientation for s in data.readable)
    rare = {o for o, n in counted.items() if n <= 0.05 * len(data.readable)} if len(data.readable) >= 20 else set()
    usual = counted.most_common(1)[0][0] if counted else ""
    hits = tuple(Hit(s.name, f"{s.orientation}, most are {usual}") for s in data.readable if s.orientation in rare)
    return [
        Finding("orientation", "note", "Rare orientations",
                "Orientations may differ, they are made equal. Look whether left, right, top and bottom are where the "
                "header says.", hits),
    ]  # fmt: skip


# Labels.


def _usual(values: Sequence[bool]) -> bool:
    """Whether something holds for so many cases that the others are odd."""
    return len(values) >= MIN_CASES and sum(values) >= USUAL * len(values)


def _pieces(data: Data) -> list[Finding]:
    """Islands and holes of classes that usually have none."""
    islands, holes = [], []
    for i, name in enumerate(data.classes):
        there = [s for s in data.training if s.voxels[i]]
        if _usual([s.components[i] == 1 for s in there]):
            islands += [
                Hit(s.name, f"{name}: {s.components[i]} components, {_voxels(s.islands[i])} outside the largest")
                for s in there
                if s.components[i] > 1
            ]
        if _usual([s.holes[i] == 0 for s in there]):
            holes += [Hit(s.name, f"{name}: {_voxels(s.holes[i])} enclosed") for s in there if s.holes[i]]
    return [
        Finding("islands", "warning", "Islands in labels",
                "The class is one piece in nearly all other labels. A few voxels apart are most often slips of the "
                "brush: remove them. One such label also keeps predictions from being cleaned of islands.",
                _joined(islands)),
        Finding("holes", "note", "Holes in labels",
                "Background enclosed by a class that has no holes elsewhere: fill them if they are slips.",
                _joined(holes)),
    ]  # fmt: skip


def _voxels(count: int) -> str:
    return f"{count} voxel{'' if count == 1 else 's'}"


def _missing(data: Data) -> list[Finding]:
    """Classes that some cases, or all, lack."""
    nowhere, some = [], []
    for i, name in enumerate(data.classes):
        without = [s for s in data.training if not s.voxels[i]]
        if data.training and len(without) == len(data.training):
            nowhere.append(Hit("", f"{name} occurs in no training label"))
        else:
            some += [Hit(s.name, f"no {name} ({len(without)} of {len(data.training)} cases)") for s in without]
    return [
        Finding("class_nowhere", "error", "Classes that no label has",
                "They cannot be learned. Check their numbers in dataset.json, or take them out.", tuple(nowhere)),
        Finding("missing_class", "note", "Classes missing in some cases",
                "This is right where the structure is absent. Where it was only not drawn, draw it or leave the case "
                "out: the network learns that it is background.", _joined(some)),
    ]  # fmt: skip


def _tiny(data: Data) -> list[Finding]:
    """Classes of a few voxels."""
    small, hits = [], []
    for i, name in enumerate(data.classes):
        counts = [s.voxels[i] for s in data.training if s.voxels[i]]
        if counts and statistics.median(counts) < TINY_MEDIAN:
            small.append(Hit("", f"{name}: {statistics.median(counts):g} voxels in the median case that has it"))
            continue
        hits += [Hit(s.name, f"{name}: {_voxels(s.voxels[i])}") for s in data.training if 0 < s.voxels[i] < TINY_VOXELS]
    return [
        Finding("tiny_class", "warning", "Tiny classes",
                "One voxel more or less changes the Dice of such a class much. Judge it by lesion-wise detection, or "
                "join it to another class.", tuple(small)),
        Finding("tiny_label", "warning", "Labels of a few voxels",
                "Most likely slips of the brush: look at them and remove or complete them.", _joined(hits)),
    ]  # fmt: skip


def _volumes(data: Data) -> list[Finding]:
    """Volumes of a class far from those of the other cases, on a logarithmic scale."""
    hits = []
    for i, name in enumerate(data.classes):
        there = [s for s in data.training if s.voxels[i]]
        logs = [math.log(s.ml[i]) for s in there]
        for s, far in zip(there, _outlying(logs, least=0.2), strict=True):
            if far:
                middle = math.exp(statistics.median(logs))
                hits.append(Hit(s.name, f"{name}: {s.ml[i]:.3g} ml (median {middle:.3g})"))
    return [
        Finding("volume", "warning", "Volumes unlike the other cases",
                "Look at the label and at the spacing in the header.", _joined(hits)),
    ]  # fmt: skip


def _outlying(values: Sequence[float], *, least: float) -> list[bool]:
    """Which values lie far from their median, in robust standard deviations of at least `least`."""
    if len(values) < MIN_CASES:
        return [False] * len(values)
    middle = statistics.median(values)
    spread = max(1.4826 * statistics.median(abs(v - middle) for v in values), least)
    return [abs(v - middle) > DEVIATIONS * spread for v in values]


# Intensities.


def _intensities(data: Data) -> list[Finding]:
    """Images whose grey values are distributed otherwise than those of the rest."""
    hits = []
    for channel, is_absolute in enumerate(data.absolute):
        there = [s for s in data.readable if channel < len(s.intensities)]
        measures = ABSOLUTE if is_absolute else RELATIVE
        for what, measure, least in measures:
            pairs = [(s, v) for s in there if (v := measure(s, channel)) is not None]
            values = [v for _, v in pairs]
            hits += [
                Hit(s.name, f"channel {channel}: {what} {v:.3g} (median {statistics.median(values):.3g})")
                for (s, v), is_far in zip(pairs, _outlying(values, least=least), strict=True)
                if is_far
            ]
        hits += [
            Hit(s.name, f"channel {channel} is constant") for s in there if _least(s, channel) == _most(s, channel)
        ]
    return [
        Finding("intensity", "warning", "Intensities unlike the other images",
                "Look for a wrong scale, another sequence or contrast, artefacts and implants. Correct the image, or "
                "leave the case out.", _joined(hits)),
    ]  # fmt: skip


def _least(s: Summary, channel: int) -> float:
    return s.intensities[channel][0]


def _most(s: Summary, channel: int) -> float:
    return s.intensities[channel][4]


def _inside(s: Summary, channel: int) -> float | None:
    """Median of the foreground."""
    return s.foreground[channel] if s.foreground else None


def _middle(s: Summary, channel: int) -> float:
    """Where in the range of the nonzero voxels their median lies."""
    _, low, middle, high, _ = s.intensities[channel]
    return (middle - low) / (high - low or 1.0)


def _inside_range(s: Summary, channel: int) -> float | None:
    """Where in that range the median of the foreground lies."""
    _, low, _, high, _ = s.intensities[channel]
    return (s.foreground[channel] - low) / (high - low or 1.0) if s.foreground else None


def _peak(s: Summary, channel: int) -> float:
    """How far the largest value lies above that range, in ranges, on a logarithmic scale."""
    _, low, _, high, most = s.intensities[channel]
    return math.log1p((most - high) / (high - low or 1.0))


Measure = Callable[[Summary, int], float | None]
ABSOLUTE: tuple[tuple[str, Measure, float], ...] = (
    ("least value", _least, 60.0),
    ("median of the foreground", _inside, 20.0),
)
"""What is compared where values are absolute, as in HU, and the least spread that is supposed."""
RELATIVE: tuple[tuple[str, Measure, float], ...] = (
    ("median, as a part of the range,", _middle, 0.05),
    ("median of the foreground, as a part of the range,", _inside_range, 0.05),
    ("logarithm of the peak above the range", _peak, 0.25),
)
"""Likewise where they are not: what a change of scale leaves as it is."""


def _slices(data: Data) -> list[Finding]:
    """Slices without content, and slices that were not labelled."""
    empty = [
        Hit(s.name, f"{s.empty_slices} slice{'s' * (s.empty_slices > 1)} of one value between others")
        for s in data.readable
        if s.empty_slices
    ]
    labelled = [
        Hit(s.name, f"{s.labelled_empty} labelled slice{'s' * (s.labelled_empty > 1)} without content")
        for s in data.training
        if s.labelled_empty
    ]
    gaps = []
    if _usual([s.label_gaps == 0 for s in data.training]):
        gaps = [
            Hit(s.name, f"{s.label_gaps} without label between labelled ones") for s in data.training if s.label_gaps
        ]
    return [
        Finding("empty_slices", "error", "Empty slices",
                "Slices were lost when the image was converted, or are padding. Convert it again, or crop image and "
                "label.", _joined([*empty, *labelled])),
        Finding("label_gaps", "warning", "Slices that were not labelled",
                "In the other cases the labelled slices follow one another. Draw what is missing.", tuple(gaps)),
    ]  # fmt: skip


# Images that are there twice.


def _twice(data: Data) -> list[Finding]:
    """Identical images, nearly identical ones, those of one patient in two folds, test images among the training."""
    pairs = [(a, b, "identical") for a, b in _identical(data.readable)]
    known = {(a.name, b.name) for a, b, _ in pairs}
    alike = [(a, b, r) for a, b, r in _alike(data.readable) if (a.name, b.name) not in known]
    pairs += [(a, b, "nearly identical") for a, b, r in alike if r >= SAME]
    patients = [(a, b) for a, b, r in alike if r < SAME]
    test = [p for p in pairs if p[0].is_test != p[1].is_test]
    training = [p for p in pairs if p not in test and not p[0].is_test]
    return [
        Finding("test_in_training", "error", "Test images that are training images",
                "The test would be too good. Take the image out of one of the two lists of dataset.json.",
                tuple(_pair(b, a, how) if b.is_test else _pair(a, b, how) for a, b, how in test)),
        Finding("duplicate", "error", "Images that are there twice",
                "Keep one of them: in two folds, or in training and validation, they make scores too good.",
                tuple(_pair(a, b, how, _folds(data, a, b)) for a, b, how in training)),
        _leaks(data, patients),
    ]  # fmt: skip


def _pair(a: Summary, b: Summary, how: str, where: str = "") -> Hit:
    return Hit(a.name, f"{how} to {b.name}{where}", b.name)


def _identical(images: Sequence[Summary]) -> list[tuple[Summary, Summary]]:
    """Pairs whose voxels are equal: each image with the first one of its content."""
    groups: dict[str, list[Summary]] = defaultdict(list)
    for s in images:
        groups[s.content].append(s)
    return [(group[0], other) for group in groups.values() for other in group[1:]]


def _alike(images: Sequence[Summary]) -> list[tuple[Summary, Summary, float]]:
    """Pairs whose thumbnails correlate, without what all images share, at least as those of one patient do."""
    if len(images) < MIN_CASES:
        return []
    thumbnails = [np.frombuffer(base64.b64decode(s.thumbnail), dtype=np.uint8) for s in images]
    matrix = _unit(np.stack(thumbnails).astype(np.float32))
    matrix = _unit(matrix - matrix.mean(axis=0))
    pairs = []
    for i, row in enumerate(matrix):
        correlations = matrix[i + 1 :] @ row
        pairs += [
            (images[i], images[i + 1 + int(j)], float(correlations[j]))
            for j in np.flatnonzero(correlations >= SAME_PATIENT)
        ]
    return pairs


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of mean 0 and length 1; those that are constant stay 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.where(length > 0, length, 1), dtype=np.float32)


def _folds(data: Data, a: Summary, b: Summary) -> str:
    """Where two cases are, if not in the same fold."""
    first, second = data.folds.get(a.name), data.folds.get(b.name)
    return "" if first == second else f" (folds {first} and {second})"


def _leaks(data: Data, patients: Sequence[tuple[Summary, Summary]]) -> Finding:
    """Cases of one patient, by their names or their images, in different folds or in training and test."""
    groups = layouts.same_patient([s.name for s in data.readable])
    where = {s.name: "test" if s.is_test else f"fold {data.folds.get(s.name, '?')}" for s in data.readable}
    hits = []
    for names in groups:
        places = sorted({where[name] for name in names})
        if len(places) > 1:
            hits.append(
                Hit(names[0], f"by its name one patient with {', '.join(names[1:])}: {', '.join(places)}", names[1])
            )
    named = {name: number for number, names in enumerate(groups) for name in names}
    for a, b in patients:
        if where[a.name] != where[b.name] and named.get(a.name, -1) != named.get(b.name, -2):
            hits.append(Hit(a.name, f"looks like one patient with {b.name}: {where[a.name]}, {where[b.name]}", b.name))
    return Finding(
        "patient_in_folds",
        "warning",
        "Likely one patient in two folds, or in training and test",
        "A network that has seen the patient before makes the scores of cross-validation too good. Plan again with "
        f"--group_by '{layouts.PATIENT}', or the expression or column of a table that names the patients.",
        tuple(hits),
    )


def _joined(hits: Sequence[Hit]) -> tuple[Hit, ...]:
    """One hit a case."""
    said: dict[str, list[str]] = {}
    for hit in hits:
        said.setdefault(hit.case, []).append(hit.what)
    return tuple(Hit(case, "; ".join(texts)) for case, texts in said.items())


CHECKS: tuple[Callable[[Data], list[Finding]], ...] = (
    _unreadable, _geometry, _orientation, _pieces, _missing, _tiny, _volumes, _intensities, _slices, _twice,
)  # fmt: skip
KINDS = {
    "unreadable": "files that cannot be used",
    "geometry": "geometry outliers",
    "orientation": "rare orientations",
    "islands": "islands",
    "holes": "holes",
    "class_nowhere": "classes that no label has",
    "missing_class": "classes missing in some cases",
    "tiny_class": "tiny classes",
    "tiny_label": "labels of a few voxels",
    "volume": "volume outliers",
    "intensity": "intensity outliers",
    "empty_slices": "empty slices",
    "label_gaps": "slices that were not labelled",
    "test_in_training": "test images that are training images",
    "duplicate": "images that are there twice",
    "patient_in_folds": "one patient in two folds",
}
"""Everything that is looked for."""
