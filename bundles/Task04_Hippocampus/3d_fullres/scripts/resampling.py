"""Resampling along the axes: a volume times one matrix for each axis.

Interpolation on a regular grid is linear in the voxels and separable, so along an axis of n voxels it is a matrix of
shape (n_out, n). The matrices come from scipy, which makes the result equal to `scipy.ndimage.zoom(order=3,
mode="nearest", grid_mode=True)` to float precision, on CPU and GPU. Voxels are boxes: the field of view is kept, and
the outer edges of first and last voxel stay where they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import ensure_tuple_rep
from scipy import ndimage

from scripts.memory import memory_bytes

MODES = ("spline", "linear", "nearest")
SLAB = 16
"""Planes whose equally near voxels are compared at a time."""


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target_spacing: Sequence[float]) -> tuple[int, ...]:
    """Voxels of each axis when `spacing` (mm) becomes `target_spacing`: the quotient rounded half up, at least 1."""
    return tuple(max(1, math.floor(n * s / t + 0.5)) for n, s, t in zip(shape, spacing, target_spacing, strict=True))


@lru_cache(maxsize=64)
def spline_matrix(num_in: int, num_out: int) -> torch.Tensor:
    """Third-order spline interpolation from `num_in` to `num_out` samples, float32 of shape (num_out, num_in)."""
    identity = np.eye(num_in)
    matrix = ndimage.zoom(identity, (num_out / num_in, 1), order=3, mode="nearest", grid_mode=True)
    return torch.from_numpy(matrix.astype(np.float32))


def nearest_indices(num_in: int, num_out: int) -> torch.Tensor:
    """For each of `num_out` samples the nearest of `num_in`, the lower of two equally near ones; int64, (num_out,)."""
    return _neighbors(num_in, num_out)[0]


def _neighbors(num_in: int, num_out: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of `num_out` samples the nearest of `num_in`, twice: they differ where two are equally near."""
    # In whole numbers, so that a tie is one: the centre of sample i lies at (2 i + 1) num_in / (2 num_out) voxel edges.
    centers = (2 * torch.arange(num_out) + 1) * num_in
    upper = centers // (2 * num_out)
    return torch.where(centers % (2 * num_out) == 0, upper - 1, upper), upper


def linear_neighbors(num_in: int, num_out: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of `num_out` samples the two that it lies between, int64, and the part of the second one, float32; each
    (num_out,)."""
    place = ((torch.arange(num_out, dtype=torch.float64) + 0.5) * num_in / num_out - 0.5).clamp_min(0)
    lower = place.long()
    return lower, (lower + 1).clamp_max(num_in - 1), (place - lower).float()


def _spline(image: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    # Axes that shrink come first: the less is left for the others.
    for axis in sorted(range(len(shape)), key=lambda a: shape[a] / image.shape[a + 1]):
        before, num_in = image.shape[: axis + 1], image.shape[axis + 1]
        if num_in == shape[axis]:
            continue
        matrix = spline_matrix(num_in, shape[axis]).to(image.device)
        after = image.shape[axis + 2 :]
        if after:
            image = torch.matmul(matrix, image.reshape(before.numel(), num_in, after.numel()))
        else:
            image = torch.matmul(image.reshape(-1, num_in), matrix.T)
        image = image.reshape(*before, shape[axis], *after)
    return image


def _nearest(image: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Nearest voxels; among equally near ones the most frequent value, and the highest of equally frequent ones.

    A tie that always goes the same way in space would shift all labels by half a voxel, at a factor of 2 for example.
    The highest value means foreground before background, so that thin structures do not vanish.
    """
    pairs = [_neighbors(num_in, num_out) for num_in, num_out in zip(image.shape[1:], shape, strict=True)]
    out = _selected(image, [lower for lower, _ in pairs])
    tied = [torch.nonzero(lower != upper).flatten() for lower, upper in pairs]
    sure = [torch.nonzero(lower == upper).flatten() for lower, upper in pairs]
    for axes in itertools.product((False, True), repeat=len(pairs)):
        samples = [t if is_tied else s for t, s, is_tied in zip(tied, sure, axes, strict=True)]
        if not any(axes) or not all(len(chosen) for chosen in samples):
            continue
        # Some planes at a time: all candidates of a large image would need a multiple of its memory.
        for first in samples[0].split(SLAB):
            block = [first, *samples[1:]]
            options = [pair if is_tied else pair[:1] for pair, is_tied in zip(pairs, axes, strict=True)]
            chosen = [[option[s] for option in of_axis] for of_axis, s in zip(options, block, strict=True)]
            candidates = [_selected(image, combination) for combination in itertools.product(*chosen)]
            where: Any = torch.meshgrid(*(s.to(image.device) for s in block), indexing="ij")
            out[(slice(None), *where)] = _most_frequent(candidates)
    return out


def _selected(image: torch.Tensor, indices: Sequence[torch.Tensor]) -> torch.Tensor:
    """The voxels at some indices of each axis."""
    for axis, index in enumerate(indices, start=1):
        image = image.index_select(axis, index.to(image.device))
    return image


def _most_frequent(candidates: Sequence[torch.Tensor]) -> torch.Tensor:
    """The most frequent value at each place, the highest of equally frequent ones."""
    best, most = candidates[0], torch.zeros_like(candidates[0], dtype=torch.uint8)
    for candidate in candidates:
        count = torch.zeros_like(most)
        for other in candidates:
            count += other == candidate
        better = (count > most) | ((count == most) & (candidate > best))
        best, most = torch.where(better, candidate, best), torch.where(better, count, most)
    return best


def _linear(image: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape)]
    # Channel by channel, so that no second copy of all channels is needed on the way.
    out = image.new_empty((image.shape[0], *shape))
    for channel, result in zip(image, out, strict=True):
        result.copy_(torch.nn.functional.interpolate(channel[None, None], size=tuple(shape), mode=mode)[0, 0])
    return out


