"""Prediction: from a preprocessed image to class probabilities on the same grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer, SlidingWindowInferer

from scripts.cpu import sum_by_two_threads
from scripts.networks import append_one_hot, cropped_to, padded_to, window_size
from scripts.precision import checked_switch, logits
from scripts.resampling import resample, resampled_shape

NOT_FINITE = (
    "the network gives values that are NaN or infinite. Its weights are damaged, or the image's intensities are far "
    "from those of its training."
)
Networks = Sequence[Callable[..., torch.Tensor]]
Pass = tuple[Callable[..., torch.Tensor], tuple[int, ...]]  # a network and the axes that are mirrored for it

SMALL_WINDOW = 64**3
"""Voxels in the windows that the network sees at once, up to which two passes share the cores of a CPU. With more, that
gains nothing and needs memory: docs/benchmarks.md of autoplan."""


class MirroredWindowInferer(SlidingWindowInferer):
    """Sliding window with half overlap and Gaussian weights; in every window the class probabilities are averaged over
    all mirrorings and, where there are several, over the networks.

    The windows and their weights are MONAI's. What differs is memory: sums and weights are kept only for the rows that
    windows still reach, and finished rows become float16, so that an image of V voxels and K classes needs 2 K V bytes
    and not 4 (K + 1) V. And a small image is padded no further than the network needs, see
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
        num_classes: classes of the segmentation that a cascade's second stage sees.

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
        super().__init__(roi_size=tuple(patch_size), sw_batch_size=sw_batch_size, overlap=overlap, mode="gaussian")
        self.patch_size, self.shared = [int(n) for n in patch_size], float(overlap)
        self.slice_axis = slice_axis if len(patch_size) == 2 else None
        self.mirror = checked_switch("mirror", mirror)
        self.amp = checked_switch("amp", amp)
        self.member = member
        self.num_classes = num_classes

    def __call__(
        self, inputs: torch.Tensor, network: torch.nn.Module, lowres: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Class probabilities, float16 (B, classes, X, Y, Z).

        Args:
            inputs: images (B, C, X, Y, Z).
            network: the network, or the module that has the networks of `member`; scripted or not.
            lowres: segmentation of the first stage, uint8 (B, 1, X, Y, Z), seen as one-hot channels.
        """
        networks = [network] if self.member is None else list(getattr(network, self.member).children())
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if self.slice_axis is None:
            pred = self._windows(image, networks, lowres)
        else:
            axis = self.slice_axis + 2
            pred = self._windows(image.movedim(axis, 1).flatten(0, 1), networks, None)
            pred = pred.unflatten(0, (len(image), image.shape[axis])).movedim(1, axis)
        return MetaTensor(pred).copy_meta_from(inputs, copy_attr=False) if isinstance(inputs, MetaTensor) else pred

    def _windows(self, inputs: torch.Tensor, networks: Networks, lowres: torch.Tensor | None) -> torch.Tensor:
        size = list(inputs.shape[2:])
        patch = window_size(size, self.patch_size)
        inputs = padded_to(inputs, patch, [1] * len(patch))
        lowres = None if lowres is None else padded_to(lowres, patch, [1] * len(patch))
        shape = inputs.shape[2:]
        steps = [max(1, int(p * (1 - self.shared))) if n > p else p for n, p in zip(shape, patch, strict=True)]
        importance = compute_importance_map(tuple(patch), mode="gaussian", device=inputs.device, dtype=torch.float32)
        sums = _Sums(len(inputs), shape, importance)
        # All windows that begin in one row, then those of the next: the rows before are finished.
        for row, windows in itertools.groupby(dense_patch_slices(shape, patch, steps), key=lambda w: w[0].start):
            sums.finish(row)
            places = [(image, window) for window in windows for image in range(len(inputs))]
            for first in range(0, len(places), self.sw_batch_size):
                part = places[first : first + self.sw_batch_size]
                patches = torch.cat([self._patch(inputs, lowres, *place) for place in part])
                for place, probabilities in zip(part, self._probabilities(patches, networks), strict=True):
                    sums.add(*place, probabilities)
        sums.finish(shape[0])
        return cropped_to(sums.finished, size)

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
        passes = [(network, flip) for flip in flips for network in networks]

        def summed(some: Sequence[Pass]) -> torch.Tensor:
            total: Any = 0.0
            # Around all passes: what autocast makes of the weights is kept until it is left.
            with torch.autocast(window.device.type, enabled=self.amp):
                for network, flip in some:
                    mirrored = window.flip(flip) if flip else window
                    probabilities = logits(network, mirrored, self.amp).softmax(dim=1)
                    total = total + (probabilities.flip(flip) if flip else probabilities)
            return total

        small = window.device.type == "cpu" and window[:, 0].numel() <= SMALL_WINDOW
        return (sum_by_two_threads(summed, passes) if small else summed(passes)) / len(passes)


class _Sums:
    """Weighted sums of the probabilities in windows, for the rows (indices of the first axis) that are still open, and
    the finished probabilities, float16 (num, classes, *shape).

    Args:
        num: images.
        shape: of an image.
        importance: weights within a window.
    """

    def __init__(self, num: int, shape: Sequence[int], importance: torch.Tensor) -> None:
        self.num, self.shape, self.importance = num, tuple(shape), importance
        self.weights = importance.new_zeros((len(importance), *self.shape[1:]))
        self.row = 0
        self.sums = self.finished = torch.empty(0)

    def add(self, image: int, window: tuple[slice, ...], probabilities: torch.Tensor) -> None:
        """Take in the probabilities (classes, *window) of a window that begins at the first open row."""
        if not self.sums.numel():
            classes = len(probabilities)
            self.sums = self.weights.new_zeros((self.num, classes, *self.weights.shape))
            self.finished = probabilities.new_empty((self.num, classes, *self.shape), dtype=torch.float16)
        where = (slice(None), *window[1:])
        self.sums[image][(slice(None), *where)] += probabilities * self.importance
        if image == 0:
            self.weights[where] += self.importance

    def finish(self, row: int) -> None:
        """Close all rows before `row`."""
        done = int(row) - self.row
        if done:
            probabilities = self.sums[:, :, :done] / self.weights[:done]
            if not probabilities.sum().isfinite():
                raise ValueError(NOT_FINITE)
            self.finished[:, :, self.row : row] = probabilities
            for open_rows, axis in ((self.sums, 2), (self.weights, 0)):
                left = len(self.importance) - done
                # A copy, for source and target may overlap.
                open_rows.narrow(axis, 0, left).copy_(open_rows.narrow(axis, done, left).clone())
                open_rows.narrow(axis, left, done).zero_()
            self.row = int(row)


class CascadeInferer(Inferer):
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

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Class probabilities, float16 (B, classes, X, Y, Z), of images (B, C, X, Y, Z); `network` is the
        :class:`scripts.networks.Composite` with both stages."""
        return self.cascade(inputs, network, self.first_stage(inputs, network))

    def first_stage(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Segmentation by the first stage, uint8 (B, 1, X, Y, Z): seen on the low resolution, given on the full one."""
        shape = inputs.shape[2:]
        low_shape = resampled_shape(shape, self.spacing, self.lowres_spacing)
        inputs = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        low = torch.stack([resample(image, low_shape, "spline") for image in inputs])
        segmentation = self.lowres(low, network).argmax(1, keepdim=True).to(torch.uint8)
        return torch.stack([resample(labels, shape, "nearest") for labels in segmentation])


class MeanInferer(Inferer):
    """Mean of the class probabilities that several inferers give for the same image.

    Source: arXiv:1809.10486, section 2.6.
    """

    def __init__(self, inferers: Sequence[Inferer]) -> None:
        super().__init__()
        self.inferers = list(inferers)

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Class probabilities, float16 (B, classes, X, Y, Z), of images (B, C, X, Y, Z)."""
        total = self.inferers[0](inputs, network)
        for inferer in self.inferers[1:]:
            total += inferer(inputs, network)
        return total if len(self.inferers) == 1 else total.div_(len(self.inferers))
