"""Patches of a case and their random changes: crop and warp, gamma, mirroring.

Words used here:

- A *case* is a dict of arrays (C, *spatial), usually memory-mapped. An array of floats is an image, an array of uint8
  is a label map; image and label maps of a case share their spatial shape.
- The *patch* has `patch_size` voxels. Its *start* is the index of its first voxel in the image; the start may be
  negative, and the patch may reach beyond the image: what lies outside is 0 in images and in label maps.
- A *warp* says for every voxel of the patch from which point of the image it is taken. Points and angles are in voxels
  of the cached image: an anisotropic image is rotated as if its voxels were cubes.
- In a *slice-wise* warp every slice along `slice_axis` keeps to itself, and all slices share one in-plane warp.

`RandCropWarpd` is the only transform that reads voxels. It draws the warp first, then reads the box that the warp
touches and nothing else. A patch without a warp is a plain copy.

Source: arXiv:1809.10486, section 2.3, names the kinds (rotation, scaling, elastic deformation, gamma, mirroring) and
the slice-wise case; the numbers are known defaults of nnU-Net, the paper gives none. All are constructor parameters.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import cos, floor, pi, radians, sin, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

SLAB_POINTS = 1 << 17
"""Points sampled at a time. Their intermediate arrays then stay in the processor's cache."""

MIXED_POINTS = 1 << 13
"""Points in mixed cells worked out at a time, for the same reason."""

MIXED = 255
"""Mark of a grid cell whose corners carry more than one label; hence no label may be 255."""

MEAN_SQUARED_SPLINE = 151 / 315
"""Integral of the squared cubic B-spline: variance along one axis that unit noise on its control points leaves."""


