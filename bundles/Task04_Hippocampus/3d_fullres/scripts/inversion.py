"""From class probabilities on the preprocessed grid to a label map on the image's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Invertd


class InvertToLabeld(Invertd):
    """Invert the preprocessing and take the most probable class of every voxel, the first in a tie.

    It gives what `Invertd` and, from its values in float16, `AsDiscreted(argmax=True)` give, as uint8, but goes class
    by class: on the image's own grid, which may be much finer, there is never more than the largest probability so far
    and those of one class.

    Args:
        keys: the probabilities, (classes, X, Y, Z).
        transform: the preprocessing.
        orig_keys: the preprocessed image.
    """

    def __init__(self, keys: Hashable, transform: Any, orig_keys: Hashable) -> None:
        super().__init__(keys, transform, orig_keys, nearest_interp=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, orig_key in self.key_iterator(d, self.orig_keys):
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
