"""Frozen values that the other modules compute and pass on: facts about a dataset, and the decisions of a plan.

Nothing here reads a file or decides anything. Values hold plain ints, floats, strings and tuples only, so that
`to_dict` and `from_dict` are the one edge to JSON. A value that cannot be, such as a spacing of 0 or a class too many,
is a ValueError where it is made: what computes with these values need not ask, whatever file they came from.
"""

import contextlib
import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoplan.axes import Shape, Spacing

LARGEST_SIZE = 2**31
"""Voxels along an axis, at most."""
LARGEST_NUMBER = 1e100
"""Of a file's numbers, far above any that is meant, and far below what overflows."""
LARGEST_MM = 1e6
"""Spacings lie between this and its inverse."""
Fold = int | Literal["all"]
"""A training of a configuration: a fold of the cross-validation, or the one on all cases, validated on none."""
ALL: Literal["all"] = "all"
NOT_VALIDATED = "all cases, not validated"
"""What is said wherever that one is shown."""
LOWRES: Literal["3d_lowres"] = "3d_lowres"
CASCADE: Literal["3d_cascade_fullres"] = "3d_cascade_fullres"
"""Every training of the second waits for all of the first: it needs the out-of-fold predictions of all cases."""


@dataclass(frozen=True)
class Case:
    """One image of a dataset and, for a training case, its label. Several `images` are the channels of one image. Paths
    are relative to the dataset's folder, or absolute. Cases of one `group` stay in one fold; `fold` is that which the
    user wants."""

    name: str
    images: tuple[str, ...]
    label: str | None = None
    group: str | None = None
    fold: int | None = None


@dataclass(frozen=True)
class Dataset:
    """What a dataset's folder says. `labels` pairs a value of the label files with its name; the first is the
    background. Voxels of the label value `ignore` are not known. For messages, `declared` is what names the channels,
    with its verb, and `undeclared` what to do about a label value that is none of `labels`."""

    root: Path
    name: str
    modalities: tuple[str, ...]
    labels: tuple[tuple[int, str], ...]
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    ignore: int | None = None
    declared: str = "dataset.json declares"
    undeclared: str = "Declare it in dataset.json or correct the label."


@dataclass(frozen=True)
class CaseFacts:
    """One training case in RAS order. `class_voxels` and `class_components` count, for each foreground class in the
    order of the labels, its voxels and its connected components. `forms_apart_mm` is the distance between the places
    where the sform and the qform of the image's header put a corner of it, 0 where only one of them is in use.
    `orientation` is that of the file's axes, such as LPS; `intensities` has for each channel the percentiles that
    `intensities.profile` takes."""

    name: str
    shape: Shape
    spacing: Spacing
    cropped_shape: Shape
    class_voxels: tuple[int, ...]
    class_components: tuple[int, ...]
    forms_apart_mm: float = 0.0
    orientation: str = ""
    intensities: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        check(
            self,
            shape=are_sizes(self.shape, 3),
            spacing=are_lengths(self.spacing, 3),
            cropped_shape=are_sizes(self.cropped_shape, 3) and _none_above(self.cropped_shape, self.shape),
            class_voxels=_none_above([0] * len(self.class_voxels), self.class_voxels),
            class_components=_none_above([0] * len(self.class_voxels), self.class_components),
            forms_apart_mm=self.forms_apart_mm >= 0,
        )

    @property
    def fraction_kept(self) -> float:
        """Voxels after the crop to nonzero, divided by voxels before."""
        kept, whole = 1, 1
        for c, s in zip(self.cropped_shape, self.shape, strict=True):
            kept, whole = kept * c, whole * s
        return kept / whole


@dataclass(frozen=True)
class Intensities:
    """Statistics of one channel over the foreground voxels of all training cases, pooled (section 2.2)."""

    count: int
    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float

    def __post_init__(self) -> None:
        check(
            self,
            count=self.count >= 0,
            std=self.std >= 0,
            percentile_99_5=self.percentile_00_5 <= self.percentile_99_5,
        )


@dataclass(frozen=True)
class Fingerprint:
    """The facts of a dataset that planning needs.

    `key` tells whether the dataset is still the one that was read. `intensities` has an entry for each channel: pooled
    statistics where the modality is CT, None elsewhere. `formats` names those of the files. Voxels of the label value
    `ignore` are not known. `contents` has, for each case, digests of the files of its image and of its label.
    """

    key: str
    name: str
    modalities: tuple[str, ...]
    labels: tuple[tuple[int, str], ...]
    cases: tuple[CaseFacts, ...]
    intensities: tuple[Intensities | None, ...]
    formats: tuple[str, ...] = ("NIfTI",)
    ignore: int | None = None
    contents: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        check(
            self,
            modalities=bool(self.modalities),
            labels=_are_labels(self.labels),
            cases=bool(self.cases)
            and len({case.name for case in self.cases}) == len(self.cases)
            and all(len(case.class_voxels) == len(self.labels) - 1 for case in self.cases)
            and len({len(profile) for case in self.cases for profile in case.intensities}) <= 1
            and all(len(case.intensities) in (0, len(self.modalities)) for case in self.cases),
            intensities=len(self.intensities) == len(self.modalities),
            contents=not self.contents
            or (len(self.contents) >= len(self.cases) and all(map(all, self.contents)) and all(self.contents)),
        )


