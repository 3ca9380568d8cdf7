"""From class probabilities on the preprocessed grid to a label map on the image's own grid."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Invertd

from scripts.agreement import Agreement, best_class
from scripts.blocks import OTHER_GRIDS, Block, aligned, cut
from scripts.formats import case_name
from scripts.memory import Need, as_bytes, as_text, memory_bytes, need
from scripts.precision import checked_switch
from scripts.probabilities import Stored, keeping
from scripts.resampling import linear_neighbors, shapes_back

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
SHARE = 0.75
"""Of the memory that there is, what a prediction may take where no limit is given. Our choice."""
WORTH_SAYING = 10**9
"""Bytes from which on it is said beforehand what an image takes."""


def mean_rows(members: Sequence[Iterator[torch.Tensor]], agreement: Agreement | None = None) -> Iterator[torch.Tensor]:
    """The mean of class probabilities that come row by row. `agreement` counts how far the members agree.

    Raises:
        ValueError: members with other classes, planes or numbers of rows.
    """
    for first, *others in aligned(members):
        if any(other.shape != first.shape for other in others):
            raise ValueError(OTHER_GRIDS)
        if agreement is not None and others:
            agreement.add("members", [best_class(rows, 0) for rows in (first, *others)])
        total = first.clone() if others else first
        for other in others:
            total += other
        yield total.div_(len(members)) if others else total


def labels_of(
    rows: Iterator[torch.Tensor], shapes: Sequence[Sequence[int]], axis: int, block: Block | None = None
) -> torch.Tensor:
    """The most probable class of every voxel on another grid over the same field of view, the first in a tie.

    Probabilities are interpolated linearly, as `ResampleToSpacing.inverse` does it, and compared in float16. A row
    needs the two that it lies between, so no more of the image is kept.

    Args:
        rows: class probabilities, (classes, rows, *plane), along an axis.
        shapes: voxels of each spatial axis that the image has, and those of the grids that it is to be interpolated to,
            one after the other.
        axis: that the rows run along.
        block: the part of the image that `rows` has; None for all of it.

    Returns:
        Class numbers, uint8, of the last shape or of the block's part of it.
    """
    block = block or cut(shapes, axis)[0]
    for grids, spans in zip(itertools.pairwise(shapes), itertools.pairwise(block.spans), strict=True):
        if tuple(grids[0]) != tuple(grids[1]):
            rows = _interpolated(rows, *grids, axis, block.axis, *spans)
    shape = list(shapes[-1])
    shape[block.axis] = block.spans[-1].stop - block.spans[-1].start
    labels, filled = torch.empty(0), 0
    for some in rows:
        found = best_class(some.to(torch.float16), 0)
        if not labels.numel():
            labels = found.new_empty(shape)
        labels.movedim(axis, 0)[filled : filled + len(found)] = found
        filled += len(found)
    return labels


def _interpolated(
    rows: Iterator[torch.Tensor],
    shape: Sequence[int],
    new_shape: Sequence[int],
    axis: int,
    across: int,
    span: slice,
    new_span: slice,
) -> Iterator[torch.Tensor]:
    """Rows of a part of an image interpolated to those of another shape, one at a time: float32 (classes, 1, *plane).

    PyTorch interpolates the other two axes, but `across` only where it is not cut: what a voxel becomes depends on the
    part that it is in by float32's rounding alone.
    """
    lower, upper, weight = (values[new_span] for values in linear_neighbors(shape[across], new_shape[across]))
    dim = 1 + across - (across > axis)  # of a row (classes, *plane)
    [third] = {0, 1, 2} - {axis, across}
    is_cut = span != slice(0, shape[across])
    last = first = torch.empty(0)
    made, seen = 0, -1
    below, above, part = (values.tolist() for values in linear_neighbors(shape[axis], new_shape[axis]))
    for some in rows:
        for row in some.unbind(1):
            size = [row.shape[dim] if is_cut else new_shape[across]] * 2
            size[2 - dim] = new_shape[third]
            wide = torch.nn.functional.interpolate(row[None].float(), size=size, mode="bilinear")[0]
            last, seen, first = first, seen + 1, wide
            if is_cut and shape[across] != new_shape[across]:
                there, next_to = ((index - span.start).to(row.device) for index in (lower, upper))
                weights = weight.to(row.device).reshape(-1, *[1] * (2 - dim))
                first = wide.index_select(dim, there).lerp_(wide.index_select(dim, next_to), weights)
            while made < new_shape[axis] and above[made] <= seen:
                yield (first if below[made] == seen else torch.lerp(last, first, part[made]))[:, None]
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


def labels_of_blocks(
    rows: Iterable[Iterator[torch.Tensor]], shapes: Sequence[Sequence[int]], axis: int, blocks: Sequence[Block]
) -> torch.Tensor:
    """The label map of a whole image, from the rows of each of its blocks; see `labels_of`."""
    parts = [labels_of(some, shapes, axis, block) for some, block in zip(rows, blocks, strict=True)]
    return torch.cat(parts, blocks[0].axis) if len(parts) > 1 else parts[0]


class LabelInferer(Inferer):
    """Predicts label maps on the grid that images had before they were resampled; the probabilities of a whole image
    never exist at once. `InvertToLabeld` does the rest of the inversion. After an image, `network_seconds` and
    `agreement` are those of this image, see :class:`scripts.agreement.Agreement`.

    Args:
        inferer: gives the class probabilities, row by row: a :class:`scripts.inferers.RowInferer`.
        num_classes: with the background.
        probabilities_dir: folder that gets the probabilities, as <case>.npz; None where nothing is kept.
        axis: that rows are counted along; None: the one that takes the least memory. Probabilities that are to be
            averaged later need the same one.
        max_memory: what the prediction of an image on a CPU may take, such as "4GB", above what the process has after
            its imports; None: three quarters of the memory that there is. Where the open rows do not fit, the image is
            predicted in as many blocks as are needed. The label map is the same but for rounding.
        region_first: see :class:`scripts.inferers.RowInferer`.
    """

    def __init__(
        self,
        inferer: Any,
        num_classes: int,
        probabilities_dir: str | Path | None = None,
        axis: int | None = None,
        max_memory: str | float | None = None,
        region_first: bool = False,
    ) -> None:
        super().__init__()
        self.inferer, self.axis = inferer, axis
        self.folder = None if probabilities_dir is None else Path(probabilities_dir)
        self.limit = None if max_memory is None else as_bytes(max_memory)
        self.num_classes = num_classes
        self.region_first = checked_switch("region_first", region_first)
        self.network_seconds = 0.0
        self.agreement: float | None = None

    def __call__(self, inputs: MetaTensor, network: torch.nn.Module) -> MetaTensor:
        """Class numbers, uint8 (1, 1, X, Y, Z), of one image (1, C, X, Y, Z)."""
        image: Any = inputs[0]
        shape = image.shape[1:]
        axis = self.inferer.best_axis(shape) if self.axis is None else self.axis
        shapes = shapes_back(image, shape)
        blocks = self._blocks(image, shapes, network, axis)
        agreement = Agreement(self.num_classes)
        for part in self.inferer.parts():
            part.agreement, part.num_classes, part.region_first = agreement, self.num_classes, self.region_first
        self.network_seconds = 0.0
        rows = map(self._timed, self._timed(self.inferer.blocks(image.as_tensor(), network, axis, blocks)))
        segment = partial(labels_of_blocks, shapes=shapes, axis=axis, blocks=blocks)
        if self.folder is None:
            labels = segment(rows)
        else:
            path = self.folder / f"{case_name(image.meta['filename_or_obj'])}.npz"
            labels = keeping(path, rows, image, axis, blocks, segment)
        self.agreement = agreement.value
        return MetaTensor(labels[None, None]).copy_meta_from(inputs, copy_attr=False)

    def _timed(self, found: Iterable[Item]) -> Iterator[Item]:
        """What is found; the time that was waited for it is added to `network_seconds`."""
        start = time.monotonic()
        for some in found:
            self.network_seconds += time.monotonic() - start
            yield some
            start = time.monotonic()
        self.network_seconds += time.monotonic() - start

    def _blocks(
        self, image: MetaTensor, shapes: Sequence[Sequence[int]], network: torch.nn.Module, axis: int
    ) -> list[Block]:
        """The fewest blocks of an image with which its prediction fits.

        Raises:
            ValueError: there are none.
        """
        whole = cut(shapes, axis)
        limit = self.limit or int(SHARE * memory_bytes())
        if image.device.type != "cpu" or not limit:
            return whole
        window, features = self.inferer.window_voxels(shapes[0]), _features(network)

        def needed(blocks: Sequence[Block]) -> Need:
            voxels = max(self.inferer.open_voxels(shapes[0], axis, block) for block in blocks)
            return need(image.shape, shapes[-1], window, features, self.num_classes, voxels)

        most = shapes[-1][whole[0].axis]
        least = needed(cut(shapes, axis, most))
        if least.total > limit:
            raise ValueError(f"it would take about {least}, of which {as_text(limit)} are to be used at most")
        options = (cut(shapes, axis, num) for num in range(1, most + 1))
        blocks = next(b for b in options if needed(b).total <= limit)
        takes = needed(blocks)
        if self.limit or len(blocks) > 1 or takes.total > WORTH_SAYING:
            name, said = case_name(image.meta["filename_or_obj"]), ""
            if len(blocks) > 1:
                more = self.inferer.windows(shapes[0], blocks) / self.inferer.windows(shapes[0], whole) - 1
                said = f", in {len(blocks)} blocks with {100 * more:.0f} % more windows"
            logger.info("%s takes about %s%s", name, takes, said)
        return blocks


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

    What it gives is on the host, wherever the network is: what comes after it (components, files, scores) meets no
    tensor of another device.

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
                d[key] = MetaTensor(found.as_tensor().to("cpu", torch.uint8)).copy_meta_from(found)
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
            d[key] = MetaTensor(label.cpu()).copy_meta_from(found)
        return d
