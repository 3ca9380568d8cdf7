"""DICOM series: which files of a folder are one, where its voxels lie, and what they are.

`scripts.formats` reads them through this, in bundles and in planning alike. World is that of DICOM: LPS, in mm.
"""

from __future__ import annotations

import logging
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Series = tuple[tuple[int, int, int], int, NDArray[np.float64], int, Callable[[], NDArray[Any]]]
"""Shape (X, Y, Z), channels, affine and bytes of a number of a series, and what then reads the array."""
PLACE_TOLERANCE_MM = 0.1
"""Distance in mm of a DICOM slice from its place on a regular grid that is taken for rounding."""
FEW_SLICES, MANY_TIMES = 3, 4
"""So many slices or fewer are left out beside an image of so many times as many. Our choice: scouts have one to
three."""
MAX_LOCALIZER = 30
"""Files that a folder with nothing but a localizer has at most. Our choice."""
HEAD = 132
"""Bytes that tell a file of DICOM. Smaller files are none; those of the system, such as /proc/kmsg, which reading may
wait for, have no size."""
MAX_LISTED = 4
"""Images that a message names."""
_NUMBERS = (
    "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "InstanceNumber", "SeriesNumber",
    "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices",
    "RescaleSlope", "RescaleIntercept",
)  # fmt: skip
_TEXTS = ("SeriesInstanceUID", "SOPInstanceUID", "SeriesDescription", "Modality", "PhotometricInterpretation")
_SEPARATORS = {
    "image type": ("ImageType", "FrameType"),
    "echo": ("EchoNumbers",),
    "echo time": ("EchoTime", "EffectiveEchoTime"),
    "b-value": ("DiffusionBValue",),
    "stack": ("StackID",),
    "time point": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "acquisition": ("AcquisitionNumber",),
    "trigger time": ("TriggerTime", "NominalCardiacTriggerDelayTime"),
    "acquisition time": ("AcquisitionTime", "FrameAcquisitionDateTime"),
}
"""What else tells the images of one series apart: what it is called, and the attributes that say it."""
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_WANTED = (*_NUMBERS, *_TEXTS, *(name for names in _SEPARATORS.values() for name in names))
_NO_IMAGES = {"SEG": "a DICOM Segmentation", "RTDOSE": "a dose"}
"""Modalities of pixels that are none of an image."""


class UnsuitableError(ValueError):
    """A file that is whole and cannot be used. The message says why, and what helps; copying it again does not."""


@dataclass(frozen=True)
class Slice:
    """A plane of voxels: a file, or a frame of one.

    `fields` has what its header says, by the name of the attribute; of a frame, what its functional groups say of it
    comes first. What is no value of its kind is there as the file has it, in bytes.
    """

    path: Path
    frame: int | None
    fields: dict[str, Any]
    syntax: str

    @property
    def name(self) -> str:
        """What a message calls it."""
        return self.path.name if self.frame is None else f"frame {self.frame + 1} of {self.path.name}"

    def numbers(self, name: str, count: int, default: float | None = None) -> NDArray[np.float64]:
        """The numbers of an attribute, or `default` where it is not there or empty.

        Raises:
            UnsuitableError: it has none, or others than `count` finite numbers.
        """
        value: Any = self.fields.get(name)
        is_list = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
        values: list[Any] = list(value) if is_list else [value]
        if all(v is None or v in ("", b"") for v in values):
            if default is None:
                raise UnsuitableError(f"{self.name} has no {name}, so its place is unknown.")
            return np.full(count, default)
        try:
            found = np.array([float(v) for v in values])
        except (TypeError, ValueError, OverflowError):
            found = np.array([np.nan])
        if len(found) != count or not np.isfinite(found).all():
            said = "\\".join(v.decode("latin-1").strip() if isinstance(v, bytes) else str(v) for v in values)
            wanted = "a number" if count == 1 else f"{count} numbers"
            raise UnsuitableError(f"{self.name}: its {name} is {said[:60]!r}, not {wanted}. Correct the header.")
        return found

    def number(self, name: str, default: float | None = None) -> float:
        """The number of an attribute; see `numbers`."""
        return float(self.numbers(name, 1, default)[0])

    def text(self, *names: str) -> str:
        """What the first of these attributes that is there says."""
        for name in names:
            value = self.fields.get(name)
            if value is not None and str(value).strip():
                return value.decode("latin-1") if isinstance(value, bytes) else str(value).strip()
        return ""

    @property
    def position(self) -> NDArray[np.float64]:
        """Where its first voxel lies."""
        return self.numbers("ImagePositionPatient", 3)

    @property
    def directions(self) -> NDArray[np.float64]:
        """The directions along a row and down a column, (2, 3).

        Raises:
            UnsuitableError: they are none.
        """
        found = self.numbers("ImageOrientationPatient", 6).reshape(2, 3)
        if not np.allclose(found @ found.T, np.eye(2), atol=1e-2):
            raise UnsuitableError(
                f"{self.name}: its ImageOrientationPatient is no pair of directions at right angles. Correct the "
                "header."
            )
        return found

    @property
    def spacing(self) -> NDArray[np.float64]:
        """mm between rows, and between columns.

        Raises:
            UnsuitableError: they are not positive.
        """
        found = self.numbers("PixelSpacing", 2)
        if found.min() <= 0:
            raise UnsuitableError(f"{self.name}: its PixelSpacing is not positive. Correct the header.")
        return found

    @property
    def is_localizer(self) -> bool:
        """Whether it says so itself."""
        return "LOCALIZER" in self.text("ImageType").upper()


