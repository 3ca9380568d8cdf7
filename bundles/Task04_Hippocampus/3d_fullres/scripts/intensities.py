"""What the intensities of an image are like, in a few numbers. Planning looks at the training images by the same text,
which autoplan reads from here as it does `formats`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROFILE = (0.5, 50.0, 99.5)
"""Percentiles. Our choice."""
AIR = -1024.0
"""Least value that a voxel of a CT counts with: what is below it is the padding of scanners."""
CONSTANT = 2e-6
"""Standard deviation of a channel of one value at most, as a part of its largest magnitude: resampling in float32
leaves 4e-7 of it, measured. Our choice."""
SAMPLES = 2**18
"""Voxels that are looked at, roughly, where there are more."""


def sampled(channel: NDArray[Any]) -> NDArray[Any]:
    """Every n-th voxel of one channel (X, Y, Z) along each axis, where they are many."""
    step = max(1, math.floor((channel.size / SAMPLES) ** (1 / 3)))
    return channel[::step, ::step, ::step]


def profile(channel: NDArray[Any], *, absolute: bool) -> tuple[float, ...]:
    """The percentiles `PROFILE` of one channel (X, Y, Z). Where intensities are not absolute, of the nonzero voxels
    alone, in standard deviations from their mean, 0 where all have one value. NaN where a voxel is NaN or infinite."""
    values = sampled(channel).astype(np.float64)
    if absolute:
        values = values.clip(min=AIR)
    else:
        values = values[values != 0] if values.any() else values
        with np.errstate(invalid="ignore"):
            std = values.std()
            values = (values - values.mean()) / (math.inf if std <= CONSTANT * abs(values).max() else std)
    return tuple(float(v) for v in np.percentile(values, PROFILE))
