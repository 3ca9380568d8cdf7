"""Mixed precision around a bare network, on GPUs and CPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer

from scripts.cpu import OneDNNConvolutions, keep_freed_memory, keep_to_processors


def has_fast_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions, so that mixed precision pays on it."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def default_amp(device: str | torch.device) -> bool:
    """Whether to use mixed precision when nobody says: on CUDA, and on a CPU with bfloat16 instructions."""
    kind = torch.device(device).type
    return kind == "cuda" or (kind == "cpu" and has_fast_bfloat16())


def default_device() -> torch.device:
    """The first CUDA device, or else the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def trainer_amp(amp: bool, device: str | torch.device) -> bool:
    """Whether MONAI's engines use mixed precision: on CUDA only, see `AutocastInferer`."""
    return amp and torch.device(device).type == "cuda"


def checked_switch(name: str, value: bool) -> bool:
    """The value, if it is True or False. On the command line `--amp false` would be the text "false", which is true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False (with a capital letter on the command line), not {value!r}")
    return value


def use_fast_cuda_kernels() -> None:
    """Let CUDA use TF32 for float32 and try which convolution is the fastest: patches all have one size."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def logits(network: Callable[..., torch.Tensor], inputs: torch.Tensor, amp: bool) -> torch.Tensor:
    """What the network gives, in float32, computed under autocast if `amp`: float16 on CUDA, bfloat16 on the CPU."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(inputs.device.type, enabled=amp))
        if inputs.device.type == "cpu":
            keep_freed_memory()
            keep_to_processors()
            if not amp and torch.backends.mkldnn.is_available():
                stack.enter_context(OneDNNConvolutions())
        return network(inputs).float()


class AutocastInferer(SimpleInferer):
    """Call the network on a whole patch, under autocast if `amp`, and give its logits in float32.

    MONAI's trainer autocasts for CUDA only, so the CPU is served here. The network stays bare: checkpoints and exports
    do not change, and loss and softmax are computed in float32.
    """

    def __init__(self, amp: bool) -> None:
        super().__init__()
        self.amp = checked_switch("amp", amp)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        return logits(network, inputs, self.amp)
