"""Formats of image files: which there are, what each needs, where the voxels of a file lie, and how one is written.

Each bundle has it among its `scripts`, and autoplan reads it from there, so planning, training and prediction see the
same voxels at the same place. NIfTI alone is read elsewhere: by MONAI's NibabelReader in a
bundle, by a reader that checks more in planning.

An array is (X, Y, Z, C), in the order of the file's axes: the first runs along a row. World is RAS+ in mm. What has no
spacing has 1 mm a pixel.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import dicom


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
NRRD = Format("NRRD", (".nrrd", ".nhdr"), ("SimpleITK",), ".nrrd")
META = Format("MetaImage", (".mha", ".mhd"), ("SimpleITK",), ".mha")
PICTURE = Format("picture", (".png", ".jpg", ".jpeg", ".bmp"), ("pillow",), ".png", (".jpg", ".jpeg"), False)
TIFF = Format("TIFF", (".tif", ".tiff"), ("tifffile", "imagecodecs"), ".tif", placed=False)
FORMATS = (NIFTI, NRRD, META, PICTURE, TIFF, DICOM)
SUFFIXES = tuple(suffix for f in FORMATS for suffix in f.suffixes)
MODULES = {"pillow": "PIL", "python-gdcm": "gdcm"}
"""Modules that are not called as their package is."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the world of ITK and DICOM (left, posterior, superior) to RAS, and back."""


@dataclass(frozen=True)
class Header:
    """Where the voxels of a file lie, and what they are: `shape` (X, Y, Z), `affine` 4x4, voxel to world.

    `num_bytes` is what the array takes. `colours`: the numbers are those of a palette. `alpha`: the file has one more
    channel, the opacity, which is not among the `channels`.
    """

    shape: tuple[int, ...]
    channels: int
    affine: NDArray[np.float64]
    num_bytes: int
    colours: bool = False
    alpha: bool = False


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


def files_of(image: str | Path) -> list[Path]:
    """The files that an image consists of: those of a series, the data beside a header, or itself."""
    path = Path(image)
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    if suffix_of(path).lower() in (".mhd", ".nhdr"):
        stem = path.with_suffix("")
        data = (stem.with_name(stem.name + end) for end in (".raw", ".zraw", ".raw.gz", ".img"))
        return [path, *(p for p in data if p.is_file())]
    return [path]


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
        raise ValueError(f"it is no image of a known format ({', '.join(SUFFIXES)}, or a folder of DICOM files)")
    if missing := missing_packages([path]):
        raise ImportError(f"{found.name} needs packages that are not installed: pip install {' '.join(missing)}")
    with _plain_errors():
        header, load = readers[found](path)

    def checked() -> NDArray[Any]:
        with _plain_errors():
            array = load()
        if array.dtype.kind not in "biuf":
            raise ValueError(f"its values are of type {array.dtype}, not numbers")
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


