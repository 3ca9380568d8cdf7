"""Formats of image files: which there are, what each needs, where the voxels of a file lie, and how one is written.

Each bundle has it among its `scripts`, and autoplan reads it from there, so planning, training and prediction see the
same voxels at the same place. The voxels of NIfTI alone are read elsewhere: by MONAI's NibabelReader in a bundle, by a
reader that checks more in planning; where they lie is said here.

An array is (X, Y, Z, C), in the order of the file's axes: the first runs along a row. World is RAS+ in mm, whatever the
unit of a file. What has no spacing has 1 mm a pixel.
"""

from __future__ import annotations

import contextlib
import html
import importlib.util
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import dicom

UnsuitableError = dicom.UnsuitableError


@dataclass(frozen=True)
class Format:
    """A format: its suffixes (none: a folder), the packages that read it, the suffix of a segmentation of its images,
    the suffixes that do not store numbers unchanged, and whether images have a place in the world."""

    name: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    segmentation: str
    lossy: tuple[str, ...] = ()
    placed: bool = True


NIFTI = Format("NIfTI", (".nii.gz", ".nii"), ("nibabel",), ".nii.gz")
DICOM = Format("DICOM", (), ("pydicom", "python-gdcm"), ".nii.gz")
NRRD = Format("NRRD", (".seg.nrrd", ".nrrd", ".nhdr"), ("SimpleITK",), ".nrrd")
META = Format("MetaImage", (".mha", ".mhd"), ("SimpleITK",), ".mha")
PICTURE = Format("picture", (".png", ".jpg", ".jpeg", ".bmp"), ("pillow",), ".png", (".jpg", ".jpeg"), False)
TIFF = Format("TIFF", (".ome.tif", ".ome.tiff", ".tif", ".tiff"), ("tifffile", "imagecodecs"), ".tif", placed=False)
FORMATS = (NIFTI, NRRD, META, PICTURE, TIFF, DICOM)
SUFFIXES = tuple(suffix for f in FORMATS for suffix in f.suffixes)
MODULES = {"pillow": "PIL", "python-gdcm": "gdcm"}
"""Modules that are not called as their package is."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the world of ITK and DICOM (left, posterior, superior) to RAS, and back."""


