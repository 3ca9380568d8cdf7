"""Class probabilities of a case on disk, small enough to keep those of a whole cross-validation.

A file holds the foreground classes' probabilities on the preprocessed grid, quantized to 8 bits and compressed (the
background's are what is missing to 1), and the geometry: what an inversion of the preprocessing needs to know. They are
written and read some rows at a time, so that those of a whole image need not be in memory.
"""

from __future__ import annotations

import errno
import io
import itertools
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import TraceKeys

from scripts.blocks import Block, aligned
from scripts.files import write_atomically
from scripts.formats import case_name
from scripts.memory import as_text, memory_bytes

LEVELS = 255
ROWS = "rows_"
"""How the names of the arrays in a file begin that hold probabilities, in their order."""
GEOMETRY, WHOLE = "geometry.npy", "foreground.npy"
"""The geometry; and all rows in one piece, as older files have them."""
LARGEST_GEOMETRY = 2**24
"""Bytes; some thousand is usual."""
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
            _put(archive, f"{ROWS}{block:03d}_{number:05d}.npy", foreground.cpu().numpy())
            yield some

    def write(temporary: Path) -> None:
        geometry = io.BytesIO()
        said = {"affine": image.affine, "applied_operations": image.applied_operations}
        where = {"shape": list(image.shape[1:]), "axis": axis, "across": across}
        torch.save({**_plain(said), **where}, geometry)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            _put(archive, GEOMETRY, np.frombuffer(geometry.getvalue(), np.uint8))
            results.append(use(passing(archive, number, rows) for number, rows in enumerate(blocks)))

    write_atomically(path, write)
    return results[0]


def _dimension(across: int, axis: int) -> int:
    """Of the axis that is cut, in (classes, rows, *plane)."""
    return 2 + across - (across > axis)


