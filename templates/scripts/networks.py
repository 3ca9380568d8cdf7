"""Several networks as one module: stages of a cascade, folds of a cross-validation, members of an ensemble."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from scripts.resampling import nearest_indices, resampled_shape, spline_matrix


def append_one_hot(image: torch.Tensor, segmentation: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The image with one more channel for each foreground class: 1 where the segmentation says so.

    Args:
        image: (B, C, X, Y, Z).
        segmentation: class numbers, (B, 1, X, Y, Z).
        num_classes: classes, background included.

    Returns:
        (B, C + num_classes - 1, X, Y, Z), of the dtype of the image.

    Source: arXiv:1809.10486, section 2.1, "U-Net Cascade"; no channel for the background: known default of nnU-Net.
    """
    # Not by `one_hot`, whose channels are int64.
    classes = torch.arange(1, num_classes, device=segmentation.device).reshape([-1] + [1] * (segmentation.ndim - 2))
    return torch.cat([image, (segmentation == classes).to(image.dtype)], 1)


class Folds(NamedTuple):
    """Networks of one kind: the folds of a cross-validation.

    Attributes:
        network: one of them; the others are copies, to be filled with weights.
        patch_size: that they see, voxels.
        num: how many there are.
    """

    network: torch.nn.Module
    patch_size: Sequence[int]
    num: int = 1


