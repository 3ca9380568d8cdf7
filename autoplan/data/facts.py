"""Facts about a dataset: frozen values that the other modules compute and pass on.

Nothing here reads a file or decides anything. Values hold plain ints, floats, strings and tuples only, so that
`to_dict` and `from_dict` are the one edge to JSON. A value that cannot be, such as a spacing of 0 or a class too many,
is a ValueError where it is made: what computes with these values need not ask, whatever file they came from.
"""

from dataclasses import dataclass
from pathlib import Path

from autoplan.base.axes import Shape, Spacing
from autoplan.base.checks import are_labels, are_lengths, are_sizes, check, none_above


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
            cropped_shape=are_sizes(self.cropped_shape, 3) and none_above(self.cropped_shape, self.shape),
            class_voxels=none_above([0] * len(self.class_voxels), self.class_voxels),
            class_components=none_above([0] * len(self.class_voxels), self.class_components),
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
            labels=are_labels(self.labels),
            cases=bool(self.cases)
            and len({case.name for case in self.cases}) == len(self.cases)
            and all(len(case.class_voxels) == len(self.labels) - 1 for case in self.cases)
            and len({len(profile) for case in self.cases for profile in case.intensities}) <= 1
            and all(len(case.intensities) in (0, len(self.modalities)) for case in self.cases),
            intensities=len(self.intensities) == len(self.modalities),
            contents=not self.contents
            or (len(self.contents) >= len(self.cases) and all(map(all, self.contents)) and all(self.contents)),
        )