def resample(image: torch.Tensor, shape: Sequence[int], mode: str = "spline") -> torch.Tensor:
    """The image on a grid of `shape` voxels over the same field of view.

    Args:
        image: (C, X, Y, Z) or (C, X, Y), any device.
        shape: voxels of each spatial axis.
        mode: "spline" (third order), "linear" or "nearest".

    Returns:
        Tensor of shape (C, *shape), float32; with "nearest", of the dtype of `image`.

    Source: arXiv:1809.10486, section 2.2, "Resampling": third-order spline for images, nearest neighbour for labels.
    How a tie between neighbours is decided is our choice, see `_nearest`.
    """
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    if tuple(image.shape[1:]) == tuple(shape):
        return image if mode == "nearest" else image.float()
    if mode == "nearest":
        return _nearest(image, shape)
    return (_spline if mode == "spline" else _linear)(image.float(), shape)


def resampled_affine(affine: torch.Tensor, shape: Sequence[int], new_shape: Sequence[int]) -> torch.Tensor:
    """Voxel-to-world matrix (4 x 4) of the grid of `new_shape` voxels over the field of view of the old one."""
    step = torch.ones(affine.shape[-1], dtype=torch.float64)
    step[: len(shape)] = torch.tensor([n / m for n, m in zip(shape, new_shape, strict=True)], dtype=torch.float64)
    change = torch.diag(step)
    change[: len(shape), -1] = (step[: len(shape)] - 1) / 2
    return affine.to(torch.float64) @ change


class ResampleToSpacing(InvertibleTransform):
    """Resample a channel-first `MetaTensor` to a spacing in mm; the inverse goes back linearly (nearest for labels).

    The number of voxels is rounded and the field of view kept, so the spacing that results may differ from the one
    asked for by half a voxel over the whole axis; the affine says what it is.

    Args:
        target_spacing: mm, one entry for each spatial axis.
        mode: "spline", "linear" or "nearest".
        spacing: mm, what the voxels count as; None for what the affine says. With it the number of voxels depends on
            their number before and on nothing else.
    """

    def __init__(
        self, target_spacing: Sequence[float], mode: str = "spline", spacing: Sequence[float] | None = None
    ) -> None:
        self.target_spacing = tuple(float(s) for s in target_spacing)
        self.mode = mode
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)

    def __call__(self, image: MetaTensor) -> MetaTensor:
        shape = tuple(image.shape[1:])
        spacing = self.spacing or image.pixdim.tolist()
        new_shape = resampled_shape(shape, spacing, self.target_spacing)
        _check_memory(image, new_shape, spacing)
        out = _like(resample(image.as_tensor(), new_shape, self.mode), image)
        self.push_transform(out, orig_size=shape, extra_info={"affine": image.affine.clone()})
        out.affine = resampled_affine(image.affine, shape, new_shape)
        return out

    def inverse(self, data: MetaTensor) -> MetaTensor:
        applied = self.pop_transform(data)
        mode = "nearest" if self.mode == "nearest" else "linear"
        values, shape = data.as_tensor(), tuple(applied["orig_size"])
        # Class numbers of an image cannot be interpolated: `LabelInferer` gives those of the grid before.
        there = shape == tuple(values.shape[1:]) or (mode == "linear" and not values.is_floating_point())
        # Probabilities in float16 stay so where there is nothing to do: a large image is not copied.
        out = _like(values if there else resample(values, shape, mode), data)
        out.affine = applied["extra_info"]["affine"]
        return out


def shapes_back(image: MetaTensor, shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape, of a preprocessed image, and those that it had before each `ResampleToSpacing`, the last one first."""
    steps = [step for step in image.applied_operations if step["class"] == ResampleToSpacing.__name__]
    return [tuple(map(int, s)) for s in (shape, *(step["orig_size"] for step in reversed(steps)))]


def _check_memory(image: MetaTensor, shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Refuse an image that would not fit into memory, as one whose header has a wrong spacing."""
    needed, there = 4 * len(image) * math.prod(shape), memory_bytes()
    if 0 < there < needed:
        raise ValueError(
            f"{image.meta.get('filename_or_obj', 'the image')}: spacing {[round(s, 3) for s in spacing]} mm would make "
            f"{' x '.join(map(str, shape))} voxels, {needed / 1e9:.0f} GB, of it; there are {there / 1e9:.0f} GB. "
            "Check the spacing in its header."
        )


def _like(values: torch.Tensor, image: MetaTensor) -> MetaTensor:
    out = MetaTensor(values)
    out.copy_meta_from(image)
    return out


class ResampleToSpacingd(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`ResampleToSpacing`.

    Args:
        keys: images and labels to resample.
        target_spacing: mm, one entry for each spatial axis.
        mode: one for all keys or one for each.
        allow_missing_keys: pass over a key that the data lacks.
        spacing: see :class:`ResampleToSpacing`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        target_spacing: Sequence[float],
        mode: str | Sequence[str] = "spline",
        allow_missing_keys: bool = False,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        modes = ensure_tuple_rep(mode, len(self.keys))
        self.transforms = [ResampleToSpacing(target_spacing, m, spacing) for m in modes]

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        d = dict(data)
        for key, transform in self.key_iterator(d, self.transforms):
            d[key] = transform(d[key])
        return d

    def inverse(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        d = dict(data)
        for key, transform in self.key_iterator(d, self.transforms):
            d[key] = transform.inverse(d[key])
        return d
