"""Class probabilities of a case on disk, small enough to keep those of a whole cross-validation.

A file holds the foreground classes' probabilities on the preprocessed grid, quantized to 8 bits and compressed (the
background's are what is missing to 1), and the geometry: what an inversion of the preprocessing needs to know. They are
written and read some rows at a time, so that those of a whole image need not be in memory.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import TraceKeys

from scripts.blocks import Block, aligned
from scripts.files import write_atomically
from scripts.formats import case_name

LEVELS = 255
ROWS = "rows_"
"""How the names of the arrays in a file begin that hold probabilities, in their order."""
Result = TypeVar("Result")


def keeping(
    path: str | Path,
    blocks: Iterable[Iterator[torch.Tensor]],
    image: MetaTensor,
    axis: int,
    places: Sequence[Block],
    use: Callable[[Iterator[Iterator[torch.Tensor]]], Result],
) -> Result:
    """use(blocks), while a file is written of the rows that pass: atomically, and with the geometry of the image.

    Args:
        path: the file.
        blocks: class probabilities, (classes, rows, *plane), along an axis; of each block of the image.
        image: preprocessed, (C, X, Y, Z).
        axis: spatial axis that the rows run along.
        places: of the blocks.
        use: takes all of the rows of all of the blocks.
    """
    results = []
    across = places[0].axis

    def passing(archive: zipfile.ZipFile, block: int, rows: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        own = places[block].own
        for number, some in enumerate(rows):
            part = some[1:].narrow(_dimension(across, axis), own.start, own.stop - own.start)
            foreground = part.float().mul(LEVELS).round_().to(torch.uint8)
            _put(archive, f"{ROWS}{block:03d}_{number:05d}", foreground.cpu().numpy())
            yield some

    def write(temporary: Path) -> None:
        geometry = io.BytesIO()
        said = {"affine": image.affine, "applied_operations": image.applied_operations}
        where = {"shape": list(image.shape[1:]), "axis": axis, "across": across}
        torch.save({**_plain(said), **where}, geometry)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            _put(archive, "geometry", np.frombuffer(geometry.getvalue(), np.uint8))
            results.append(use(passing(archive, number, rows) for number, rows in enumerate(blocks)))

    write_atomically(path, write)
    return results[0]


def _dimension(across: int, axis: int) -> int:
    """Of the axis that is cut, in (classes, rows, *plane)."""
    return 2 + across - (across > axis)


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
        self._dimension = _dimension(int(geometry.get("across", 0 if self.axis else 1)), self.axis)
        self.image = MetaTensor(
            torch.empty(0),
            affine=geometry["affine"],
            meta={"filename_or_obj": case_name(self.path.with_suffix("")) + ".nii.gz"},
            applied_operations=geometry["applied_operations"],
        )

    def rows(self) -> Iterator[torch.Tensor]:
        """Class probabilities, float32 (classes, rows, *plane), as many rows at a time as were written at once."""
        with np.load(self.path) as arrays:
            names = sorted(set(arrays.files) - {"geometry"})
            # Older files have no blocks: "rows_00000".
            blocks = itertools.groupby(names, key=lambda name: name.rpartition("_")[0])
            parts = [(torch.from_numpy(arrays[name]) for name in list(of_block)) for _, of_block in blocks]
            for some in aligned(parts):
                foreground = torch.cat(some, self._dimension).float().div_(LEVELS)
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
