"""An image in blocks along one axis, predicted one after the other where not all of it fits into memory at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from scripts.resampling import linear_neighbors

OTHER_GRIDS = "the members of the ensemble predict on different grids"


@dataclass(frozen=True)
class Block:
    """A part of an image: some of it along one axis, all of it along the others.

    Attributes:
        axis: spatial axis that is cut.
        spans: the part along it, on each grid from the one that the network sees to that of the label map. Those of the
            label map are next to each other; before, they overlap by what is interpolated between.
        own: what no block before has of the first span, counted from where the span starts.
    """

    axis: int
    spans: tuple[slice, ...]
    own: slice


def cut_axis(shape: Sequence[int], axis: int) -> int:
    """The axis along which an image is cut whose rows run along another: the longest, as it has the most windows, the
    fewest of which lie across a cut."""
    return max((a for a in range(len(shape)) if a != axis), key=lambda a: shape[a])


def cut(shapes: Sequence[Sequence[int]], axis: int, num: int = 1) -> list[Block]:
    """An image in blocks of the same size.

    Args:
        shapes: voxels of the image on the grid that the network sees, and on those that it is then interpolated to.
        axis: that rows run along.
        num: blocks; no more than there are voxels.
    """
    across = cut_axis(shapes[0], axis)
    sizes = [shape[across] for shape in shapes]
    num = min(num, sizes[-1])
    edges = [sizes[-1] * number // num for number in range(num + 1)]
    blocks, end = [], 0
    for span in itertools.starmap(slice, itertools.pairwise(edges)):
        spans = [span]
        for before, after in itertools.pairwise(reversed(sizes)):
            spans.append(_source(after, before, spans[-1]))
        # What lies between two blocks, as an image that gets coarser does not need all, is the second one's.
        first = slice(min(spans[-1].start, end), sizes[0] if span.stop == sizes[-1] else spans[-1].stop)
        blocks.append(Block(across, (first, *reversed(spans[:-1])), slice(end - first.start, first.stop - first.start)))
        end = first.stop
    return blocks


def _source(num_in: int, num_out: int, span: slice) -> slice:
    """What a part of `num_out` samples is interpolated from."""
    if num_in == num_out:
        return span
    lower, upper, _ = linear_neighbors(num_in, num_out)
    return slice(int(lower[span.start]), int(upper[span.stop - 1]) + 1)


def aligned(members: Sequence[Iterator[torch.Tensor]]) -> Iterator[list[torch.Tensor]]:
    """What several give row by row, (classes, rows, *plane), as many rows at a time as all of them have finished.

    Raises:
        ValueError: they have other numbers of rows.
    """
    waiting: list[torch.Tensor | None] = [None] * len(members)
    while True:
        for number, (member, rows) in enumerate(zip(members, waiting, strict=True)):
            waiting[number] = next(member, None) if rows is None else rows
        there = [rows for rows in waiting if rows is not None]
        if not there:
            return
        if len(there) < len(members):
            raise ValueError(OTHER_GRIDS)
        num = min(rows.shape[1] for rows in there)
        waiting = [rows[:, num:] if rows.shape[1] > num else None for rows in there]
        yield [rows[:, :num] for rows in there]
