"""Patches for training: which ones (the sampler) and what they hold (the dataset)."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events

from scripts.augmentation import patch_start
from scripts.cache import CachedCase, CaseCache, prefetch, read_case
from scripts.cascade import LowresSegmentations

MAX_DRAWS = 1000
"""Voxels that are drawn at most until one is known."""


class Request(NamedTuple):
    """A patch that a sampler asks of a :class:`PatchDataset`. All that is random about it follows from `seed`."""

    case: int
    foreground: bool
    seed: int


class PatchDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Patches of preprocessed cases, cut where a :class:`Request` says.

    A forced patch is centred on a random voxel of a random foreground class of the case, any other on a voxel drawn
    evenly among those whose class is known: their label is below the number of classes. The transform moves the centre
    so that the patch lies inside the image as far as it can.

    Args:
        data: {"name", "image", "label"} of each case; preprocessed into the cache when first needed.
        cache: where the preprocessed cases lie.
        patch_size: voxels; two numbers for patches of slices, three for patches of volumes.
        transform: makes the patch from {"image": (C, *spatial), "label": (1, *spatial), "center": voxel index}, whose
            arrays are memory-mapped: what it does not index is not read. When it is randomizable it is seeded before.
        num_workers: processes that preprocess at the same time.
        lowres: for the second stage of a cascade, the segmentations by the first; the transform finds them as
            "lowres", (1, *spatial).

    Source: arXiv:1809.10486, section 2.3, "Patch Sampling".
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        cache: CaseCache,
        patch_size: Sequence[int],
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        num_workers: int = 0,
        lowres: LowresSegmentations | None = None,
    ) -> None:
        self.paths = cache.fill(data, num_workers)
        self.lowres = lowres
        self.lowres_paths = [] if lowres is None else lowres.fill(data)
        self.slice_axis, self.num_classes = cache.slice_axis, cache.num_classes
        self.patch_size = tuple(int(p) for p in patch_size)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def case(self, index: int) -> CachedCase:
        """The preprocessed case of that number."""
        return read_case(self.paths[index], self.slice_axis)

    def with_foreground(self) -> list[int]:
        """Numbers of the cases that hold any foreground."""
        return [i for i in range(len(self)) if any(len(found) for found in self.case(i).locations)]

    def __getitem__(self, request: Request) -> dict[str, Any]:
        case = self.case(request.case)
        rng = np.random.default_rng(request.seed)
        center = self._center(case, request.foreground, rng)
        arrays = {"image": case.image, "label": case.label}
        if self.lowres is not None:
            arrays["lowres"] = self.lowres.read(self.lowres_paths[request.case])
        if len(self.patch_size) == case.image.ndim - 2:
            # An index and not np.take, which copies the whole of an array that is not contiguous.
            where = (slice(None),) * (self.slice_axis + 1) + (center.pop(self.slice_axis),)
            arrays = {key: array[where] for key, array in arrays.items()}
        else:
            start = patch_start(center, self.patch_size, case.label.shape[1:])
            inside = tuple(slice(max(s, 0), s + n) for s, n in zip(start, self.patch_size, strict=True))
            for array in arrays.values():
                prefetch(array[(slice(None), *inside)])
        data = {**arrays, "center": tuple(center), "case": case.name}
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed=int(rng.integers(2**32)))
        return self.transform(data)

    def _center(self, case: CachedCase, foreground: bool, rng: np.random.Generator) -> list[int]:
        present = [found for found in case.locations if len(found)]
        if foreground and present:
            voxels = present[rng.integers(len(present))]
            return [int(v) for v in voxels[rng.integers(len(voxels))]]
        for _ in range(MAX_DRAWS):
            voxel = [int(rng.integers(size)) for size in case.label.shape[1:]]
            if case.label[(0, *voxel)] < self.num_classes:
                return voxel
        return self._center(case, True, rng) if present else voxel


class ForegroundBatchSampler(torch.utils.data.Sampler[list[Request]]):
    """Batches of which more than a third of the samples are forced to hold a foreground class.

    Iteration i of a run asks for the same patches in every process, whatever came before: a run that is resumed at an
    iteration goes on as if it had never stopped. Cases are drawn evenly with replacement; the forced samples draw
    among the cases that have foreground, and are not forced when no case has.

    Args:
        dataset: asked which cases there are.
        batch_size: samples of a batch, over all ranks; rounded up to a multiple of their number.
        seed: two samplers with different seeds ask for different patches.
        num_batches: batches of an epoch; None for an iterator without end, which goes on over the epochs.
        foreground_fraction: "more than" this part of a batch is forced.

    Source: arXiv:1809.10486, section 2.3, "Patch Sampling".
    """

    def __init__(
        self,
        dataset: PatchDataset,
        batch_size: int,
        seed: int = 0,
        num_batches: int | None = None,
        foreground_fraction: float = 1 / 3,
    ) -> None:
        self.num_cases = len(dataset)
        if not self.num_cases:
            raise ValueError("there is no case to draw patches from")
        self.foreground_cases = dataset.with_foreground()
        self.seed = int(seed)
        self.num_batches = num_batches
        # In distributed training every rank takes its share of the same batch.
        self.rank, self.num_ranks = idist.get_rank(), idist.get_world_size()
        self.batch_size = math.ceil(int(batch_size) / self.num_ranks) * self.num_ranks
        if self.num_ranks > 1:
            logging.getLogger(__name__).info(
                "a batch of %d is divided over %d ranks: %d samples each, %d in all",
                batch_size, self.num_ranks, self.batch_size // self.num_ranks, self.batch_size,
            )  # fmt: skip
        self.num_forced = min(self.batch_size, int(self.batch_size * foreground_fraction) + 1)
        self.start = 0

    def attach(self, engine: Engine) -> None:
        """Let an engine's epoch and iteration decide where the batches start."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        length = engine.state.epoch_length
        self.start = (engine.state.epoch - 1) * length + engine.state.iteration % length

    def batch(self, iteration: int) -> list[Request]:
        """The samples of an iteration, over all ranks; the forced ones come last."""
        rng = np.random.default_rng([self.seed, iteration])
        requests = []
        for number in range(self.batch_size):
            forced = number >= self.batch_size - self.num_forced and bool(self.foreground_cases)
            drawn = rng.choice(self.foreground_cases) if forced else rng.integers(self.num_cases)
            requests.append(Request(int(drawn), forced, int(rng.integers(2**63))))
        return requests

    def __iter__(self) -> Iterator[list[Request]]:
        numbers = itertools.count(self.start)
        for iteration in itertools.islice(numbers, self.num_batches):
            yield self.batch(iteration)[self.rank :: self.num_ranks]


class PatchLoader(torch.utils.data.DataLoader[dict[str, Any]]):
    """Loads the batches that a sampler asks for; the worker processes stay alive between epochs.

    Args:
        dataset: gives a patch for a request.
        batch_sampler: gives the requests of each batch.
        num_workers: processes; with 0 the training's own process does the work.
    """

    def __init__(self, dataset: PatchDataset, batch_sampler: ForegroundBatchSampler, num_workers: int = 0) -> None:
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_group,
            generator=torch.Generator(),
        )


def _leave_group(_: int) -> None:
    # Ctrl-C, and SIGTERM to a job, reach every process of a group; the training ends its workers itself.
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