@dataclass(frozen=True)
class ChannelNormalization:
    """CT: clip to [lower, upper], subtract `mean`, divide by `std`, all pooled over the dataset. A channel that is
    z-scored by itself, image by image, has None in place of this (section 2.2)."""

    lower: float
    upper: float
    mean: float
    std: float

    def __post_init__(self) -> None:
        check(self, upper=self.lower <= self.upper, std=self.std > 0)


@dataclass(frozen=True)
class Decision:
    """Why a value is what it is. `configuration` is empty for what all configurations share; `source` is a section or
    table of the paper, or says that the paper is silent; `because` is one sentence with the numbers."""

    configuration: str
    name: str
    value: str
    source: str
    because: str


ConfigurationName = Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
AugmentationMode = Literal["2d", "3d", "slicewise"]


@dataclass(frozen=True)
class Configuration:
    """One network and the data it sees. `strides[s]` is the downsampling into stage s; the first is all ones."""

    name: ConfigurationName
    spacing: Spacing
    median_shape: Shape
    patch_size: Shape
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    batch_dice: bool
    augmentation: AugmentationMode

    def __post_init__(self) -> None:
        axes = 2 if self.name == "2d" else 3
        check(
            self,
            spacing=are_lengths(self.spacing, 3),
            median_shape=are_sizes(self.median_shape, axes),
            patch_size=are_sizes(self.patch_size, axes),
            batch_size=1 <= self.batch_size < LARGEST_SIZE,
            strides=bool(self.strides)
            and all(len(step) == axes and {*step} <= {1, 2} for step in self.strides)
            and {*self.strides[0]} == {1},
            features=are_sizes(self.features, len(self.features)),
        )
        if any(size % divisor for size, divisor in zip(self.patch_size, self.must_be_divisible_by, strict=True)):
            raise ValueError(f"patch {self.patch_size} is not a multiple of {self.must_be_divisible_by}")
        if len(self.features) != len(self.strides):
            raise ValueError(f"{len(self.features)} features for {len(self.strides)} stages")

    @property
    def num_pool(self) -> tuple[int, ...]:
        """Number of poolings of each axis."""
        return tuple(sum(s[axis] == 2 for s in self.strides) for axis in range(len(self.patch_size)))

    @property
    def must_be_divisible_by(self) -> Shape:
        """What each axis of the patch must be a multiple of."""
        return tuple(2**p for p in self.num_pool)


@dataclass(frozen=True)
class Origin:
    """The bundle whose networks a plan goes on with: its name and version, the digest of its weights, and the dataset
    that they were trained on, as far as the bundle says."""

    bundle: str
    version: str
    model: str
    dataset: str

    @property
    def title(self) -> str:
        """`hippocampus_mri_segmentation 1.0.0`."""
        return f"{self.bundle} {self.version}"


@dataclass(frozen=True)
class TrainingRange:
    """What the training images are like, to tell images that are not: the orientations of their files; least and
    largest spacing and size of each axis, mm, in RAS order; least and largest of each of `intensities.profile`'s
    percentiles, channel by channel, nothing where there are too few cases to say."""

    orientations: tuple[str, ...]
    spacing: tuple[tuple[float, float], ...]
    size: tuple[tuple[float, float], ...]
    intensities: tuple[tuple[tuple[float, float], ...], ...]

    def __post_init__(self) -> None:
        pairs = (*self.spacing, *self.size, *(pair for channel in self.intensities for pair in channel))
        check(
            self,
            spacing=len(self.spacing) == 3,
            size=len(self.size) == 3,
            intensities=all(least <= largest for least, largest in pairs),
        )


