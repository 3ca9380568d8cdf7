"""How fast this machine trains and predicts."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from autoplan.base.axes import Shape
from autoplan.bundle.templates import template
from autoplan.cost import footprint
from autoplan.cost.footprint import Device
from autoplan.data.facts import CaseFacts, Fingerprint
from autoplan.planning import rules
from autoplan.planning.values import Configuration, Plan

START_SECONDS = 15.0
"""What the start of a process takes, until one was seen: mostly the import of libraries."""


@dataclass(frozen=True)
class Pace:
    """What a network of a configuration takes here: seconds of a training step, of an image that it predicts, of the
    start of a process, and of reading, resampling and writing an image. `features` are those of its levels."""

    configuration: str
    step_seconds: float
    image_seconds: float
    features: tuple[int, ...] = ()
    start_seconds: float = START_SECONDS
    case_seconds: float = 0.0


STEP_SECONDS = 5.0
"""A step on a CPU that seems to take no longer is made as it is planned, before time is divided. Our choice."""

CASE_SECONDS, VOXEL_SECONDS = 0.1, 5e-7
"""What an image takes to be read, resampled and written, in all and for each of its voxels. Source: docs/benchmarks.md,
"Phases of a prediction", has 0.34e-6 for a large one; small ones took longer for each voxel."""


def paces(
    plan: Plan,
    fingerprint: Fingerprint,
    configurations: Sequence[Configuration],
    device: Device = "cpu",
    *,
    is_mirrored: bool = False,
) -> list[Pace]:
    """What a training step and the prediction of an image take here, in some seconds a configuration.

    Args:
        plan: the whole plan.
        fingerprint: of its dataset.
        configurations: of the plan, with the batch and the features of a step.
        device: that trains and predicts.
        is_mirrored: whether predictions are averaged over mirrored images.

    Raises:
        PlanError: this PyTorch cannot count arithmetic.
    """
    overlap = template("evaluate.json", "3d_fullres")["overlap"]
    found = []
    for c in configurations:
        counted, measured = footprint.arithmetic(plan, c), footprint.measured_step(plan, c, device=device)
        if device == "cpu" and measured.step_seconds(counted.step) <= STEP_SECONDS:
            measured = footprint.measured_step(plan, c, device=device, whole=True)
        patch = measured.pass_seconds * counted.patch / measured.multiply_adds
        windows = statistics.median(_num_windows(plan, c, case, overlap) for case in fingerprint.cases)
        windows *= 2 ** len(c.patch_size) if is_mirrored else 1
        image = CASE_SECONDS + VOXEL_SECONDS * statistics.median(math.prod(case.shape) for case in fingerprint.cases)
        step = measured.step_seconds(counted.step)
        found.append(Pace(c.name, step, patch * windows, c.features, case_seconds=image))
    return found


def _num_windows(plan: Plan, c: Configuration, case: CaseFacts, overlap: float) -> int:
    """Windows that a prediction of a case has."""
    shape, patch = _resampled(case, c), list(c.patch_size)
    if len(patch) < len(shape):
        patch.insert(plan.slice_axis, 1)
    steps = [max(1, int(p * (1 - overlap))) for p in patch]
    return math.prod(1 + max(0, math.ceil((n - p) / s)) for n, p, s in zip(shape, patch, steps, strict=True))


def _resampled(case: CaseFacts, c: Configuration) -> Shape:
    return rules.resampled_shape(case.cropped_shape, case.spacing, target=c.spacing)
