"""The network that fits an image: patch, poolings, strides, features, batch. Pure functions on plain numbers.

An axis of n voxels is pooled until its feature map is smaller than `min_feature_map`, at most `max_pool` times. A
size is *admissible* when it is a multiple of 2 to the power of its own number of poolings: 40 (3 poolings) is, 41 is
not.
"""

import math
from collections.abc import Sequence

from autoplan.base.axes import Shape, Spacing
from autoplan.planning.values import Configuration

MAX_POOL_2D = 6
"""Poolings of an axis at most, 2D. Source: section 2.1, "Dynamic adaptation of network topologies"."""
MAX_POOL_3D = 5
"""Poolings of an axis at most, 3D. Source: section 2.1."""
MIN_FEATURE_MAP = 8
"""An axis is pooled until it is smaller than this. Source: section 2.1."""
MAX_PATCH_VOXELS_3D = 128**3
"""Voxels of a 3D patch at most. Source: section 2.1."""
BASE_VOXELS_2D = 42 * 256**2
"""Voxels of an optimizer step at most, 2D: batch 42 of 256x256. Source: section 2.1."""
BASE_VOXELS_3D = 2 * 128**3
"""Voxels of an optimizer step at most, 3D: batch 2 of 128x128x128. Source: section 2.1."""
MAX_DATASET_FRACTION = 0.05
"""Part of the dataset's voxels that an optimizer step sees at most. Source: section 2.1."""
MIN_BATCH_SIZE = 2
"""Source: section 2.1."""
BASE_FEATURES = 30
"""Feature maps of the highest resolution. Source: section 2.1."""
MIN_POOLINGS = 2
"""Poolings that some axis needs: MONAI's DynUNet has at least three levels. Our choice; the paper has no such image."""
TIE_DECIMALS = 2
"""Distances to the target that agree to this many decimals of a voxel are a tie: spacings carry rounding noise. Our
choice."""


def num_poolings(size: float, *, max_pool: int, min_feature_map: int = MIN_FEATURE_MAP) -> int:
    """Number of times an axis of `size` voxels is halved: until it is smaller than `min_feature_map`, at most
    `max_pool`.

    Source: arXiv:1809.10486, section 2.1, "Dynamic adaptation of network topologies".
    """
    halvings = 0
    while size >= min_feature_map and halvings < max_pool:
        size, halvings = size / 2, halvings + 1
    return halvings


def round_half_up(value: float) -> int:
    """Nearest whole number; a half goes up (Python's `round` takes it to the even neighbour)."""
    return math.floor(value + 0.5)


def admissible_size(size: float, *, max_pool: int) -> int:
    """Smallest admissible size that is at least `size`: 41 -> 48, 58 -> 64 (rounded up, 64 pools once more than 58).

    Source: Table 1. The prose of section 2.1 does not say how sizes are rounded; nearest instead of up contradicts it.
    """
    rounded, last = max(1, math.ceil(size)), 0
    while rounded != last:
        step = 2 ** num_poolings(rounded, max_pool=max_pool)
        rounded, last = math.ceil(rounded / step) * step, rounded
    return rounded


def next_smaller_size(size: int, *, max_pool: int) -> int:
    """Largest admissible size below `size`, which is admissible and at least 2."""
    return next(s for s in range(size - 1, 0, -1) if admissible_size(s, max_pool=max_pool) == s)


def patch_size_2d(median_plane: Shape, *, max_pool: int = MAX_POOL_2D) -> Shape:
    """Patch of the 2D network: the median plane, each axis rounded up to an admissible size.

    Source: arXiv:1809.10486, section 2.1, "so that the network effectively trains on entire slices"; Table 1.
    """
    return _with_enough_poolings(tuple(admissible_size(n, max_pool=max_pool) for n in median_plane))


def target_size_3d(
    median_shape: Shape, spacing: Spacing, *, max_patch_voxels: int = MAX_PATCH_VOXELS_3D
) -> tuple[float, ...]:
    """Patch that is sought in 3D, not yet whole or admissible.

    It has the aspect ratio of the median patient in mm and `max_patch_voxels` voxels, and is then clipped, axis
    by axis, to the median shape; where no axis reaches its share the median shape itself results.

    Source: arXiv:1809.10486, section 2.1 and Table 1. This departs from the prose, which matches the ratio "in
    voxels" and takes a median of fewer than 128^3 voxels as the patch: Table 1 contradicts both (Prostate, Lung).
    """
    extent_mm = [n * s for n, s in zip(median_shape, spacing, strict=True)]
    scale = (max_patch_voxels / math.prod(extent_mm)) ** (1 / len(extent_mm))
    return tuple(min(e * scale, float(n)) for e, n in zip(extent_mm, median_shape, strict=True))