@dataclass(frozen=True)
class Plan:
    """Every decision about a dataset.

    `normalization` has an entry for each channel. `nonzero_only` is requirement "masked normalization" of section 2.2.
    `single_component` holds the label values that are one connected component in every training label (section 2.5).
    `folds[k]` names the validation cases of fold k. `formats` names those of its files. `origin` is None where
    networks start from random weights. `gpu_memory` is the limit in bytes that the plan was fitted to, if any, and
    `own_spacing` the one that was given in place of the median, mm, if any.
    Voxels of the label value `ignore` are not known. `training_range` is None in plans of older versions.
    """

    name: str
    modalities: tuple[str, ...]
    labels: tuple[tuple[int, str], ...]
    num_training: int
    slice_axis: int
    normalization: tuple[ChannelNormalization | None, ...]
    nonzero_only: bool
    single_component: tuple[int, ...]
    folds: tuple[tuple[str, ...], ...]
    configurations: tuple[Configuration, ...]
    decisions: tuple[Decision, ...]
    formats: tuple[str, ...] = ("NIfTI",)
    origin: Origin | None = None
    gpu_memory: int | None = None
    ignore: int | None = None
    training_range: TrainingRange | None = None
    own_spacing: Spacing | None = None

    def __post_init__(self) -> None:
        names = [configuration.name for configuration in self.configurations]
        check(
            self,
            modalities=bool(self.modalities),
            labels=_are_labels(self.labels),
            slice_axis=0 <= self.slice_axis < 3,
            normalization=len(self.normalization) == len(self.modalities),
            folds=sorted({case for fold in self.folds for case in fold})
            == sorted(c for fold in self.folds for c in fold)
            and sum(map(len, self.folds)) == self.num_training,
            configurations=bool(names) and len({*names}) == len(names),
            gpu_memory=self.gpu_memory is None or self.gpu_memory > 0,
            own_spacing=self.own_spacing is None or are_lengths(self.own_spacing, 3),
        )

    @property
    def spacing(self) -> Spacing:
        """Spacing that every case is resampled to, mm: that of 3d_fullres, or else of 2d."""
        by_name = {c.name: c.spacing for c in self.configurations}
        return by_name["3d_fullres" if "3d_fullres" in by_name else "2d"]

    def configuration(self, name: str) -> Configuration:
        """The configuration of that name. Raises KeyError when the plan has none."""
        by_name: dict[str, Configuration] = {c.name: c for c in self.configurations}
        return by_name[name]


def check(value: object, **holds: bool) -> None:
    """Raises ValueError with the first field of a value that does not hold."""
    if (field := next((name for name, sound in holds.items() if not sound), None)) is not None:
        raise ValueError(f"{type(value).__name__} cannot have the {field} {str(getattr(value, field))[:60]}")


def are_sizes(values: Sequence[int], num: int) -> bool:
    return len(values) == num and all(1 <= value < LARGEST_SIZE for value in values)


def are_lengths(values: Sequence[float], num: int) -> bool:
    return len(values) == num and all(1 / LARGEST_MM <= value <= LARGEST_MM for value in values)


def _none_above(values: Sequence[int], limits: Sequence[int]) -> bool:
    return len(values) == len(limits) and all(value <= limit for value, limit in zip(values, limits, strict=True))


def _are_labels(labels: Iterable[tuple[int, str]]) -> bool:
    """Whether there are a background and classes, each value and each name once."""
    values, names = ({pair[k] for pair in labels} for k in (0, 1))
    return len(values) == len(names) == len(tuple(labels)) > 1


def to_dict(value: Any) -> Any:
    """Plain JSON types (dict, list, str, int, float, bool, None) for any value of this module."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_dict(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(kind: Any, data: Any) -> Any:
    """The value of type `kind`, a dataclass of this module or the type of a field, that `to_dict` wrote as `data`.

    Raises:
        KeyError, TypeError, ValueError: `data` does not describe such a value.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        fields = _types(kind)
        needed = {f.name for f in dataclasses.fields(kind) if f.default is not None}
        if not needed <= set(data) <= set(fields):
            raise ValueError(f"{kind.__name__} has the fields {sorted(fields)}, not {sorted(data)}")
        return kind(**{name: from_dict(field, data[name]) for name, field in fields.items() if name in data})
    if origin is tuple:
        inner = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(from_dict(i, v) for i, v in zip(inner, data, strict=True))
    if origin in (types.UnionType, typing.Union):
        return None if data is None else _one_of([a for a in arguments if a is not type(None)], data)
    if origin is Literal:
        if data not in arguments:
            raise ValueError(f"{data!r} is none of {', '.join(map(repr, arguments))}")
        return data
    if kind is float and type(data) in (int, float) and not abs(data) < LARGEST_NUMBER:
        raise ValueError(f"{str(data)[:20]} is no number to compute with")
    if type(data) not in {float: (int, float), Path: (str,)}.get(kind, (kind,)):
        raise TypeError(f"{reprlib.repr(data)} is no {kind.__name__}")
    return kind(data)


def _one_of(kinds: Sequence[Any], data: Any) -> Any:
    """The value of the first of some types that `data` fits."""
    *others, last = kinds
    for kind in others:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return from_dict(kind, data)
    return from_dict(last, data)


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    """Types of the fields of a dataclass."""
    return typing.get_type_hints(kind)
