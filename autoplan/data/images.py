"""Image files: a path becomes a `Volume`, in the file's own orientation. NIfTI is read here; `formats` knows the
others, for bundles too.

A header is read first. What it promises must fit into memory and must be what the file holds, so that a damaged or
hostile file is refused before it fills the machine.
"""

import gzip
import io
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
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from autoplan.base.axes import Shape
from autoplan.base.errors import DatasetError, one_line
from autoplan.base.scripts import formats
from autoplan.base.scripts.formats import (
    Header,
    by_case,
    case_name,
    corner_distance_mm,
    files_of,
    format_of,
    image_files,
    names_of,
    segmentation_name,
    series_below,
)
from autoplan.base.scripts.memory import memory_bytes
from autoplan.data.geometry import Grid

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
PADDING_BYTES = 2**20
"""Bytes that may follow the last voxel. Our choice: some programs pad their files."""
COPIES = 2
"""Times that the voxels of a file are in memory while it is read: as bytes and as an array."""
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


# Voxels.


def stacked(channels: Sequence[Volume]) -> Volume:
    """Channels of one shape as one volume, on the grid of the first."""
    if len(channels) == 1:
        return channels[0]
    array = np.concatenate([channel.array for channel in channels], axis=3)
    return Volume(array, replace(channels[0].grid, channels=array.shape[3]))
