"""What makes a network fast on a CPU. docs/benchmarks.md of autoplan has the times with and without."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

Item = TypeVar("Item")

# glibc's numbers for these settings (malloc.h), and their values: bytes, bytes, and how many.
MMAP_THRESHOLD, LARGEST_KEPT = -3, 128 * 2**20
TRIM_THRESHOLD, MOST_KEPT = -1, 512 * 2**20
ARENA_MAX, ARENAS = -8, 1


def default_num_workers() -> int:
    """Processes that cut and augment patches: as many as the network has threads, at most 8."""
    return min(8, torch.get_num_threads())


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 128 MiB, together up to 512 MiB, for whichever thread asks next.

    A network frees the outputs of its layers without end and asks for new ones. Given back to the system in between,
    as is usual, they come back page by page, each emptied first. Larger blocks, as volumes are, go back as ever. Where
    the C library is not glibc, nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        for setting, value in ((MMAP_THRESHOLD, LARGEST_KEPT), (TRIM_THRESHOLD, MOST_KEPT), (ARENA_MAX, ARENAS)):
            library.mallopt(setting, value)


class OneDNNConvolutions(TorchFunctionMode):
    """Within it, oneDNN convolves single images, too. For one of few channels torch 2.13 takes its own convolution:
    that first writes each voxel 27 times, and is up to 14 times slower."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what torch calls, or oneDNN's convolution."""
        return (_convolution if func is torch.conv3d else func)(*args, **(kwargs or {}))


def _convolution(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    is_plain = image.dtype == torch.float32 and isinstance(padding, tuple) and not torch.compiler.is_compiling()
    if len(image) == 1 and is_plain:
        return torch.mkldnn_convolution(image, weight, bias, padding, stride, dilation, groups)
    return torch.conv3d(image, weight, bias, stride, padding, dilation, groups)


def sum_by_two_threads(function: Callable[[Sequence[Item]], torch.Tensor], items: Sequence[Item]) -> torch.Tensor:
    """The sum of function(one half of the items) and function(the other half), each by a thread with half of the cores:
    more threads in one network wait longer for each other. Where the halves would not be equal, function(items).
    """
    cores = torch.get_num_threads()
    if cores % 2 or len(items) % 2:
        return function(items)
    gradients = torch.is_grad_enabled()

    def begin() -> None:
        torch.set_num_threads(cores // 2)
        torch.set_grad_enabled(gradients)

    try:
        with ThreadPoolExecutor(2, initializer=begin) as pool:
            first, second = pool.map(function, (items[::2], items[1::2]))
    finally:
        torch.set_num_threads(cores)  # what threads that are yet to come begin with
    return first + second