# Files.


def image_files(folder: Path) -> Iterator[Path]:
    """The DICOM files of a folder: those with the mark of the format behind 128 bytes, or that begin as a data set."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name[0] != "." and path.name != "DICOMDIR" and path.stat().st_size >= HEAD:
            with path.open("rb") as file:
                if _is_dicom(file.read(HEAD)):
                    yield path


def _is_dicom(head: bytes) -> bool:
    """Whether a file begins as one of DICOM, by its first 132 bytes. Old ones have no mark: they begin with elements of
    group 2 or 8."""
    if head[128:] == b"DICM":
        return True
    at, last = 0, -1
    for _ in range(2):
        if len(head) < at + 8:
            return False
        group, element, length = struct.unpack_from("<HHI", head, at)
        kind, tag = head[at + 4 : at + 6], (group << 16) + element
        if kind.isalpha() and kind.isupper():
            (length,) = struct.unpack_from("<H", head, at + 6)
        if group not in (2, 8) or tag <= last or length > len(head):
            return False
        at, last = at + 8 + length, tag
    return True


def read_file(path: Path, **options: Any) -> Any:
    """A file by pydicom, with a transfer syntax, which files without a mark do not say."""
    import pydicom

    found = pydicom.dcmread(path, force=True, **options)
    if not found.file_meta.get("TransferSyntaxUID"):
        implicit, little = found.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
    return found


def _slices(path: Path) -> list[Slice]:
    """The planes of a file; none where it holds no image."""
    header = read_file(path, stop_before_pixels=True, specific_tags=[*_WANTED, *_GROUPS])
    syntax, common = str(header.file_meta.TransferSyntaxUID), _fields(header)
    whole = Slice(path, None, common, syntax)
    if "Rows" not in common:
        return []
    frames, groups = whole.number("NumberOfFrames", 1), [header.get(name) or () for name in _GROUPS]
    if not groups[1] and frames <= 1:
        return [whole]
    if len(groups[1]) != frames:
        return [Slice(path, None, {**common, "ImagePositionPatient": None}, syntax)]
    shared = {} if not groups[0] else _grouped(groups[0][0])
    return [Slice(path, k, {**common, **shared, **_grouped(item)}, syntax) for k, item in enumerate(groups[1])]


def _fields(dataset: Any) -> dict[str, Any]:
    """The attributes of a data set that are wanted."""
    found = {}
    for name in _WANTED:
        if name in dataset:
            try:
                found[name] = dataset[name].value
            except Exception:  # pydicom raises of many kinds where a value is not of the kind of its attribute
                found[name] = dataset.get_item(name).value
    return found


def _grouped(item: Any) -> dict[str, Any]:
    """What the functional groups of a frame say."""
    sequences = [element.value for element in item if element.VR == "SQ" and element.value]
    return {name: value for sequence in sequences for name, value in _fields(sequence[0]).items()}


# Which slices are one image.


@dataclass(frozen=True)
class _Image:
    """Slices that belong together, in the order of their places where `fault` is empty, and what tells them from others
    of their series. `mixed`: the series has slices of several orientations."""

    slices: list[Slice]
    apart: str = ""
    fault: ValueError | None = None
    mixed: bool = False

    def __str__(self) -> str:
        first, count = self.slices[0], len(self.slices)
        series = first.text("SeriesNumber") or first.text("SeriesInstanceUID")[-12:]
        named = first.text("SeriesDescription") or "no description"
        known = [f"series {series}" if series else "", self.apart, f"{count} slice{'s' * (count > 1)}"]
        return f'"{named}" ({", ".join(filter(None, known))}, such as {first.name})'


def slices_of(folder: str | Path) -> list[Slice]:
    """The slices of the image in a folder, in the order of their places. What lies beside it and is none of it, as a
    localizer, is told.

    Raises:
        ValueError: a slice is missing, or a file is damaged.
        UnsuitableError: there is no image, or more than one, or its slices are no regular grid.
    """
    images = [image for found in _by_series(Path(folder)).values() for image in _images(found)]
    if not images:
        raise UnsuitableError("the folder holds no DICOM image. Put the files of a series into it.")
    kept = _main(images)
    if len(kept) > 1:
        raise UnsuitableError(_several(kept))
    [image] = kept
    if image.fault is not None:
        raise image.fault
    if left := [other for other in images if other is not image]:
        _tell(f"{Path(folder).name}: {image} is read, and left out: {_listed(left)}")
    return image.slices


@cache
def _tell(text: str) -> None:
    """Say something once."""
    logger.warning("%s", text)


def no_image(folder: Path) -> str:
    """Why a folder of DICOM files holds no image to predict: it has none, or is a localizer. "" where it may hold one;
    whether it can be read is not said."""
    files = list(image_files(folder))
    try:
        if all(s.text("Modality") in _NO_IMAGES for path in files for s in _slices(path)[:1]):
            return "DICOM files without an image"
        if len(files) > MAX_LOCALIZER:
            return ""
        slices = [s for path in files for s in _slices(path)]
        images = [image for found in _by_series(folder).values() for image in _images(found)]
    except Exception:  # pydicom raises of many kinds; the reading says it
        return ""
    is_localizer = all(s.is_localizer for s in slices) or all(image.mixed for image in images)
    return "a localizer" if is_localizer else ""


def _by_series(folder: Path) -> dict[str, list[Slice]]:
    """The slices of a folder by their series; localizers are apart."""
    found = defaultdict[str, list[Slice]](list)
    for path in image_files(folder):
        for slice_ in _slices(path):
            found[f"{slice_.text('SeriesInstanceUID')} {slice_.is_localizer}"].append(slice_)
    return found


def _images(slices: list[Slice]) -> list[_Image]:
    """The images of a series. One that cannot be used has a fault."""
    first = slices[0]
    if kind := _NO_IMAGES.get(first.text("Modality")):
        fault = f"{first.name} is {kind}, which is not read. Convert it to NIfTI."
        return [_Image(slices, fault=UnsuitableError(fault))]
    try:
        for slice_ in slices:
            _ = slice_.position, slice_.directions, slice_.spacing
        return _split(slices)
    except ValueError as error:
        frames = first.fields.get("NumberOfFrames")
        if first.frame is None and frames not in (None, "", 1) and "ImagePosition" in str(error):
            text = f"{first.name} holds {frames} frames, and does not say where each lies. Convert it to NIfTI."
            error = UnsuitableError(text)
        return [_Image(slices, fault=error)]


def _split(slices: list[Slice], apart: str = "") -> list[_Image]:
    """The images of a series: one, if its slices are a regular grid; else those that its headers tell apart.

    Raises:
        ValueError: they are none, by whatever they are told apart.
    """
    try:
        return [_Image(_sorted(slices), apart)]
    except ValueError as error:
        fault = error
    kinds: dict[str, Callable[[Slice], str]] = {
        "size": lambda s: f"{s.number('Columns'):g} x {s.number('Rows'):g}",
        "orientation": lambda s: _plane(s.directions),
        "direction": lambda s: str((np.rint(s.directions * 50) + 0).astype(int).tolist()),
        "pixel spacing": lambda s: "\\".join(f"{mm:.3g}" for mm in s.spacing),
        **{name: partial(_text, names=names) for name, names in _SEPARATORS.items()},
    }
    for name, value in kinds.items():
        parts = defaultdict[str, list[Slice]](list)
        for slice_ in slices:
            parts[value(slice_)].append(slice_)
        is_geometry = name not in _SEPARATORS
        if len(parts) < 2 or (min(map(len, parts.values())) < 2 and not is_geometry):
            continue
        try:
            found = [
                _Image(image.slices, image.apart, mixed=image.mixed or name in ("orientation", "direction"))
                for text, part in parts.items()
                for image in _split(part, ", ".join(filter(None, (apart, f"{name} {text or 'not given'}"))))
            ]
        except ValueError:
            continue
        return found
    raise fault


def _text(slice_: Slice, names: Sequence[str]) -> str:
    return slice_.text(*names)


def _plane(directions: NDArray[np.float64]) -> str:
    """The name of the plane that is closest to a slice."""
    return ("sagittal", "coronal", "axial")[int(np.abs(np.cross(*directions)).argmax())]


def _main(images: Sequence[_Image]) -> list[_Image]:
    """The images of a folder that are no localizers, and no pictures without a place; all where there are no others."""
    largest = max(len(image.slices) for image in images)

    def is_aside(image: _Image) -> bool:
        first, count = image.slices[0], len(image.slices)
        has_no_place = image.fault is not None and not first.fields.get("ImagePositionPatient")
        is_none = first.text("Modality") in _NO_IMAGES or has_no_place
        is_few = count <= FEW_SLICES and count * MANY_TIMES <= largest
        return is_none or first.is_localizer or is_few or (image.mixed and count < largest)

    return [image for image in images if not is_aside(image)] or list(images)


def _several(images: Sequence[_Image]) -> str:
    """What to say of a folder with more than one image."""
    paths = {s.path for image in images for s in image.slices}
    remedy = (
        "Put the files of each into a folder of its own."
        if len(paths) > 1
        else "Write each into a file of its own, as dcm2niix does, which makes NIfTI of it."
    )
    return f"the folder holds {len(images)} images: {_listed(images)}. {remedy}"


def _listed(images: Sequence[_Image]) -> str:
    more = len(images) - MAX_LISTED
    return "; ".join(map(str, images[:MAX_LISTED])) + (f" and {more} more" if more > 0 else "")


def _sorted(slices: Sequence[Slice]) -> list[Slice]:
    """Slices by their place along the normal of the first.

    Raises:
        ValueError: they differ in kind, or do not lie on a regular grid.
    """
    _check_alike(slices)
    normal = np.cross(*slices[0].directions)
    found = sorted(slices, key=lambda s: float(normal @ s.position))
    _check_places(found, normal)
    return found


def _check_alike(slices: Sequence[Slice]) -> None:
    """Raises where a slice has another size, spacing or orientation than the first."""

    def kind(slice_: Slice) -> NDArray[np.float64]:
        size = [slice_.number("Rows"), slice_.number("Columns"), slice_.number("SamplesPerPixel", 1)]
        return np.array([*size, *slice_.spacing, *slice_.directions.ravel()])

    first = kind(slices[0])
    for slice_ in slices:
        if not np.allclose(kind(slice_), first, atol=1e-4):
            raise UnsuitableError(
                f"{slice_.name} has another size, spacing or orientation than {slices[0].name}. Put the files of each "
                "image into a folder of its own."
            )


def _check_places(slices: Sequence[Slice], normal: NDArray[np.float64]) -> None:
    """Raises where slices do not lie one step apart each."""
    if len(slices) < 2:
        return
    positions = np.array([slice_.position for slice_ in slices])
    steps = np.diff(positions @ normal)
    step = float(np.median(steps))
    for slice_, following, distance in zip(slices, slices[1:], steps, strict=False):
        names = f"{slice_.name} and {following.name}"
        if distance < PLACE_TOLERANCE_MM / 10:
            uid = slice_.text("SOPInstanceUID")
            twice = uid and uid == following.text("SOPInstanceUID") and slice_.path != following.path
            raise UnsuitableError(
                f"{names} are one image twice (the same SOPInstanceUID). Remove one."
                if twice
                else f"{names} lie at the same place. Keep the slices of one image in the folder."
            )
        if distance > 1.5 * step:
            number = slice_.text("InstanceNumber")
            behind = f"; {slice_.name} is number {number}" if number else ""
            raise ValueError(
                f"a slice is missing between {names}, which are {distance:.4g} mm apart and not {step:.4g}{behind}"
            )
    line = np.linspace(positions[0], positions[-1], len(slices))
    if (furthest := float(np.linalg.norm(positions - line, axis=1).max())) > PLACE_TOLERANCE_MM:
        raise UnsuitableError(
            f"its slices are not evenly spaced: one lies {furthest:.3g} mm from its place. Resample the series."
        )


# Reading.


def open_series(folder: Path) -> Series:
    """The image in a folder of DICOM files, of one slice a file or of many frames; slices run along the normal of the
    first one, whatever their numbers are. Those that are sheared against each other, as by a tilted gantry, stay where
    they are: the affine is sheared."""
    slices = slices_of(folder)
    _check_readable(slices)
    first, last = slices[0], slices[-1]
    along, down = first.directions
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along * first.spacing[1], down * first.spacing[0]
    if len(slices) > 1:
        affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    else:
        thickness = (first.number(name, 0) for name in ("SpacingBetweenSlices", "SliceThickness"))
        affine[:3, 2] = np.cross(along, down) * next((mm for mm in thickness if mm > 0), 1.0)
    affine[:3, 3] = first.position
    shape = (int(first.number("Columns")), int(first.number("Rows")), len(slices))
    itemsize = 8 if first.number("BitsAllocated", 16) > 16 else 4
    return shape, int(first.number("SamplesPerPixel", 1)), affine, itemsize, lambda: _voxels(slices)


def _check_readable(slices: Sequence[Slice]) -> None:
    """Raises where the values are those of a palette, or compressed by what no package here decodes."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    for slice_ in slices:
        if slice_.text("PhotometricInterpretation") == "PALETTE COLOR":
            raise UnsuitableError(f"{slice_.name} holds the numbers of a palette. Convert it to grey or RGB.")
    for syntax in dict.fromkeys(slice_.syntax for slice_ in slices):
        name = UID(syntax).name
        try:
            decoder = get_decoder(UID(syntax))
        except NotImplementedError:
            raise UnsuitableError(
                f"its pixels are compressed as {name}, which pydicom does not read. Decompress the files, as by dcmtk."
            ) from None
        if not decoder.is_available:
            wanted = [text.partition("requires ")[2] or text for text in decoder.missing_dependencies]
            needed = " or ".join(wanted)
            raise UnsuitableError(f"its pixels are compressed as {name}, which needs {needed}. Install it.")


