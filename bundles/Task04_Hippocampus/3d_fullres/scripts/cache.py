"""Preprocessed cases on disk, of which a patch is read without reading the case.

One file a case holds four arrays in NumPy's own format, one after the other: the image, float32, and the label, uint8,
both with the slice axis first, so that a slice is one run of bytes and a 3D patch touches only the slices it spans;
the number of foreground voxels of each class that were kept; and their voxel indices, sorted by class. A checksum ends
the file.

A file is written under a temporary name and renamed: two trainings may fill the same folder at once, and either may be
killed. A disk may damage a file later, so the checksums are verified when a training starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import mmap
import os
import random
import struct
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, BinaryIO

import numpy as np
import torch
from monai.transforms import LoadImage
from monai.utils import ensure_tuple
from tqdm import tqdm

from scripts import contents
from scripts.files import TEMPORARY, write_atomically, write_text_atomically
from scripts.formats import files_of, name_of

FORMAT = 2
CHECKSUM = struct.Struct("<4sI")
"""End of a file: a mark, and the CRC-32 of all before."""
MARK = b"CRC:"
STALE_SECONDS = 3600
logger = logging.getLogger(__name__)
_RANDOM_STATE = ("R", "_do_transform")


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case.

    Attributes:
        image: float32 (C, *spatial), memory-mapped.
        label: uint8 (1, *spatial), memory-mapped.
        locations: for each foreground class the indices of some of its voxels, (n, spatial dims) each, memory-mapped.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    locations: tuple[np.ndarray, ...]


def read_arrays(path: Path) -> list[np.ndarray]:
    """The arrays of a file, memory-mapped."""
    arrays = []
    with path.open("rb") as file:
        while file.tell() < os.fstat(file.fileno()).st_size - CHECKSUM.size:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
            size = int(np.prod(shape)) * dtype.itemsize
            # An array without elements cannot be mapped.
            arrays.append(np.memmap(file, dtype, "r", offset, shape) if size else np.empty(shape, dtype))
            file.seek(offset + size)
    return arrays


def write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Write a file of arrays, atomically, with its checksum."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for array in arrays:
                np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
        with temporary.open("rb") as file:
            checksum = _checksum(file, os.fstat(file.fileno()).st_size)
        with temporary.open("ab") as file:
            file.write(CHECKSUM.pack(MARK, checksum))

    write_atomically(path, write)


def is_whole(path: Path) -> bool:
    """Whether a file is there and is what `write_arrays` wrote: its checksum is right."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size - CHECKSUM.size
            return size > 0 and CHECKSUM.pack(MARK, _checksum(file, size)) == file.read()
    except FileNotFoundError:
        return False


def _checksum(file: BinaryIO, size: int) -> int:
    """CRC-32 of the next `size` bytes of a file."""
    checksum = 0
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        checksum = zlib.crc32(block, checksum)
        size -= len(block)
    return checksum


def read_case(path: str | Path, slice_axis: int) -> CachedCase:
    """Open a file of the cache. Only what is then indexed is read from disk.

    Args:
        path: the file.
        slice_axis: the spatial axis that the file has first.
    """
    path = Path(path)
    image, label, counts, indices = read_arrays(path)
    ends = np.cumsum(counts)
    return CachedCase(
        name=path.name.rpartition("-")[0],
        image=np.moveaxis(image, 0, slice_axis + 1),
        label=np.moveaxis(label, 0, slice_axis)[None],
        locations=tuple(indices[end - count : end] for count, end in zip(counts, ends, strict=True)),
    )


def byte_runs(box: Any) -> list[tuple[int, int]]:
    """Runs of bytes that hold a box (C, *spatial) of an array: of each the first, counted from the start of the mapped
    memory, and the length. A run for each channel and each index along the axis that is slowest in memory."""
    if not box.size:
        return []
    extents = [(n - 1) * step for n, step in zip(box.shape[1:], box.strides[1:], strict=True)]
    slowest = int(np.argmax(extents))
    length = sum(extents) - extents[slowest] + box.itemsize
    mapped = np.frombuffer(box._mmap, np.uint8).__array_interface__["data"][0]
    first = box.__array_interface__["data"][0] - mapped
    steps = (range(n) for n in (box.shape[0], box.shape[slowest + 1]))
    return [
        (first + channel * box.strides[0] + i * box.strides[slowest + 1], length)
        for channel, i in itertools.product(*steps)
    ]