PLACE_TOLERANCE_MM, PLACE_TOLERANCE = 0.1, 0.5
"""Distance that a corner of an image may have under two affines that count as equal: mm, or this part of the finest
voxel edge where that is less. Our choice: far below a voxel, and far above what float32 headers lose."""
NIFTI_MM = {1: 1e3, 3: 1e-3}
"""mm of the units of length of a NIfTI header that are not mm: metres and micrometres."""
LENGTHS_MM = {
    **{"nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6, "å": 1e-7, "angstrom": 1e-7},
    **{"um": 1e-3, "micron": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3},
    **{"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0},
    **{"m": 1e3, "meter": 1e3, "metre": 1e3, "in": 25.4, "inch": 25.4},
}
"""mm of the units of length that text headers name."""
PRINTED = (72.0, 96.0, 300.0)
"""Pixels an inch that programs write into pictures which nobody has measured: they say nothing of the size."""
PALETTE = "the image holds the numbers of a palette, not colours. Convert it to grey or RGB."
MAX_LINES, MAX_LINE, MAX_FILES = 10_000, 10_000, 10_000
"""What of a text header is read, and how many files it may name."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Header:
    """Where the voxels of a file lie, and what they are: `shape` (X, Y, Z), `affine` 4x4, voxel to world.

    `num_bytes` is what the array takes. `colours`: the numbers are those of a palette. `alpha`: the file has one more
    channel, the opacity, which is not among the `channels`. `measured`: the file says how large its voxels are.
    """

    shape: tuple[int, ...]
    channels: int
    affine: NDArray[np.float64]
    num_bytes: int
    colours: bool = False
    alpha: bool = False
    measured: bool = True


Opened = tuple[Header, Callable[[], NDArray[Any]]]
"""The header of a file, and what then reads the array."""


# Names.


def suffix_of(path: str | PurePath) -> str:
    """The suffix of an image file, as the file has it; "" for a folder or a file of no known format."""
    name = PurePath(path).name
    lowered = name.lower()
    return next((name[-len(s) :] for s in SUFFIXES if lowered.endswith(s)), "")


def format_of(path: str | PurePath) -> Format | None:
    """The format of an image: by its name, or because it is a folder of DICOM files. None where it is no image."""
    suffix = suffix_of(path).lower()
    if not suffix:
        return DICOM if is_series(path) else None
    return next(f for f in FORMATS if suffix in f.suffixes)


def case_name(path: str | PurePath) -> str:
    """File name of an image without its suffix; the name of a folder."""
    name = PurePath(path).name
    return name[: len(name) - len(suffix_of(name))]


def name_of(case: Mapping[str, Any]) -> str:
    """Name of a case of a datalist: its item "name", or that of its first image, where a program gives none."""
    image = case["image"]
    return str(case["name"]) if "name" in case else case_name(image if isinstance(image, (str, PurePath)) else image[0])


def subject_of(file: str | PurePath, name: str | None) -> str:
    """The path that an image would have if it were called as its case is."""
    return str(file if name is None else PurePath(file).with_name(name + suffix_of(file)))


def segmentation_name(image: str | PurePath, name: str | None = None) -> str:
    """File name of the segmentation of an image: its own, or that of its case, in a format that stores whole numbers
    unchanged."""
    suffix = suffix_of(image).lower()
    found = next((f for f in FORMATS if suffix in f.suffixes), DICOM)
    return (case_name(image) if name is None else name) + found.segmentation


def by_case(images: Iterable[Path], channels: int) -> list[tuple[str, list[Path]]]:
    """Names of cases and their files: CASE_0000, CASE_0001 and so on are the channels of CASE where each case has all
    channels. Other files are a case each."""
    images, groups = list(images), dict[str, list[Path]]()
    for image in sorted(images):
        groups.setdefault(re.sub(r"_\d{4}$", "", case_name(image)), []).append(image)
    wanted = [f"_{channel:04}" for channel in range(channels)]
    if all([case_name(p)[-5:] for p in paths] == wanted for paths in groups.values()):
        return list(groups.items())
    return [(case_name(image), [image]) for image in images]


def image_files(folder: str | Path) -> list[Path]:
    """The images of a folder, by name: files, and folders that hold a DICOM series; hidden ones do not count. A folder
    that is a series itself is the only one."""
    there = sorted(p for p in Path(folder).iterdir() if p.name[0] != ".")
    images = [p for p in there if (suffix_of(p) and p.is_file()) or is_series(p)]
    return images or ([Path(folder)] if is_series(folder) else [])


def is_series(folder: str | PurePath) -> bool:
    """Whether a path is a folder that holds a DICOM file."""
    return Path(folder).is_dir() and any(True for _ in dicom.image_files(Path(folder)))


def series_below(folder: str | Path) -> dict[Path, str]:
    """The folders inside a folder, however deep, that hold DICOM files, and why one is no image to predict; "" where it
    is one."""
    found = {}
    for root, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        path = Path(root)
        if path != Path(folder) and is_series(path):
            if missing_packages([path]):
                found[path] = ""  # which is said of all
            else:
                found[path] = dicom.no_image(path)
    return found


def files_of(image: str | Path) -> list[Path]:
    """The files that an image consists of: those of a series; or itself, the files that its header names, and what
    tells its spacing."""
    path = Path(image)
    if os.path.isdir(path):  # which takes names of any length, as isfile does
        return sorted(p for p in path.iterdir() if p.is_file())
    found, beside = format_of(path), list[Path]()
    if found in (NRRD, META) and os.path.isfile(path):
        with contextlib.suppress(OSError):
            beside = _data_files(path)
    elif found is TIFF:
        beside = _spacing_files(path)
    return [path, *(p for p in dict.fromkeys(beside) if p != path and os.path.isfile(p))]


def _data_files(path: Path) -> list[Path]:
    """The files that the header of an NRRD or a MetaImage names as those of its voxels."""
    fields, listed = _text_header(path)
    named = next((fields[name] for name in _DATA if name in fields), "")
    words = named.split()
    if listed:
        names = listed
    elif "%" in named and len(words) >= 3 and all(re.fullmatch(r"-?\d{1,9}", word) for word in words[1:4]):
        first, last, step = (*map(int, words[1:4]), 1)[:3]
        before, digits, after = re.split(r"%0?(\d{0,2})[di]", words[0] + "%d", maxsplit=1)
        numbers = range(first, last + (1 if step > 0 else -1), step or 1)[:MAX_FILES]
        names = [f"{before}{n:0{digits or 1}}{after.removesuffix('%d')}" for n in numbers]
    else:
        names = [named] if named.upper() not in ("", "LOCAL") else []
    return [path.parent / name for name in names]


_DATA = ("data file", "datafile", "elementdatafile")


def _text_header(path: Path) -> tuple[dict[str, str], list[str]]:
    """The fields of the header of an NRRD or a MetaImage, in lower case, and the files that it lists."""
    separator, fields, listed = "=" if format_of(path) is META else ":", dict[str, str](), list[str]()
    with path.open("rb") as file:
        for raw in itertools.islice(iter(lambda: file.readline(MAX_LINE), b""), MAX_LINES):
            line = raw.decode("utf-8", "surrogateescape").strip()
            name, _, value = (part.strip() for part in line.partition(separator))
            if any(fields.get(key, "")[:4].upper() == "LIST" for key in _DATA):
                listed += [line] if line else []
            elif not line:  # the voxels of an NRRD follow
                break
            else:
                fields[name.lower()] = value
                if name.lower() == "elementdatafile" and value[:4].upper() != "LIST":
                    break
    return fields, listed


def _spacing_files(path: Path) -> list[Path]:
    """The files that nnU-Net looks for beside a TIFF: CASE.json of CASE_0000.tif, and of CASE.tif."""
    name = case_name(path)
    return [path.with_name(f"{stem}.json") for stem in dict.fromkeys((name, re.sub(r"_\d{4}$", "", name)))]


def names_of(images: Iterable[str | Path]) -> tuple[str, ...]:
    """Names of the formats of these images, in the order of `FORMATS`."""
    found = {format_of(image) for image in images}
    return tuple(f.name for f in FORMATS if f in found)


def packages_of(names: Iterable[str]) -> tuple[str, ...]:
    """Packages that read the formats of these names."""
    there = set(names)
    return tuple(dict.fromkeys(package for f in FORMATS if f.name in there for package in f.packages))


def unneeded_packages(names: Iterable[str]) -> tuple[str, ...]:
    """Packages that read other formats alone than those of these names; bundles always need nibabel."""
    needed = {*packages_of(names), *NIFTI.packages}
    return tuple(p for p in packages_of(f.name for f in FORMATS) if p not in needed)


def missing_packages(images: Iterable[str | Path]) -> list[str]:
    """Packages that these images need and that are not installed."""
    return [p for p in packages_of(names_of(images)) if importlib.util.find_spec(MODULES.get(p, p)) is None]


# Reading.


def open_image(path: str | Path) -> Opened:
    """The header of an image that is not NIfTI, and what reads its voxels.

    Raises:
        ImportError: a package is missing; the message has the command that installs it.
        OSError, ValueError: the file cannot be read, or holds no image that can be used.
    """
    path = Path(path)
    found = format_of(path)
    readers = {NRRD: _open_itk, META: _open_itk, PICTURE: _open_picture, TIFF: _open_tiff, DICOM: _open_series}
    if found not in readers:
        raise UnsuitableError(f"it is no image of a known format ({', '.join(SUFFIXES)}, or a folder of DICOM files).")
    if missing := missing_packages([path]):
        raise ImportError(f"{found.name} needs packages that are not installed: pip install {' '.join(missing)}")
    with _plain_errors():
        header, load = readers[found](path)

    def checked() -> NDArray[Any]:
        with _plain_errors():
            array = load()
        if array.dtype.kind not in "biuf":
            raise UnsuitableError(f"its values are of type {array.dtype}, not numbers. Store numbers.")
        return array.reshape(*header.shape, header.channels)

    return header, checked


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of the packages, which are of many kinds, as ValueError."""
    try:
        yield
    except (ImportError, MemoryError, OSError, ValueError):
        raise
    except Exception as error:
        said = re.sub(r"(?s)^.*?ERROR: (\w+\(0x\w+\): )?", "", str(error))
        raise ValueError(said or type(error).__name__) from error


def _header(shape: Sequence[int], channels: int, affine: NDArray[np.float64], itemsize: int, **kind: bool) -> Header:
    """A header, checked; a plane becomes a volume of one slice."""
    whole = (*(int(n) for n in shape), 1, 1)[:3]
    if min(whole) < 1:
        raise ValueError(f"its shape is {tuple(shape)}")
    check_affine(affine)
    return Header(whole, channels, affine, int(np.prod(whole, dtype=object)) * channels * itemsize, **kind)


def check_affine(affine: NDArray[np.float64]) -> None:
    """Raises UnsuitableError where an affine puts voxels nowhere."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise UnsuitableError("its affine is singular or not finite. Write the header anew.")


def place_tolerance_mm(affine: NDArray[np.float64]) -> float:
    """Distance that a corner of an image may have from its place; see `PLACE_TOLERANCE_MM`."""
    return float(min(PLACE_TOLERANCE_MM, PLACE_TOLERANCE * np.linalg.norm(affine[:3, :3], axis=0).min()))


def corner_distance_mm(shape: Sequence[int], first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Largest distance in mm between the world coordinates of a corner of an image (X, Y, Z) under two affines."""
    if np.array_equal(first, second):
        return 0.0
    corners = np.array(np.meshgrid(*((0, n - 1) for n in shape[:3]), indexing="ij")).reshape(3, -1)
    difference = (first - second)[:3]
    return float(np.linalg.norm(difference[:, :3] @ corners + difference[:, 3:], axis=0).max())


def axes_onto(
    shape: Sequence[int], affine: NDArray[np.float64], to_shape: Sequence[int], to: NDArray[np.float64]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How an image becomes one on another grid that has the same voxels, its axes in another order or direction: the
    order of its axes, and those that are then reversed. None where the grids are not of the same voxels, or nothing is
    to be done."""
    from nibabel.orientations import inv_ornt_aff, io_orientation, ornt_transform

    turn = ornt_transform(io_orientation(affine), io_orientation(to))
    order = tuple(int(axis) for axis in np.argsort(turn[:, 0]))
    reverse = tuple(axis for axis, source in enumerate(order) if turn[source, 1] < 0)
    turned = affine @ inv_ornt_aff(turn, tuple(shape[:3]))
    if (order == (0, 1, 2) and not reverse) or [shape[axis] for axis in order] != list(to_shape[:3]):
        return None
    return (order, reverse) if corner_distance_mm(to_shape, turned, to) <= place_tolerance_mm(to) else None


# NIfTI.


def open_nifti(path: str | Path) -> Any:
    """A NIfTI file as nibabel has it, which by itself does not find suffixes such as .Nii.

    Raises:
        UnsuitableError: its header says a rotation that is none.
    """
    import nibabel

    with _rotations():
        if suffix_of(path) in (suffix_of(path).lower(), suffix_of(path).upper()):
            return nibabel.load(path)
        return nibabel.Nifti1Image.from_file_map({"image": nibabel.FileHolder(str(path))})


@contextmanager
def _rotations() -> Iterator[None]:
    """What nibabel says of a quaternion that is none, in words."""
    try:
        yield
    except ValueError as error:
        if "w2" not in str(error):
            raise
        raise UnsuitableError("its qform is no rotation. Write the header anew.") from error


def nifti_affine(header: Any) -> NDArray[np.float64]:
    """Where the voxels of a NIfTI file lie in mm, by nibabel: by the sform, else the qform, else the voxel sizes.

    Where the sform is in use and has other voxel sizes than the header (pixdim), programs differ on which counts, and a
    segmentation would not lie on its image in all of them.

    Raises:
        UnsuitableError: the file is no image of three spatial axes and numbers, or the header contradicts itself.
    """
    shape = header.get_data_shape()
    if len(shape) not in (3, 4):
        raise UnsuitableError(
            f"it has {len(shape)} axes, not 3 or 4. "
            + ("Store a plane as a volume of one slice." if len(shape) < 3 else "Store channels along the fourth axis.")
        )
    if min(shape) < 1:
        raise ValueError(f"its shape is {shape}")
    if header.get_data_dtype().kind not in "biuf":
        raise UnsuitableError(f"its values are of type {header.get_data_dtype()}, not numbers. Store numbers.")
    mm = nifti_mm(header)
    with _rotations():
        header.get_qform(coded=True)
        affine = mm @ np.asarray(header.get_best_affine(), dtype=np.float64)
    check_affine(affine)
    sizes = np.array(header.get_zooms()[:3]) / np.linalg.norm(affine[:3, :3], axis=0) * mm[0, 0]
    distance = corner_distance_mm(shape, affine, affine @ np.diag([*sizes, 1.0]))
    if not distance <= place_tolerance_mm(affine):
        raise UnsuitableError(
            "its header contradicts itself: its sform and voxel sizes (pixdim) put a corner of the volume up to "
            f"{distance:.3g} mm apart. Write the header anew with one geometry."
        )
    return affine


def nifti_mm(header: Any) -> NDArray[np.float64]:
    """What takes the world of a NIfTI header to mm, (4, 4)."""
    return np.diag([NIFTI_MM.get(int(header["xyzt_units"]) & 7, 1.0)] * 3 + [1.0])


# DICOM.


def _open_series(path: Path) -> Opened:
    """A DICOM series; see `scripts.dicom`."""
    shape, channels, affine, itemsize, load = dicom.open_series(path)
    return _header(shape, channels, LPS @ affine, itemsize), load


# NRRD and MetaImage.


def _open_itk(path: Path) -> Opened:
    """NRRD and MetaImage of two to four axes; the fourth, and the components of a voxel, are channels.

    MONAI 1.6.1's ITKReader fails on most files with several components, and its NrrdReader on those and on NRRD's own
    spaces; on other files this gives what they do. ITK does not read their units of length.
    """
    import SimpleITK as sitk  # noqa: N813

    if missing := [p.name for p in _data_files(path) if not os.path.isfile(p)]:
        raise UnsuitableError(f"its header names {missing[0]}, which is not there. Copy it beside the header.")
    reader = _itk_reader(path)
    rank, size, components = reader.GetDimension(), reader.GetSize(), reader.GetNumberOfComponents()
    if rank not in (2, 3, 4):
        raise UnsuitableError(f"it has {rank} axes, not 2, 3 or 4. Store one image a file.")
    mm, spatial, affine = _itk_unit(path)[0], min(rank, 3), np.eye(4)
    direction = np.reshape(reader.GetDirection(), (rank, rank))[:spatial, :spatial]
    affine[:spatial, :spatial] = direction * reader.GetSpacing()[:spatial] * mm
    affine[:spatial, 3] = np.array(reader.GetOrigin()[:spatial]) * mm
    channels = components * (size[3] if rank == 4 else 1)

    def load() -> NDArray[Any]:
        array: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
        return array.transpose(*reversed(range(rank)), *range(rank, array.ndim))

    itemsize = max(1, sitk.Image([1] * rank, reader.GetPixelID(), components).GetSizeOfPixelComponent())
    return _header(size[:3], channels, LPS @ affine, itemsize), load


def _itk_reader(path: Path) -> Any:
    """ITK's reader of a file, which has read the header."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if format_of(path) is NRRD else "MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _itk_unit(path: Path) -> tuple[float, str]:
    """mm of the unit of length of an NRRD or a MetaImage, and its name, "" for none."""
    fields, _ = _text_header(path)
    if format_of(path) is META:
        named = [fields.get("distanceunits", "")]
    else:
        named = re.findall(r'"([^"]*)"', fields.get("space units", ""))[:3]  # a fourth is of time
        # Of each axis, time and channels too: what is no length is none of space.
        named = named or [n for n in re.findall(r'"([^"]*)"', fields.get("units", "")) if _length_mm(n)]
    known = [name for name in named if name not in ("", "?", "???")]
    lengths = {_length_mm(name) for name in known}
    if None in lengths or len(lengths) > 1:
        raise UnsuitableError(
            f"its unit of length is {' and '.join(map(repr, dict.fromkeys(known)))}, which is not one that is known, "
            "such as mm and um. Write the header anew, in mm."
        )
    return ((lengths.pop() or 1.0), known[0]) if known else (1.0, "")


def _length_mm(name: str) -> float | None:
    """mm of a unit of length by its name; None where it is not known."""
    plain = html.unescape(name).strip().lower().replace("\\u00b5", "u").replace("\u00b5", "u").replace("\u03bc", "u")
    return LENGTHS_MM.get(plain, LENGTHS_MM.get(plain.removesuffix("s")))


# Pictures.


def _open_picture(path: Path) -> Opened:
    """PNG, JPEG and BMP, as they are shown. Numbers of a palette are read as they are, for labels are often stored
    so."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # what fits into memory is for the caller to say
    with Image.open(path, formats=("PNG", "JPEG", "BMP")) as image:
        mode, size = image.mode, image.size
        # PNG may have EXIF behind its pixels, for which all of it would be read.
        turned = image.getexif().get(_ORIENTATION, 1) if image.format != "PNG" or "exif" in image.info else 1
    with path.open("rb") as file:
        start = file.read(26)
    if start[:4] == b"\x89PNG" and start[24] == 16 and start[25] in (2, 4, 6):
        raise UnsuitableError("it has 16 bits a colour, which cannot be read from PNG. Store it as TIFF.")
    bands = {"LA": 1, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}
    channels, alpha = bands.get(mode, 1), mode in ("LA", "RGBA", "PA")

    def load() -> NDArray[Any]:
        with Image.open(path) as image:
            array = np.asarray(image.convert("RGB") if mode in ("CMYK", "YCbCr") else image)
        return _upright(_opaque(array, alpha=alpha).swapaxes(0, 1), turned)

    shape = size[::-1] if turned in _TRANSPOSED else size
    return _header(shape, channels, np.eye(4), 4, colours=mode in ("P", "PA"), alpha=alpha, measured=False), load


_ORIENTATION = 274
_TRANSPOSED = (5, 6, 7, 8)


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An array (X, Y, ...) turned as the orientation of EXIF and TIFF says that it is to be shown."""
    if orientation in _TRANSPOSED:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[::-1]
    return array[:, ::-1] if orientation in (3, 4, 7, 8) else array


# TIFF.


def _open_tiff(path: Path) -> Opened:
    """TIFF, as it is shown: a plane or a stack of planes, grey or with channels."""
    import tifffile

    with _heard("tifffile") as faults, tifffile.TiffFile(path) as file:
        num_images = len(file.series)
        if faults:
            raise ValueError(faults[0])
        if num_images != 1:
            raise UnsuitableError(
                f"it holds {num_images} images of different kinds, not one. Store each in its own file."
            )
        series = file.series[0]
        page: Any = series.keyframe
        kept = [i for i, axis in enumerate(series.axes) if axis in "XY" or series.shape[i] > 1]
        axes = "".join(series.axes[i] for i in kept)
        sizes = dict(zip(axes, (series.shape[i] for i in kept), strict=True))
        itemsize, stacked = series.dtype.itemsize, [a for a in axes if a not in "XYSC"]
        spacing, turned = _tiff_spacing(path, file, stack=bool(stacked)), int(_tag(page, _ORIENTATION))
    channels = [a for a in axes if a in "SC"]
    if "X" not in axes or "Y" not in axes or len(stacked) > 1 or len(channels) > 1:
        raise UnsuitableError(
            f"its axes are {axes}; a plane or a stack of planes is read, with at most one axis of channels. Store it "
            "so."
        )
    if page.photometric == 0 and series.dtype.kind not in "bu":
        raise UnsuitableError(f"its least value is white, and its values are of type {series.dtype}. Store black as 0.")
    alpha = channels == ["S"] and bool(page.extrasamples) and page.extrasamples[-1] in (1, 2)
    order = ["X", "Y", *stacked, *channels]

    def load() -> NDArray[Any]:
        with tifffile.TiffFile(path) as file:
            array = np.asarray(file.series[0].asarray()).reshape([sizes[a] for a in axes])
        if page.photometric == 0:
            array = ~array if array.dtype.kind == "b" else array.dtype.type(2**page.bitspersample - 1) - array
        return _upright(_opaque(array.transpose([axes.index(a) for a in order]), alpha=alpha), turned)

    num_channels = sizes[channels[0]] - alpha if channels else 1
    shape, mm = [sizes[a] for a in order[: 2 + len(stacked)]], list(spacing or (1.0, 1.0, 1.0))
    if turned in _TRANSPOSED:
        shape[:2], mm[:2] = shape[1::-1], mm[1::-1]
    kind = {"colours": page.photometric == 3, "alpha": alpha, "measured": spacing is not None}
    return _header(shape, num_channels, np.diag([*mm, 1.0]), itemsize, **kind), load


def _tiff_spacing(path: Path, file: Any, *, stack: bool) -> tuple[float, float, float] | None:
    """mm along X, Y and Z of a TIFF, as nnU-Net's file beside it, OME, ImageJ or the resolution says; None where none
    does. Planes whose distance is not known lie as far apart as pixels, and a single plane is 1 mm thick."""
    x, y, z = _json_spacing(path) or _ome_spacing(file) or _imagej_spacing(file) or _resolution(file)
    if not (0 < x < float("inf") and 0 < y < float("inf")):
        return None
    return x, y, (z if 0 < z < float("inf") else (x * y) ** 0.5) if stack else 1.0


Lengths = tuple[float, float, float]


def _json_spacing(path: Path) -> Lengths | None:
    """What nnU-Net reads: {"spacing": [...]}, in the order of the array, the planes first."""
    for beside in filter(os.path.isfile, _spacing_files(path)):
        with contextlib.suppress(OSError):
            try:
                given = json.loads(beside.read_text(encoding="utf-8"))
                found = given["spacing"] if isinstance(given, dict) and "spacing" in given else None
                if found is not None:
                    z, y, x = ([1.0] * 3 + [float(mm) for mm in found])[-3:]
                    if len(found) not in (2, 3) or not all(0 < mm < float("inf") for mm in (x, y, z)):
                        raise ValueError
                    return x, y, z
            except (TypeError, ValueError, RecursionError):
                raise UnsuitableError(
                    f'{beside.name} beside it has no spacing that can be used. Write it as {{"spacing": [3, 0.5, 0.5]}}'
                    ", in mm, in the order planes, rows, columns."
                ) from None
    return None


def _ome_spacing(file: Any) -> Lengths | None:
    """PhysicalSizeX, Y and Z of OME-XML."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b([^>]*)>", file.ome_metadata or "")
    given = dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', pixels[1])) if pixels else {}
    x, y, z = (
        _number(given.get(f"PhysicalSize{a}", "")) * (_length_mm(given.get(f"PhysicalSize{a}Unit", "um")) or 0.0)
        for a in "XYZ"
    )
    return (x, y, z) if x > 0 and y > 0 else None


def _imagej_spacing(file: Any) -> Lengths | None:
    """Pixels a unit, and the distance of the planes, by ImageJ."""
    given: dict[str, Any] = file.imagej_metadata or {}
    mm = _length_mm(str(given.get("unit", "")))
    x, y = (_tag(file.pages[0], tag) for tag in _RESOLUTION[:2])
    if not mm or not x or not y:
        return None
    return mm / x, mm / y, mm * _number(str(given.get("spacing", "")))


_RESOLUTION = (282, 283, 296)


def _resolution(file: Any) -> Lengths:
    """Pixels an inch or a centimetre; 0 where the file does not say it."""
    x, y, unit = (_tag(file.pages[0], tag) for tag in _RESOLUTION)
    mm = {2: 25.4, 3: 10.0}.get(int(unit), 0.0)
    printed = unit == 2 and x == y and x in PRINTED
    return (0.0, 0.0, 0.0) if printed or not x or not y else (mm / x, mm / y, 0.0)


def _tag(page: Any, number: int) -> float:
    """The number in a tag of a TIFF, 0 for none."""
    tag = page.tags.get(number)
    value = 0 if tag is None else tag.value
    if isinstance(value, tuple):
        value = value[0] / value[1] if len(value) == 2 and value[1] else 0
    return value if isinstance(value, (int, float)) else 0


def _number(text: str) -> float:
    """A number, 0 where a text is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


@contextmanager
def _heard(name: str) -> Iterator[list[str]]:
    """What a package logs as an error meanwhile, instead of raising one: that a file is truncated."""
    logger, said = logging.getLogger(name), list[str]()
    handler, propagate = logging.Handler(logging.ERROR), logger.propagate
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _opaque(array: NDArray[Any], *, alpha: bool) -> NDArray[Any]:
    """A picture without its alpha channel, the last. One that says something is no stray one."""
    if not alpha:
        return array
    if (array[..., -1] != array[..., -1].flat[0]).any():
        raise UnsuitableError("it has an alpha channel, and parts of it are transparent. Save it without.")
    return array[..., :-1]


# Writing.

_FORMS = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_ROWS = ("srow_x", "srow_y", "srow_z")


def write_image(
    path: str | Path, array: NDArray[Any], affine: NDArray[np.float64], like: str | Path | None = None
) -> None:
    """Write whole numbers (X, Y, Z) in the format of the path's suffix: NIfTI, NRRD, MetaImage, PNG or TIFF.

    Args:
        path: of the file.
        array: the numbers.
        affine: voxel to world.
        like: an image of the same format that lies there, too. What its header says of the place is taken over as it
            stands, units and all, so that each program puts the file where it puts this image.

    Raises:
        ImportError: as `open_image`.
    """
    path, found = Path(path), format_of(path)
    if missing := missing_packages([path]):
        raise ImportError(f"{path.name} needs packages that are not installed: pip install {' '.join(missing)}")
    there = like is not None and format_of(like) is found and Path(like).is_file()
    like = Path(like) if there and like is not None else None
    if found is PICTURE:
        from PIL import Image

        Image.fromarray(array.transpose(2, 1, 0)[0]).save(path)
    elif found is NIFTI:
        _write_nifti(path, array, affine, like)
    elif found is TIFF:
        _write_tiff(path, array, affine, like)
    else:
        _write_itk(path, array, affine, like)


def _lies(affine: NDArray[np.float64], at: NDArray[np.float64], shape: Sequence[int]) -> bool:
    """Whether an image of this shape lies at the same place under two affines."""
    return corner_distance_mm(shape, affine, at) <= place_tolerance_mm(at)


def _write_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64], like: Path | None) -> None:
    import nibabel

    source: Any = None if like is None else open_nifti(like).header
    if source is not None and _lies(affine, nifti_affine(source), array.shape):
        header = type(source)()
        header.set_data_dtype(array.dtype)
        header.set_data_shape(array.shape)
        for name in (*_FORMS, *_ROWS):
            header[name] = source[name]
        header["pixdim"][:4], header["xyzt_units"] = source["pixdim"][:4], int(source["xyzt_units"]) & 7
        kind: Any = nibabel.Nifti2Image if isinstance(source, nibabel.Nifti2Header) else nibabel.Nifti1Image
        image = kind(array, None, header)
    else:
        image = nibabel.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        if not _lies(image.get_qform(), affine, array.shape):
            image.set_qform(None, 0)
            logger.warning(
                "%s: its slices are sheared against each other, as by a tilted gantry, which only the sform can say; "
                "ITK and programs that are made of it do not read such a file",
                case_name(path),
            )
    nibabel.save(image, path)


def _write_itk(path: Path, array: NDArray[Any], affine: NDArray[np.float64], like: Path | None) -> None:
    import SimpleITK as sitk  # noqa: N813

    planes, world = array.transpose(2, 1, 0), LPS @ affine
    source = None if like is None or not _lies(affine, open_image(like)[0].affine, array.shape) else _itk_reader(like)
    if source is None or like is None:
        spacing = np.linalg.norm(world[:3, :3], axis=0)
        image, unit = sitk.GetImageFromArray(planes), ""
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(world[:3, 3].tolist())
        image.SetDirection((world[:3, :3] / spacing).ravel().tolist())
    else:
        rank, unit = source.GetDimension(), _itk_unit(like)[1]
        kept = min(rank, 3)
        image = sitk.GetImageFromArray(planes[0] if kept == 2 else planes)
        image.SetSpacing(source.GetSpacing()[:kept])
        image.SetOrigin(source.GetOrigin()[:kept])
        image.SetDirection(np.reshape(source.GetDirection(), (rank, rank))[:kept, :kept].ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=True)
    if unit:  # which ITK does not write
        _write_unit(path, unit, image.GetDimension())


def _write_unit(path: Path, unit: str, rank: int) -> None:
    """Put a unit of length into the header of an NRRD or a MetaImage, as the last field that may be there."""
    if format_of(path) is META:
        end, line = b"ElementDataFile", f"DistanceUnits = {unit}\n"
    else:
        end, line = b"\n\n", "\nspace units:" + rank * f' "{unit}"'
    head, _, data = path.read_bytes().partition(end)
    path.write_bytes(head + line.encode() + end + data)


def _write_tiff(path: Path, array: NDArray[Any], affine: NDArray[np.float64], like: Path | None) -> None:
    """What the image's own resolution says goes over as it stands; OME says the same in mm, with that of the planes."""
    import tifffile

    planes = array.transpose(2, 1, 0)
    planes, options = planes[0] if len(planes) == 1 else planes, dict[str, Any]()
    if like is not None:
        with tifffile.TiffFile(like) as file:
            page: Any = file.pages[0]
            x, y, unit = (_tag(page, tag) for tag in _RESOLUTION)
            swapped = _tag(page, _ORIENTATION) in _TRANSPOSED
        if x and y:
            options = {"resolution": (y, x) if swapped else (x, y), "resolutionunit": int(unit) or 2}
        if open_image(like)[0].measured:
            sizes = dict(zip("XYZ", np.linalg.norm(affine[:3, :3], axis=0).tolist(), strict=True))
            axes = "ZYX"[-planes.ndim :]
            said = {f"PhysicalSize{a}{end}": value for a in axes for end, value in (("", sizes[a]), ("Unit", "mm"))}
            options |= {"ome": True, "metadata": {"axes": axes, **said}}
    tifffile.imwrite(path, planes, photometric="minisblack", compression="zlib", **options)
