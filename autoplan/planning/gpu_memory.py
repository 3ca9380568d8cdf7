"""A plan for a GPU of little memory: the largest admissible batch first, then a smaller patch, by the paper's rules."""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from autoplan.base.axes import Shape, without_axis
from autoplan.base.errors import PlanError
from autoplan.base.scripts.memory import as_bytes
from autoplan.planning import rules, topology
from autoplan.planning.reasons import base_voxels
from autoplan.planning.values import Configuration, Decision, Plan

RESERVED_BYTES = 10**9
"""Memory of a GPU that tensors do not get: the context of its driver, workspaces of libraries, gaps. Our choice; no GPU
was measured."""
_RULES = ("patch_size", "num_pool", "features", "batch_size", "augmentation")
Needed = Callable[[Plan, Configuration], int]
"""Bytes of a GPU that tensors of a training step of a configuration need."""


def parsed(text: str) -> int:
    """Bytes of a GPU that a text such as 8GB (10^9 bytes each) or 7.5GiB (2^30) means.

    Raises:
        PlanError: it means none, or less than is kept free.
    """
    try:
        size = as_bytes(text)
    except ValueError:
        size = 0
    if size <= RESERVED_BYTES:
        raise PlanError(f"--gpu_memory takes a size above {_size(RESERVED_BYTES)}, such as 8GB, not {text[:40]!r}.")
    return size


def suspicion(plan: Plan) -> str | None:
    """What to say where the 2D network would see far more than the paper's: two whole images of microscopy, say. None
    where it does not, or a limit of memory was given."""
    flat = next((c for c in plan.configurations if c.name == "2d"), None)
    if flat is None or plan.gpu_memory is not None:
        return None
    factor = flat.batch_size * math.prod(flat.patch_size) / topology.BASE_VOXELS_2D
    if factor <= 1:
        return None
    return (
        f"2d has patches of {'x'.join(map(str, flat.patch_size))}, {flat.batch_size} in a batch: {factor:.1f} times "
        "the voxels that the paper gives a GPU. Plan for the one that you have: --gpu_memory 8GB."
    )


def fitted(plan: Plan, gpu_memory: int, needed: Needed) -> Plan:
    """The plan whose trainings fit a GPU. What fits already stays as it is.

    A configuration that does not fit gets the largest batch that does, from the planned one down to the paper's least,
    2. Where that does not fit, its patch becomes that of the paper's rule for fewer and fewer voxels, with the largest
    batch that the rules and the GPU allow. The second stage of a cascade keeps the network of 3d_fullres: both fit.

    Args:
        plan: as the rules have it without a limit.
        gpu_memory: bytes of the GPU.
        needed: see `Needed`.

    Raises:
        PlanError: no patch is small enough.
    """
    limit = gpu_memory - RESERVED_BYTES
    names = [c.name for c in plan.configurations]
    changed: dict[str, Configuration] = {}
    for c in plan.configurations:
        if c.name == "3d_cascade_fullres" and "3d_fullres" in changed:
            small = changed["3d_fullres"]
            changed[c.name] = replace(
                small, name=c.name, batch_dice=c.batch_dice, median_shape=c.median_shape, spacing=c.spacing
            )
            continue
        pair = [c.name, *(n for n in names if c.name == "3d_fullres" and n == "3d_cascade_fullres")]
        changed[c.name] = _fitting(plan, c, limit, lambda s, pair=pair: _most(plan, s, pair, needed))  # type: ignore[misc]
    configurations = tuple(changed[name] for name in names)
    return replace(
        plan,
        configurations=configurations,
        decisions=_decisions(plan, configurations, gpu_memory),
        gpu_memory=gpu_memory,
    )


def _most(plan: Plan, c: Configuration, names: Sequence[str], needed: Needed) -> int:
    """The most that one of several configurations needs with the patch and the batch of `c`."""
    return max(needed(plan, replace(c, name=name)) for name in names)  # type: ignore[arg-type]


def _fitting(plan: Plan, c: Configuration, limit: int, needed: Callable[[Configuration], int]) -> Configuration:
    """The first of the smaller configurations that fits, with its largest batch. It is looked for by halves, for an
    image of microscopy has hundreds, and to count the memory of one takes seconds."""

    def least(small: Configuration) -> int:
        return needed(replace(small, batch_size=topology.MIN_BATCH_SIZE))

    if needed(c) <= limit:
        return c
    patches = list(_patches(plan, c))
    first = bisect.bisect_left(patches, True, key=lambda small: least(small) <= limit)
    if first < len(patches):
        return replace(patches[first], batch_size=_batch(patches[first], limit, needed))
    raise PlanError(
        f"{c.name} does not fit a GPU of {_size(limit + RESERVED_BYTES)}: its smallest patch needs "
        f"{_size(least(patches[-1]) + RESERVED_BYTES)}. Give more with --gpu_memory, or leave it out."
    )


