"""Class probabilities of a case on disk, small enough to keep those of a whole cross-validation.

A file holds the foreground classes' probabilities on the preprocessed grid, quantized to 8 bits and compressed (the
background's are what is missing to 1), and the geometry: what an inversion of the preprocessing needs to know.
"""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TraceKeys

from scripts.datalists import case_name
from scripts.files import write_atomically

LEVELS = 255


def save(path: str | Path, probabilities: torch.Tensor, image: MetaTensor) -> None:
    """Write the probabilities (classes, X, Y, Z) of a case with the geometry of its preprocessed image, atomically."""
    foreground = probabilities[1:].float().mul(LEVELS).round_().to(torch.uint8).cpu().numpy()
    geometry = io.BytesIO()
    torch.save({"affine": _plain(image.affine), "applied_operations": _plain(image.applied_operations)}, geometry)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, foreground=foreground, geometry=np.frombuffer(geometry.getvalue(), np.uint8))

    write_atomically(path, write)


def load(path: str | Path) -> dict[str, torch.Tensor]:
    """What `save` wrote, for the postprocessing of a bundle.

    Returns:
        "pred": probabilities, float32 (classes, X, Y, Z); "image": a tensor without voxels, with the image's geometry.
    """
    path = Path(path)
    with np.load(path) as arrays:
        foreground = torch.from_numpy(arrays["foreground"]).float().div_(LEVELS)
        geometry = torch.load(io.BytesIO(arrays["geometry"].tobytes()), weights_only=True)
    image = MetaTensor(
        torch.empty(0),
        affine=geometry["affine"],
        meta={"filename_or_obj": case_name(path.with_suffix("")) + ".nii.gz"},
        applied_operations=geometry["applied_operations"],
    )
    background = (1 - foreground.sum(0, keepdim=True)).clamp_(min=0)
    return {"pred": torch.cat([background, foreground]), "image": image}


def segmentation(path: str | Path) -> torch.Tensor:
    """Most probable class, uint8 (1, X, Y, Z), on the preprocessed grid."""
    return load(path)["pred"].argmax(0, keepdim=True).to(torch.uint8)


class SaveProbabilitiesd(MapTransform):
    """Write the probabilities of a case before its postprocessing, as <output_dir>/<case>.npz.

    Args:
        keys: the probabilities, (classes, X, Y, Z), on the grid of the preprocessed image.
        output_dir: folder; made when it does not exist.
        image_key: the preprocessed image, which has the geometry and the name.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, image_key: Hashable = "image") -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = data[self.image_key]
        for key in self.keys:
            save(self.output_dir / f"{case_name(image.meta['filename_or_obj'])}.npz", data[key], image)
        return dict(data)


def _plain(value: Any) -> Any:
    """A nested value in types that `torch.load(weights_only=True)` takes, without the identities of transforms: MONAI
    would have a transform inverted by no other object than the one that did it."""
    if isinstance(value, Mapping):
        return {str(k): TraceKeys.NONE.value if k == TraceKeys.ID else _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value) if value.dtype.kind in "biuf" else _plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, MetaTensor):
        return value.as_tensor()
    return value if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)) else str(value)