def _put(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Add an array to an archive that `numpy.load` reads."""
    with archive.open(name, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array))


class Stored:
    """The probabilities of a case in a file that `keeping` wrote.

    Attributes:
        image: a tensor without voxels, with the geometry and the name of the preprocessed image.
        shape: its voxels, (X, Y, Z).
        axis: spatial axis that the rows run along.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is damaged, or another one; the message names it. So does that of `rows`, which alone reads them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with _opened(self.path) as archive:
            parts = _parts(archive)
            geometry = _geometry(archive, parts[0][0][1])
            self.shape, self.axis, across = tuple(geometry["shape"]), geometry["axis"], geometry["across"]
            _check_parts([[shape for _, shape in block] for block in parts], self.shape, self.axis, across)
            _check_operations(geometry["applied_operations"], self.shape)
        self._dimension = _dimension(across, self.axis)
        self._names = [[name for name, _ in block] for block in parts]
        self.image = MetaTensor(
            torch.empty(0),
            affine=geometry["affine"],
            meta={"filename_or_obj": case_name(self.path.with_suffix("")) + ".nii.gz"},
            applied_operations=geometry["applied_operations"],
        )

    def rows(self) -> Iterator[torch.Tensor]:
        """Class probabilities, float32 (classes, rows, *plane), as many rows at a time as were written at once."""
        with _opened(self.path) as archive:
            parts = [(torch.from_numpy(_array(archive, name)) for name in names) for names in self._names]
            for some in aligned(parts):
                foreground = torch.cat(some, self._dimension).float().div_(LEVELS)
                background = (1 - foreground.sum(0, keepdim=True)).clamp_(min=0)
                yield torch.cat([background, foreground])


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive. Whatever its content makes go wrong is a ValueError that names the file."""
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except MemoryError:
            raise
        except Exception as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{path} is damaged: {why}") from error


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # at the end the checksum is compared
    return found


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape of an array of bytes, which is not read."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} is an array of version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        size = file.tell() + math.prod(shape)
    if dtype != np.uint8 or size != archive.getinfo(name).file_size:
        raise ValueError(f"{name} is no array of bytes, or is not as large as it says")
    return tuple(shape)


def _parts(archive: zipfile.ZipFile) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Names and shapes of the arrays of probabilities, in their order, for each block."""
    names = sorted(archive.namelist())
    rows = [name for name in names if name != GEOMETRY]
    if len(set(names)) < len(names) or len(rows) != len(names) - 1 or not rows:
        raise ValueError("it lacks its geometry or its rows, or has something twice")
    # Older files have no blocks, "rows_00000", or all rows in one piece.
    if not all(re.fullmatch(rf"{ROWS}([0-9]{{3,}}_)?[0-9]{{5,}}\.npy", name) for name in rows) and rows != [WHOLE]:
        raise ValueError("it holds something else than probabilities")
    parts = [(name, _shape(archive, name)) for name in rows]
    if odd := next((name for name, shape in parts if len(shape) != 4 or not all(shape)), None):
        raise ValueError(f"{odd} has no four axes, or no voxels")
    return [list(block) for _, block in itertools.groupby(parts, key=lambda part: part[0].rpartition("_")[0])]


def _geometry(archive: zipfile.ZipFile, first: tuple[int, ...]) -> dict[str, Any]:
    """The geometry of the image, in full: older files lack the shape, which is that of the `first` array, and axes."""
    if math.prod(_shape(archive, GEOMETRY)) > LARGEST_GEOMETRY:
        raise ValueError("its geometry is too large")
    found = torch.load(io.BytesIO(_array(archive, GEOMETRY).tobytes()), map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise ValueError("it has no geometry")
    axis = found.get("axis", 0)
    geometry = {"shape": list(first[1:]), "axis": axis, "across": 0 if axis else 1, **found}
    affine, axes = geometry.get("affine"), [geometry["axis"], geometry["across"]]
    if not (isinstance(affine, torch.Tensor) and affine.shape == (4, 4) and affine.is_floating_point()):
        raise ValueError("its affine is no matrix")
    if not (affine.isfinite().all() and affine.double().det().abs() > 0):
        raise ValueError("its affine cannot be inverted")
    if not (_are_whole(geometry["shape"], 3, 1) and _are_whole(axes, 2, 0) and max(axes) < 3 and axes[0] != axes[1]):
        raise ValueError("its shape or its axes are no numbers of an image")
    return geometry


def _are_whole(values: Any, num: int, least: int) -> bool:
    """Whether something is a list of so many whole numbers."""
    return (
        isinstance(values, list) and len(values) == num and all(type(n) is int and least <= n < 2**31 for n in values)
    )


def _check_parts(blocks: Sequence[Sequence[tuple[int, ...]]], shape: Sequence[int], axis: int, across: int) -> None:
    """Refuse arrays, (classes, rows, *plane) in each block, that do not make up the image, or need too much memory."""
    dim = _dimension(across, axis)
    [third] = {0, 1, 2} - {axis, across}
    classes = blocks[0][0][0]
    same = all(part[0] == classes and part[5 - dim] == shape[third] for block in blocks for part in block)
    same &= all(len({part[dim] for part in block}) == 1 for block in blocks)
    same &= {sum(part[1] for part in block) for block in blocks} == {shape[axis]}
    if not same or sum(block[0][dim] for block in blocks) != shape[across] or classes > LEVELS:
        raise ValueError(
            f"its rows do not make up an image of {' x '.join(map(str, shape))} voxels; some may be missing"
        )
    _check_memory(max(4 * math.prod(part) for block in blocks for part in block))


def _check_operations(operations: Any, shape: Sequence[int]) -> None:
    """Refuse a trace of the preprocessing that does not lead to the image."""
    if not isinstance(operations, list) or not all(isinstance(step, dict) for step in operations):
        raise ValueError("it does not tell how the image was preprocessed")
    now = list(shape)
    _check_memory(math.prod(now))
    for step in reversed(operations):
        before, name, details = step.get("orig_size"), step.get("class"), step.get("extra_info", {})
        if not (_are_whole(before, 3, 1) and isinstance(name, str) and isinstance(details, dict)):
            raise ValueError("it does not tell what the image was like before a step of its preprocessing")
        _check_memory(math.prod(before))
        cropped = details.get("cropped", [0] * 6)
        grown = [n + sum(cropped[2 * i : 2 * i + 2]) for i, n in enumerate(now)] if _are_whole(cropped, 6, 0) else []
        if ("cropped" in details and grown != before) or (name == "Orientation" and sorted(now) != sorted(before)):
            raise ValueError(f"the image before {name} was another one")
        now = before


def _check_memory(needed: int) -> None:
    if 0 < memory_bytes() < needed:
        raise ValueError(f"it says that it needs {as_text(needed)} of memory, and there are {as_text(memory_bytes())}")


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