def prefetch(box: Any) -> None:
    """Have the system read a box (C, *spatial) of a memory-mapped array, and no more than its pages, before it is
    indexed.

    Without it every page that is missing makes the system read far ahead, mostly of what no patch needs.
    """
    if isinstance(box, np.memmap) and hasattr(mmap, "MADV_WILLNEED"):
        mapped: Any = box
        for start, length in byte_runs(box):
            into_page = start % mmap.PAGESIZE
            mapped._mmap.madvise(mmap.MADV_WILLNEED, start - into_page, length + into_page)


def describe(value: Any) -> Any:
    """A nested list of plain values that tells what a transform does: its class and its settings, without its random
    state. Equal settings give equal descriptions in every process."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return [[describe(k), describe(v)] for k, v in sorted(value.items(), key=lambda item: str(item[0]))]
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray, torch.Tensor)):
        values = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(values, (set, frozenset)):
            return sorted((describe(v) for v in values), key=repr)
        return [describe(v) for v in values] if isinstance(values, (list, tuple)) else describe(values)
    if hasattr(value, "__code__"):
        return [value.__module__, value.__qualname__, *_describe_code(value.__code__)]
    if isinstance(value, type):
        return [value.__module__, value.__qualname__]
    settings = {k: v for k, v in getattr(value, "__dict__", {}).items() if k not in _RANDOM_STATE}
    if isinstance(value, LoadImage):  # the last reader reads; which others there are depends on what is installed
        settings["readers"] = value.readers[-1:]
    return [type(value).__module__, type(value).__qualname__, describe(settings)]


def _describe_code(code: CodeType) -> list[Any]:
    # Two lambdas that differ in a number or a name alone have the same bytes of code.
    constants = [_describe_code(c) if isinstance(c, CodeType) else describe(c) for c in code.co_consts]
    return [hashlib.sha256(code.co_code).hexdigest(), list(code.co_names), constants]


def settings_digest(value: Any, length: int) -> str:
    """Some hexadecimal digits that tell nested plain values apart."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:length]


def remove_damaged(paths: Sequence[Path], num_workers: int = 0) -> None:
    """Remove those of the files that are not whole, with a warning, so that they are made anew.

    Args:
        paths: files of arrays; those that do not exist do not count.
        num_workers: threads that read at the same time.
    """
    there = [path for path in paths if path.exists()]
    with ThreadPoolExecutor(max(1, int(num_workers))) as readers:
        checked = tqdm(readers.map(is_whole, there), total=len(there), desc="checking", unit="case", disable=None)
        for path, whole in zip(there, checked, strict=True):
            if not whole:
                logger.warning("%s is damaged; it is made anew.", path)
                path.unlink(missing_ok=True)


