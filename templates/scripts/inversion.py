"""From class probabilities on the preprocessed grid to a label map on the image's own grid."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Invertd

from scripts.formats import case_name
from scripts.memory import as_bytes, as_text, memory_bytes, need, zeros_in_file
from scripts.probabilities import Stored, keeping
from scripts.resampling import shapes_back

logger = logging.getLogger(__name__)
SHARE = 0.75
"""Of the memory that there is, what a prediction may take where no limit is given. Our choice."""
WORTH_SAYING = 10**9
"""Bytes from which on it is said beforehand what an image takes."""


def mean_rows(members: Sequence[Iterator[torch.Tensor]]) -> Iterator[torch.Tensor]:
    """The mean of class probabilities that come row by row, (classes, rows, *plane), as many rows at a time as all
    members have finished.

    Raises:
        ValueError: members with other classes, planes or numbers of rows.
    """
    if len(members) == 1:
        yield from members[0]
        return
    waiting: list[torch.Tensor | None] = [None] * len(members)
    while True:
        for number, (member, rows) in enumerate(zip(members, waiting, strict=True)):
            waiting[number] = next(member, None) if rows is None else rows
        there = [rows for rows in waiting if rows is not None]
        if not there:
            return
        shapes = {(len(rows), *rows.shape[2:]) for rows in there}
        if len(there) < len(members) or len(shapes) > 1:
            raise ValueError("the members of the ensemble predict on different grids")
        num = min(rows.shape[1] for rows in there)
        total = there[0][:, :num].clone()
        for rows in there[1:]:
            total += rows[:, :num]
        waiting = [rows[:, num:] if rows.shape[1] > num else None for rows in there]
        yield total.div_(len(members))


def labels_of(rows: Iterator[torch.Tensor], shapes: Sequence[Sequence[int]], axis: int) -> torch.Tensor:
    """The most probable class of every voxel on another grid over the same field of view, the first in a tie.

    Probabilities are interpolated linearly, as `ResampleToSpacing.inverse` does it, and compared in float16. A row
    needs the two that it lies between, so no more of the image is kept.

    Args:
        rows: class probabilities, (classes, rows, *plane), along an axis.
        shapes: voxels of each spatial axis that `rows` has, and those of the grids that it is to be interpolated to,
            one after the other.
        axis: that the rows run along.

    Returns:
        Class numbers, uint8 of the last shape.
    """
    for shape, new_shape in itertools.pairwise(shapes):
        if tuple(shape) != tuple(new_shape):
            plane = [n for a, n in enumerate(new_shape) if a != axis]
            rows = _interpolated(rows, shape[axis], new_shape[axis], plane)
    labels, filled = torch.empty(0), 0
    for some in rows:
        found = some.to(torch.float16).max(0).indices
        if not labels.numel():
            labels = torch.empty(tuple(shapes[-1]), dtype=torch.uint8, device=found.device)
        labels.movedim(axis, 0)[filled : filled + len(found)] = found
        filled += len(found)
    return labels


def _interpolated(
    rows: Iterator[torch.Tensor], num_in: int, num_out: int, plane: Sequence[int]
) -> Iterator[torch.Tensor]:
    """Rows interpolated to `num_out` ones with planes of another shape, one at a time: float32 (classes, 1, *plane)."""
    last = first = torch.empty(0)
    made, seen = 0, -1
    for some in rows:
        for row in some.unbind(1):
            last, seen = first, seen + 1
            first = torch.nn.functional.interpolate(row[None].float(), size=tuple(plane), mode="bilinear")[0]
            while made < num_out:
                place = max(0.0, (made + 0.5) * num_in / num_out - 0.5)
                lower = int(place)
                if min(lower + 1, num_in - 1) > seen:
                    break
                yield (first if lower == seen else torch.lerp(last, first, place - lower))[:, None]
                made += 1


def labels_of_files(paths: Sequence[str | Path]) -> dict[str, MetaTensor]:
    """The mean of stored probabilities, segmented as `LabelInferer` does it.

    Args:
        paths: files of one case, one of each member of the ensemble.

    Returns:
        "pred": class numbers, uint8 (1, X, Y, Z); "image": a tensor without voxels, with the image's geometry.

    Raises:
        ValueError: files of other grids than each other's.
    """
    members = [Stored(path) for path in paths]
    first = members[0]
    for path, other in zip(paths[1:], members[1:], strict=True):
        if (other.shape, other.axis) != (first.shape, first.axis):
            raise ValueError(f"on another grid than {path}")
    rows = mean_rows([member.rows() for member in members])
    labels = labels_of(rows, shapes_back(first.image, first.shape), first.axis)
    return {"pred": MetaTensor(labels[None]), "image": first.image}


class LabelInferer(Inferer):
    """Predicts label maps on the grid that images had before they were resampled; the probabilities of a whole image
    never exist at once. `InvertToLabeld` does the rest of the inversion.

    Args:
        inferer: gives the class probabilities, row by row: a :class:`scripts.inferers.RowInferer`.
        probabilities_dir: folder that gets the probabilities, as <case>.npz; None where nothing is kept.
        axis: that rows are counted along; None: the one that takes the least memory. Probabilities that are to be
            averaged later need the same one.
        max_memory: what the prediction of an image on a CPU may take, such as "4GB", above what the process has after
            its imports; None: three quarters of the memory that there is. Where the open rows do not fit, they are kept
            in a file.
        num_classes: with the background.
        scratch_dir: folder of that file.
    """

    def __init__(
        self,
        inferer: Any,
        probabilities_dir: str | Path | None = None,
        axis: int | None = None,
        max_memory: str | float | None = None,
        num_classes: int = 2,
        scratch_dir: str | Path = ".",
    ) -> None:
        super().__init__()
        self.inferer, self.axis = inferer, axis
        self.folder = None if probabilities_dir is None else Path(probabilities_dir)
        self.limit = None if max_memory is None else as_bytes(max_memory)
        self.num_classes, self.scratch = num_classes, Path(scratch_dir)
        self.network_seconds = 0.0

    def __call__(self, inputs: MetaTensor, network: torch.nn.Module) -> MetaTensor:
        """Class numbers, uint8 (1, 1, X, Y, Z), of one image (1, C, X, Y, Z)."""
        image: Any = inputs[0]
        shape = image.shape[1:]
        axis = self.inferer.best_axis(shape) if self.axis is None else self.axis
        shapes = shapes_back(image, shape)
        storage = self._storage(image, shapes[-1], network, axis)
        rows = self._timed(self.inferer.rows(image.as_tensor(), network, axis, **storage))
        segment = partial(labels_of, shapes=shapes, axis=axis)
        if self.folder is None:
            labels = segment(rows)
        else:
            path = self.folder / f"{case_name(image.meta['filename_or_obj'])}.npz"
            labels = keeping(path, rows, image, axis, segment)
        return MetaTensor(labels[None, None]).copy_meta_from(inputs, copy_attr=False)

    def _timed(self, rows: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The rows; `network_seconds` becomes the time that was waited for them."""
        self.network_seconds, start = 0.0, time.monotonic()
        for some in rows:
            self.network_seconds += time.monotonic() - start
            yield some
            start = time.monotonic()
        self.network_seconds += time.monotonic() - start

    def _storage(self, image: MetaTensor, shape: Sequence[int], network: torch.nn.Module, axis: int) -> dict[str, Any]:
        """Where the open rows of an image are kept: the option "zeros" of the inferer, or nothing.

        Raises:
            ValueError: what cannot be kept in a file does not fit.
        """
        limit = self.limit or int(SHARE * memory_bytes())
        if image.device.type != "cpu" or not limit:
            return {}
        voxels = self.inferer.window_voxels(image.shape[1:]), self.inferer.open_voxels(image.shape[1:], axis)
        needed = need(image.shape, shape, voxels[0], _features(network), self.num_classes, voxels[1])
        fits = needed.total <= limit
        name = case_name(image.meta["filename_or_obj"])
        if self.limit or not fits or needed.total > WORTH_SAYING:
            logger.info("%s takes about %s%s", name, needed, "" if fits else "; the open rows are kept in a file")
        if needed.total - needed.rows > limit:
            raise ValueError(f"it would take about {needed}, of which {as_text(limit)} are to be used at most")
        return {} if fits else {"zeros": lambda shape, _: zeros_in_file(self.scratch, shape)}


