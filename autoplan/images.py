"""Image files: a path becomes a `Volume`, in the file's own orientation. NIfTI is read here; `formats` knows the
others, for bundles too. The rest of the module is geometry and voxels, and knows no file.

A header is read first. What it promises must fit into memory and must be what the file holds, so that a damaged or
hostile file is refused before it fills the machine.
"""

import gzip
import io
import itertools
import math
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import aff2axcodes, io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from autoplan import formats
from autoplan.axes import Shape, Spacing
from autoplan.errors import DatasetError, one_line
from autoplan.formats import (
    Header,
    by_case,
    case_name,
    corner_distance_mm,
    files_of,
    format_of,
    image_files,
    names_of,
    place_tolerance_mm,
    segmentation_name,
    series_below,
)
from autoplan.memory import memory_bytes

__all__ = [
    "by_case",
    "case_name",
    "corner_distance_mm",
    "files_of",
    "image_files",
    "names_of",
    "segmentation_name",
    "series_below",
]

KNOWN = ", ".join(formats.SUFFIXES)
"""Suffixes of images, for messages."""
INSTALL = "python -m pip install 'autoplan[formats]'"
"""Command that installs what reads all formats."""
LABEL_TOLERANCE = 1e-4
"""Distance from a whole number that a label stored as float may have. Our choice: what a scale factor loses."""
MIN_BLENDS = 5
"""Values that must be blends of others for a label to be no label, see `blended_values`."""
MAX_LOOKED_AT = 200_000
"""Voxels that are looked at for that, where there are more."""
SPACING_DIGITS = 6
"""Significant digits of a spacing: what float32 headers hold, so that 0.9999999 and 1 are one spacing."""
PADDING_BYTES = 2**20
"""Bytes that may follow the last voxel. Our choice: some programs pad their files."""
COPIES = 2
"""Times that the voxels of a file are in memory while it is read: as bytes and as an array."""
_SLAB_VOXELS = 2**18
_BLOCK_BYTES = 2**12
"""Bytes at the start of a file that are sure to hold its header, compressed or not."""
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie: `shape` along the three axes of the file, `affine` 4x4, voxel to world, mm.

    `forms_apart_mm` is the distance between the two places where the sform and the qform of the header put a corner of
    the volume, 0 where only one of them is in use. `colours`: the voxels are the numbers of a palette. `measured`: the
    file says how large its voxels are.
    """

    shape: Shape
    channels: int
    affine: NDArray[np.float64]
    forms_apart_mm: float = 0.0
    colours: bool = False
    measured: bool = True


@dataclass(frozen=True)
class Volume:
    """The content of a file: `array` is (X, Y, Z, C) on `grid`."""

    array: NDArray[Any]
    grid: Grid

    @property
    def shape(self) -> Shape:
        """Voxels along the three spatial axes."""
        return self.grid.shape

    @property
    def affine(self) -> NDArray[np.float64]:
        """4x4, voxel to world, mm."""
        return self.grid.affine


def is_image(path: Path) -> bool:
    """Whether the name is that of an image, or the path a folder of DICOM files."""
    return format_of(path) is not None


def check_packages(paths: Iterable[Path]) -> None:
    """Raises DatasetError, one line with the command, where packages that read these images are missing."""
    if missing := formats.missing_packages(paths):
        verb = "are" if len(missing) > 1 else "is"
        raise DatasetError(f"reading the images needs {' and '.join(missing)}, which {verb} not installed: {INSTALL}")


# Reading.


def read_volume(path: Path) -> Volume:
    """An image file, read to its end (so that a truncated or damaged one is noticed) and scaled as its header says.

    Values keep their type where the header does not scale them, and are float32 where it does.

    Raises:
        DatasetError: the file cannot be read. The message continues a sentence that starts with the file's name.
    """
    with _explained(), np.errstate(all="ignore"):
        if not _is_nifti(path):
            found, load = formats.open_image(path)
            _check_memory(COPIES * found.num_bytes)
            return Volume(load(), _grid_of(found))
        header = _header(path)
        grid, voxels = _grid(header), _open(path, header)
        scaled = (voxels.slope, voxels.inter) != (1, 0)
        array = np.asanyarray(voxels, dtype=np.float32 if scaled else None)
    return Volume(array if array.ndim == 4 else array[..., np.newaxis], grid)


def onto(volume: Volume, grid: Grid) -> Volume:
    """A volume on a grid, where both have the same voxels and the axes of its file another order or direction, as those
    of a mask in NIfTI and of its image in DICOM. Any other one as it is."""
    if (found := _turned(volume.grid, grid)) is None:
        return volume
    (order, reverse), turned = found
    return Volume(np.flip(volume.array.transpose(*order, 3), reverse), turned)


def grid_onto(own: Grid, grid: Grid) -> Grid:
    """What `onto` makes of the grid of a volume."""
    found = _turned(own, grid)
    return own if found is None else found[1]


def _turned(own: Grid, grid: Grid) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], Grid] | None:
    """How a volume is turned onto a grid, and its grid then; None where it stays as it is."""
    found = (
        formats.axes_onto(own.shape, own.affine, grid.shape, grid.affine) if own.measured and grid.measured else None
    )
    return None if found is None else (found, replace(own, shape=grid.shape, affine=grid.affine))


def read_grid(path: Path) -> Grid:
    """Where the voxels of an image file lie, by its header alone.

    Raises:
        DatasetError: as `read_volume`.
    """
    with _explained(), np.errstate(all="ignore"):
        return _grid(_header(path)) if _is_nifti(path) else _grid_of(formats.open_image(path)[0])


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what goes wrong while a file is read into what a user reads after the file's name."""
    try:
        yield
    except FileNotFoundError:
        raise DatasetError("does not exist. Copy it there, or leave the case out.") from None
    except PermissionError:
        raise DatasetError("may not be read. Change its permissions, or leave the case out.") from None
    except ImportError as error:
        raise DatasetError(f"cannot be read ({one_line(error)}). All formats: {INSTALL}") from error
    except formats.UnsuitableError as error:
        raise DatasetError(f"cannot be used: {one_line(error)}") from error
    except _UNREADABLE as error:
        raise DatasetError(f"cannot be read ({one_line(error)}). Copy it again, or leave the case out.") from error


