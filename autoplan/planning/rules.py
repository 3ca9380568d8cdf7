"""The rules that are not about the network's shape: spacing, cascade, normalization, loss and augmentation mode, folds.

Pure functions, one for each decision. Shapes and spacings are x, y, z.
"""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from autoplan.base.axes import Shape, Spacing
from autoplan.base.errors import PlanError
from autoplan.data.facts import CaseFacts, Intensities
from autoplan.planning.topology import MAX_PATCH_VOXELS_3D, round_half_up
from autoplan.planning.values import (
    AugmentationMode,
    ChannelNormalization,
    Configuration,
    ConfigurationName,
    TrainingRange,
)

CASCADE_FACTOR = 4
"""The cascade applies when the median shape has more voxels than this many 3D patches. Source: section 2.2."""
SPACING_TOLERANCE = 1e-3
"""Spacings whose ratio is within this of 1 are equal: affines are stored as float32 and scanners round. Our choice."""
CROP_REDUCTION = 0.25
"""Part of the voxels that cropping must remove for masked normalization. Source: section 2.2, "Normalization"."""
SLICEWISE_RATIO = 2
"""Longest patch edge over the shortest, above which augmentation is 2D and slice by slice. Source: section 2.3."""
NUM_FOLDS = 5
"""Source: section 2.3, "five-fold cross-validation"."""
FOLD_SEED = 12345
"""Seed of the division into folds. Our choice; any number serves."""
OUTLIER_FACTOR = 10
"""A case is an outlier where its volume, and with it the number of its voxels once resampled, is this many times larger
or smaller than the median. Our choice: images of one body part differ by less."""


MAX_MEDIAN_VOXELS = 2**31
"""Voxels of the median image at a spacing that was given; more is a mistake in its unit. Our choice."""

Cascade = Literal["auto", "never", "always"]


def target_spacing(spacings: Sequence[Spacing]) -> Spacing:
    """Spacing that every case is resampled to: the median over the cases, axis by axis.

    Source: arXiv:1809.10486, section 2.2, "Resampling".
    """
    return tuple(float(statistics.median(axis)) for axis in zip(*spacings, strict=True))


def resampled_shape(shape: Shape, spacing: Spacing, *, target: Spacing) -> Shape:
    """Shape of an image after resampling from `spacing` to `target`: rounded half up, at least 1.

    Source: our choice; the paper does not say how shapes are rounded.
    """
    return tuple(max(1, round_half_up(n * s / t)) for n, s, t in zip(shape, spacing, target, strict=True))


def median_shape(cases: Sequence[CaseFacts], target: Spacing) -> Shape:
    """Median over the cases, axis by axis, of the shape after cropping and resampling; rounded half up.

    Source: arXiv:1809.10486, section 2.2 ("the median shape of the resampled data").
    """
    shapes = [resampled_shape(c.cropped_shape, c.spacing, target=target) for c in cases]
    return tuple(round_half_up(statistics.median(axis)) for axis in zip(*shapes, strict=True))


def slice_axis(spacing: Spacing, *, tolerance: float = SPACING_TOLERANCE) -> int:
    """Axis that the 2D network's slices are stacked along: the one with the coarsest spacing; a tie goes to the last,
    z.

    Source: arXiv:1809.10486, section 2.1 ("the plane with the lowest in-plane spacing"); the tie follows Table 1.
    """
    coarse = [axis for axis, s in enumerate(spacing) if s >= max(spacing) * (1 - tolerance)]
    return coarse[-1]


def cascade_is_necessary(
    shape: Sequence[float], *, factor: float = CASCADE_FACTOR, patch_voxels: int = MAX_PATCH_VOXELS_3D
) -> bool:
    """Whether an image of `shape` has more than `factor` times the voxels that a 3D patch may have.

    Source: arXiv:1809.10486, section 2.2. "The voxels that can be processed as input patch" is read as 128^3 and not as
    the dataset's own patch: Table 1 (Lung would go down twice otherwise).
    """
    return math.prod(shape) > factor * patch_voxels