def patch_size_3d(
    median_shape: Shape,
    spacing: Spacing,
    *,
    max_patch_voxels: int = MAX_PATCH_VOXELS_3D,
    max_pool: int = MAX_POOL_3D,
) -> Shape:
    """Patch of a 3D network.

    1. Each axis of the target is rounded up to an admissible size.
    2. While the patch has more than `max_patch_voxels` voxels, the axis that stands furthest above its target, in
       voxels, drops to the next smaller admissible size. A tie goes to the first axis in x, y, z order (Table 1:
       Pancreas).
    3. Where no axis is pooled twice the longest is raised; images are padded to it.

    Source: arXiv:1809.10486, section 2.1 and Table 1; step 3 is our choice, the paper has no image that small.
    """
    target = target_size_3d(median_shape, spacing, max_patch_voxels=max_patch_voxels)
    patch = [admissible_size(t, max_pool=max_pool) for t in target]
    while math.prod(patch) > max_patch_voxels:
        axis = _furthest_above(patch, target)
        patch[axis] = next_smaller_size(patch[axis], max_pool=max_pool)
    return _with_enough_poolings(tuple(patch))


def _furthest_above(patch: Sequence[int], target: Sequence[float]) -> int:
    """First of the axes that can still shrink whose size exceeds its target most."""
    excess = [round(p - t, TIE_DECIMALS) if p > 1 else -math.inf for p, t in zip(patch, target, strict=True)]
    return excess.index(max(excess))


def _with_enough_poolings(
    patch: Shape, *, min_feature_map: int = MIN_FEATURE_MAP, poolings: int = MIN_POOLINGS
) -> Shape:
    """`patch`, or with its (first) longest axis raised to the smallest size that is pooled `poolings` times."""
    needed = min_feature_map * 2 ** (poolings - 1)
    longest = patch.index(max(patch))
    return patch if patch[longest] >= needed else (*patch[:longest], needed, *patch[longest + 1 :])


def strides(patch_size: Shape, *, max_pool: int) -> tuple[tuple[int, ...], ...]:
    """Downsampling that leads into each stage; the first is all ones. An axis with fewer poolings is pooled in the
    deeper
    stages: of P poolings in all, stage s halves axis i when s > P - num_pool[i].

    Source: arXiv:1809.10486, section 2.1 for the number; which stages pool is nnU-Net's known default, the paper is
    silent.
    """
    num_pool = [num_poolings(n, max_pool=max_pool) for n in patch_size]
    deepest = max(num_pool)
    return tuple(tuple(2 if s > deepest - p else 1 for p in num_pool) for s in range(deepest + 1))


def features(num_stages: int, *, base: int = BASE_FEATURES, max_features: int | None = None) -> tuple[int, ...]:
    """Feature maps of each stage: `base`, doubled with every downsampling, at most `max_features` (None: no cap).

    Source: arXiv:1809.10486, section 2.1. The paper states no cap (nnU-Net's known default: 320 in 3D, 480 in 2D).
    """
    return tuple(min(base * 2**s, max_features or base * 2**s) for s in range(num_stages))


def batch_size(
    patch_size: Shape,
    median_shape: Shape,
    *,
    num_cases: int,
    base_voxels: int,
    max_fraction: float = MAX_DATASET_FRACTION,
    minimum: int = MIN_BATCH_SIZE,
) -> int:
    """Samples of an optimizer step: as many as `base_voxels` hold, at most `max_fraction` of the dataset's voxels
    (rounded half up to whole samples; the dataset counts as `num_cases` 3D volumes of the median shape), at least
    `minimum`.

    Source: arXiv:1809.10486, section 2.1; the rounding follows Table 1 (Hippocampus 2D: 365.6 -> 366).
    """
    limits = batch_limits(
        patch_size, median_shape, num_cases=num_cases, base_voxels=base_voxels, max_fraction=max_fraction
    )
    return max(minimum, min(limits))


def batch_limits(
    patch_size: Shape,
    median_shape: Shape,
    *,
    num_cases: int,
    base_voxels: int,
    max_fraction: float = MAX_DATASET_FRACTION,
) -> tuple[int, int]:
    """The two upper limits of `batch_size`, in samples: by the base configuration, by the size of the dataset."""
    patch_voxels, dataset_voxels = math.prod(patch_size), num_cases * math.prod(median_shape)
    return base_voxels // patch_voxels, round_half_up(max_fraction * dataset_voxels / patch_voxels)


def num_parameters(configuration: Configuration, in_channels: int, out_channels: int, *, kernel_size: int = 3) -> int:
    """Trainable parameters of MONAI's DynUNet with the configuration's strides and features.

    A block is two convolutions without bias (`kernel_size` on every axis), each with an affine instance norm. Upwards a
    transposed convolution without bias, its kernel equal to its stride, precedes the block. The last convolution is 1x1
    with bias.
    """
    f, dimensions = configuration.features, len(configuration.patch_size)
    kernel = kernel_size**dimensions
    down = sum(_block(i, o, kernel) for i, o in zip((in_channels, *f), f, strict=False))
    up = sum(_block(2 * high, high, kernel) for high in f[:-1])
    stride_volumes = [math.prod(s) for s in configuration.strides[1:]]
    transposed = sum(v * low * high for v, low, high in zip(stride_volumes, f[1:], f[:-1], strict=True))
    return down + up + transposed + (f[0] + 1) * out_channels


def _block(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of two convolutions and two instance norms."""
    return kernel * (inputs + outputs) * outputs + 4 * outputs