def _is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI. Raises where it is neither a regular file, for a pipe would make readers wait, nor a
    DICOM series."""
    mode, found = path.stat().st_mode, format_of(path)
    if not stat.S_ISREG(mode) and not (found is formats.DICOM and stat.S_ISDIR(mode)):
        raise DatasetError("is not a regular file but a folder, a pipe or a device. Put the image file there.")
    return found is formats.NIFTI


def _check_memory(needed: int) -> None:
    """Raises where a file needs more bytes than there are."""
    limit = memory_bytes()
    if 0 < limit < needed:
        raise DatasetError(
            f"needs {needed / 1e9:.3g} GB of memory by its header, and there are {limit / 1e9:.3g} GB. Correct the "
            "header, or leave the case out."
        )


def _header(path: Path) -> Any:
    """The NIfTI header of a file."""
    with path.open("rb") as file:
        head = file.read(_BLOCK_BYTES)
    if path.suffix.lower() == ".gz":
        head = zlib.decompressobj(wbits=31).decompress(head, nibabel.Nifti2Header.sizeof_hdr)
    kind = nibabel.Nifti2Header if _is_nifti2(head) else nibabel.Nifti1Header
    header: Any = kind(head[: kind.sizeof_hdr])  # type: ignore[no-untyped-call]
    return header


def _is_nifti2(head: bytes) -> bool:
    """Whether a file starts as NIfTI-2 does: with the size of its header, 540, in either byte order."""
    return head[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))


def _open(path: Path, header: Any) -> ArrayProxy:
    """The voxels of a NIfTI file, not yet read. A compressed one is decompressed at once, which checks its checksum."""
    num_bytes = math.prod(map(int, header.get_data_shape())) * header.get_data_dtype().itemsize
    end = int(header.get_data_offset()) + num_bytes
    needed = COPIES * end
    _check_memory(needed)
    size = path.stat().st_size
    if path.suffix.lower() != ".gz":
        _check_size(size, end)
        with path.open("rb") as file:
            _check_extensions(file, header)
        return ArrayProxy(path, header)  # type: ignore[no-untyped-call]
    with path.open("rb") as file:
        data = file.read(min(size, needed + PADDING_BYTES))
    content = _decompressed(data, at_most=end + PADDING_BYTES + 1)
    _check_size(len(content), end)
    _check_extensions(io.BytesIO(content), header)
    return ArrayProxy(io.BytesIO(content), header)  # type: ignore[no-untyped-call]


def _check_size(found: int, promised: int) -> None:
    """Raises where a file is not as long as its header says."""
    if found < promised:
        raise ValueError(f"it is truncated: {found} of {promised} bytes are there")
    if found > promised + PADDING_BYTES:
        raise ValueError(f"it is longer than the {promised} bytes that its header says")


def _check_extensions(file: BinaryIO, header: Any) -> None:
    """Raises where a header says that extensions follow it and they are damaged: MONAI would fail on them."""
    file.seek(header.sizeof_hdr)
    if file.read(1) not in (b"", b"\0"):
        file.seek(0)
        type(header).from_fileobj(file)


def _decompressed(data: bytes, *, at_most: int) -> bytes:
    """Content of a gzip file to its end, with the checksums, or its first `at_most` bytes."""
    member = zlib.decompressobj(wbits=31)  # nearly always the only one, and faster than `gzip`
    content = member.decompress(data, at_most)
    if not member.eof and len(content) < at_most:
        raise EOFError("it is truncated")
    if member.unused_data:
        content += gzip.GzipFile(fileobj=io.BytesIO(member.unused_data)).read(at_most - len(content))
    return content


# Geometry.


def _grid_of(header: Header) -> Grid:
    """Grid of a file that is not NIfTI."""
    return Grid(header.shape, header.channels, header.affine, colours=header.colours, measured=header.measured)


def _grid(header: Any) -> Grid:
    """Grid of a NIfTI file, that training and prediction go by, too: see `formats.nifti_affine`."""
    affine, shape = formats.nifti_affine(header), tuple(map(int, header.get_data_shape()))
    return Grid(shape[:3], (*shape, 1)[3], affine, _forms_apart_mm(header, shape[:3]))


def _forms_apart_mm(header: Any, shape: Shape) -> float:
    """Distance in mm between a corner of the volume by sform and by qform, 0 where only one of them is in use."""
    if not header["sform_code"] or not header["qform_code"]:
        return 0.0
    mm = formats.nifti_mm(header)
    return corner_distance_mm(shape, mm @ header.get_sform(), mm @ header.get_qform())


def apart(first: Grid, second: Grid) -> str:
    """How far apart two grids of one shape put a corner of the volume, in words; "" where they are the same. A file
    that does not say how large its voxels are lies on the other one."""
    if not (first.measured and second.measured):
        return ""
    distance, allowed = corner_distance_mm(first.shape, first.affine, second.affine), place_tolerance_mm(first.affine)
    return "" if distance <= allowed else f"{distance:.3g} mm apart (at most {allowed:.3g} mm)"


def spacing(affine: NDArray[np.float64]) -> Spacing:
    """mm a voxel along each axis of the file: the lengths of the affine's columns, to `SPACING_DIGITS` digits."""
    return tuple(float(f"{s:.{SPACING_DIGITS}g}") for s in np.linalg.norm(affine[:3, :3], axis=0))