def low_resolution(
    shape: Shape, spacing: Spacing, *, cascade: Cascade = "auto", tolerance: float = SPACING_TOLERANCE
) -> tuple[Shape, Spacing] | None:
    """Median shape and spacing of the cascade's first stage; None where there is no cascade.

    While the cascade is necessary, the axes whose doubled spacing does not exceed the coarsest spacing are doubled;
    where there is none, all are. The shape halves with every doubling and is rounded half up at the end. `cascade`
    "never" makes no doubling; "always" makes at least one.

    Source: arXiv:1809.10486, section 2.2; "until they match" is read from Table 1 (Lung: all axes; Pancreas: in-plane).
    """
    if cascade == "never" or (cascade == "auto" and not cascade_is_necessary(shape)):
        return None
    low, coarse = _doubled(tuple(map(float, shape)), spacing, tolerance=tolerance)
    while cascade_is_necessary(low):
        low, coarse = _doubled(low, coarse, tolerance=tolerance)
    return tuple(max(1, round_half_up(n)) for n in low), coarse


def coarser(spacing: Spacing) -> Spacing:
    """Spacing of images for which there is more time: one doubling, as for the cascade's first stage.

    Source: our choice, by the rule of arXiv:1809.10486, section 2.2; docs/recipes.md has what was measured.
    """
    return _doubled((1.0,) * len(spacing), spacing, tolerance=SPACING_TOLERANCE)[1]


def _doubled(shape: tuple[float, ...], spacing: Spacing, *, tolerance: float) -> tuple[tuple[float, ...], Spacing]:
    """One doubling of the spacing of the finer axes, or of all axes where none is finer."""
    limit = max(spacing) * (1 + tolerance)
    finer = {axis for axis, s in enumerate(spacing) if 2 * s <= limit} or set(range(len(spacing)))
    return (
        tuple(n / 2 if axis in finer else n for axis, n in enumerate(shape)),
        tuple(2 * s if axis in finer else s for axis, s in enumerate(spacing)),
    )


def normalization(modality: str, intensities: Intensities | None) -> ChannelNormalization | None:
    """How a channel is normalized: by statistics of the dataset where it is CT (`intensities` given), else None:
    z-score of each image by itself.

    Raises:
        PlanError: the CT channel has one and the same value in all foreground voxels.

    Source: arXiv:1809.10486, section 2.2, "Normalization".
    """
    if intensities is None:
        return None
    if not intensities.std > 0:
        raise PlanError(
            f"channel {modality}: all {intensities.count} foreground voxels have the value {intensities.mean:g}, so "
            "that a z-score is undefined. Check the images and labels, or name a modality without 'ct' in dataset.json."
        )
    return ChannelNormalization(
        lower=intensities.percentile_00_5,
        upper=intensities.percentile_99_5,
        mean=intensities.mean,
        std=intensities.std,
    )


def fraction_kept(cases: Sequence[CaseFacts]) -> float:
    """Average number of voxels of the cases after cropping, divided by the average before."""
    return sum(math.prod(c.cropped_shape) for c in cases) / sum(math.prod(c.shape) for c in cases)


def nonzero_only(cases: Sequence[CaseFacts], *, reduction: float = CROP_REDUCTION) -> bool:
    """Whether normalization is carried out within the nonzero voxels only, all others staying 0: where cropping reduces
    the average size of the cases, in voxels, by `reduction` or more.

    Source: arXiv:1809.10486, section 2.2, "Normalization".
    """
    return fraction_kept(cases) <= 1 - reduction


def single_component(cases: Sequence[CaseFacts], labels: Sequence[tuple[int, str]]) -> tuple[int, ...]:
    """Foreground label values that never fall into more than one connected component in a training label.

    A label in which the class does not occur says nothing; a class that occurs nowhere does not count.

    Source: arXiv:1809.10486, section 2.5.
    """
    most = [max(counts) for counts in zip(*(c.class_components for c in cases), strict=True)]
    return tuple(value for (value, _), count in zip(labels[1:], most, strict=True) if count == 1)


def batch_dice(name: ConfigurationName, *, cascade_necessary: bool) -> bool:
    """Whether the Dice loss is computed over the whole batch as one pseudo-volume. False (per sample) for the
    networks that see nearly entire patients: the cascade's first stage, and the 3D network where no cascade is
    necessary.

    Source: arXiv:1809.10486, section 2.3.
    """
    return not (name == "3d_lowres" or (name == "3d_fullres" and not cascade_necessary))


