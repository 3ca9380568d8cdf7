"""DICOM series: which files of a folder are one, where its voxels lie, and what they are.

`scripts.formats` reads them through this, in bundles and in planning alike. World is that of DICOM: LPS, in mm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Series = tuple[tuple[int, int, int], int, NDArray[np.float64], Callable[[], NDArray[Any]]]
"""Shape (X, Y, Z), channels and affine of a series, and what then reads the array."""
PLACE_TOLERANCE_MM = 0.1
"""Distance in mm of a DICOM slice from its place on a regular grid that is taken for rounding."""
_TAGS = (
    "SeriesInstanceUID", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "InstanceNumber", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "BitsAllocated",
)  # fmt: skip


def image_files(folder: Path) -> Iterator[Path]:
    """The DICOM files of a folder: those with the mark of the format behind 128 bytes."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name[0] != "." and path.name != "DICOMDIR":
            with path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    yield path


def series_files(folder: str | Path) -> list[Path]:
    """The files of a series in the order of their places, checked as in `open_series`."""
    return [path for path, _ in _sorted_slices(Path(folder))]


def open_series(folder: Path) -> Series:
    """A DICOM series of one image a file; slices run along the normal of the first one, whatever their numbers are."""
    slices = _sorted_slices(folder)
    first, last = slices[0][1], slices[-1][1]
    along, down = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    start, end = (np.array(s.ImagePositionPatient, float) for s in (first, last))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along * float(first.PixelSpacing[1]), down * float(first.PixelSpacing[0])
    if len(slices) > 1:
        affine[:3, 2] = (end - start) / (len(slices) - 1)
    else:
        thickness = first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1.0
        affine[:3, 2] = np.cross(along, down) * float(thickness)
    affine[:3, 3] = start
    channels = int(first.get("SamplesPerPixel", 1))
    paths = [path for path, _ in slices]

    def load() -> NDArray[Any]:
        planes = [_pixels(path) for path in paths]
        return np.stack(planes, axis=2, dtype=np.result_type(*planes))

    return (int(first.Columns), int(first.Rows), len(slices)), channels, affine, load


def _pixels(path: Path) -> NDArray[Any]:
    """Values of a slice, (X, Y) or (X, Y, C), as rescaled by its header."""
    import pydicom

    slice_ = pydicom.dcmread(path)
    array: NDArray[Any] = slice_.pixel_array.swapaxes(0, 1)
    slope, intercept = float(slice_.get("RescaleSlope", 1)), float(slice_.get("RescaleIntercept", 0))
    if slope.is_integer() and intercept.is_integer():
        return array.astype(np.int32) * int(slope) + int(intercept)
    return array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _sorted_slices(folder: Path) -> list[tuple[Path, Any]]:
    """Files and headers of a series, by place along the normal of the slices.

    Raises:
        ValueError: the files are of several series, are no slices, differ in kind, or one is missing.
    """
    import pydicom

    read = ((p, pydicom.dcmread(p, stop_before_pixels=True, specific_tags=list(_TAGS))) for p in image_files(folder))
    slices = [(path, header) for path, header in read if "Rows" in header]
    if not slices:
        raise ValueError("the folder holds no DICOM image")
    for path, header in slices:
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise ValueError(f"{path.name} holds many frames; a series of one image a file is read")
        absent = [t for t in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing") if not header.get(t)]
        if absent:
            raise ValueError(f"{path.name} has no {absent[0]}, so its place is unknown")
    series = {str(header.get("SeriesInstanceUID")) for _, header in slices}
    if len(series) > 1:
        raise ValueError(f"the folder holds {len(series)} series; put each into a folder of its own")
    _check_alike(slices)
    normal = np.cross(*np.reshape(np.array(slices[0][1].ImageOrientationPatient, float), (2, 3)))
    slices.sort(key=lambda s: float(normal @ np.array(s[1].ImagePositionPatient, float)))
    _check_places(slices, normal)
    return slices


def _check_alike(slices: Sequence[tuple[Path, Any]]) -> None:
    """Raises where a slice has another size, spacing or orientation than the first."""

    def kind(header: Any) -> NDArray[np.float64]:
        numbers = (header.Rows, header.Columns, header.get("SamplesPerPixel", 1), *header.PixelSpacing)
        return np.array([*numbers, *header.ImageOrientationPatient], float)

    first = kind(slices[0][1])
    for path, header in slices:
        if not np.allclose(kind(header), first, atol=1e-4):
            raise ValueError(f"{path.name} has another size, spacing or orientation than {slices[0][0].name}")


def _check_places(slices: Sequence[tuple[Path, Any]], normal: NDArray[np.float64]) -> None:
    """Raises where slices do not lie one step apart each."""
    if len(slices) < 2:
        return
    positions = np.array([header.ImagePositionPatient for _, header in slices], float)
    steps = np.diff(positions @ normal)
    step = float(np.median(steps))
    for (path, header), (next_path, _), distance in zip(slices, slices[1:], steps, strict=False):
        names = f"{path.name} and {next_path.name}"
        if distance < PLACE_TOLERANCE_MM / 10:
            raise ValueError(f"{names} lie at the same place")
        if distance > 1.5 * step:
            number = header.get("InstanceNumber")
            behind = "" if number is None else f"; {path.name} is number {number}"
            raise ValueError(
                f"a slice is missing between {names}, which are {distance:.4g} mm apart and not {step:.4g}{behind}"
            )
    line = np.linspace(positions[0], positions[-1], len(slices))
    if (furthest := float(np.linalg.norm(positions - line, axis=1).max())) > PLACE_TOLERANCE_MM:
        raise ValueError(f"its slices are not evenly spaced: one lies {furthest:.3g} mm from its place")
