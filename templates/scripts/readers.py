"""Reading the images of a case, of any format that planning reads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader, NibabelReader
from monai.transforms import LoadImaged
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, ensure_tuple

from scripts import formats

MEASURED, COLOURS = "measured", "colours"
"""Keys of an image's metadata: whether its file says how large its voxels are, and has numbers of a palette."""


class FormatReader(ImageReader):
    """Reader for `LoadImaged` that goes by the suffix: NIfTI by MONAI's NibabelReader, all else by `scripts.formats`.
    Several files are the channels of one image, in their order.

    A file is read when its array is asked for: where `read` fails, `LoadImage` of MONAI 1.6.1 tries all other readers
    in turn, and one of them might take what was refused.
    """

    def verify_suffix(self, filename: Sequence[str] | str) -> bool:
        """Whether all files are of a known format."""
        return all(formats.format_of(name) is not None for name in ensure_tuple(filename))

    def read(self, data: Sequence[str] | str, **_: Any) -> Sequence[str]:
        """The paths."""
        return ensure_tuple(data)

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict[Any, Any]]:
        """The array, (X, Y, Z) or (X, Y, Z, C), and what MONAI wants to know of it.

        Raises:
            ValueError: the files of one image lie on different grids.
        """
        read = [_read(path) for path in img]
        array, meta = read[0]
        if len(read) == 1:
            return array, meta
        shape = tuple(meta[MetaKeys.SPATIAL_SHAPE])
        read = [(array, meta), *(_onto(channel, meta) for channel in read[1:])]
        for path, (_, other) in zip(img, read, strict=True):
            same = np.array_equal(other[MetaKeys.SPATIAL_SHAPE], meta[MetaKeys.SPATIAL_SHAPE])
            measured = meta.get(MEASURED, True) and other.get(MEASURED, True)
            if not same or (measured and not _alike(other[MetaKeys.AFFINE], meta[MetaKeys.AFFINE], shape)):
                raise ValueError(f"{Path(path).name} has another shape or affine than {Path(img[0]).name}")
        channels = np.concatenate([part.reshape(*shape, -1) for part, _ in read], axis=-1)
        return channels, {**meta, MetaKeys.ORIGINAL_CHANNEL_DIM: -1}


class LoadImageCased(LoadImaged):
    """MONAI's LoadImaged, with the name of the case, the item "name", in place of the name of its first file. What is
    written of a case is named after it. `meta["file"]` is the file. Where a label does not say how large its voxels
    are, it lies on the image, the first of the keys."""

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        d = super().__call__(data, reader)
        for key in self.key_iterator(d):
            file = Path(d[key].meta[ImageMetaKey.FILENAME_OR_OBJ])
            d[key].meta["file"] = str(file)
            if "name" in data:
                d[key].meta[ImageMetaKey.FILENAME_OR_OBJ] = formats.subject_of(file, str(data["name"]))
        first, *others = self.key_iterator(d)
        for key in others:
            if not d[key].meta.get(MEASURED, True) and d[key].shape == d[first].shape:
                d[key].affine = d[first].affine
        return d


def _onto(channel: tuple[np.ndarray, dict[Any, Any]], on: Mapping[Any, Any]) -> tuple[np.ndarray, dict[Any, Any]]:
    """A channel with its axes as those of the first, where they have the same voxels in another order."""
    array, meta = channel
    shape, affine = (on[key] for key in (MetaKeys.SPATIAL_SHAPE, MetaKeys.AFFINE))
    if (found := formats.axes_onto(meta[MetaKeys.SPATIAL_SHAPE], meta[MetaKeys.AFFINE], shape, affine)) is None:
        return channel
    order, reverse = found
    turned = np.flip(array.transpose(*order, *range(3, array.ndim)), reverse)
    return turned, {**meta, MetaKeys.SPATIAL_SHAPE: shape, MetaKeys.AFFINE: affine}


def _alike(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether two channels lie at the same place."""
    return formats.corner_distance_mm(shape, first, second) <= formats.place_tolerance_mm(second)


def _read(path: str) -> tuple[np.ndarray, dict[Any, Any]]:
    """Array and metadata of one file."""
    if formats.format_of(path) is formats.NIFTI:
        image, reader = formats.open_nifti(path), NibabelReader()
        affine, reader.filenames = formats.nifti_affine(image.header), (path,)
        array, meta = reader.get_data(image)
        return array, {**meta, MetaKeys.AFFINE: affine.copy(), MetaKeys.ORIGINAL_AFFINE: affine}
    header, load = formats.open_image(path)
    meta = {
        MetaKeys.AFFINE: header.affine.copy(),
        MetaKeys.ORIGINAL_AFFINE: header.affine,
        MetaKeys.SPATIAL_SHAPE: np.array(header.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: -1,
        MEASURED: header.measured,
        COLOURS: header.colours,
    }
    return load(), meta
