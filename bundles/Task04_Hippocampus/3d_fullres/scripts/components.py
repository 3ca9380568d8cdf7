"""Postprocessing by connected components."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage


class KeepLargestComponentd(MapTransform):
    """Label map in which, of each of some classes, all but the largest connected component became background.

    Voxels are connected when they touch at a face, an edge or a corner. It gives what MONAI's
    `KeepLargestConnectedComponentd` gives, but works in the bounding box of the class and numbers components in 32
    bits, so that it needs no more memory than the prediction before it, and no scikit-image.

    Args:
        keys: label maps, class numbers, (1, X, Y, Z).
        labels: classes.

    Source: arXiv:1809.10486, section 2.5.
    """

    def __init__(self, keys: KeysCollection, labels: Sequence[int]) -> None:
        super().__init__(keys)
        self.labels = [int(label) for label in labels]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.keys:
            d[key] = d[key].clone()
            volume = (d[key].as_tensor() if hasattr(d[key], "as_tensor") else d[key])[0].cpu().numpy()
            for label in self.labels:
                keep_largest(volume, label)
            if d[key].device.type != "cpu":
                d[key][0] = torch.from_numpy(volume).to(d[key].device)
        return d


def class_indices(values: Sequence[int], label_values: Sequence[int]) -> list[int]:
    """Class numbers of some label values."""
    return [list(label_values).index(value) for value in values]


def keep_largest(volume: np.ndarray, label: int) -> None:
    """Set all voxels of a class to 0 that are not in its largest component, the first of equals."""
    mask = volume == label
    box = _bounding_box(mask)
    if box is None:
        return
    mask = mask[box]
    components = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, np.ones((3,) * mask.ndim), components)
    if count > 1:
        # Slice by slice, for numpy would count, and compare, in new arrays of 64 bits a voxel.
        sizes: Any = sum(np.bincount(part.reshape(-1), minlength=count + 1) for part in components)
        largest = 1 + sizes[1:].argmax()
        for labels, part in zip(volume[box], components, strict=True):
            labels[(part > 0) & (part != largest)] = 0


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    axes = range(mask.ndim)
    found = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    return tuple(slice(int(f[0]), int(f[-1]) + 1) for f in found) if len(found[0]) else None
