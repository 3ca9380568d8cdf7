"""Random mistakes in the segmentation that the second network of a cascade is given.

The second network trains on segmentations by first networks, which make mistakes that its own input will not repeat
exactly. A network that may trust them copies them; one that has seen mistakes looks at the image as well.

Words used here:

- A *label map* of a patch is uint8 (1, X, Y, Z), 0 is background. It says the same as one-hot channels of its classes.
- The *ball* of radius r holds the offsets (dx, dy, dz), in voxels, with dx² + dy² + dz² <= r².
- At the *border of the patch* the four operators act as if there were nothing outside for dilation, and as if outside
  belonged to the object for erosion. The patch is cut out of a larger image, so the border is no surface of an object.
  Hence closing never takes a voxel away and opening never adds one, at the border either.

Source: arXiv:1809.10486, section 2.3, names the operators and the removal of components; the numbers and the order
(operators, then removal) are known defaults of nnU-Net, the paper gives none. All are constructor parameters.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import isqrt
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from numpy.typing import NDArray
from scipy import ndimage

Operator = Literal["erode", "dilate", "open", "close"]

OPERATORS: dict[Any, tuple[Operator, ...]] = {
    "erode": ("erode",),
    "dilate": ("dilate",),
    "open": ("erode", "dilate"),
    "close": ("dilate", "erode"),
}
"""The erosions and dilations that an operator is made of, in their order."""

WORD_BITS = 64
"""Voxels that are worked on at a time, as the bits of one integer."""


class Change(NamedTuple):
    """An operator with a ball, for the voxels of one class."""

    label: int
    operator: Operator
    radius: int


class Removal(NamedTuple):
    """One connected component of a class; `choice` in [0, 1) says which of those that may be removed."""

    label: int
    choice: float


class RandDegradeSegmentationd(Randomizable, MapTransform):
    """Label map with random mistakes: its classes eroded, dilated, opened or closed, and components of them removed.

    With `morphology_prob` every class present, in random order, is changed by an operator and with a ball of its own.
    Voxels that a class gains are taken from the other classes; voxels that it loses become background. Then, with
    `removal_prob`, every class present loses one random connected component (voxels that touch at a face, an edge or
    a corner) among those that are small enough; voxels of it become background.

    The input is not written to; a map that no mistake was drawn for is given back as it is.

    Args:
        keys: label maps, uint8 tensors (1, X, Y, Z) or arrays, each with its own draws.
        morphology_prob: probability that the classes are changed by operators.
        radius: smallest and largest radius of a ball, whole voxels; each of them is as likely.
        removal_prob: probability that components are removed.
        removal_fraction: only components smaller than this part of the patch are removed.

    Raises:
        TypeError: a label map that is not uint8.
        ValueError: a label map of another shape, or a `radius` that is no range of positive whole numbers.

    Source: known default of nnU-Net, see the head of the module; the border is our choice, and so are equally likely
    operators, radii and components.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        morphology_prob: float = 0.4,
        radius: Sequence[int] = (1, 8),
        removal_prob: float = 0.2,
        removal_fraction: float = 0.15,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.radius = tuple(int(r) for r in radius)
        if self.radius != tuple(radius) or len(self.radius) != 2 or not 1 <= self.radius[0] <= self.radius[1]:
            raise ValueError(f"radius must be two whole numbers with 1 <= radius[0] <= radius[1], got {radius}")
        self.morphology_prob, self.removal_prob = morphology_prob, removal_prob
        self.removal_fraction = removal_fraction
        self._changes: list[Change] = []
        self._removals: list[Removal] = []

    def randomize(self, data: Sequence[int]) -> None:
        """Draws what happens to a label map whose classes are `data`: changes in their order, then removals."""
        do_morphology, do_removal = self.R.random_sample(2) < (self.morphology_prob, self.removal_prob)
        self._changes, self._removals = [], []
        if do_morphology:
            for label in self.R.permutation(data):
                operator = tuple(OPERATORS)[self.R.randint(len(OPERATORS))]
                radius = self.R.randint(self.radius[0], self.radius[1] + 1)
                self._changes.append(Change(int(label), operator, radius))
        if do_removal:
            self._removals = [Removal(label, self.R.random_sample()) for label in data]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            given = np.asarray(d[key])
            if given.dtype != np.uint8:
                raise TypeError(f"{key}: a label map must be uint8, got {given.dtype}")
            if given.ndim != 4 or len(given) != 1:
                raise ValueError(f"{key}: a label map must have the shape (1, X, Y, Z), got {given.shape}")
            self.randomize(labels_present(given))
            if self._changes or self._removals:
                d[key] = torch.from_numpy(self._degraded(given[0])[None])
        return d

    def _degraded(self, label_map: NDArray[Any]) -> NDArray[Any]:
        """A copy of a label map (X, Y, Z) with the mistakes that were drawn."""
        label_map = np.array(label_map, order="C")
        for label, operator, radius in self._changes:
            mask = label_map == label
            # Beyond the ball one layer of background is enough to stand for all that is further away.
            box = bounding_box(mask, margin=radius + 1)
            replace_class(label_map[box], label, mask[box], morphology(mask[box], operator, radius))
        largest = self.removal_fraction * label_map.size
        for label, choice in self._removals:
            remove_component(label_map, label, choice, largest)
        return label_map


