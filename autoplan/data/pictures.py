"""Three planes through a volume as one small picture, with the classes as outlines."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoplan.base.scripts.formats import LPS, format_of

COLORS = (
    (255, 209, 71), (86, 205, 255), (255, 112, 112), (130, 235, 130), (240, 150, 255), (255, 165, 80), (160, 170, 255),
    (200, 200, 200),
)  # fmt: skip
"""Outlines of the classes, in their order, on grey; the ninth is the first again."""
COLOR_NAMES = ("yellow", "cyan", "red", "green", "pink", "orange", "violet", "grey")
PLANES = ((0, 1), (0, 2), (1, 2))
"""Axes of the axial, coronal and sagittal plane, in RAS order: to the left and upwards in the picture, as radiologists
and 3D Slicer have it."""
WIDTH, HEIGHT = 348, 128
"""Pixels of a picture at most: a phone shows it without scaling."""
FEW = 120
"""Images up to which a page has room for pictures of twice that size."""
DASH = 3
"""Pixels of a dash of the second outline."""
QUALITY = 60
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Drawn:
    """A picture: its address with all its bytes, and its size in pixels."""

    data: str
    size: tuple[int, int]


def size_for(num_images: int) -> tuple[int, int]:
    """Pixels at most, (width, height), of the pictures on a page about so many images."""
    factor = 2 if num_images <= FEW else 1
    return factor * WIDTH, factor * HEIGHT


def color_name(number: int) -> str:
    """What the outline of a class is called."""
    return COLOR_NAMES[number % len(COLORS)]


def window(values: NDArray[Any], inside: NDArray[Any] | None = None) -> tuple[float, float]:
    """The grey values from black to white: percentiles of an image, or, where the values are absolute as in CT, those
    of the voxels `inside`, with half of that range on each side."""
    if inside is not None and inside.size:
        low, high = np.percentile(inside, PERCENTILES)
        spread = max(float(high - low), 1.0) / 2
        return float(low) - spread, float(high) + spread
    low, high = np.percentile(values, PERCENTILES)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1)


def center(label: NDArray[Any] | None, value: int | None, shape: Sequence[int]) -> tuple[int, ...]:
    """Slice of each axis that shows most of a class; the middle where there is none."""
    if label is None or value is None:
        return tuple(n // 2 for n in shape)
    mask = label == value
    return tuple(int(mask.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))


def largest(voxels: Sequence[int], values: Sequence[int]) -> int | None:
    """The value of the class with the most voxels; None where no class has any."""
    most = max(voxels, default=0)
    return values[list(voxels).index(most)] if most else None


def sheet(
    image: NDArray[Any],
    labels: Sequence[NDArray[Any]],
    values: Sequence[int],
    *,
    spacing: Sequence[float],
    at: Sequence[int],
    grey: tuple[float, float],
    box: Sequence[slice] | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> NDArray[np.uint8]:
    """Axial, coronal and sagittal plane side by side, to one scale, the first label as solid outlines and the second,
    if there is one, as dashed ones. Of an image of one slice, that slice alone.

    Args:
        image: (X, Y, Z) in RAS order.
        labels: none, one or two, on the image's grid.
        values: of the classes that are outlined, in the order of their colours.
        spacing: mm.
        at: slice of each axis.
        grey: values that are black and white.
        box: part that is shown; all of it where not given.
        width, height: pixels at most.

    Returns:
        (height, width, 3).
    """
    shown = [slice(0, n) for n in image.shape] if box is None else list(box)
    extent = [(s.stop - s.start) * mm for s, mm in zip(shown, spacing, strict=True)]
    seen = [(i, j) for i, j in PLANES if 1 not in (image.shape[i], image.shape[j])] or PLANES
    across, up = (sum(extent[i] for i, _ in seen), max(extent[j] for _, j in seen))
    gap = 2 * (len(seen) - 1)
    scale = min((width - gap) / across, height / up)
    tiles = []
    for i, j in seen:
        size = (max(1, round(extent[i] * scale)), max(1, round(extent[j] * scale)))
        axis = 3 - i - j
        plane = _cut(image, axis, at[axis], shown)
        tile = _grey(plane, grey, size)
        for number, label in enumerate(labels):
            _outline(tile, _cut(label, axis, at[axis], shown), values, dashed=number > 0)
        tiles.append(tile)
    whole = np.zeros((max(t.shape[0] for t in tiles), sum(t.shape[1] for t in tiles) + gap, 3), dtype=np.uint8)
    x = 0
    for tile in tiles:
        y = (whole.shape[0] - tile.shape[0]) // 2
        whole[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        x += tile.shape[1] + 2
    return whole


def planes(image: NDArray[Any], labels: Sequence[NDArray[Any]], values: Sequence[int], **how: Any) -> Drawn:
    """A `sheet` as a small picture for a page."""
    from PIL import Image

    whole, stream = sheet(image, labels, values, **how), io.BytesIO()
    Image.fromarray(whole).save(stream, "WEBP", quality=QUALITY, method=3)
    address = "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
    return Drawn(address, (whole.shape[1], whole.shape[0]))


def _cut(array: NDArray[Any], axis: int, index: int, box: Sequence[slice]) -> NDArray[Any]:
    """A plane as a picture: rows from top to bottom, columns from left to right."""
    inside = tuple(index if a == axis else s for a, s in enumerate(box))
    return array[inside].T[::-1, ::-1]


def _grey(plane: NDArray[Any], grey: tuple[float, float], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A plane in grey, (height, width, 3)."""
    from PIL import Image

    scaled = np.clip((plane.astype(np.float32) - grey[0]) / (grey[1] - grey[0]), 0, 1) * 255
    method = Image.Resampling.BOX if size[0] < plane.shape[1] else Image.Resampling.BICUBIC
    resized = Image.fromarray(scaled.astype(np.uint8)).resize(size, method)
    return np.repeat(np.asarray(resized)[..., np.newaxis], 3, axis=2)


def _outline(tile: NDArray[np.uint8], plane: NDArray[Any], values: Sequence[int], *, dashed: bool) -> None:
    """Draws the outlines of classes into a tile."""
    rows = np.arange(tile.shape[0]) * plane.shape[0] // tile.shape[0]
    columns = np.arange(tile.shape[1]) * plane.shape[1] // tile.shape[1]
    label = plane[np.ix_(rows, columns)]
    diagonal = np.add.outer(np.arange(label.shape[0]), np.arange(label.shape[1]))
    kept = diagonal // DASH % 2 == 0 if dashed else np.ones(label.shape, dtype=bool)
    for number, value in enumerate(values):
        mask = np.pad(label == value, 1)
        inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        tile[mask[1:-1, 1:-1] & ~inner & kept] = COLORS[number % len(COLORS)]


def to_show(array: NDArray[Any], affine: NDArray[np.float64], image: str | Path) -> NDArray[Any]:
    """An array on the grid of an image file with its axes turned and flipped to RAS order, as far as that needs no
    interpolation. The rows of a photo or drawing, which has no place in the world, run downwards when it is shown."""
    from nibabel.orientations import apply_orientation, io_orientation

    found = format_of(image)
    world = LPS if found is not None and not found.placed else affine
    turned: NDArray[Any] = apply_orientation(array, io_orientation(world))  # type: ignore[no-untyped-call]
    return turned