def _voxels(slices: Sequence[Slice]) -> NDArray[Any]:
    """Values of slices, (X, Y, Z) or (X, Y, Z, C), as rescaled by their headers. A file is decoded once."""
    planes, frames = dict[int, NDArray[Any]](), defaultdict[Path, list[int]](list)
    for place, slice_ in enumerate(slices):
        frames[slice_.path].append(place)
    for path, places in frames.items():
        dataset = read_file(path)
        _fill(dataset)
        try:
            pixels = dataset.pixel_array
        except TypeError:
            raise UnsuitableError(f"{path.name}: a number of its header is none. Correct the header.") from None
        for place in places:
            slice_ = slices[place]
            several = slice_.frame is not None and pixels.ndim > 2 + (slice_.number("SamplesPerPixel", 1) > 1)
            plane = pixels[slice_.frame] if several else pixels
            planes[place] = _rescaled(plane.swapaxes(0, 1), slice_, dataset)
    ordered = [planes[place] for place in range(len(slices))]
    return np.stack(ordered, axis=2, dtype=np.result_type(*ordered))


def _fill(dataset: Any) -> None:
    """Give attributes that pydicom asks for, and that are not there or empty, what they can only mean."""
    usual = {
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0,
        "BitsStored": dataset.get("BitsAllocated"), "NumberOfFrames": None,
    }  # fmt: skip
    for name, value in usual.items():
        if dataset.get(name) in (None, ""):
            if value is not None:
                setattr(dataset, name, value)
            elif name in dataset:
                delattr(dataset, name)


def _rescaled(array: NDArray[Any], slice_: Slice, dataset: Any) -> NDArray[Any]:
    """Values of a slice as its header scales them: whole numbers stay such, in as many bits as they need."""
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        return np.asarray(apply_modality_lut(array, dataset))
    slope, intercept = slice_.number("RescaleSlope", 1), slice_.number("RescaleIntercept", 0)
    if slope == 0:
        raise UnsuitableError(f"{slice_.name}: its RescaleSlope is 0. Correct the header.")
    is_whole = slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 2**31
    if array.dtype.kind in "iub" and array.dtype.itemsize < 8 and is_whole:
        scaled = array.astype(np.int64) * int(slope) + int(intercept)
        fits = scaled.min() >= -(2**31) and scaled.max() < 2**31
        return scaled.astype(np.int32) if fits else scaled
    real: NDArray[Any] = array.astype(np.float64 if array.dtype.itemsize > 2 else np.float32)
    real *= slope
    real += intercept
    return real