def orientation(affine: NDArray[np.float64]) -> str:
    """The world axes that the file's axes are closest to, such as LPS."""
    return "".join(aff2axcodes(affine))  # type: ignore[no-untyped-call]


def ras_order(values: Sequence[Any], affine: NDArray[np.float64]) -> tuple[Any, ...]:
    """Values of the file's axes, in the order of the world axes x, y, z that they are closest to."""
    world_axes = io_orientation(affine)[:, 0].astype(int)  # type: ignore[no-untyped-call]
    return tuple(value for _, value in sorted(zip(world_axes, values, strict=True), key=lambda pair: int(pair[0])))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Smallest box that holds all true voxels; there is at least one."""
    others = ((1, 2), (0, 2), (0, 1))
    occupied = [np.flatnonzero(mask.any(axis=axes)) for axes in others]
    return tuple(slice(int(o[0]), int(o[-1]) + 1) for o in occupied)


# Voxels.


def stacked(channels: Sequence[Volume]) -> Volume:
    """Channels of one shape as one volume, on the grid of the first."""
    if len(channels) == 1:
        return channels[0]
    array = np.concatenate([channel.array for channel in channels], axis=3)
    return Volume(array, replace(channels[0].grid, channels=array.shape[3]))


def label_faults(path: Path, label: Volume) -> list[str]:
    """What keeps a file from holding one class number a voxel."""
    channels, found = label.grid.channels, format_of(path)
    if found is not None and path.suffix.lower() in found.lossy:
        return ["the label is a JPEG, which changes values. Store labels as PNG."]
    if channels == 3 and found in (formats.PICTURE, formats.TIFF):
        return ["the label is a picture of colours. Store the number of its class in each pixel, in one channel."]
    if channels != 1:
        return [f"the label has {channels} channels. Store the classes as numbers in one channel."]
    return []


def largest_magnitude(array: NDArray[Any]) -> float:
    """Largest magnitude of the values of an array that is not empty, NaN where one is NaN."""
    return max(-float(array.min()), float(array.max()))


def whole_numbers(array: NDArray[Any], *, what: str = "label") -> tuple[NDArray[Any], list[str]]:
    """A label (`what` says if it is called otherwise) as integers, and what is wrong with it."""
    if array.dtype.kind in "iu":
        return array, []
    if array.dtype.kind == "b":
        return array.astype(np.uint8), []
    if not math.isfinite(largest_magnitude(array)):
        return array, [f"the {what} has values that are NaN or infinite. Replace them by 0 or a class."]
    rounded = np.rint(array)
    distance = np.abs(array - rounded)
    if distance.max(initial=0) > LABEL_TOLERANCE:
        value = array.flat[int(distance.argmax())]
        return array, [f"the {what} has the value {value:g}, no whole number. Resample labels by nearest neighbour."]
    if np.abs(rounded).max(initial=0) >= 2**31:
        return array, [f"the {what} has values of 2^31 or more. Number the classes from 0."]
    return rounded.astype(np.int32), []


def blend_fault(label: NDArray[Any]) -> str:
    """What is wrong with a label of whole numbers that holds blends of its classes; "" where it holds none."""
    if not (blends := blended_values(label)):
        return ""
    return (
        f"the label is no mask of classes: {blends} of its values occur only between others, at their borders, as "
        "interpolation and JPEG make them. Threshold it, and resize masks by nearest neighbour."
    )


def blended_values(label: NDArray[Any]) -> int:
    """How many values of a label are no classes but blends of others, as interpolation and JPEG make them at borders; 0
    where they are few, or not most of its values.

    Nearly all voxels of a class, even of a thin one, have two neighbours or more of their own class. Those of a blend
    have not, and lie among several other values.

    Args:
        label: whole numbers, (X, Y, Z).

    Source: our choice; tests/test_images.py has what it takes for blends and what not.
    """
    counts = count_values(label)
    if len(counts) < MIN_BLENDS + 2:
        return 0
    by_frequency = sorted(counts, key=lambda pair: pair[1], reverse=True)
    values = np.array(sorted(value for value, _ in by_frequency[2:]))  # others are blends of at least two
    places = np.flatnonzero(np.isin(label, values))
    at = np.unravel_index(places[:: -(-len(places) // MAX_LOOKED_AT)], label.shape)
    own = label[at]
    equal, least, most = (
        np.zeros(len(own), dtype=np.int8),
        np.full_like(own, label.max()),
        np.full_like(own, label.min()),
    )
    for steps in itertools.product(*((-1, 0, 1) if n > 1 else (0,) for n in label.shape)):
        moved = [np.clip(i + step, 0, n - 1) for i, step, n in zip(at, steps, label.shape, strict=True)]
        other = label[tuple(moved)]
        differs = other != own
        equal += ~differs
        least, most = (
            np.where(differs, np.minimum(least, other), least),
            np.where(differs, np.maximum(most, other), most),
        )
    index = np.searchsorted(values, own)
    blends = np.bincount(index, weights=(equal < 3) & (least < most))  # a voxel is its own neighbour here
    found = int(np.count_nonzero(blends > np.bincount(index) / 2))
    return found if found >= MIN_BLENDS and found > len(counts) / 2 else 0


def count_values(label: NDArray[Any]) -> list[tuple[int, int]]:
    """Values that occur in an array of whole numbers, ascending, and how often."""
    low, high = int(label.min(initial=0)), int(label.max(initial=0))
    if low < 0 or high > np.iinfo(np.uint16).max:
        values, counts = np.unique(label, return_counts=True)
        return [(int(v), int(c)) for v, c in zip(values, counts, strict=True)]
    total = np.zeros(high + 1, dtype=np.int64)
    step = max(1, _SLAB_VOXELS * label.shape[-1] // max(1, label.size))
    for z in range(0, label.shape[-1], step):  # slab by slab: bincount needs 8 bytes a voxel
        total += np.bincount(label[..., z : z + step].ravel(order="K"), minlength=high + 1)
    return [(int(v), int(total[v])) for v in np.flatnonzero(total)]