def augmentation(patch_size: Shape, *, ratio: float = SLICEWISE_RATIO) -> AugmentationMode:
    """Set of augmentation parameters: "2d" and "3d" by the network, "slicewise" (2D augmentation, slice by slice)
    where the longest edge of a 3D patch is more than `ratio` times the shortest.

    Source: arXiv:1809.10486, section 2.3, "Data Augmentation".
    """
    if len(patch_size) == 2:
        return "2d"
    return "slicewise" if max(patch_size) > ratio * min(patch_size) else "3d"


def augmentation_slice_axis(configuration: Configuration, *, slice_axis: int) -> int | None:
    """Axis along which the slices of a slice-wise augmentation are stacked: the shortest edge of the patch; of several,
    `slice_axis` (that of the 2D network) if it is one of them, else the last. None where the augmentation is not
    slice-wise.

    Source: arXiv:1809.10486, section 2.3, "Data Augmentation", where the edges of the patch decide; the tie is our
    choice.
    """
    if configuration.augmentation != "slicewise":
        return None
    patch = configuration.patch_size
    shortest = [axis for axis, size in enumerate(patch) if size == min(patch)]
    return slice_axis if slice_axis in shortest else shortest[-1]


def rotation_degrees(mode: AugmentationMode) -> float:
    """Rotations are drawn from plus and minus this angle: about every axis in 3D, in the plane of slices in 2D.

    Source: known default of nnU-Net (the paper names the kinds of augmentation, and one set for 2D and one for 3D).
    """
    return 15.0 if mode == "3d" else 180.0


def elastic_alpha(mode: AugmentationMode) -> tuple[float, float]:
    """Range of the strength of elastic deformations, voxels: see `RandCropWarpd` in the bundles.

    Source: known default of nnU-Net.
    """
    return (0.0, 900.0) if mode == "3d" else (0.0, 200.0)


def outliers(cases: Sequence[CaseFacts], *, factor: float = OUTLIER_FACTOR) -> tuple[CaseFacts, ...]:
    """Cases whose cropped image covers a volume that is more than `factor` times larger or smaller than the median. The
    same holds for their voxels once all have one spacing. Most often the spacing in a header is wrong.

    Source: our choice; the paper is silent.
    """
    extents_mm3 = [math.prod(c.cropped_shape) * math.prod(c.spacing) for c in cases]
    median = statistics.median(extents_mm3)
    return tuple(c for c, e in zip(cases, extents_mm3, strict=True) if not median / factor <= e <= median * factor)


def grouped_folds(
    groups: Mapping[str, str],
    classes: Mapping[str, Sequence[bool]],
    *,
    num_folds: int = NUM_FOLDS,
    seed: int = FOLD_SEED,
    before: Sequence[Sequence[str]] = (),
) -> tuple[tuple[str, ...], ...]:
    """Validation cases of each fold, sorted, where the cases of a group stay in one fold. Large groups and those with
    rare classes go first, each where the numbers of cases and of cases with each class stay most even. Fewer groups
    than `num_folds` make as many folds as groups.

    Args:
        groups: group of each case, by the name of the case.
        classes: for each case, which foreground classes it has.
        num_folds: at most.
        seed: of the order of groups of one size.
        before: folds that the dataset had; what is left of their groups stays in them, and no fold goes away.

    Raises:
        PlanError: fewer than two groups.

    Source: our choice; the paper is silent.
    """
    members: dict[str, list[str]] = {}
    for name in sorted(groups):
        members.setdefault(groups[name], []).append(name)
    if len(members) < 2:
        raise PlanError(f"cross-validation needs cases of at least two groups, not of {len(members)}.")
    generator = random.Random(seed)
    drawn = {group: generator.random() for group in sorted(members)}
    counted = {group: _counts(names, classes) for group, names in members.items()}
    total = [max(1, sum(column)) for column in zip(*counted.values(), strict=True)]
    stay = {groups[name]: k for k, fold in enumerate(before) for name in fold if name in groups}
    found: list[list[str]] = [[] for _ in range(max(len(before), min(num_folds, len(members))))]
    for group, k in stay.items():
        found[k].extend(members[group])

    def rank(group: str) -> tuple[float, float]:
        return -math.fsum(count / all_ for count, all_ in zip(counted[group], total, strict=True)), drawn[group]

    for group in sorted(members.keys() - stay.keys(), key=rank):

        def unevenness(fold: Sequence[str], group: str = group) -> float:
            there, more = _counts(fold, classes), counted[group]
            return math.fsum((2 * b + m) * m / t**2 for b, m, t in zip(there, more, total, strict=True))

        min(found, key=lambda fold: (bool(fold) and not all(found), unevenness(fold))).extend(members[group])
    return tuple(tuple(sorted(fold)) for fold in found)