def _header(
    shape: Sequence[int],
    channels: int,
    affine: NDArray[np.float64],
    itemsize: int,
    *,
    colours: bool = False,
    alpha: bool = False,
) -> Header:
    """A header, checked; a plane becomes a volume of one slice."""
    whole = (*(int(n) for n in shape), 1, 1)[:3]
    if min(whole) < 1:
        raise ValueError(f"its shape is {tuple(shape)}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < np.finfo(np.float32).tiny:
        raise ValueError("its affine is singular or not finite")
    return Header(whole, channels, affine, int(np.prod(whole, dtype=object)) * channels * itemsize, colours, alpha)


def _open_itk(path: Path) -> Opened:
    """NRRD and MetaImage of two to four axes; the fourth, and the components of a voxel, are channels.

    MONAI 1.6.1's ITKReader fails on most files with several components, and its NrrdReader on those and on NRRD's own
    spaces; on other files this gives what they do.
    """
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if format_of(path) is NRRD else "MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    rank, size, components = reader.GetDimension(), reader.GetSize(), reader.GetNumberOfComponents()
    if rank not in (2, 3, 4):
        raise ValueError(f"it has {rank} axes, not 2, 3 or 4")
    spatial, affine = min(rank, 3), np.eye(4)
    direction = np.reshape(reader.GetDirection(), (rank, rank))[:spatial, :spatial]
    affine[:spatial, :spatial] = direction * reader.GetSpacing()[:spatial]
    affine[:spatial, 3] = reader.GetOrigin()[:spatial]
    channels = components * (size[3] if rank == 4 else 1)

    def load() -> NDArray[Any]:
        array: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
        return array.transpose(*reversed(range(rank)), *range(rank, array.ndim))

    itemsize = max(1, sitk.Image([1] * rank, reader.GetPixelID(), components).GetSizeOfPixelComponent())
    return _header(size[:3], channels, LPS @ affine, itemsize), load


def _open_picture(path: Path) -> Opened:
    """PNG, JPEG and BMP. Numbers of a palette are read as they are, for labels are often stored so."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # what fits into memory is for the caller to say
    with Image.open(path, formats=("PNG", "JPEG", "BMP")) as image:
        mode, size = image.mode, image.size
    with path.open("rb") as file:
        start = file.read(26)
    if start[:4] == b"\x89PNG" and start[24] == 16 and start[25] in (2, 4, 6):
        raise ValueError("it has 16 bits a colour, which cannot be read from PNG; store it as TIFF")
    bands = {"LA": 1, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}
    channels, alpha = bands.get(mode, 1), mode in ("LA", "RGBA", "PA")

    def load() -> NDArray[Any]:
        with Image.open(path) as image:
            array = np.asarray(image.convert("RGB") if mode in ("CMYK", "YCbCr") else image)
        return _opaque(array, alpha=alpha).swapaxes(0, 1)

    return _header(size, channels, np.eye(4), 4, colours=mode in ("P", "PA"), alpha=alpha), load


def _open_tiff(path: Path) -> Opened:
    """TIFF: a plane or a stack of planes, grey or with channels."""
    import tifffile

    with _heard("tifffile") as faults, tifffile.TiffFile(path) as file:
        num_images = len(file.series)
        if faults or num_images != 1:
            raise ValueError(faults[0] if faults else f"it holds {num_images} images of different kinds, not one")
        series = file.series[0]
        page: Any = series.keyframe
        kept = [i for i, axis in enumerate(series.axes) if axis in "XY" or series.shape[i] > 1]
        axes = "".join(series.axes[i] for i in kept)
        sizes = dict(zip(axes, (series.shape[i] for i in kept), strict=True))
        itemsize = series.dtype.itemsize
    stacked, channels = [a for a in axes if a not in "XYSC"], [a for a in axes if a in "SC"]
    if "X" not in axes or "Y" not in axes or len(stacked) > 1 or len(channels) > 1:
        raise ValueError(
            f"its axes are {axes}; a plane or a stack of planes is read, with at most one axis of channels"
        )
    alpha = bool(page.extrasamples) and channels == ["S"]
    order = ["X", "Y", *stacked, *channels]

    def load() -> NDArray[Any]:
        with tifffile.TiffFile(path) as file:
            array = np.asarray(file.series[0].asarray()).reshape([sizes[a] for a in axes])
        return _opaque(array.transpose([axes.index(a) for a in order]), alpha=alpha)

    num_channels = sizes[channels[0]] - alpha if channels else 1
    shape = [sizes[a] for a in order[: 2 + len(stacked)]]
    return _header(shape, num_channels, np.eye(4), itemsize, colours=page.photometric == 3, alpha=alpha), load


def _open_series(path: Path) -> Opened:
    """A DICOM series; see `scripts.dicom`."""
    shape, channels, affine, load = dicom.open_series(path)
    return _header(shape, channels, LPS @ affine, 4), load


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
        raise ValueError("it has an alpha channel, and parts of it are transparent; save it without")
    return array[..., :-1]


# Writing.


def write_image(path: str | Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write whole numbers (X, Y, Z) in the format of the path's suffix: NRRD, MetaImage, PNG or TIFF.

    Raises:
        ImportError: as `open_image`.
    """
    path, planes = Path(path), array.transpose(2, 1, 0)
    found = format_of(path)
    if missing := missing_packages([path]):
        raise ImportError(f"{path.name} needs packages that are not installed: pip install {' '.join(missing)}")
    if found is PICTURE:
        from PIL import Image

        Image.fromarray(planes[0]).save(path)
    elif found is TIFF:
        import tifffile

        tifffile.imwrite(path, planes[0] if len(planes) == 1 else planes, photometric="minisblack", compression="zlib")
    else:
        import SimpleITK as sitk  # noqa: N813

        image, world = sitk.GetImageFromArray(planes), LPS @ affine
        spacing = np.linalg.norm(world[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(world[:3, 3].tolist())
        image.SetDirection((world[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(image, str(path), useCompression=True)
