"""What makes a network fast on a CPU. docs/benchmarks.md of autoplan has the times with and without."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from scripts.memory import processors

Item = TypeVar("Item")

# glibc's numbers for these settings (malloc.h), and their values: bytes, bytes, and how many.
MMAP_THRESHOLD, LARGEST_KEPT = -3, 512 * 2**20
TRIM_THRESHOLD, MOST_KEPT = -1, 2**31 - 1
ARENA_MAX, ARENAS = -8, 1

SMALL = 20480
"""Channels times voxels of the first two axes, up to which torch does not leave a single image to oneDNN. Source: torch
2.13, ConvParams::use_mkldnn."""


@functools.cache
def keep_to_processors() -> None:
    """Use as many threads as there are processors for this process. PyTorch counts those of the machine: in a container
    that may use two of 64, threads would wait for each other. A number of threads that the user has set stays."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), processors()))


def default_num_workers() -> int:
    """Processes that cut and augment patches: as many as the network has threads, at most 8."""
    keep_to_processors()
    return min(8, torch.get_num_threads())


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 512 MiB, together up to 2 GiB, for whichever thread asks next.

    A network frees the outputs of its layers without end and asks for new ones: 30 of 128x128x128 voxels are 240 MiB.
    Given back to the system in between, as is usual, they come back page by page, each emptied first. Larger blocks, as
    volumes are, go back as ever. Where the C library is not glibc, nothing happens.
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
        if not torch.is_grad_enabled():
            return torch.mkldnn_convolution(image, weight, bias, padding, stride, dilation, groups)
        if groups == 1 and len(weight) % 2 == 0 and math.prod(image.shape[1:4]) <= SMALL:
            # The same sums, in two groups: those torch leaves to oneDNN whatever their size, and their gradients too.
            return torch.conv3d(torch.cat([image, image], 1), weight, bias, stride, padding, dilation, 2)
    return torch.conv3d(image, weight, bias, stride, padding, dilation, groups)


class SumOfHalves:
    """The sum of function(every other item) and function(the items between).

    Either half has all cores, one after the other, or both go at once, each by a thread with half of the cores: more
    threads in one network wait longer for each other, but two networks need more of the cache. Which is faster depends
    on the processor and on the size of what is computed, so the first calls of each kind go both ways in turn, and the
    others go the way that was faster. The sum is the same bit by bit.

    Args:
        clock: seconds.
    """

    TURNS = 3
    """Calls that are timed each way. Our choice: the first of a kind is slower, and the fastest counts."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds: dict[tuple[Hashable, int], tuple[list[float], list[float]]] = {}

    def __call__(
        self,
        function: Callable[[Sequence[Item]], torch.Tensor],
        items: Sequence[Item],
        kind: Hashable,
        *,
        at_once: bool,
    ) -> torch.Tensor:
        """The sum, or function(items) of a single item.

        Args:
            function: takes the items of a half.
            items: in an order that stays.
            kind: calls of one kind take as long as each other.
            at_once: whether both halves may go at once, where there are as many items and cores for the one as for the
                other.
        """
        cores = torch.get_num_threads()
        if len(items) < 2:
            return function(items)
        halves = items[::2], items[1::2]
        if not at_once or cores % 2 or len(items) % 2:
            return function(halves[0]) + function(halves[1])
        together, in_turn = self.seconds.setdefault((kind, cores), ([], []))
        is_known = len(in_turn) == self.TURNS
        both = min(together) <= min(in_turn) if is_known else len(together) == len(in_turn)
        start = self.clock()
        found = _sum_at_once(function, *halves) if both else function(halves[0]) + function(halves[1])
        if not is_known:
            (together if both else in_turn).append(self.clock() - start)
        return found


def _sum_at_once(
    function: Callable[[Sequence[Item]], torch.Tensor], first: Sequence[Item], second: Sequence[Item]
) -> torch.Tensor:
    """function(first) + function(second), each by a thread with half of the cores."""
    cores, gradients = torch.get_num_threads(), torch.is_grad_enabled()

    def begin() -> None:
        torch.set_num_threads(cores // 2)
        torch.set_grad_enabled(gradients)

    try:
        with ThreadPoolExecutor(2, initializer=begin) as pool:
            one, other = pool.map(function, (first, second))
    finally:
        torch.set_num_threads(cores)  # what threads that are yet to come begin with
    return one + other
