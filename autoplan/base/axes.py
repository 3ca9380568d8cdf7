"""Axis order and the words for it, stated once.

An array is `(C, X, Y, Z)` in the order of MONAI's NIfTI reader, RAS after reorientation. `spacing[i]`, `shape[i]`,
`patch_size[i]`, `num_pool[i]` and `strides[s][i]` belong to spatial axis i. World is RAS+ in mm; `affine` is 4x4, voxel
to world. In a 2D configuration `patch_size`, `median_shape`, `num_pool` and `strides` have length 2: the two axes that
remain, in order, when the slice axis is taken out; `spacing` keeps three entries, for the volume is resampled whole.
"""

from collections.abc import Sequence
from typing import TypeVar

Spacing = tuple[float, ...]
"""mm a voxel, one entry for each spatial axis."""
Shape = tuple[int, ...]
"""Voxels, one entry for each spatial axis."""

T = TypeVar("T")


def from_table_order(values: Sequence[T]) -> tuple[T, ...]:
    """Values in x, y, z order, from the z, y, x order of the paper's tables. Only tests of those tables need it."""
    return tuple(reversed(values))


def as_flag(values: Sequence[float]) -> str:
    """Values as the flag of a command has them, 3,3,10; the same numbers when they are read again."""
    return ",".join(short if float(short := f"{v:.10g}") == v else repr(float(v)) for v in values)


def without_axis(values: Sequence[T], axis: int) -> tuple[T, ...]:
    """Values of the axes that remain when `axis` is taken out: a volume's entries become its slices' entries."""
    return tuple(v for i, v in enumerate(values) if i != axis)
