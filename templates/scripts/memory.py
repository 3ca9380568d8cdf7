"""How much memory there is and how many processors, and what a prediction needs of the memory.

Planning reads this text too, and has no torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

UNITS = "KMGT"
"""Of 10^3, 10^6, 10^9 and 10^12 bytes; with an i, as in GiB, of 2^10, 2^20, 2^30 and 2^40."""
LAYERS = 6
"""Outputs of the first layers that are there at once while a network predicts, measured: benchmarks/inference_memory.py
of autoplan."""
OUTPUTS = 5
"""Copies of the probabilities of a window that are there at once."""
LIBRARIES = 40 * 10**6
"""What libraries keep of their own once they work, measured in the same way."""
GROUPS = Path("/sys/fs/cgroup")


def as_bytes(size: str | float) -> int:
    """Bytes of a size such as "4GB" or "3.5 GiB", or of a number of bytes.

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"(?ai)(\d{1,15}(?:\.\d{0,15})?) ?(?:([KMGT])(i?))?B?", str(size).strip())
    base = 1024 if found and found[3] else 1000
    count = round(float(found[1]) * base ** (UNITS.find(found[2].upper()) + 1 if found[2] else 0)) if found else 0
    if count <= 0:
        raise ValueError(f"a size is written as 4GB or 3.5GiB, not {str(size)[:40]!r}")
    return count


def as_text(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"


def memory_bytes() -> int:
    """Memory of this machine, of the container that the process runs in, of its Slurm job, or what `ulimit` leaves it,
    whichever is the least; 0 where that is unknown."""
    limits = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in (GROUPS / "memory" / "memory.limit_in_bytes", *(g / "memory.max" for g in (GROUPS, *_own_groups()))):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            limits.append(int(file.read_text()))
    with contextlib.suppress(KeyError, ValueError):
        limits.append(int(os.environ["SLURM_MEM_PER_NODE"]) * 2**20)
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        limits += [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit > 0), default=0)


def processors() -> int:
    """How many processors this process may use: those that it may run on, or what a quota of its container or job
    allows of their time, rounded down, whichever is less; at least 1."""
    there = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for group in (GROUPS, *_own_groups()):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no quota
            quota, period = (group / "cpu.max").read_text().split()
            there = min(there, int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # version 1; -1 where there is none
        quota, period = ((GROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        there = min(there, int(quota) / int(period)) if int(quota) > 0 else there
    return max(1, int(there))


def _own_groups() -> list[Path]:
    """The control groups (version 2) that this process is in."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = GROUPS / line.removeprefix("0::").strip("/")
                return [own, *(p for p in own.parents if p.is_relative_to(GROUPS))]
    return []


def reset_peak() -> None:
    """Count the peaks of `peak_bytes` and of the GPU's memory from now on."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int | None:
    """The most memory that this process has had since `reset_peak`; None where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return None


@dataclass(frozen=True)
class Need:
    """Bytes that the prediction of an image takes, above those of the process after its imports: the image and its
    label map, what the network makes of the windows that it sees at once, the sums of the rows that are open, and what
    libraries keep."""

    image: int
    windows: int
    rows: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.image + self.windows + self.rows + LIBRARIES

    def __str__(self) -> str:
        parts = {"image": self.image, "windows": self.windows, "open rows": self.rows, "libraries": LIBRARIES}
        return f"{as_text(self.total)} of memory ({', '.join(f'{n} {as_text(size)}' for n, size in parts.items())})"


def need(
    image: Sequence[int], shape: Sequence[int], window: int, features: int, num_classes: int, open_voxels: float
) -> Need:
    """What a prediction takes on a CPU.

    Args:
        image: (C, X, Y, Z) of the preprocessed image.
        shape: of the label map, on the image's own grid.
        window: voxels in the windows that the network sees at once.
        features: feature maps of its first layer.
        num_classes: with the background.
        open_voxels: voxels whose probabilities are summed.
    """
    # The label map twice, that of the image before, which is being written, and the float32 image once more: what is
    # inverted or padded is a copy.
    return Need(
        image=2 * 4 * math.prod(image) + 3 * math.prod(shape),
        windows=4 * window * (LAYERS * features + OUTPUTS * num_classes),
        rows=int(4 * num_classes * open_voxels),
    )
