"""Intensity normalization, what counts as foreground of an image, and which values a label may have."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.intensities import CONSTANT


def nonzero(image: torch.Tensor) -> torch.Tensor:
    """Mask of the nonzero voxels, the region that images are cropped to.

    Raises:
        ValueError: a voxel is NaN or infinite, or every voxel is zero (MONAI would crop to an empty image).

    Source: arXiv:1809.10486, section 2.2, "Cropping".
    """
    name = getattr(image, "meta", {}).get("filename_or_obj", "the image")
    # The sum is not finite where a voxel is not: one pass, and no mask of the whole image.
    if image.is_floating_point() and not image.sum(dtype=torch.float64).isfinite():
        raise ValueError(f"{name}: has values that are NaN or infinite. Replace them, by 0 where there is no tissue.")
    mask = image != 0
    if not mask.any():
        raise ValueError(f"{name}: every voxel is zero, so there is nothing to segment. Leave the image out.")
    return mask


class NormalizeChannelsd(MapTransform):
    """Normalize every channel of an image, each by its own rule.

    A channel with statistics (CT) is clipped to [lower, upper], then mean and std of the dataset are taken out. A
    channel without (None) is z-scored by itself; one of a single value, but for what resampling leaves, becomes 0.
    Where the data hold a mask, only voxels inside it count and all others become 0.

    Args:
        keys: images, (C, X, Y, Z); changed to float32.
        channels: for each channel a mapping with "lower", "upper", "mean" and "std", or None.
        mask_key: key of a mask (C, X, Y, Z), whose channels are joined, made before resampling, for the spline leaves
            no exact zeros. It is used and removed when the data hold it.

    Source: arXiv:1809.10486, section 2.2, "Normalization".
    """

    def __init__(
        self, keys: KeysCollection, channels: Sequence[Mapping[str, float] | None], mask_key: str = "mask"
    ) -> None:
        super().__init__(keys)
        self.channels = tuple(channels)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        mask = d.pop(self.mask_key, None)
        inside = None if mask is None else (torch.as_tensor(mask) > 0).any(0)
        for key in self.key_iterator(d):
            image = d[key].float()
            if len(image) != len(self.channels):
                raise ValueError(f"the image has {len(image)} channels, the bundle is made for {len(self.channels)}")
            d[key] = image.clone() if image is d[key] else image
            values: Any = d[key]
            values = values.as_tensor() if hasattr(values, "as_tensor") else values
            for channel, statistics in zip(values, self.channels, strict=True):
                self._normalize(channel, statistics, inside)
        return d

    @staticmethod
    def _normalize(channel: torch.Tensor, statistics: Mapping[str, float] | None, inside: torch.Tensor | None) -> None:
        if statistics is None:
            voxels = channel if inside is None or not inside.any() else channel[inside]
            mean: Any
            std: Any
            std, mean = torch.std_mean(voxels, correction=0)
            least, most = torch.aminmax(voxels)
            std = torch.where(std > CONSTANT * torch.maximum(-least, most), std, torch.inf)
        else:
            channel.clamp_(statistics["lower"], statistics["upper"])
            mean, std = statistics["mean"], statistics["std"]
        channel.sub_(mean).div_(std)
        if inside is not None:
            channel.mul_(inside)


class KnownValuesd(MapTransform):
    """Refuse labels with values that no class has. Planning has checked those of the dataset; other programs bring
    others: MONAI Label stores class numbers, which are label values only where these count up from 0.

    Args:
        keys: labels.
        values: of all classes.
        allow_missing_keys: pass over a key that the data lacks.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = torch.tensor(list(values))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """The data as they are.

        Raises:
            ValueError: a label has another value.
        """
        for key in self.key_iterator(dict(data)):
            found = torch.as_tensor(data[key]).unique().long()
            if others := found[~torch.isin(found, self.values)].tolist():
                raise ValueError(
                    f"the label has the values {', '.join(map(str, others[:5]))}, but the classes of this bundle have "
                    f"{', '.join(map(str, self.values.tolist()))}"
                )
        return dict(data)