class CaseCache:
    """The folder of preprocessed cases that belongs to one preprocessing.

    The files lie in a subfolder that is named by what the preprocessing does, so configurations and folds that
    preprocess alike share them, and another `target_spacing` never meets the files of this one. A file's name also
    has a digest of the content of its image and label: a changed case is preprocessed again.

    Args:
        folder: where caches lie; made when it does not exist.
        preprocessing: transform from {"name", "image", "label"} to tensors (C, *spatial) and (1, *spatial).
        slice_axis: spatial axis to store first.
        num_classes: classes, background included. Larger numbers in labels are of voxels that are not known.
        max_locations: voxels of each class whose indices are kept, drawn at random. 10000 is the known default of
            nnU-Net.
    """

    def __init__(
        self,
        folder: str | Path,
        preprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        slice_axis: int,
        num_classes: int,
        max_locations: int = 10000,
    ) -> None:
        self.preprocessing = preprocessing
        self.slice_axis = int(slice_axis)
        self.num_classes = int(num_classes)
        self.max_locations = int(max_locations)
        what = [FORMAT, describe(preprocessing), self.slice_axis, self.num_classes, self.max_locations]
        self.folder = Path(folder) / settings_digest(what, 12)
        self.kept = Path(folder) / contents.NAME
        self.known = contents.read_known(self.kept)

    def contents(self, items: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """Digests of the content of cases, by name: of the image, all its channels together, and of the label."""
        groups = [
            [file for path in ensure_tuple(item[key]) for file in files_of(Path(path))]
            for item in items
            for key in ("image", "label")
        ]
        found = contents.digests(groups, self.known)
        return {name_of(item): found[2 * i : 2 * i + 2] for i, item in enumerate(items)}

    def path(self, item: Mapping[str, Any]) -> Path:
        """File of a case, which may not exist yet."""
        name = name_of(item)
        return self.folder / f"{name}-{settings_digest(self.contents([item])[name], 8)}.npys"

    def write(self, item: Mapping[str, Any]) -> Path:
        """Preprocess one case unless its file exists, and give the file."""
        path = self.path(item)
        if not path.exists():
            try:
                data = self.preprocessing(dict(item))
            except Exception as error:
                raise RuntimeError(f"{name_of(item)} cannot be preprocessed: {error}") from error
            image = np.moveaxis(np.asarray(data["image"], np.float32), self.slice_axis + 1, 0)
            label = np.asarray(data["label"])[0].astype(np.uint8)
            locations = self._locations(label, np.random.default_rng(int(settings_digest(path.name, 8), 16)))
            counts = np.array([len(found) for found in locations], np.int64)
            indices = np.concatenate([np.empty((0, label.ndim), np.int32), *locations])
            write_arrays(path, [image, np.moveaxis(label, self.slice_axis, 0), counts, indices])
        return path

    def _locations(self, label: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        flat = label.reshape(-1)
        found = []
        for value in range(1, self.num_classes):
            where = np.flatnonzero(flat == value)
            if len(where) > self.max_locations:
                where = rng.choice(where, self.max_locations, replace=False)
            found.append(np.stack(np.unravel_index(where, label.shape), axis=-1).astype(np.int32))
        return found

    def fill(self, items: Sequence[Mapping[str, Any]], num_workers: int = 0) -> list[Path]:
        """Files of the cases, after preprocessing those that have none yet.

        Args:
            items: {"name", "image", "label"} of each case; the image is a path or a list of paths, one a channel.
            num_workers: processes that preprocess at the same time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.contents(items)
        self._keep()
        remove_damaged([self.path(item) for item in items], num_workers)
        missing = [item for item in items if not self.path(item).exists()]
        if missing:
            self._remove_stale()
            # Another order in every process, on every machine: those that start together share the work.
            random.Random().shuffle(missing)
            # A generator of its own: filling a cache must not change the random numbers of the training.
            jobs = torch.utils.data.DataLoader(
                _Jobs(self, missing),
                batch_size=None,
                num_workers=min(int(num_workers), len(missing)),
                generator=torch.Generator(),
            )
            for _ in tqdm(jobs, total=len(missing), desc="preprocessing", unit="case", disable=None):
                pass
        return [self.path(item) for item in items]

    def _keep(self) -> None:
        """Keep the digests that are known, beside those that others have kept meanwhile."""
        kept = contents.read_known(self.kept)
        if {**kept, **self.known} != kept:
            write_text_atomically(self.kept, json.dumps({**kept, **self.known}))

    def _remove_stale(self) -> None:
        for left in self.folder.glob(TEMPORARY):
            # Its writer may finish and rename it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    left.unlink()


class _Jobs(torch.utils.data.Dataset[str]):
    def __init__(self, cache: CaseCache, items: Sequence[Mapping[str, Any]]) -> None:
        self.cache, self.items = cache, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> str:
        return str(self.cache.write(self.items[index]))
