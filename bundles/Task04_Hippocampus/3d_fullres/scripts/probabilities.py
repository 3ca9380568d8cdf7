"""Class probabilities of a case on disk, small enough to keep those of a whole cross-validation.

A file holds the foreground classes' probabilities on the preprocessed grid, quantized to 8 bits and compressed (the
background's are what is missing to 1), and the geometry: what an inversion of the preprocessing needs to know. They are
written and read some rows at a time, so that those of a whole image need not be in memory.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import TraceKeys

from scripts.files import write_atomically
from scripts.formats import case_name

LEVELS = 255
ROWS = "rows_"
"""How the names of the arrays in a file begin that hold probabilities, in their order."""
Result = TypeVar("Result")


def keeping(
    path: str | Path, rows: Iterator[torch.Tensor], image: MetaTensor, axis: int, use: Callable[..., Result]
) -> Result:
    """use(rows), while a file is written of the rows that pass: atomically, and with the geometry of the image.

    Args:
        path: the file.
        rows: class probabilities, (classes, rows, *plane), along an axis.
        image: preprocessed, (C, X, Y, Z).
        axis: spatial axis that the rows run along.
        use: takes all of the rows.
    """
    results = []

    def passing(archive: zipfile.ZipFile) -> Iterator[torch.Tensor]:
        for number, some in enumerate(rows):
            foreground = some[1:].float().mul(LEVELS).round_().to(torch.uint8)
            _put(archive, f"{ROWS}{number:05d}", foreground.cpu().numpy())
            yield some

    def write(temporary: Path) -> None:
        geometry = io.BytesIO()
        said = {"affine": image.affine, "applied_operations": image.applied_operations}
        torch.save({**_plain(said), "shape": list(image.shape[1:]), "axis": axis}, geometry)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            _put(archive, "geometry", np.frombuffer(geometry.getvalue(), np.uint8))
            results.append(use(passing(archive)))

    write_atomically(path, write)
    return results[0]


def _put(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Add an array to an archive that `numpy.load` reads."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array))


class Stored:
    """The probabilities of a case in a file that `keeping` wrote.

    Attributes:
        image: a tensor without voxels, with the geometry and the name of the preprocessed image.
        shape: its voxels, (X, Y, Z).
        axis: spatial axis that the rows run along.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with np.load(self.path) as arrays:
            geometry = torch.load(io.BytesIO(arrays["geometry"].tobytes()), weights_only=True)
            # Older files have all rows in one piece.
            self.shape = tuple(geometry["shape"] if "shape" in geometry else arrays["foreground"].shape[1:])
        self.axis = int(geometry.get("axis", 0))
        self.image = MetaTensor(
            torch.empty(0),
            affine=geometry["affine"],
            meta={"filename_or_obj": case_name(self.path.with_suffix("")) + ".nii.gz"},
            applied_operations=geometry["applied_operations"],
        )

    def rows(self) -> Iterator[torch.Tensor]:
        """Class probabilities, float32 (classes, rows, *plane), as many rows at a time as were written at once."""
        with np.load(self.path) as arrays:
            for name in sorted(set(arrays.files) - {"geometry"}):
                foreground = torch.from_numpy(arrays[name]).float().div_(LEVELS)
                background = (1 - foreground.sum(0, keepdim=True)).clamp_(min=0)
                yield torch.cat([background, foreground])


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
