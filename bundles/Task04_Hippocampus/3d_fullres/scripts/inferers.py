"""Prediction: from a preprocessed image to class probabilities on the same grid."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer, SlidingWindowInferer

from scripts.agreement import Agreement, best_class
from scripts.blocks import Block, cut
from scripts.cpu import SumOfHalves
from scripts.inversion import labels_of_blocks, mean_rows
from scripts.networks import append_one_hot, padded_to, window_size
from scripts.precision import checked_switch, logits
from scripts.resampling import resample, resampled_shape

NOT_FINITE = (
    "the network gives values that are NaN or infinite. Its weights are damaged, or the image's intensities are far "
    "from those of its training."
)
BLOCK = 2**22
"""Probabilities that become float16 at a time: more would need more memory, and gain nothing."""
Networks = Sequence[Callable[..., torch.Tensor]]
Pass = tuple[int, tuple[int, ...]]  # the number of a network and the axes that are mirrored for it

SMALL_WINDOW = 64**3
"""Voxels in the windows that the network sees at once, up to which two passes may share the cores of a CPU. With more,
that gains nothing and needs memory: docs/benchmarks.md of autoplan."""


LOOK_OVERLAP, SPECK = 0.25, 3
"""Overlap of the windows of a first look, and edge of the smallest cube (in slices: square) of voxels that counts. What
is less in a window are mistakes near its border. Our choice: docs/benchmarks.md of autoplan."""


class RowInferer(Inferer, ABC):
    """Predicts an image row by row along an axis, so that the probabilities of the whole need not exist at once.

    Attributes:
        region_first: look at each image once with little overlap and without mirroring, or with the first stage of a
            cascade, and predict only the windows in which that sees an object; the others are background.
        num_classes: with the background.
        agreement: counts, on the way, how far several networks agree.
    """

    region_first = False
    num_classes = 0
    agreement: Agreement | None = None

    def parts(self) -> list[RowInferer]:
        """Those that these attributes are for: itself, unless others do all of it."""
        return [self]

    @abstractmethod
    def blocks(
        self, image: torch.Tensor, network: torch.nn.Module, axis: int, blocks: Sequence[Block]
    ) -> Iterator[Iterator[torch.Tensor]]:
        """Class probabilities of each block of an image, some finished rows at a time: float16 (classes, rows, *plane),
        where a plane has the other two axes in their order, the one that is cut as far as the block goes. They are
        those of the whole image, bit by bit: windows across a cut are seen once for each block.

        Args:
            image: (C, X, Y, Z).
            network: the network, or the module that has the networks of all members; scripted or not, and perhaps in
                an object that has it as `predictor`, as MONAI Deploy's models do.
            axis: spatial axis that the rows are counted along.
            blocks: see :func:`scripts.blocks.cut`. The rows of one are to be taken before those of the next.
        """

    @abstractmethod
    def open_voxels(self, shape: Sequence[int], axis: int, block: Block | None = None) -> float:
        """Voxels of an image of this shape, or of its block, whose probabilities are kept while rows along an axis are
        summed."""

    @abstractmethod
    def windows(self, shape: Sequence[int], blocks: Sequence[Block]) -> int:
        """Windows that the networks see of an image of this shape."""

    @abstractmethod
    def window_voxels(self, shape: Sequence[int]) -> int:
        """Voxels in the windows of an image of this shape that a network sees at once."""

    def rows(
        self, image: torch.Tensor, network: torch.nn.Module, axis: int, *further: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """Class probabilities of an image in one block, see `blocks`."""
        [rows] = self.blocks(image, network, axis, cut([image.shape[1:]], axis), *further)
        return rows

    def best_axis(self, shape: Sequence[int]) -> int:
        """The axis along which the fewest voxels are open; the first of equals."""
        return min(range(len(shape)), key=lambda axis: self.open_voxels(shape, axis))

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *further: torch.Tensor) -> torch.Tensor:
        """Class probabilities, float16 (B, classes, X, Y, Z), of images (B, C, X, Y, Z).

        Args:
            inputs: the images.
            network: see `rows`.
            further: what `blocks` takes beside the image, with one item for each.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        shape = images.shape[2:]
        axis, found = self.best_axis(shape), torch.empty(0)
        for number, (image, *more) in enumerate(zip(images, *further, strict=True)):
            first = 0
            for rows in self.rows(image, network, axis, *more):
                if not found.numel():
                    found = rows.new_empty((len(images), len(rows), *shape))
                found[number].movedim(axis + 1, 1)[:, first : first + rows.shape[1]] = rows
                first += rows.shape[1]
        return MetaTensor(found).copy_meta_from(inputs, copy_attr=False) if isinstance(inputs, MetaTensor) else found


