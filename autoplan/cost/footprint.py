"""What a network needs, from its plan: memory without the device, arithmetic, and seconds on this machine.

Memory is counted by PyTorch's MemTracker on fake tensors, which have a shape and a dtype but no content. Fake tensors
of CUDA need a build with CUDA, so they are on the CPU, in the dtypes of CUDA's autocast.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from autoplan.base.axes import Shape
from autoplan.base.codec import to_dict
from autoplan.base.errors import PlanError
from autoplan.base.scripts import load_script, templates_folder
from autoplan.bundle.overlays import read_template
from autoplan.planning import topology
from autoplan.planning.plan import num_input_channels
from autoplan.planning.values import Configuration, Plan

if TYPE_CHECKING:
    import torch

FLOAT = 4
"""Bytes of a float32."""
MEASURED_MULTIPLY_ADDS = 5e9
"""Of the forward pass of a step that is timed on a CPU, at most: some seconds on two cores. Our choice."""
MEASURED_SECONDS = 1.0
"""A step is repeated for as long as this, and at least three times. Our choice."""
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Arithmetic:
    """Multiply-adds of a patch, forward, and of a training step on a batch."""

    patch: int
    step: int


@dataclass(frozen=True)
class Measured:
    """A training step that ran: seconds of forward and backward pass, seconds of the optimizer, which do not depend on
    the patch, bytes of GPU memory at its peak (0 on a CPU), and its multiply-adds."""

    pass_seconds: float
    optimizer_seconds: float
    peak_bytes: int
    multiply_adds: int

    def step_seconds(self, multiply_adds: int) -> float:
        """Seconds of a step of the same network that takes so many multiply-adds."""
        return self.optimizer_seconds + self.pass_seconds * multiply_adds / self.multiply_adds


class Step:
    """Network, loss, backward pass and optimizer on one batch, as a training repeats them, on random numbers.

    Args:
        plan: the whole plan.
        c: whose network, patch and batch it has.
        device: where its tensors are.
        like: the device in whose dtypes it computes.
    """

    def __init__(self, plan: Plan, c: Configuration, *, device: Device = "cpu", like: Device = "cuda") -> None:
        import torch

        self.kind, self.dtype = device, half(like)
        self.classes = len(plan.labels)
        self.network, self.optimizer = _parts(plan, c, device)
        self.loss = load_script("losses", "autoplan.losses").SparseDiceCELoss(c.batch_dice)
        self.image = torch.randn(c.batch_size, inputs(plan, c), *c.patch_size, device=device)
        self.label = torch.zeros(c.batch_size, 1, *c.patch_size, device=device)

    def forward(self) -> "torch.Tensor":
        """Logits in float32."""
        import torch

        with torch.autocast(self.kind, dtype=self.dtype, enabled=self.dtype is not None):
            logits: torch.Tensor = self.network(self.image).float()
        return logits

    def passes(self) -> Iterator[None]:
        """Two mirrorings of a window, as a prediction sees it."""
        import torch

        total: Any = 0.0
        with torch.no_grad(), torch.autocast(self.kind, dtype=self.dtype, enabled=self.dtype is not None):
            for axis in (2, 3):
                total = total + self.network(self.image.flip(axis)).float().softmax(1).flip(axis)
                yield

    def steps(self) -> Iterator[None]:
        """Two training steps: the optimizer has its state from the second on."""
        for _ in range(2):
            self()
            yield

    def gradients(self) -> None:
        """Forward and backward pass."""
        self.optimizer.zero_grad(set_to_none=False)  # as MONAI's trainer does
        logits = self.forward()
        self.loss(logits, self.label).backward()

    def __call__(self) -> None:
        self.gradients()
        self.optimizer.step()


def training_bytes(plan: Plan, c: Configuration, *, like: Device = "cuda") -> int:
    """Memory of a device at the peak of a training step, without the context of its driver and the workspaces of its
    libraries.

    Args:
        plan: the whole plan.
        c: one of its configurations, or another of that name.
        like: the device: "cuda" in mixed precision, or "cpu" in the precision that trainings have on this one.

    Raises:
        PlanError: this PyTorch has no MemTracker.
    """

    low = [s for s in plan.configurations if s.name == "3d_lowres"] if c.name == "3d_cascade_fullres" else []
    # The first stage lies beside the second, although only that is trained.
    frozen = sum(topology.num_parameters(s, inputs(plan, s), len(plan.labels)) for s in low)
    return _peak(plan, c, like, Step.steps) + FLOAT * frozen


def prediction_bytes(plan: Plan, c: Configuration, shape: Shape, *, like: Device = "cuda") -> int:
    """Memory of a device at the peak of a prediction: a batch of windows, the image, and the sums of the probabilities
    of the rows that windows still reach.

    Args:
        plan: the whole plan.
        c: the configuration.
        shape: of the image, preprocessed, three axes.
        like: see `training_bytes`.
    """
    voxels = math.prod(shape)
    channels = len(plan.modalities) + (c.name == "3d_cascade_fullres")
    patch = (c.batch_size, *c.patch_size) if len(c.patch_size) == 2 else c.patch_size
    rows = min(min(p, n) / n for p, n in zip(sorted(patch), sorted(shape), strict=True))
    kept = FLOAT * (channels * voxels + (len(plan.labels) + 1) * rows * voxels)
    return _peak(plan, c, like, Step.passes) + round(kept)


def arithmetic(plan: Plan, c: Configuration) -> Arithmetic:
    """Multiply-adds of the convolutions, counted by PyTorch."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    def counted(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return int(counter.get_total_flops()) // 2

    with FakeTensorMode():
        step = Step(plan, c)
        return Arithmetic(counted(step.forward) // c.batch_size, counted(step))


def measured_step(plan: Plan, c: Configuration, *, device: Device, whole: bool = False) -> Measured:
    """A training step on this machine: the planned one on a GPU; on a CPU one of a smaller patch, which takes some
    seconds, on one thread, as if the machine were idle.

    Args:
        plan: the whole plan.
        c: one of its configurations, or another of that name.
        device: that trains.
        whole: also on a CPU the planned one, on all threads, and as long as it takes beside what else runs.
    """
    import torch

    whole |= device == "cuda"
    small = c if whole else _smaller(plan, c)
    step = Step(plan, small, device=device, like=device)
    with _convolutions(device):
        passes, updates = (_least_seconds(run, device, whole) for run in (step.gradients, step.optimizer.step))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return Measured(passes, updates, peak, arithmetic(plan, small).step)


def _convolutions(device: Device) -> AbstractContextManager[object]:
    """Within it, a training computes its convolutions: see `logits` in the bundles' `scripts/precision.py`."""
    if device == "cuda" or half(device):
        return nullcontext()
    mode: AbstractContextManager[object] = load_script("cpu", "autoplan.cpu").OneDNNConvolutions()
    return mode


def _least_seconds(run: Callable[[], object], device: Device, whole: bool) -> float:
    """The fastest of the calls within `MEASURED_SECONDS`, and of at least three. Unless `whole`, it is the time that
    one thread works, divided by the threads of a training: programs beside it do not count, nor does waiting for
    others."""
    import torch

    threads = torch.get_num_threads()
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    clock, share = (time.perf_counter, 1) if whole else (time.process_time, threads)
    times: list[float] = []
    try:
        torch.set_num_threads(threads // share)
        while len(times) < 3 or sum(times) < MEASURED_SECONDS:
            wait()
            start = clock()
            run()
            wait()
            times.append(clock() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times) / share


def inputs(plan: Plan, c: Configuration) -> int:
    """Channels that the network of a configuration sees."""
    return num_input_channels(c.name, modalities=plan.modalities, labels=plan.labels)


def half(device: Device) -> "torch.dtype | None":
    """The dtype of mixed precision where a training uses it: float16 on CUDA; bfloat16 on a CPU that has instructions
    for it."""
    import torch

    if device == "cuda":
        return torch.float16
    is_built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    fast = is_built and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else None


def _parts(plan: Plan, c: Configuration, device: Device) -> tuple[Any, Any]:
    """Network and optimizer as the templates have them."""
    import torch
    from monai.bundle import ConfigParser

    folder = templates_folder() / "configs"
    train, network = read_template(folder / "train.json"), read_template(folder / "parts" / "network.json")
    kept = {key: train[key] for key in ("optimizer", "learning_rate", "weight_decay")}
    values = {key: to_dict(getattr(c, key)) for key in ("patch_size", "strides", "features")}
    network |= {"in_channels": inputs(plan, c), "out_channels": len(plan.labels)}
    parser = ConfigParser({**kept, **values, "network": network})
    with torch.device(device):
        return parser.get_parsed_content("network"), parser.get_parsed_content("optimizer")


def _peak(plan: Plan, c: Configuration, like: Device, run: Callable[[Step], Iterator[None]]) -> int:
    """Bytes at the peak of what a step is used for, on fake tensors. The tracker takes one call of a network at a
    time."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), _tracker() as tracker:
        step = Step(plan, c, like=like)
        tracker.track_external(step.network, step.optimizer, step.image, step.label)
        with tracker:
            for _ in run(step):
                tracker.reset_mod_stats()
        found: dict[Any, dict[str, int]] = tracker.get_tracker_snapshot("peak")
        return int(found[torch.device("cpu")]["Total"])


@contextmanager
def _tracker() -> Iterator[Any]:
    """PyTorch's memory tracker, which is not part of its promised interface."""
    import torch

    try:
        from torch.distributed._tools.mem_tracker import MemTracker
    except ImportError as error:
        raise PlanError(
            f"PyTorch {torch.__version__} has no MemTracker, by which memory is estimated. Install a build of PyTorch "
            "2.6 or later with torch.distributed, or leave the estimate out."
        ) from error
    yield MemTracker()


def _smaller(plan: Plan, c: Configuration) -> Configuration:
    """The network of a configuration on so few voxels that a step takes about a second on a CPU: fewer patches, and the
    longest axis cut down again and again, to no less than twice what the network can halve."""
    least = c.must_be_divisible_by
    small = replace(c, batch_size=1)
    while (found := arithmetic(plan, small).patch) > MEASURED_MULTIPLY_ADDS:
        units = [n // smallest for n, smallest in zip(small.patch_size, least, strict=True)]
        if max(units) <= 2:
            break
        axis = units.index(max(units))
        units[axis] = max(2, units[axis] // 2)
        small = replace(small, patch_size=tuple(u * n for u, n in zip(units, least, strict=True)))
    return replace(small, batch_size=max(1, min(c.batch_size, int(MEASURED_MULTIPLY_ADDS // found))))