def _features(network: Any) -> int:
    """Feature maps of the first layer of a network, or of the one that an object has as `predictor`."""
    parameters = getattr(getattr(network, "predictor", network), "parameters", lambda: ())
    return next((len(weights) for weights in parameters()), 1)


class InvertToLabeld(Invertd):
    """Invert the preprocessing and take the most probable class of every voxel, the first in a tie.

    It takes what `LabelInferer` gives, or the class probabilities that other inferers give. From those it gives what
    `Invertd` and, from its values in float16, `AsDiscreted(argmax=True)` give, as uint8, but goes class by class: on
    the image's own grid, which may be much finer, there is never more than the largest probability so far and those of
    one class.

    Args:
        keys: the probabilities, (classes, X, Y, Z), or class numbers, uint8 (1, X, Y, Z).
        transform: the preprocessing.
        orig_keys: the preprocessed image.
    """

    def __init__(self, keys: Hashable, transform: Any, orig_keys: Hashable) -> None:
        super().__init__(keys, transform, orig_keys, nearest_interp=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, orig_key in self.key_iterator(d, self.orig_keys):
            if d[key].dtype == torch.uint8:
                found = super().__call__({key: MetaTensor(d[key].as_tensor()), orig_key: d[orig_key]})[key]
                d[key] = MetaTensor(found.as_tensor().to(torch.uint8)).copy_meta_from(found)
                continue
            largest = label = torch.empty(0)
            for number, probabilities in enumerate(d[key]):
                single = {key: MetaTensor(probabilities[None]), orig_key: d[orig_key]}
                found = super().__call__(single)[key]
                values = found.as_tensor().to(torch.float16)
                if number == 0:
                    largest, label = values, torch.zeros_like(values, dtype=torch.uint8)
                else:
                    label.masked_fill_(values > largest, number)
                    torch.maximum(largest, values, out=largest)
            d[key] = MetaTensor(label).copy_meta_from(found)
        return d