def labels_present(label_map: NDArray[Any]) -> list[int]:
    """Foreground labels of a label map that occur in it, ascending."""
    return [label for label in range(1, int(label_map.max(initial=0)) + 1) if (label_map == label).any()]


def replace_class(label_map: NDArray[Any], label: int, before: NDArray[Any], after: NDArray[Any]) -> None:
    """Moves a class of a label map, in place, from the mask `before` to `after`; what it loses becomes background."""
    label_map *= after | ~before
    np.copyto(label_map, np.uint8(label), where=after)


def remove_component(label_map: NDArray[Any], label: int, choice: float, largest: float) -> None:
    """Sets one component of a class to background, in place: of those smaller than `largest` voxels the one at
    `choice` in [0, 1) of their list. Nothing happens where there is none."""
    box = bounding_box(label_map == label)
    components, num = ndimage.label(label_map[box] == label, np.ones((3, 3, 3)))
    sizes = np.bincount(components.reshape(-1), minlength=num + 1)
    small = 1 + np.flatnonzero(sizes[1:] < largest)
    if len(small):
        label_map[box] *= components != small[int(choice * len(small))]


def bounding_box(mask: NDArray[Any], margin: int = 0) -> tuple[slice, ...]:
    """Slices of the smallest box that holds all that is True in a mask (X, Y, Z), with a margin of voxels on each side
    where the mask has so many. An empty box where nothing is True."""
    others = ((1, 2), (0, 2), (0, 1))
    filled = [np.flatnonzero(mask.any(axes)) for axes in others]
    return tuple(slice(max(int(f[0]) - margin, 0), int(f[-1]) + 1 + margin) if len(f) else slice(0) for f in filled)


def morphology(mask: NDArray[Any], operator: Operator, radius: int) -> NDArray[Any]:
    """A mask (X, Y, Z) of bools eroded, dilated, opened or closed by the ball of a radius, see the head of the module.

    The result is exact. Voxels are worked on as bits, 64 at a time: a radius of 8 takes some milliseconds for 128³.
    """
    bits, inside = _packed(mask, radius), _packed(np.ones_like(mask), radius)
    for step in OPERATORS[operator]:
        # Eroding the object is dilating what is not the object.
        bits = inside & (_spread(bits, radius) if step == "dilate" else ~_spread(inside & ~bits, radius))
    return _unpacked(bits, mask.shape)


def _packed(mask: NDArray[Any], radius: int) -> NDArray[Any]:
    """Bits (X, Y + radius, words) of a mask (X, Y, Z).

    At least `radius` zeros follow every row and every plane, so that shifting all bits as one long number moves
    nothing from a row or a plane into the next.
    """
    size_x, size_y, size_z = mask.shape
    words = -(-(size_z + radius) // WORD_BITS)
    out = np.zeros((size_x, size_y + radius, words * WORD_BITS // 8), np.uint8)
    rows = np.packbits(mask, axis=-1, bitorder="little")
    out[:, :size_y, : rows.shape[-1]] = rows
    return out.view("<u8")


def _unpacked(bits: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """The mask (X, Y, Z) of bools that bits stand for."""
    rows = np.asarray(bits[:, : shape[1]], "<u8", order="C").view(np.uint8)
    return np.unpackbits(rows, axis=-1, count=shape[2], bitorder="little").view(bool)


def _spread(bits: NDArray[Any], radius: int) -> NDArray[Any]:
    """Every 1 spread over its ball. The zeros between rows and planes are spread into as well.

    The ball is cut into discs along x and a disc into rows along y. Rows of every half-width are made once.
    """
    row, plane = bits.shape[2], bits.shape[1] * bits.shape[2]
    rows = [bits.reshape(-1)]
    for _ in range(radius):
        rows.append(_wider(rows[-1]))
    ball = np.zeros_like(rows[0])
    for dx in range(radius + 1):
        disc = np.zeros_like(ball)
        for dy in range(isqrt(radius**2 - dx**2) + 1):
            _add_shifted(disc, rows[isqrt(radius**2 - dx**2 - dy**2)], dy * row)
        _add_shifted(ball, disc, dx * plane)
    return ball.reshape(bits.shape)


def _wider(words: NDArray[Any]) -> NDArray[Any]:
    """Every 1 spread over its neighbours before and after, in words (N,) that are one long number."""
    out = words | words << 1 | words >> 1
    out[1:] |= words[:-1] >> (WORD_BITS - 1)
    out[:-1] |= words[1:] << (WORD_BITS - 1)
    return out


def _add_shifted(out: NDArray[Any], words: NDArray[Any], offset: int) -> None:
    """Adds words (N,), shifted by an offset to both sides, to the ones in `out`."""
    num = max(len(out) - offset, 0)
    out[offset:] |= words[:num]
    if offset:
        out[:num] |= words[offset:]
