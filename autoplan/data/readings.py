"""What planning has read of each case, kept in a file: no case is read twice, however often planning is started.

readings.jsonl holds a line a case: a checksum, and a JSON object. It is appended in one write as soon as the case is
read, so several plannings may share the file, and each of them may be killed at any moment: a line that is not whole
fails its checksum and is as good as absent. What is read back equals what was written, bit by bit.
"""

import json
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from autoplan.base.codec import from_dict, to_dict
from autoplan.base.files import regular, write_atomically
from autoplan.data.facts import CaseFacts

NAME = "readings.jsonl"
_DIGITS = 8
"""Of a checksum, hexadecimal."""


@dataclass(frozen=True)
class Histogram:
    """Intensities of one channel, pooled: how often each (rounded) value occurs, and the moments of the unrounded ones.

    `values` ascends; `deviation` is the sum of squared distances from `mean`.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    mean: float
    deviation: float


@dataclass(frozen=True)
class Reading:
    """What one case gives: faults, or facts and the intensities of each CT channel. A test image has no facts."""

    faults: tuple[str, ...]
    facts: CaseFacts | None = None
    histograms: tuple[Histogram | None, ...] = ()


class Readings:
    """The readings that a file holds, by a key of the case's files; it holds none where there is no such file.

    Only the place of each is in memory. What others change in the file meanwhile changes nothing here.

    Args:
        path: the file; None: nothing is kept.

    Raises:
        OSError: there is something that cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: BinaryIO = BytesIO() if path is None or not path.exists() else regular(path).open("rb")
        self._places = dict(_whole_lines(self._file))

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Reading:
        return _from_json(json.loads(self._line(key)[_DIGITS + 1 :]))

    def add(self, key: str, reading: Reading) -> None:
        """Keep a reading without faults, for the next time that the file is opened.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": key, **_to_json(reading)}).encode()
        # The line break comes first: it ends a line that was left unfinished.
        line = b"\n" + _checksum(text) + b" " + text
        with self.path.open("ab", buffering=0) as file:
            while line:
                line = line[file.write(line) :]

    def keep_only(self, keys: Iterable[str]) -> None:
        """Write the file anew where it holds more than these readings, or one of them twice."""
        there = [key for key in keys if key in self]
        size = self._file.seek(0, os.SEEK_END)
        if self.path is None or size == sum(1 + self._places[key][1] for key in there):
            return

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.writelines(b"\n" + self._line(key) for key in there)

        write_atomically(self.path, write)

    def _line(self, key: str) -> bytes:
        start, length = self._places[key]
        self._file.seek(start)
        return self._file.read(length)


def _whole_lines(file: BinaryIO) -> Iterator[tuple[str, tuple[int, int]]]:
    """Key, first byte and number of bytes of each line whose checksum is right."""
    start = 0
    for line in file:
        text = line.rstrip(b"\n")
        if text[:_DIGITS] == _checksum(text[_DIGITS + 1 :]) and len(text) > _DIGITS:
            yield json.loads(text[_DIGITS + 1 :])["key"], (start, len(text))
        start += len(line)


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _to_json(reading: Reading) -> dict[str, Any]:
    """A reading as plain JSON types."""
    return {"facts": to_dict(reading.facts), "histograms": [h and _packed(h) for h in reading.histograms]}


def _from_json(data: dict[str, Any]) -> Reading:
    """The reading that `_to_json` wrote."""
    histograms = tuple(None if h is None else _unpacked(h) for h in data["histograms"])
    return Reading((), from_dict(CaseFacts | None, data["facts"]), histograms)


def _packed(histogram: Histogram) -> dict[str, Any]:
    """A histogram as plain JSON types. Bytes of one rank lie together: that makes them a third as long, compressed."""
    arrays = {"values": histogram.values.astype("<f8"), "counts": histogram.counts.astype("<i8")}
    packed = {name: zlib.compress(a.view(np.uint8).reshape(-1, 8).T.tobytes()) for name, a in arrays.items()}
    texts = {name: b64encode(data).decode() for name, data in packed.items()}
    return {"mean": histogram.mean, "deviation": histogram.deviation, **texts}


def _unpacked(data: dict[str, Any]) -> Histogram:
    """The histogram that `_packed` wrote."""
    values, counts = (
        np.frombuffer(zlib.decompress(b64decode(data[name])), np.uint8).reshape(8, -1).T.copy().view(kind)[:, 0]
        for name, kind in (("values", "<f8"), ("counts", "<i8"))
    )
    return Histogram(values, counts, data["mean"], data["deviation"])
