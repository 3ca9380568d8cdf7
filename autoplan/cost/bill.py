"""What the trainings of a plan need before they begin: memory, disk, time. Estimated, and timed on this machine."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from autoplan.base.codec import from_dict, to_dict
from autoplan.base.files import read_object, write_text_atomically
from autoplan.bundle.templates import template
from autoplan.cost import footprint
from autoplan.cost.footprint import FLOAT, Device
from autoplan.cost.pace import _resampled
from autoplan.data.facts import CaseFacts, Fingerprint
from autoplan.planning import topology
from autoplan.planning.values import Configuration, Plan

COST = "cost.json"
"""Name of the file beside the bundles."""
GPUS = (("T4", 65.0), ("RTX 3090", 71.0), ("A100", 312.0), ("H100 SXM", 989.0))
"""GPUs, and the TFLOP per second of their tensor cores in float16, without sparsity, accumulated in float32. Source:
NVIDIA's data sheets and its white paper on the GA102."""
REACHED = (0.5, 0.05)
"""Part of the published throughput that a training may reach, at best and at worst. Our choice."""
PREPARED = 4
"""Copies of an image, as float32, that its preprocessing holds at a time. Our choice."""
SMALL = ": the time that one thread works on a small step, divided by the threads and scaled by the multiply-adds"
MAX_LOCATIONS = 10_000
"""Voxels of a class whose indices the cache keeps at most. Source: the bundles' `CaseCache`."""


@dataclass(frozen=True)
class Cost:
    """What the training of one configuration needs. Bytes are of a GPU in mixed precision, but for `host_bytes`;
    `gpu_bytes` is the measured peak of a step, None where there is no GPU; seconds are of this machine."""

    configuration: str
    parameters: int
    patch_multiply_adds: int
    epoch_multiply_adds: int
    training_bytes: int
    prediction_bytes: int
    host_bytes: int
    step_seconds: float
    epoch_seconds: float
    gpu_bytes: int | None = None


@dataclass(frozen=True)
class Bill:
    """The costs of a plan. `key` tells for which plan and dataset they were computed."""

    key: str
    machine: str
    device: str
    epochs: int
    folds: int
    cache_bytes: int
    costs: tuple[Cost, ...]


def compute(plan: Plan, fingerprint: Fingerprint, *, progress: bool | None = None) -> Bill:
    """The costs of a plan, in some seconds a configuration.

    Args:
        plan: the whole plan.
        fingerprint: of its dataset.
        progress: whether to show a progress bar on stderr; None: where stderr is a terminal.

    Raises:
        PlanError: this PyTorch cannot count memory.
    """
    import torch

    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    train = template("train.json", "3d_fullres")
    disable = None if progress is None else not progress
    shown = tqdm(plan.configurations, desc=f"{plan.name}: cost", unit="network", disable=disable, leave=False)
    costs = tuple(_cost(plan, fingerprint, c, device, train["epoch_length"], train["val_batches"]) for c in shown)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    machine = f"{platform.node()}, {name}, PyTorch {torch.__version__}"
    folds, epochs = len(plan.folds), int(train["max_epochs"])
    return Bill(key(plan, fingerprint), machine, device, epochs, folds, cache_bytes(plan, fingerprint), costs)


def key(plan: Plan, fingerprint: Fingerprint) -> str:
    """Tells plans and datasets apart."""
    what = json.dumps([fingerprint.key, to_dict(plan.configurations), plan.modalities, plan.labels])
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def save(bill: Bill, folder: Path) -> Path:
    """Writes cost.json beside the bundles of a task, and returns its path."""
    write_text_atomically(folder / COST, json.dumps(to_dict(bill), indent=1) + "\n")
    return folder / COST


def load(plan: Plan, fingerprint: Fingerprint | None, folder: Path) -> Bill | None:
    """The costs that were computed for this plan; None where there are none."""
    try:
        bill: Bill = from_dict(Bill, read_object(folder / COST))
    except (KeyError, TypeError, ValueError):
        return None
    return bill if fingerprint is not None and bill.key == key(plan, fingerprint) else None


def _cost(plan: Plan, fingerprint: Fingerprint, c: Configuration, device: Device, steps: int, validations: int) -> Cost:
    """What one configuration needs."""
    counted, measured = footprint.arithmetic(plan, c), footprint.measured_step(plan, c, device=device)
    validation = counted.patch * c.batch_size
    step = measured.step_seconds(counted.step)
    seconds = steps * step + validations * measured.pass_seconds * validation / measured.multiply_adds
    largest = max((_resampled(case, c) for case in fingerprint.cases), key=math.prod)
    return Cost(
        configuration=c.name,
        parameters=topology.num_parameters(c, footprint.inputs(plan, c), len(plan.labels)),
        patch_multiply_adds=counted.patch,
        epoch_multiply_adds=steps * counted.step + validations * validation,
        training_bytes=footprint.training_bytes(plan, c),
        prediction_bytes=footprint.prediction_bytes(plan, c, largest),
        host_bytes=_host_bytes(plan, fingerprint, c),
        step_seconds=step,
        epoch_seconds=seconds,
        gpu_bytes=measured.peak_bytes or None,
    )


