"""Where the voxels of an image lie: spacing, axes, boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes, io_orientation
from numpy.typing import NDArray

from autoplan.base.axes import Shape, Spacing
from autoplan.base.scripts.formats import corner_distance_mm, place_tolerance_mm

SPACING_DIGITS = 6
"""Significant digits of a spacing: what float32 headers hold, so that 0.9999999 and 1 are one spacing."""


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
