"""Prediction: from a preprocessed image to class probabilities on the same grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer

from scripts.precision import checked_switch, logits


class MirroredWindowInferer(SlidingWindowInferer):
    """Sliding window with half overlap and Gaussian weights; in every window the class probabilities are averaged over
    all mirrorings.

    Args:
        patch_size: the window, voxels: three numbers, or two for a network that sees slices.
        slice_axis: spatial axis along which slices run, when the window has two numbers.
        mirror: average over the 2^d combinations of mirrored axes.
        amp: call the network in mixed precision.
        overlap: part of the window by which neighbours overlap.
        sw_batch_size: windows that the network sees at once.
        kwargs: whatever else MONAI's SlidingWindowInferer takes.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(
            roi_size=tuple(patch_size),
            sw_batch_size=sw_batch_size,
            overlap=overlap,
            mode="gaussian",
            cache_roi_weight_map=True,
            **kwargs,
        )
        self.slice_axis = slice_axis if len(patch_size) == 2 else None
        self.mirror = checked_switch("mirror", mirror)
        self.amp = checked_switch("amp", amp)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Class probabilities, (B, classes, X, Y, Z), of images (B, C, X, Y, Z)."""
        if self.slice_axis is None:
            return super().__call__(inputs, lambda window: self._probabilities(window, network))
        axis = self.slice_axis + 2
        slices = inputs.movedim(axis, 1).flatten(0, 1)
        pred = super().__call__(slices, lambda window: self._probabilities(window, network))
        return pred.unflatten(0, (len(inputs), inputs.shape[axis])).movedim(1, axis)

    def _probabilities(self, window: torch.Tensor, network: Callable[..., torch.Tensor]) -> torch.Tensor:
        axes = range(2, window.ndim) if self.mirror else ()
        flips = [f for n in range(len(axes) + 1) for f in itertools.combinations(axes, n)]
        total: torch.Tensor | float = 0.0
        for flip in flips:
            mirrored = window.flip(flip) if flip else window
            probabilities = logits(network, mirrored, self.amp).softmax(dim=1)
            total = total + (probabilities.flip(flip) if flip else probabilities)
        return total / len(flips)