def grown_folds(
    before: Sequence[Sequence[str]],
    case_names: Sequence[str],
    groups: Mapping[str, str] | None,
    classes: Mapping[str, Sequence[bool]],
) -> tuple[tuple[str, ...], ...] | None:
    """The folds of a dataset that has changed since it was divided: cases that were there stay in their fold, so that
    networks stay valid for the cases that they have not seen; new ones fill the folds up, beside their groups.

    Args:
        before: validation cases of each fold, as they were.
        case_names: of the dataset now.
        groups: group of each case; None: no case belongs to others.
        classes: for each case, which foreground classes it has.

    Returns:
        The folds; None where that cannot be: no case stays, a group lies in several folds, or a fold would be empty.

    Source: our choice; the paper is silent.
    """
    groups = groups or {name: name for name in case_names}
    lie_in: dict[str, set[int]] = {}
    for k, fold in enumerate(before):
        for name in (name for name in fold if name in groups):
            lie_in.setdefault(groups[name], set()).add(k)
    if not lie_in or max(map(len, lie_in.values())) > 1 or len(set(groups.values())) < len(before):
        return None
    found = grouped_folds(groups, classes, before=before)
    return found if all(found) else None


def are_spread(folds: Sequence[Sequence[str]], classes: Mapping[str, Sequence[bool]]) -> bool:
    """Whether each class occurs in as many folds as it can: in all, or in as many as it has cases.

    Source: our choice; the paper is silent.
    """
    per_fold = [[sum(column) for column in zip(*(classes[name] for name in fold), strict=True)] for fold in folds]
    return all(sum(n > 0 for n in counts) == min(sum(counts), len(folds)) for counts in zip(*per_fold, strict=True))


def _counts(names: Sequence[str], classes: Mapping[str, Sequence[bool]]) -> list[int]:
    """Number of these cases, and of those that have each class."""
    width = len(next(iter(classes.values())))
    return [len(names), *(sum(classes[name][i] for name in names) for i in range(width))]


def folds(
    case_names: Sequence[str], *, num_folds: int = NUM_FOLDS, seed: int = FOLD_SEED
) -> tuple[tuple[str, ...], ...]:
    """Validation cases of each fold, sorted. The sizes of the folds differ by at most one, and the order of
    `case_names` does not matter. Fewer cases than `num_folds` make as many folds as cases.

    Raises:
        PlanError: fewer than two cases, or a name twice.

    Source: arXiv:1809.10486, section 2.3 (five folds); the division is our choice, the paper's is not given.
    """
    if len(case_names) < 2 or len(set(case_names)) < len(case_names):
        raise PlanError(f"cross-validation needs at least two cases with different names, got {list(case_names)}.")
    generator = random.Random(seed)  # only random() is promised to stay the same from one Python version to the next
    keys = {name: generator.random() for name in sorted(case_names)}
    shuffled, count = sorted(keys, key=keys.__getitem__), min(num_folds, len(keys))
    return tuple(tuple(sorted(shuffled[k::count])) for k in range(count))


# What the paper does not ask for: what predictions are compared with.

MIN_CASES = 5
"""Cases from which on the spread of their intensities says what is usual. Our choice."""
RANGE_DIGITS = 4
"""Significant digits of a range."""


def training_range(cases: Sequence[CaseFacts]) -> TrainingRange:
    """What the training images are like. Source: our choice, the paper is silent."""
    sizes = [[n * mm for n, mm in zip(case.shape, case.spacing, strict=True)] for case in cases]
    profiles = [case.intensities for case in cases if case.intensities]
    enough = len(profiles) == len(cases) >= MIN_CASES
    return TrainingRange(
        orientations=tuple(sorted({case.orientation for case in cases if case.orientation})),
        spacing=_ranges([case.spacing for case in cases]),
        size=_ranges(sizes),
        intensities=tuple(_ranges(channel) for channel in zip(*profiles, strict=True)) if enough else (),
    )


def _ranges(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    """Least and largest value of each column."""
    return tuple((_short(min(column)), _short(max(column))) for column in zip(*rows, strict=True))


def _short(value: float) -> float:
    return float(f"{value:.{RANGE_DIGITS}g}")