class Composite(torch.nn.Module):
    """Networks in named lists, one network a fold, in one module with one flat state dict.

    The inferers of :mod:`scripts.inferers` call the networks in the lists. `forward` is for programs that know nothing
    but a network and a patch (export, checks): the class probabilities that the inferers give for an image that is one
    patch, without mirroring. An exported module is therefore not the whole prediction.

    Args:
        slices: networks for the slices of a volume, or None.
        fullres: networks for a volume, or None.
        lowres: networks for a volume of low resolution, or None: the first stage of `cascade`, or alone.
        cascade: networks for a volume and the segmentation of the first stage, or None.
        slice_axis: spatial axis along which slices run.
        spacing, lowres_spacing: mm, of what `cascade` and its first stage see.

    Source: arXiv:1809.10486, sections 2.1 (cascade), 2.4 (folds) and 2.6 (ensembles).
    """

    def __init__(
        self,
        slices: Folds | None = None,
        fullres: Folds | None = None,
        lowres: Folds | None = None,
        cascade: Folds | None = None,
        slice_axis: int = 2,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        lowres_spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.slices, self.fullres = _copies(slices), _copies(fullres)
        self.lowres, self.cascade = _copies(lowres), _copies(cascade)
        self.slice_axis = int(slice_axis)
        self.has_slices, self.has_cascade = slices is not None, cascade is not None
        self.slices_patch, self.slices_divisor = _sizes(slices)
        self.lowres_patch, self.lowres_divisor = _sizes(lowres)
        self.patch, _ = _sizes(cascade)
        self.num_classes = 0 if cascade is None else int(cascade.network.out_channels)  # type: ignore[arg-type]  # MONAI's own
        low = resampled_shape(self.patch, spacing, lowres_spacing)
        # Not persistent: the state dict holds weights alone.
        for axis in range(3):
            matrix, index = torch.empty(0), torch.empty(0, dtype=torch.long)
            if cascade is not None:
                matrix, index = spline_matrix(self.patch[axis], low[axis]), nearest_indices(low[axis], self.patch[axis])
            self.register_buffer(f"down_{axis}", matrix, persistent=False)
            self.register_buffer(f"up_{axis}", index, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class probabilities (B, classes, X, Y, Z) of patches (B, C, X, Y, Z)."""
        # TorchScript wants another name in each of these loops, and no comprehensions.
        found: list[torch.Tensor] = []
        if self.has_slices:
            axis = self.slice_axis + 2
            planes = x.movedim(axis, 1).flatten(0, 1)
            size = [int(n) for n in planes.shape[2:]]
            padded = padded_to(planes, window_size(size, self.slices_patch), self.slices_divisor)
            flat: list[torch.Tensor] = []
            for flat_network in self.slices:
                y = cropped_to(flat_network(padded).softmax(1), size)
                flat.append(y.unflatten(0, [x.shape[0], x.shape[axis]]).movedim(1, axis))
            _add_mean(found, flat)
        full: list[torch.Tensor] = []
        for network in self.fullres:
            full.append(network(x).softmax(1))
        _add_mean(found, full)
        last: list[torch.Tensor] = []
        if self.has_cascade:
            both = append_one_hot(x, self._first_stage(x), self.num_classes)
            for second in self.cascade:
                last.append(second(both).softmax(1))
        else:
            for low_network in self.lowres:
                last.append(low_network(x).softmax(1))
        _add_mean(found, last)
        return torch.stack(found).mean(0)

    def _first_stage(self, x: torch.Tensor) -> torch.Tensor:
        if [int(n) for n in x.shape[2:]] != self.patch:
            raise ValueError("a cascade takes patches of its planned size only")
        low = torch.einsum("ai,bj,ck,nxijk->nxabc", self.down_0, self.down_1, self.down_2, x)
        size = [int(n) for n in low.shape[2:]]
        padded = padded_to(low, window_size(size, self.lowres_patch), self.lowres_divisor)
        total = torch.zeros(1, device=x.device)
        for first in self.lowres:
            total = total + first(padded).softmax(1)
        segmentation = cropped_to(total, size).argmax(1, keepdim=True)
        # Buffers, which mypy takes for modules as well.
        rows = segmentation[:, :, self.up_0]  # type: ignore[index]
        columns = rows[:, :, :, self.up_1]  # type: ignore[index]
        return columns[:, :, :, :, self.up_2]  # type: ignore[index]


def _add_mean(found: list[torch.Tensor], folds: list[torch.Tensor]) -> None:
    """Every list of networks counts alike, however many folds it has."""
    if len(folds) > 0:
        found.append(torch.stack(folds).mean(0))


def with_weights(network: torch.nn.Module, path: str) -> torch.nn.Module:
    """The network with the weights in a file, from which its training starts.

    Args:
        network: any network.
        path: a flat state dict of it.

    Raises:
        ValueError: there is no such file, or it holds the weights of another network.
    """
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there: the weights that this training starts from. Bring it back.") from None
    except RuntimeError as error:
        raise ValueError(f"{path} holds the weights of another network. {error}") from None
    return network


def check_patch_size(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
    """Refuse patches that the network cannot take: each axis must be a multiple of its strides, and the deepest level
    needs more than one voxel for its instance norm.

    Args:
        patch_size: voxels.
        strides: of each stage, for each axis.

    Raises:
        ValueError: with sizes that work.
    """
    steps = [math.prod(axis) for axis in zip(*strides, strict=True)]
    fits = len(patch_size) == len(steps) and all(n >= s and n % s == 0 for n, s in zip(patch_size, steps, strict=True))
    if fits and math.prod(n // s for n, s in zip(patch_size, steps, strict=True)) > 1:
        return
    raise ValueError(
        f"patch_size {list(patch_size)} does not fit the network: each axis must be a multiple of {steps}, and one of "
        f"them at least twice that. The smallest that works is {[2 * steps[0], *steps[1:]]}."
    )


def window_size(size: list[int], patch: list[int]) -> list[int]:
    """Voxels of the window for an image of `size`: the patch, but on an axis where the image is smaller no more than
    the network needs to cover it. A multiple of the largest power of two in the patch is one of all its poolings, and
    twice that leaves the deepest level more than one voxel.

    Source: our choice; the paper is silent. It spares the padding of small images; docs/results.md of autoplan has what
    that does to Dice and time.
    """
    window: list[int] = []
    for n, p in zip(size, patch):  # noqa: B905 (TorchScript has no strict)
        step = p & -p
        window.append(min(p, max(2 * step, (n + step - 1) // step * step)))
    return window


def padded_to(x: torch.Tensor, size: list[int], divisor: list[int]) -> torch.Tensor:
    """x (B, C, *spatial) with zeros around it, so that no axis is smaller than `size` and each is a multiple of
    `divisor`."""
    padding: list[int] = []
    for axis in range(len(size)):
        n = x.shape[2 + axis]
        more = max(size[axis], (n + divisor[axis] - 1) // divisor[axis] * divisor[axis]) - n
        padding = [more // 2, more - more // 2] + padding
    return pad(x, padding) if max(padding) > 0 else x


def cropped_to(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """The middle of x (B, C, *spatial): the inverse of `padded_to`."""
    for axis in range(len(size)):
        x = x.narrow(2 + axis, (x.shape[2 + axis] - size[axis]) // 2, size[axis])
    return x


def _copies(folds: Folds | None) -> torch.nn.ModuleList:
    return torch.nn.ModuleList([] if folds is None else [copy.deepcopy(folds.network) for _ in range(folds.num)])


def _sizes(folds: Folds | None) -> tuple[list[int], list[int]]:
    """Patch of the networks, and what each axis must be a multiple of."""
    if folds is None:
        return [1, 1, 1], [1, 1, 1]  # TorchScript cannot tell the type of an empty list
    strides: Any = folds.network.strides
    check_patch_size(folds.patch_size, strides)
    steps = zip(*strides, strict=True)
    return [int(n) for n in folds.patch_size], [math.prod(s) for s in steps]