class RandCropWarpd(Randomizable, MapTransform):
    """Patch around `center`, each with its own probability rotated, scaled and elastically deformed.

    All kinds that are drawn make one warp, and each array is interpolated once: images linearly, label maps as the
    linearly interpolated one-hot code with the largest value (the lowest label in a tie), so no label appears that
    was not there. With all probabilities 0 the transform is the crop for validation.

    On an axis where the image is smaller than the patch it is padded evenly on both sides. On the others the patch is
    moved inside the image, so a `center` near the border is not the exact centre.

    Returns the dict with every array replaced by a contiguous tensor (C, *patch_size), float32 or uint8.

    Args:
        keys: arrays to crop, of any numbers of channels.
        patch_size: 2 or 3 voxel counts.
        slice_axis: None, or for a slice-wise warp of a 3D patch the spatial axis that is left alone.
        rotation_degrees: each angle is uniform in ±this, one number for all axes or one per axis; entry i turns about
            axis i, and a plane has one. None: 15 in 3D, 180 in a plane.
        scaling_range: a factor on the size of the field of view, so 1.25 shows objects smaller. Half of the draws are
            uniform below 1 and half above.
        elastic_alpha: range of the amplitude of the elastic deformation, see `elastic_std`. None: 0 to 900 in 3D,
            0 to 200 in a plane.
        elastic_sigma: range of its smoothness, voxels.
        center_key: key of the voxel index to crop around, one int for each spatial axis.

    Source: known default of nnU-Net (numbers, order elastic - rotation - scaling); padding with 0 and moving the patch
    inside the image: our choice, an image that went through a z-score has its mean at 0.
    """

    def __init__(  # noqa: PLR0913 (every number stands in the bundle's train.json)
        self,
        keys: KeysCollection,
        patch_size: Sequence[int],
        *,
        slice_axis: int | None = None,
        rotation_prob: float = 0.2,
        rotation_degrees: float | Sequence[float] | None = None,
        scaling_prob: float = 0.2,
        scaling_range: Sequence[float] = (0.85, 1.25),
        elastic_prob: float = 0.2,
        elastic_alpha: Sequence[float] | None = None,
        elastic_sigma: Sequence[float] = (9.0, 13.0),
        center_key: Hashable = "center",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.patch_size = tuple(int(n) for n in patch_size)
        if len(self.patch_size) not in (2, 3) or min(self.patch_size) < 1:
            raise ValueError(f"patch_size must be 2 or 3 positive numbers, got {patch_size}")
        if slice_axis is not None and (len(self.patch_size) != 3 or slice_axis not in (0, 1, 2)):
            raise ValueError(f"slice_axis must be 0, 1 or 2 and needs a 3D patch, got {slice_axis} for {patch_size}")
        self.slice_axis = slice_axis
        self.warped_axes = tuple(a for a in range(len(self.patch_size)) if a != slice_axis)
        in_plane = len(self.warped_axes) == 2
        if rotation_degrees is None:
            rotation_degrees = 180.0 if in_plane else 15.0
        self.rotation_degrees = _per_rotation_axis(rotation_degrees, 1 if in_plane else 3)
        self.scaling_range = _checked_range("scaling_range", scaling_range, positive=True)
        self.elastic_alpha = _checked_range("elastic_alpha", elastic_alpha or (0.0, 200.0 if in_plane else 900.0))
        self.elastic_sigma = _checked_range("elastic_sigma", elastic_sigma, positive=True)
        self.rotation_prob, self.scaling_prob, self.elastic_prob = rotation_prob, scaling_prob, elastic_prob
        self.center_key = center_key
        self._warp: Warp | None = None

    def randomize(self, data: Any = None) -> None:
        """Draws the warp of the next patch, None where no kind was drawn."""
        do_rotation, do_scaling, do_elastic = self.R.random_sample(3) < (
            self.rotation_prob,
            self.scaling_prob,
            self.elastic_prob,
        )
        self._warp = None
        if not (do_rotation or do_scaling or do_elastic):
            return
        size = tuple(self.patch_size[a] for a in self.warped_axes)
        matrix = np.eye(len(size))
        if do_rotation:
            matrix = rotation_matrix([self.R.uniform(-limit, limit) for limit in self.rotation_degrees])
        if do_scaling:
            matrix = matrix * _draw_around_one(self.R, self.scaling_range)
        if do_elastic:
            alpha, sigma = self.R.uniform(*self.elastic_alpha), self.R.uniform(*self.elastic_sigma)
            self._warp = elastic_warp(size, matrix, alpha, sigma, self.R)
        else:
            self._warp = affine_warp(size, matrix)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        keys = list(self.key_iterator(d))
        shape = _common_shape(d, keys)
        start = patch_start(d[self.center_key], self.patch_size, shape)
        self.randomize()
        if self._warp is None:
            for key in keys:
                d[key] = torch.from_numpy(read_box(d[key], start, self.patch_size))
            return d
        points, low, high = warp_points(self._warp)
        box_start, box_size = list(start), list(self.patch_size)
        for i, axis in enumerate(self.warped_axes):
            # Point 0 is the patch's centre, which lies between two voxels where the patch has an even number of them.
            middle = start[axis] + (self.patch_size[axis] - 1) / 2
            box_start[axis] = floor(low[i] + middle)
            box_size[axis] = floor(high[i] + middle) + 2 - box_start[axis]
            points[:, i] += middle - box_start[axis]
        for key in keys:
            d[key] = self._sample(read_box(d[key], box_start, box_size), points)
        return d

    def _sample(self, box: NDArray[Any], points: torch.Tensor) -> torch.Tensor:
        """The patch of one array from the box (C, *box_size) that was read for it."""
        channels = box.shape[0]
        if self.slice_axis is not None:
            box = np.ascontiguousarray(np.moveaxis(box, self.slice_axis + 1, 1))
            box = box.reshape(-1, *box.shape[2:])
        volumes = torch.from_numpy(box)
        sampled = sample_labels(volumes, points) if volumes.dtype == torch.uint8 else sample_linear(volumes, points)
        if self.slice_axis is None:
            return sampled.view(channels, *self.patch_size)
        in_plane = [self.patch_size[a] for a in self.warped_axes]
        return sampled.view(channels, -1, *in_plane).movedim(1, self.slice_axis + 1).contiguous()


class RandGammad(Randomizable, MapTransform):
    """Image with a gamma curve in each channel: scaled to [0, 1] by the channel's own minimum and maximum, raised to
    the channel's own gamma, then given back the channel's mean and standard deviation.

    One coin per image with probability `prob`; half of the gammas are uniform below 1 and half above. A constant
    channel stays as it is. The input is not written to.

    Source: known default of nnU-Net.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        prob: float = 0.3,
        gamma_range: Sequence[float] = (0.7, 1.5),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.prob = prob
        self.gamma_range = _checked_range("gamma_range", gamma_range, positive=True)
        self._gammas: list[float] | None = None

    def randomize(self, data: int) -> None:
        """Draws one gamma for each of `data` channels, None where the coin says no."""
        drawn = self.R.random_sample() < self.prob
        self._gammas = [_draw_around_one(self.R, self.gamma_range) for _ in range(data)] if drawn else None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            self.randomize(len(d[key]))
            if self._gammas is not None:
                d[key] = torch.stack([gamma_curve(x, g) for x, g in zip(d[key], self._gammas, strict=True)])
        return d


class RandMirrord(Randomizable, MapTransform):
    """Arrays of the dict mirrored together: each of `axes` (None: every spatial axis) with probability `prob`.

    Source: arXiv:1809.10486, section 2.3; the probability is a known default of nnU-Net.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        prob: float = 0.5,
        axes: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.prob = prob
        self.axes = None if axes is None else tuple(int(a) for a in axes)
        self._mirrored: list[int] = []

    def randomize(self, data: int) -> None:
        """Draws which of the spatial axes are mirrored; `data` is their number where `axes` is None."""
        axes = range(data) if self.axes is None else self.axes
        self._mirrored = [a for a, coin in zip(axes, self.R.random_sample(len(axes)), strict=True) if coin < self.prob]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        keys = list(self.key_iterator(d))
        self.randomize(len(_common_shape(d, keys)))
        if self._mirrored:
            for key in keys:
                d[key] = torch.flip(d[key], [a + 1 for a in self._mirrored])
        return d


def patch_start(center: Sequence[int], patch_size: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Index of the patch's first voxel: the patch lies around `center` but inside the image where it fits, and evenly
    around the image on an axis where it does not."""
    return tuple(
        min(max(int(c) - n // 2, 0), size - n) if size >= n else -((n - size) // 2)
        for c, n, size in zip(center, patch_size, shape, strict=True)
    )


def read_box(array: Any, start: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
    """Copy (C, *size) in C order of the box at `start`, 0 outside the array; float32, or uint8 of a label map.

    Reads the part of the box that lies inside the array, in one indexing.
    """
    shape = array.shape[1:]
    low = [min(max(s, 0), n) for s, n in zip(start, shape, strict=True)]
    high = [min(max(s + b, 0), n) for s, b, n in zip(start, size, shape, strict=True)]
    inside = np.asarray(array[(slice(None), *map(slice, low, high))])
    if inside.dtype.kind == "f":
        dtype: type[np.generic] = np.float32
    elif inside.dtype in (np.uint8, np.bool_):
        dtype = np.uint8
    else:
        raise TypeError(f"an array of a case must be floats (image) or uint8 (label map), got {inside.dtype}")
    if inside.shape[1:] == tuple(size):
        return np.array(inside, dtype, order="C", subok=False)
    box = np.zeros((inside.shape[0], *size), dtype)
    box[(slice(None), *(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True)))] = inside
    return box


class Warp(NamedTuple):
    """Map from the voxels of a patch to points, as splines on a coarse grid of control points."""

    control: NDArray[Any]
    """(d, *num_control) source points of the control points, relative to the patch's centre."""
    bases: tuple[NDArray[Any], ...]
    """One (patch_size[i], num_control[i]) for each axis: the weights of the control points for each voxel."""


def affine_warp(size: Sequence[int], matrix: NDArray[Any]) -> Warp:
    """Warp of a patch of `size` by a (d, d) matrix about its centre: linear splines between its corners."""
    ramps = [np.arange(n) / max(n - 1, 1) for n in size]
    corners = np.meshgrid(*([-(n - 1) / 2, (n - 1) / 2] for n in size), indexing="ij")
    return Warp(_transformed(matrix, corners), tuple(np.stack([1 - r, r], 1).astype(np.float32) for r in ramps))


def elastic_warp(
    size: Sequence[int], matrix: NDArray[Any], alpha: float, sigma: float, random: np.random.RandomState
) -> Warp:
    """Warp of a patch of `size`: an elastic deformation, then a (d, d) matrix about the patch's centre.

    The deformation is white noise on control points sqrt(3) * sigma apart under cubic B-splines. Such a spline is
    all but a Gaussian of this sigma, so the field has the deviation and the correlation exp(-r^2 / (4 sigma^2)) of
    white noise on every voxel that is smoothed by a Gaussian (see `elastic_std`), at a small part of the cost.
    Splines repeat straight lines exactly: the same control points carry the matrix. The control grid gets a random
    offset, otherwise the same voxels would always lie on control points, where the field is a little wilder.
    """
    step = sqrt(3) * sigma
    phases = random.random_sample(len(size))
    voxels = [np.arange(n) / step + phase for n, phase in zip(size, phases, strict=True)]
    knots = [np.arange(-1, floor(v[-1]) + 3) for v in voxels]
    positions = np.meshgrid(
        *((k - phase) * step - (n - 1) / 2 for k, phase, n in zip(knots, phases, size, strict=True)), indexing="ij"
    )
    noise_std = elastic_std(alpha, sigma, len(size)) / sqrt(MEAN_SQUARED_SPLINE) ** len(size)
    moved = [p + noise_std * random.standard_normal(p.shape) for p in positions]
    return Warp(_transformed(matrix, moved), tuple(map(_cubic_spline, voxels, knots)))


def elastic_std(alpha: float, sigma: float, dims: int) -> float:
    """Standard deviation, in voxels, of an elastic deformation along each axis.

    The deformation is defined as white noise, uniform in ±alpha on every voxel, smoothed by a Gaussian of `sigma`
    voxels in each of `dims` axes. The noise has alpha / sqrt(3), of which smoothing leaves (4 pi sigma^2)^(-dims / 4).

    Source: known default of nnU-Net (definition); the closed form is ours, tested against the definition.
    """
    return alpha / sqrt(3) * (4 * pi * sigma**2) ** (-dims / 4)


def rotation_matrix(degrees: Sequence[float]) -> NDArray[Any]:
    """(3, 3) rotation about axis 2, then 1, then 0 from three angles, or (2, 2) from one.

    A patch is sampled at the turned points, so its content appears turned the other way round.
    """
    if len(degrees) == 1:
        c, s = cos(radians(degrees[0])), sin(radians(degrees[0]))
        return np.array([[c, -s], [s, c]])
    matrix = np.eye(3)
    for axis, angle in enumerate(degrees):
        turn = np.eye(3)
        plane = [a for a in range(3) if a != axis]
        turn[np.ix_(plane, plane)] = rotation_matrix([angle])
        matrix = matrix @ turn
    return matrix


def warp_points(warp: Warp) -> tuple[torch.Tensor, NDArray[Any], NDArray[Any]]:
    """Points of a warp for every voxel, with their smallest and largest coordinate on each axis.

    The points (P, d, N) lie in P planes along the first axis for a volume; a plane has P = 1.
    """
    control = torch.from_numpy(warp.control)
    bases = [torch.from_numpy(b) for b in warp.bases]
    if len(bases) == 2:
        points = torch.matmul(bases[0] @ control, bases[1].t()).view(1, 2, -1)
        return points, points.amin((0, 2)).numpy(), points.amax((0, 2)).numpy()
    d, _, k1, k2 = control.shape
    n0, n1, n2 = (len(b) for b in bases)
    planes = (bases[0] @ control.view(d, -1, k1 * k2)).view(d, n0, k1, k2).transpose(0, 1)
    rows = torch.matmul(bases[1], planes).view(n0 * d * n1, k2)
    points = torch.empty(n0, d, n1 * n2)
    step = _planes_per_slab(n1 * n2)
    for a in range(0, n0, step):
        torch.mm(rows[a * d * n1 : (a + step) * d * n1], bases[2].t(), out=points[a : a + step].view(-1, n2))
    return points, points.amin((0, 2)).numpy(), points.amax((0, 2)).numpy()


def sample_linear(volumes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Values (M, P * N) of M float volumes (M, *box) at points (P, d, N) of the box, linearly interpolated.

    torch samples planes with vector instructions but volumes point by point. So a volume (D, H, W) is seen as two
    tall planes of (D - 1) * H rows, the second one beginning at the second slice: both are sampled at row z * H + y of
    the slice z below the point, and the two values are interpolated along z. This is 3 times as fast. Rows of a
    tall plane are large numbers, so a point is off by up to some thousandths of a voxel.
    """
    if points.shape[1] == 2:
        h, w = volumes.shape[1:]
        grid = points[0] * torch.tensor([[2 / (h - 1)], [2 / (w - 1)]]) - 1
        return _sample_planes(volumes[None], grid[0], grid[1])
    num, d, h, w = volumes.shape
    rows = (d - 1) * h
    out = torch.empty(num, points.shape[0], points.shape[2])
    step = _planes_per_slab(points.shape[2])
    for a in range(0, points.shape[0], step):
        z, y, x = points[a : a + step].unbind(1)
        below = z.floor().clamp_(0, d - 2)
        row = torch.add(y, below, alpha=h).mul_(2 / (rows - 1)).sub_(1)
        column = (x * (2 / (w - 1))).sub_(1)
        weight = below.neg_().add_(z)
        for volume, values in zip(volumes, out[:, a : a + step], strict=True):
            pair = volume.as_strided((1, 2, rows, w), (0, h * w, w, 1))
            lower, upper = _sample_planes(pair, row.view(-1), column.view(-1))
            torch.lerp(lower.view_as(weight), upper.view_as(weight), weight, out=values)
    return out.view(num, -1)


def sample_labels(volumes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Labels (M, P * N) of M label maps (M, *box) at points (P, d, N): the largest linearly interpolated one-hot code.

    Where all corners of the grid cell around a point carry one label there is nothing to interpolate, so the cost
    does not grow with the number of classes. Only the points in mixed cells are worked out.
    """
    num, shape = volumes.shape[0], volumes.shape[1:]
    flat = volumes.numpy().reshape(num, -1)
    lowest, highest = flat.min(), flat.max()
    if highest >= MIXED:
        raise ValueError(f"labels must be < {MIXED}, got {highest}")
    if lowest == highest:
        return torch.full((num, points.shape[0] * points.shape[2]), int(lowest), dtype=torch.uint8)
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    cells = torch.from_numpy(_cell_labels(flat, strides))
    out = torch.empty(num, points.shape[0], points.shape[2], dtype=torch.uint8)
    step = _planes_per_slab(points.shape[2])
    for a in range(0, points.shape[0], step):
        index = _cell_index(points[a : a + step].unbind(1), shape, strides)
        for cell, labels in zip(cells, out[:, a : a + step], strict=True):
            torch.index_select(cell, 0, index.view(-1), out=labels.view(-1))
    out = out.view(num, -1)
    _settle_mixed_cells(out.numpy(), flat, shape, strides, points.numpy())
    return out


def gamma_curve(x: torch.Tensor, gamma: float) -> torch.Tensor:
    """New tensor: x scaled to [0, 1], to the power of gamma, with the mean and standard deviation of x."""
    low, high = torch.aminmax(x)
    if not low < high:
        return x.clone()
    y = (x - low).div_(high - low)
    deviation = torch.linalg.vector_norm(y - y.mean())
    # y ** gamma, faster than torch.pow; log2(0) = -inf comes back as 0.
    y.log2_().mul_(gamma).exp2_()
    y.sub_(y.mean())
    y.mul_(deviation * (high - low) / torch.linalg.vector_norm(y))
    return y.add_(x.mean())


def _sample_planes(planes: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """(M, N) of planes (1, M, H, W) at N points, -1 to 1 from the first to the last row or column."""
    # Both coordinates keep to themselves in memory, which torch reads as fast as pairs.
    grid = torch.stack((column, row)).t()[None, None]
    return grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=True)[0, :, 0]


def _cell_labels(flat: NDArray[Any], strides: Sequence[int]) -> NDArray[Any]:
    """Label of the grid cell that begins at each voxel of flat maps (M, V), MIXED where its corners differ.

    Cells that would begin in the last layer of an axis hold nonsense; no point lies in them.
    """
    lowest = highest = flat
    for s in strides:
        lowest = np.minimum(lowest[:, :-s], lowest[:, s:])
        highest = np.maximum(highest[:, :-s], highest[:, s:])
    lowest[lowest != highest] = MIXED
    return lowest


def _cell_index(coordinates: Sequence[torch.Tensor], shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    """Flat index (int32) of the grid cells in which points lie."""
    index: Any = None
    for x, n, stride in zip(coordinates, shape, strides, strict=True):
        layer = x.floor().clamp_(0, n - 2).to(torch.int32).mul_(stride)
        index = layer if index is None else index.add_(layer)
    return index


def _settle_mixed_cells(
    out: NDArray[Any], flat: NDArray[Any], shape: Sequence[int], strides: Sequence[int], points: NDArray[Any]
) -> None:
    """Replaces every MIXED in out (M, P * N) by the label of largest weight among the corners of its cell."""
    labels = out.reshape(-1)
    mixed = np.flatnonzero(labels == MIXED)
    for a in range(0, len(mixed), MIXED_POINTS):
        part = mixed[a : a + MIXED_POINTS]
        maps, numbers = np.divmod(part, out.shape[1])
        planes, within = np.divmod(numbers, points.shape[2])
        first = planes * points[0].size + within
        coordinates = [points.reshape(-1).take(first + axis * points.shape[2]) for axis in range(len(shape))]
        labels[part] = _heaviest_corner(flat, maps, coordinates, shape, strides)


def _heaviest_corner(
    flat: NDArray[Any],
    maps: NDArray[Any],
    coordinates: Sequence[NDArray[Any]],
    shape: Sequence[int],
    strides: Sequence[int],
) -> NDArray[Any]:
    """(F,) labels at F points of the maps with these numbers, of the flat maps (M, V)."""
    index = maps * flat.shape[1]
    weights, offsets = np.ones((1, len(maps)), np.float32), np.zeros((1, 1), np.int64)
    for x, n, stride in zip(coordinates, shape, strides, strict=True):
        below = np.clip(np.floor(x), 0, n - 2)
        upper = x - below
        index += below.astype(np.int64) * stride
        weights = np.concatenate((weights * (1 - upper), weights * upper))
        offsets = np.concatenate((offsets, offsets + stride))
    corners = flat.reshape(-1).take(index + offsets)
    heaviest, largest = np.zeros(len(maps), np.uint8), np.full(len(maps), -1, np.float32)
    for label in np.flatnonzero(np.bincount(corners.reshape(-1))):
        weight = (weights * (corners == label)).sum(0)
        wins = weight > largest
        heaviest[wins], largest[wins] = label, weight[wins]
    return heaviest


def _cubic_spline(voxels: NDArray[Any], knots: NDArray[Any]) -> NDArray[Any]:
    """(num voxels, num knots) weights of uniform cubic B-splines; both positions in steps of the knots."""
    r = np.abs(voxels[:, None] - knots)
    return np.where(r < 1, 2 / 3 - r**2 + r**3 / 2, np.clip(2 - r, 0, None) ** 3 / 6).astype(np.float32)


def _transformed(matrix: NDArray[Any], positions: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(d, *grid) float32: a (d, d) matrix applied to every point of a grid."""
    return np.tensordot(matrix, np.stack(positions), 1).astype(np.float32)


def _planes_per_slab(points_per_plane: int) -> int:
    return max(1, SLAB_POINTS // points_per_plane)


def _draw_around_one(random: np.random.RandomState, limits: tuple[float, float]) -> float:
    """Uniform below 1 or, as often, uniform above 1; uniform in the limits if they lie on one side of 1."""
    low, high = limits
    if low < 1 < high:
        low, high = (low, 1.0) if random.random_sample() < 0.5 else (1.0, high)
    return random.uniform(low, high)


def _per_rotation_axis(degrees: float | Sequence[float], num: int) -> tuple[float, ...]:
    limits = tuple(map(float, degrees)) if isinstance(degrees, Sequence) else (float(degrees),) * num
    if len(limits) != num:
        raise ValueError(f"rotation_degrees must be one number or {num}, got {degrees}")
    return limits


def _checked_range(name: str, limits: Sequence[float], *, positive: bool = False) -> tuple[float, float]:
    low, high = map(float, limits)
    if low > high or low < 0 or (positive and low == 0):
        raise ValueError(f"{name} must be a range of numbers {'>' if positive else '>='} 0, got {limits}")
    return low, high


def _common_shape(data: Mapping[Hashable, Any], keys: Sequence[Hashable]) -> tuple[int, ...]:
    """Spatial shape of the arrays."""
    shapes = {key: tuple(data[key].shape[1:]) for key in keys}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"arrays must share one spatial shape, got {shapes}")
    return next(iter(shapes.values()))
