"""Training in several processes, one a GPU."""

from __future__ import annotations

import logging
import os

import torch
import torch.distributed


def local_device() -> torch.device:
    """The device of this process: the CUDA device whose number torchrun gives, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def start(device: str | torch.device) -> None:
    """Join the processes that torchrun started; all but the first are silent from then on.

    Args:
        device: this process's device; NCCL connects CUDA devices, Gloo CPUs.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if torch.distributed.get_rank():
        logging.disable(logging.WARNING)


def parallel(network: torch.nn.Module, device: str | torch.device) -> torch.nn.parallel.DistributedDataParallel:
    """The network of this process, whose gradients are averaged over all processes."""
    device = torch.device(device)
    return torch.nn.parallel.DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
