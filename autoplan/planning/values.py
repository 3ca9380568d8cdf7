"""What a plan is made of: frozen values, each checked where it is made."""

from dataclasses import dataclass
from typing import Literal

from autoplan.base.axes import Shape, Spacing
from autoplan.base.checks import LARGEST_SIZE, are_labels, are_lengths, are_sizes, check

Fold = int | Literal["all"]
"""A training of a configuration: a fold of the cross-validation, or the one on all cases, validated on none."""

ALL: Literal["all"] = "all"

NOT_VALIDATED = "all cases, not validated"
"""What is said wherever that one is shown."""

LOWRES: Literal["3d_lowres"] = "3d_lowres"

CASCADE: Literal["3d_cascade_fullres"] = "3d_cascade_fullres"
"""Every training of the second waits for all of the first: it needs the out-of-fold predictions of all cases."""


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
            labels=are_labels(self.labels),
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