def _batch(c: Configuration, limit: int, needed: Callable[[Configuration], int]) -> int:
    """The largest batch up to that of `c` that fits; the least one is known to."""
    fits, not_tried = topology.MIN_BATCH_SIZE, c.batch_size
    while fits < not_tried:
        middle = (fits + not_tried + 1) // 2
        if needed(replace(c, batch_size=middle)) <= limit:
            fits = middle
        else:
            not_tried = middle - 1
    return fits


def _patches(plan: Plan, c: Configuration) -> Iterator[Configuration]:
    """The configuration, then those of smaller and smaller patches, each with the batch of the paper's rule."""
    yield c
    is_flat = len(c.patch_size) == 2
    spacing = without_axis(c.spacing, plan.slice_axis) if is_flat else c.spacing
    max_pool = topology.MAX_POOL_2D if is_flat else topology.MAX_POOL_3D
    patch, voxels = c.patch_size, math.prod(c.patch_size)
    while voxels > 1:
        voxels = math.prod(patch) - 1
        smaller = topology.patch_size_3d(c.median_shape, spacing, max_patch_voxels=voxels, max_pool=max_pool)
        if math.prod(smaller) > voxels:
            return
        patch = smaller
        yield _with_patch(plan, c, patch, max_pool)


def _with_patch(plan: Plan, c: Configuration, patch: Shape, max_pool: int) -> Configuration:
    """A configuration with another patch, and all that the paper makes of it."""
    strides = topology.strides(patch, max_pool=max_pool)
    whole = next((o.median_shape for o in plan.configurations if len(o.median_shape) == 3), (*c.median_shape, 1))
    shape = c.median_shape if len(c.median_shape) == 3 else whole
    batch = topology.batch_size(patch, shape, num_cases=plan.num_training, base_voxels=base_voxels(c.name))
    is_capped = c.features[-1] < c.features[0] * 2 ** (len(c.features) - 1)
    return replace(
        c,
        patch_size=patch,
        batch_size=batch,
        strides=strides,
        features=topology.features(len(strides), max_features=c.features[-1] if is_capped else None),
        augmentation=rules.augmentation(patch),
    )


# The decisions, in words. Nothing below decides anything.


def _decisions(plan: Plan, fitted: Sequence[Configuration], gpu_memory: int) -> tuple[Decision, ...]:
    """Those of the plan, with what the GPU's memory changes."""
    small = {c.name: c for c in fitted if c != plan.configuration(c.name)}
    kept = [_with_reason(d, small.get(d.configuration), gpu_memory) for d in plan.decisions]  # type: ignore[call-overload]
    what = "; ".join(f"{n} gets {_change(plan.configuration(n), c)}" for n, c in small.items())
    because = (
        f"--gpu_memory {_size(gpu_memory)} was given, of which {_size(RESERVED_BYTES)} stay free for the driver and "
        f"libraries. By an estimate of a training step, {what or 'all configurations fit as the paper plans them'}."
    )
    return (Decision("", "gpu_memory", _size(gpu_memory), "our choice", because), *kept)


def _with_reason(decision: Decision, c: Configuration | None, gpu_memory: int) -> Decision:
    """A decision with the value that the smaller configuration has."""
    if c is None or decision.name not in _RULES:
        return decision
    values = {
        "patch_size": _times(c.patch_size),
        "num_pool": _times(c.num_pool),
        "features": f"{c.features[0]}-{c.features[-1]}",
        "batch_size": str(c.batch_size),
        "augmentation": c.augmentation,
    }
    value = values[decision.name]
    if value == decision.value:
        return decision
    because = (
        f"{value} in place of {decision.value}, so that a step fits a GPU of {_size(gpu_memory)}. Without that limit: "
        f"{decision.because}"
    )
    return replace(decision, value=value, source=f"--gpu_memory; {decision.source}", because=because)


def _change(old: Configuration, new: Configuration) -> str:
    """What became smaller."""
    parts = [
        (old.patch_size != new.patch_size, f"patches of {_times(new.patch_size)} in place of {_times(old.patch_size)}"),
        (old.batch_size != new.batch_size, f"a batch of {new.batch_size} in place of {old.batch_size}"),
    ]
    return " and ".join(text for holds, text in parts if holds)


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


def _size(number: int) -> str:
    """`8 GB`, in the words of the flag."""
    return f"{number / 1e9:.4g} GB" if number >= 1e9 else f"{number / 1e6:.4g} MB"