class MirroredWindowInferer(RowInferer, SlidingWindowInferer):  # type: ignore[misc]
    """Sliding window with half overlap and Gaussian weights; in every window the class probabilities are averaged over
    all mirrorings and, where there are several, over the networks.

    The windows and their weights are MONAI's. What differs is memory: sums and weights are kept only for the rows that
    windows still reach. And a small image is padded no further than the network needs, see
    :func:`scripts.networks.window_size`.

    Args:
        patch_size: the window, voxels: three numbers, or two for a network that sees slices.
        slice_axis: spatial axis along which slices run, when the window has two numbers.
        mirror: average over the 2^d combinations of mirrored axes.
        amp: call the network in mixed precision.
        overlap: part of the window by which neighbours overlap.
        sw_batch_size: windows that the network sees at once.
        member: name of the list of networks in a :class:`scripts.networks.Composite` to use; None where the network
            that is given is the one to use.
        num_classes: with the background; needed for the second stage of a cascade and for `region_first`.

    Source: arXiv:1809.10486, section 2.4.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        slice_axis: int = 2,
        mirror: bool = True,
        amp: bool = False,
        overlap: float = 0.5,
        sw_batch_size: int = 1,
        member: str | None = None,
        num_classes: int = 0,
    ) -> None:
        SlidingWindowInferer.__init__(
            self, roi_size=tuple(patch_size), sw_batch_size=sw_batch_size, overlap=overlap, mode="gaussian"
        )
        self.patch_size, self.shared = [int(n) for n in patch_size], float(overlap)
        self.slice_axis = slice_axis if len(patch_size) == 2 else None
        self.mirror = checked_switch("mirror", mirror)
        self.amp = checked_switch("amp", amp)
        self.member = member
        self.num_classes = num_classes
        self._sum = SumOfHalves()

    def open_voxels(self, shape: Sequence[int], axis: int, block: Block | None = None) -> float:
        """One window's rows, or a batch of slices, which are whole rows along one axis only."""
        voxels = math.prod(shape) / shape[axis]
        if block is not None:
            voxels *= (block.spans[0].stop - block.spans[0].start) / shape[block.axis]
        if self.slice_axis is None:
            return voxels * window_size(list(shape), self.patch_size)[axis]
        return voxels * self.sw_batch_size if axis == self.slice_axis else math.inf

    def windows(self, shape: Sequence[int], blocks: Sequence[Block]) -> int:
        """Those that touch a block, for each block."""
        axes = [axis for axis in range(len(shape)) if axis != self.slice_axis]
        size = [shape[axis] for axis in axes]
        slices = 1 if self.slice_axis is None else shape[self.slice_axis]
        return slices * sum(len(self._grid(size, axes.index(block.axis), block)[2]) for block in blocks)

    def _grid(
        self, size: list[int], across: int, block: Block
    ) -> tuple[list[int], list[slice], list[tuple[slice, ...]]]:
        """The size of the windows of an image or slice, where the block lies in it after padding, and the windows that
        touch the block."""
        patch = window_size(size, self.patch_size)
        shape = [max(n, p) for n, p in zip(size, patch, strict=True)]
        steps = [max(1, int(p * (1 - self.shared))) if n > p else p for n, p in zip(shape, patch, strict=True)]
        before = [(n - m) // 2 for n, m in zip(shape, size, strict=True)]
        region = [slice(b, b + m) for b, m in zip(before, size, strict=True)]
        span = block.spans[0]
        region[across] = here = slice(before[across] + span.start, before[across] + span.stop)
        windows = dense_patch_slices(shape, patch, steps)
        return patch, region, [w for w in windows if w[across].start < here.stop and w[across].stop > here.start]

    def window_voxels(self, shape: Sequence[int]) -> int:
        """A batch of windows, which a CPU sees fewer of; twice where two passes share its cores."""
        plane = [n for axis, n in enumerate(shape) if axis != self.slice_axis]
        window = math.prod(window_size(plane, self.patch_size))
        voxels = window * min(self.sw_batch_size, max(1, SMALL_WINDOW // window))
        return voxels * (2 if self.mirror and voxels <= SMALL_WINDOW and not torch.get_num_threads() % 2 else 1)

    def blocks(
        self,
        image: torch.Tensor,
        network: torch.nn.Module,
        axis: int,
        blocks: Sequence[Block],
        lowres: torch.Tensor | None = None,
    ) -> Iterator[Iterator[torch.Tensor]]:
        """Class probabilities of each block of one image, see :class:`RowInferer`.

        Args:
            image: (C, X, Y, Z).
            network: see :class:`RowInferer`.
            axis: that rows are counted along; for a network that sees slices, the axis along which they run.
            blocks: see :class:`RowInferer`.
            lowres: segmentation by the first stage, uint8 (1, X, Y, Z), seen as one-hot channels.
        """
        networks = [network] if self.member is None else members(network, self.member)
        predict = _Predictor(lambda patches: self._probabilities(patches, networks))
        seen = None
        if self.region_first:
            seen = self._seen(image, network, axis, len(blocks)) if lowres is None else lowres
        for block in blocks:
            if self.slice_axis is None:
                low, where = (None if labels is None else labels[None] for labels in (lowres, seen))
                yield (rows[0] for rows in self._windows(image[None], predict, axis, block.axis, block, low, where))
            else:
                yield self._slices(image, predict, block, seen)

    def _seen(self, image: torch.Tensor, network: torch.nn.Module, axis: int, num_blocks: int) -> torch.Tensor:
        """What a first look sees, class numbers, uint8 (1, X, Y, Z)."""
        patch, batch = self.patch_size, self.sw_batch_size
        look = MirroredWindowInferer(patch, self.slice_axis or 0, False, self.amp, LOOK_OVERLAP, batch, self.member)
        shapes = [image.shape[1:]]
        blocks = cut(shapes, axis, num_blocks)
        return labels_of_blocks(look.blocks(image, network, axis, blocks), shapes, axis, blocks)[None]

    def _slices(
        self, image: torch.Tensor, predict: _Predictor, block: Block, seen: torch.Tensor | None
    ) -> Iterator[torch.Tensor]:
        """Probabilities of the block, a batch of slices at a time: (classes, slices, *plane)."""
        axis: Any = self.slice_axis
        across = block.axis - (block.axis > axis)
        along = 1 - across  # A slice has rows, too: along the axis that is not cut.
        size = max(1, self.sw_batch_size)
        batches = image.movedim(axis + 1, 0).split(size)
        regions = [None] * len(batches) if seen is None else seen.movedim(axis + 1, 0).split(size)
        for slices, where in zip(batches, regions, strict=True):
            planes = torch.cat(list(self._windows(slices, predict, along, across, block, None, where)), 2)
            yield planes.movedim(2, 2 + along).transpose(0, 1)

    def _windows(
        self,
        inputs: torch.Tensor,
        predict: _Predictor,
        axis: int,
        across: int,
        block: Block,
        lowres: torch.Tensor | None = None,
        seen: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """Probabilities of the block of images or slices (B, C, *spatial): (B, classes, rows, *the other axes). A
        window in which no object was `seen` (B, 1, *spatial) is background."""
        patch, region, windows = self._grid(list(inputs.shape[2:]), across, block)
        inputs = padded_to(inputs, patch, [1] * len(patch))
        lowres, seen = (
            None if labels is None else padded_to(labels, patch, [1] * len(patch)) for labels in (lowres, seen)
        )
        importance = compute_importance_map(tuple(patch), mode="gaussian", device=inputs.device, dtype=torch.float32)
        sums = _Sums(len(inputs), region, axis, importance)
        batch = self.sw_batch_size
        if inputs.device.type == "cpu":
            batch = min(batch, max(1, SMALL_WINDOW // math.prod(patch)))
        # All windows that begin in one row, then those of the next: the rows before are finished.
        windows = sorted(windows, key=lambda w: w[axis].start)
        for row, group in itertools.groupby(windows, key=lambda w: w[axis].start):
            if row:
                yield from sums.finish(row)
            places = [(image, window) for window in group for image in range(len(inputs))]
            if seen is not None:
                least = SPECK ** len(patch)
                empty = [int(seen[image, 0][window].count_nonzero()) < least for image, window in places]
                for place in itertools.compress(places, empty):
                    sums.add(*place, self._background(inputs, patch))
                places = [place for place, is_empty in zip(places, empty, strict=True) if not is_empty]
            for first in range(0, len(places), batch):
                part = places[first : first + batch]
                patches = torch.cat([self._patch(inputs, lowres, *place) for place in part])
                for place, probabilities in zip(part, predict(patches), strict=True):
                    sums.add(*place, probabilities)
        yield from sums.finish(inputs.shape[2 + axis])

    def _background(self, inputs: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
        """Probabilities (classes, *patch) of a window that has nothing."""
        found = inputs.new_zeros((self.num_classes, *patch))
        found[0] = 1
        return found

    def _patch(
        self, inputs: torch.Tensor, lowres: torch.Tensor | None, image: int, window: tuple[slice, ...]
    ) -> torch.Tensor:
        where = (slice(image, image + 1), slice(None), *window)
        if lowres is None:
            return inputs[where]
        return append_one_hot(inputs[where], lowres[where], self.num_classes)

    def _probabilities(self, window: torch.Tensor, networks: Networks) -> torch.Tensor:
        axes = range(2, window.ndim) if self.mirror else ()
        flips = [f for n in range(len(axes) + 1) for f in itertools.combinations(axes, n)]
        passes = [(number, flip) for flip in flips for number in range(len(networks))]
        counted = self.agreement if len(networks) > 1 else None
        labels: dict[int, torch.Tensor] = {}

        def summed(some: Sequence[Pass]) -> torch.Tensor:
            total: Any = None
            # Around all passes: what autocast makes of the weights is kept until it is left.
            with torch.autocast(window.device.type, enabled=self.amp):
                for number, flip in some:
                    mirrored = window.flip(flip) if flip else window
                    probabilities = logits(networks[number], mirrored, self.amp).softmax(dim=1)
                    probabilities = probabilities.flip(flip) if flip else probabilities
                    if counted is not None and not flip:
                        labels[number] = best_class(probabilities, 1)
                    total = probabilities if total is None else total.add_(probabilities)
            return total

        small = window.device.type == "cpu" and window[:, 0].numel() <= SMALL_WINDOW
        total = self._sum(summed, passes, (window.shape, len(passes)), at_once=small and self.mirror)
        if counted is not None:
            counted.add(str(self.member), [labels[number] for number in range(len(networks))])
        return total.div_(len(passes))


def members(network: Any, name: str) -> list[torch.nn.Module]:
    """The networks in a list of a module, or of the module that an object has as `predictor`."""
    return list(getattr(getattr(network, "predictor", network), name).children())


class _Predictor:
    """The probabilities of windows. One with the same value everywhere, as air in a clipped CT or the zeros around a
    brain have, has the same output wherever it lies: the last such output is kept.

    Args:
        network: gives the probabilities (B, classes, *spatial) of windows (B, C, *spatial).
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.network = network
        self.value: tuple[float, ...] | None = None
        self.output = torch.empty(0)

    def __call__(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Probabilities (classes, *spatial) of each window, which the caller may change."""
        values = _constants(windows)
        known = {} if self.value is None else {self.value: self.output}
        new = [n for n, value in enumerate(values) if value is None or value not in (*known, *values[:n])]
        outputs = self.network(windows if len(new) == len(windows) else windows[new]) if new else ()
        found = dict(zip(new, outputs, strict=True))
        for number, output in found.items():
            if (value := values[number]) is not None:
                known[value] = output.clone()
                self.value, self.output = value, known[value]
        return [found[n] if n in found else known[value].clone() for n, value in enumerate(values)]  # type: ignore[index]


def _constants(windows: torch.Tensor) -> list[tuple[float, ...] | None]:
    """The value in each channel of each window (B, C, *spatial) that has one value a channel; None for the others."""
    flat = windows.flatten(2)
    same = (flat.amax(2) == flat.amin(2)).all(1).tolist()
    return [tuple(window[:, 0].tolist()) if is_same else None for window, is_same in zip(flat, same, strict=True)]


class _Sums:
    """Weighted sums of the probabilities in windows, for the rows along an axis that are still open: (images, classes,
    rows of a window, *the other axes). Row r of the image is row r modulo their number here, so that nothing moves.

    Args:
        num: images.
        region: of the padded image, the part whose probabilities are wanted, along each axis.
        axis: that rows are counted along.
        importance: weights within a window.
    """

    def __init__(self, num: int, region: Sequence[slice], axis: int, importance: torch.Tensor) -> None:
        self.num, self.axis, self.rows = num, axis, region[axis]
        self.others = [r for a, r in enumerate(region) if a != axis]
        self.importance = importance.movedim(axis, 0)
        self.length = len(self.importance)
        self.weights = importance.new_zeros((self.length, *(r.stop - r.start for r in self.others)))
        self.row = 0
        self.sums = torch.empty(0)

    def add(self, image: int, window: tuple[slice, ...], probabilities: torch.Tensor) -> None:
        """Take in the probabilities (classes, *window) of a window that begins at the first open row."""
        if not self.sums.numel():
            self.sums = self.weights.new_zeros((self.num, len(probabilities), *self.weights.shape))
        both = list(zip((w for a, w in enumerate(window) if a != self.axis), self.others, strict=True))
        common = [(max(w.start, r.start), min(w.stop, r.stop)) for w, r in both]
        where = tuple(slice(a - r.start, b - r.start) for (a, b), (_, r) in zip(common, both, strict=True))
        inner = (slice(None), *(slice(a - w.start, b - w.start) for (a, b), (w, _) in zip(common, both, strict=True)))
        importance = self.importance[inner]
        weighted = probabilities.movedim(self.axis + 1, 1)[(slice(None), *inner)].mul_(importance)
        begin, last = self.row % self.length, self.length - self.row % self.length
        for here, there in ((slice(begin, None), slice(last)), (slice(begin), slice(last, None))):
            self.sums[image][(slice(None), here, *where)] += weighted[:, there]
            if image == 0:
                self.weights[(here, *where)] += importance[there]

    def finish(self, row: int) -> Iterator[torch.Tensor]:
        """Close all rows before `row`, and give the probabilities of those in the region, float16 (images, classes,
        rows, *the other axes)."""
        first, end = max(self.row, self.rows.start), min(row, self.rows.stop)
        some = max(1, BLOCK // self.sums[:, :, 0].numel())
        while first < end:
            begin = first % self.length
            num = min(some, end - first, self.length - begin)
            sums, weights = self.sums[:, :, begin : begin + num], self.weights[begin : begin + num]
            probabilities = sums / weights
            if not probabilities.sum().isfinite():
                raise ValueError(NOT_FINITE)
            sums.zero_()
            weights.zero_()
            yield probabilities.to(torch.float16)
            first += num
        self.row = row


class CascadeInferer(RowInferer):
    """Both stages of a cascade on an image of full resolution.

    Args:
        lowres: inferer of the first stage.
        cascade: inferer of the second stage.
        spacing: mm, of the images.
        lowres_spacing: mm, that the first stage sees.

    Source: arXiv:1809.10486, section 2.1, "U-Net Cascade".
    """

    def __init__(
        self,
        lowres: MirroredWindowInferer,
        cascade: MirroredWindowInferer,
        spacing: Sequence[float],
        lowres_spacing: Sequence[float],
    ) -> None:
        super().__init__()
        self.lowres, self.cascade = lowres, cascade
        self.spacing, self.lowres_spacing = tuple(spacing), tuple(lowres_spacing)

    def open_voxels(self, shape: Sequence[int], axis: int, block: Block | None = None) -> float:
        """Those of the second stage; the first one has finished by then."""
        return self.cascade.open_voxels(shape, axis, block)

    def parts(self) -> list[RowInferer]:
        """The second stage."""
        return [self.cascade]

    def windows(self, shape: Sequence[int], blocks: Sequence[Block]) -> int:
        """Of both stages."""
        low_shape = resampled_shape(shape, self.spacing, self.lowres_spacing)
        low = cut([low_shape], self.lowres.best_axis(low_shape), len(blocks))
        return self.lowres.windows(low_shape, low) + self.cascade.windows(shape, blocks)

    def window_voxels(self, shape: Sequence[int]) -> int:
        """Of the stage that sees more."""
        return max(self.lowres.window_voxels(shape), self.cascade.window_voxels(shape))

    def blocks(
        self, image: torch.Tensor, network: torch.nn.Module, axis: int, blocks: Sequence[Block]
    ) -> Iterator[Iterator[torch.Tensor]]:
        """Class probabilities of each block of one image, see :class:`RowInferer`; `network` is the
        :class:`scripts.networks.Composite` with both stages. The first stage sees as many blocks."""
        lowres = self.first_stage(image[None], network, len(blocks))[0]
        yield from self.cascade.blocks(image, network, axis, blocks, lowres)

    def first_stage(self, inputs: torch.Tensor, network: torch.nn.Module, num_blocks: int = 1) -> torch.Tensor:
        """Segmentation by the first stage, uint8 (B, 1, X, Y, Z): seen on the low resolution, given on the full one."""
        shape = inputs.shape[2:]
        low_shape = resampled_shape(shape, self.spacing, self.lowres_spacing)
        inputs = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        axis = self.lowres.best_axis(low_shape)
        blocks = cut([low_shape], axis, num_blocks)
        found = []
        for image in inputs:
            rows = self.lowres.blocks(resample(image, low_shape, "spline"), network, axis, blocks)
            labels = labels_of_blocks(rows, [low_shape], axis, blocks)
            found.append(resample(labels[None], shape, "nearest"))
        return torch.stack(found)


class MeanInferer(RowInferer):
    """Mean of the class probabilities that several inferers give for the same image.

    Source: arXiv:1809.10486, section 2.6.
    """

    def __init__(self, inferers: Sequence[RowInferer]) -> None:
        super().__init__()
        self.inferers = list(inferers)

    def open_voxels(self, shape: Sequence[int], axis: int, block: Block | None = None) -> float:
        """Those of all members, which advance together."""
        return sum(inferer.open_voxels(shape, axis, block) for inferer in self.inferers)

    def parts(self) -> list[RowInferer]:
        """Itself, which compares its members, and theirs."""
        return [self, *(part for inferer in self.inferers for part in inferer.parts())]

    def windows(self, shape: Sequence[int], blocks: Sequence[Block]) -> int:
        """Of all members."""
        return sum(inferer.windows(shape, blocks) for inferer in self.inferers)

    def window_voxels(self, shape: Sequence[int]) -> int:
        """Of the member that sees most."""
        return max(inferer.window_voxels(shape) for inferer in self.inferers)

    def blocks(
        self, image: torch.Tensor, network: torch.nn.Module, axis: int, blocks: Sequence[Block]
    ) -> Iterator[Iterator[torch.Tensor]]:
        """Mean class probabilities of each block of one image, see :class:`RowInferer`."""
        mean = partial(mean_rows, agreement=self.agreement)
        yield from map(mean, zip(*(i.blocks(image, network, axis, blocks) for i in self.inferers), strict=True))


class PatchInferer(Inferer):
    """All networks of a :class:`scripts.networks.Composite` on whole patches, which trains them together: the
    logarithms of their mean class probabilities, which the softmax of a loss turns into these.

    Args:
        amp: mixed precision.
        slice_axis: spatial axis along which slices run; patches of slices lack it.
    """

    def __init__(self, amp: bool, slice_axis: int) -> None:
        super().__init__()
        self.amp, self.axis = checked_switch("amp", amp), 2 + int(slice_axis)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Logarithms (B, classes, *spatial), float32, of patches (B, C, *spatial)."""
        flat = inputs.ndim == 4
        probabilities = logits(network, inputs.unsqueeze(self.axis) if flat else inputs, self.amp)
        found = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
        return found.squeeze(self.axis) if flat else found