def _host_bytes(plan: Plan, fingerprint: Fingerprint, c: Configuration) -> int:
    """Memory of a training's process and of those that cut patches: the libraries in each, as this process has them
    now, and the larger of two batches and of the preprocessing of the largest case."""
    import torch

    workers = min(8, torch.get_num_threads())
    batch = FLOAT * c.batch_size * math.prod(c.patch_size) * (footprint.inputs(plan, c) + 1)
    voxels = max(max(math.prod(case.shape), math.prod(_resampled(case, c))) for case in fingerprint.cases)
    case = PREPARED * FLOAT * len(plan.modalities) * voxels
    return (1 + workers) * _resident_bytes() + workers * max(2 * batch, case)


def _resident_bytes() -> int:
    """Memory of this process; 1 GiB where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 2**30


def cache_bytes(plan: Plan, fingerprint: Fingerprint) -> int:
    """Disk of the preprocessed cases: configurations of one spacing share theirs, the second stage of a cascade adds
    the segmentations of the first."""
    by_spacing = {c.spacing: c for c in plan.configurations}
    stages = [c for c in plan.configurations if c.name == "3d_cascade_fullres"]
    cached = sum(case_bytes(plan, case, c) for c in by_spacing.values() for case in fingerprint.cases)
    return cached + sum(math.prod(_resampled(case, c)) for c in stages for case in fingerprint.cases)


def case_bytes(plan: Plan, case: CaseFacts, c: Configuration) -> int:
    """Disk of a preprocessed case: the image in float32, the label in a byte, the indices of some voxels of each class;
    four arrays with a head of 128 bytes each, and a checksum."""
    shape = _resampled(case, c)
    grown = math.prod(shape) / math.prod(case.cropped_shape)
    locations = sum(min(MAX_LOCATIONS, round(n * grown)) for n in case.class_voxels)
    classes = len(plan.labels) - 1
    return (FLOAT * len(plan.modalities) + 1) * math.prod(shape) + 8 * classes + 12 * locations + 4 * 128 + 8


# In words.


def rows(bill: Bill) -> list[tuple[str, ...]]:
    """A table: a line of names, then one for each quantity, with a column for each configuration."""
    costs = bill.costs
    lines: list[tuple[str, ...]] = [
        ("", *(c.configuration for c in costs)),
        ("parameters", *(f"{c.parameters / 1e6:.1f} million" for c in costs)),
        ("multiply-adds of a patch", *(f"{c.patch_multiply_adds / 1e9:,.1f} billion" for c in costs)),
        ("GPU memory of a training step", *(size(c.training_bytes) for c in costs)),
        ("GPU memory of a prediction", *(size(c.prediction_bytes) for c in costs)),
        ("memory of the machine", *(size(c.host_bytes) for c in costs)),
        ("a step here", *(_seconds(c.step_seconds) for c in costs)),
        ("an epoch here", *(_seconds(c.epoch_seconds) for c in costs)),
        ("all folds here, at most", *(_seconds(bill.folds * bill.epochs * c.epoch_seconds) for c in costs)),
        *((f"all folds on one {name}, at most", *(_range(bill, c, tera) for c in costs)) for name, tera in GPUS),
    ]
    if any(c.gpu_bytes for c in costs):
        lines.insert(4, ("the same, measured", *(size(c.gpu_bytes or 0) for c in costs)))
    return lines


def notes(bill: Bill) -> list[str]:
    """What the numbers mean, and how far they can be trusted."""
    best, worst = REACHED
    gpu = (
        "A step was measured on the GPU of this machine; its driver's context and workspaces come on top."
        if any(c.gpu_bytes for c in bill.costs)
        else "There was no GPU to measure: the GPU memory is an unverified estimate, to which the driver's context and "
        "the workspaces of its libraries, about 1 GiB, come on top."
    )
    return [
        f"The preprocessed cases need {size(bill.cache_bytes)} of disk space in total.",
        f"{gpu} It is counted on tensors without content, in mixed precision; the prediction is that of the largest "
        "case.",
        f"Times were measured on {bill.machine}, without waiting for data"
        f"{'' if bill.device == 'cuda' else SMALL}. All folds are "
        f"{bill.folds} trainings of {bill.epochs} epochs; most end earlier, when the loss no longer falls.",
        f"Times on other GPUs are estimates, not measurements: a range from {best:.0%} to {worst:.0%} of the "
        "throughput that NVIDIA publishes for float16, without waiting for data.",
        "The memory of the machine is an estimate: libraries and batches, or the largest case, in every process.",
    ]


def size(number: float) -> str:
    """`1.5 GiB`, `300 MiB`."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def _range(bill: Bill, c: Cost, tera: float) -> str:
    """Time of all folds on a GPU, from its published throughput."""
    work = 2 * c.epoch_multiply_adds * bill.epochs * bill.folds
    return " to ".join(_seconds(work / (tera * 1e12 * reached)) for reached in REACHED)


def _seconds(seconds: float) -> str:
    """A time in a unit that suits it."""
    units: Sequence[tuple[float, str]] = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"))
    length, unit = next((u for u in units if seconds >= 2 * u[0]), units[-1])
    return f"{seconds / length:,.3g} {unit}" if seconds < 1e3 * length else f"{seconds / length:,.0f} {unit}"
