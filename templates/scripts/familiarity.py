"""Whether an image is like those of the training."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes, io_orientation

from scripts.intensities import PROFILE, profile

UNLIKE = "unlike_training"
"""Key of an image's metadata: in what it is unlike those of the training, "" where it is like them."""
SPACING_FACTOR, SIZE_FACTOR = 1.25, 1.5
"""How far beyond the training's range a spacing or a size may be. Our choice; docs/benchmarks.md of autoplan has how
many images of four public datasets are called odd by these numbers."""
MARGIN = 0.5
"""Part of the training's range by which a percentile of the intensities may be beyond it ..."""
LEAST_MARGIN, LEAST_MARGIN_ABSOLUTE = 0.25, 100.0
"""... or this, where it is more: standard deviations, and units of CT. Our choice."""


class CompareWithTrainingd(MapTransform):
    """Compare an image, as its file has it, with those of the training; what is unlike goes to its metadata.

    Args:
        keys: images, (C, X, Y, Z), with the geometry of their files.
        training_range: "orientations" of the files; least and largest "spacing" and "size", mm, of the axes x, y, z;
            for each channel those of the percentiles `PROFILE` of its "intensities" (see `profile`), nothing where
            that is not known. None: nothing is compared.
        channels: for each channel None where its intensities are not absolute.
        strict: refuse an image that is unlike them.
    """

    def __init__(
        self,
        keys: KeysCollection,
        training_range: Mapping[str, Any] | None,
        channels: Sequence[Any],
        strict: bool = False,
    ) -> None:
        super().__init__(keys)
        self.range, self.strict = training_range, strict
        self.is_absolute = [channel is not None for channel in channels]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data, with `UNLIKE` in the metadata of the images.

        Raises:
            ValueError: an image is unlike those of the training, and that is refused.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if self.range is None or not isinstance(image, MetaTensor):
                continue
            found = "; ".join(self._differences(image, self.range))
            if found and self.strict:
                raise ValueError(f"it is unlike the images of the training: {found}")
            image.meta[UNLIKE] = found
        return d

    def _differences(self, image: MetaTensor, known: Mapping[str, Any]) -> Iterator[str]:
        affine = np.asarray(image.affine, dtype=np.float64)
        order = np.argsort(io_orientation(affine)[:, 0])
        spacing = voxel_sizes(affine)[order]
        size = spacing * np.array(image.shape[1:])[order]
        codes = "".join(aff2axcodes(affine))
        if known["orientations"] and _handedness(codes) not in map(_handedness, known["orientations"]):
            yield (
                f"orientation {codes}, a mirror image of the training's ({', '.join(known['orientations'])}), so left "
                "and right may be exchanged"
            )
        for name, values, factor in (("spacing", spacing, SPACING_FACTOR), ("size", size, SIZE_FACTOR)):
            for axis, value, (least, largest) in zip("xyz", values, known[name], strict=True):
                if not least / factor <= value <= largest * factor:
                    yield f"{name} {value:.4g} mm along {axis} (training: {least:g} to {largest:g})"
        for number, ranges in enumerate(known["intensities"][: len(image)]):
            absolute = self.is_absolute[number]
            channel = f" of channel {number}" if len(image) > 1 else ""
            found = profile(np.asarray(image[number]), absolute=absolute)
            if not np.isfinite(found).all():
                continue  # a voxel is NaN or infinite, for which the image is refused further on
            for q, value, (least, largest) in zip(PROFILE, found, ranges, strict=True):
                margin = max(MARGIN * (largest - least), LEAST_MARGIN_ABSOLUTE if absolute else LEAST_MARGIN)
                if not least - margin <= value <= largest + margin:
                    unit = "" if absolute else " standard deviations from the mean"
                    yield (
                        f"{q:g} % of the voxels{channel} lie below {value:.4g}{unit} (training: {least:g} to "
                        f"{largest:g})"
                    )


def _handedness(codes: str) -> int:
    """1 where the axes of a file, such as RAS or LPS, are a right-handed system, else -1. The order and the directions
    of the axes say nothing of an image, for preprocessing makes them equal; a mirrored file may be a wrong one."""
    axes = [("LR".find(c), "PA".find(c), "IS".find(c)) for c in codes]
    signs = np.array([[0 if at < 0 else 2 * at - 1 for at in row] for row in axes])
    return int(np.rint(np.linalg.det(signs)))
