"""Training in several processes, one a GPU: starting them, and the losses that they share."""

from __future__ import annotations

import logging
import os

import torch
import torch.distributed.nn
from monai.losses import DiceCELoss, DiceLoss

from scripts.losses import KnownVoxelsLoss


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


class SharedDiceCELoss(DiceCELoss):
    """Dice and cross-entropy of a batch that is divided over the ranks.

    With batch Dice the sums of equation 2 are taken over the samples of all ranks, with gradients: the step of the
    ranks, whose gradients DistributedDataParallel averages, equals the step of one process with the whole batch.
    Without batch Dice, and in one process, it is MONAI's DiceCELoss.

    Source: arXiv:1809.10486, section 2.3, equation 2 and the pseudo-volume of the batch.
    """

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of logits (B, classes, ...) against class numbers (B, 1, ...)."""
        if not (self.dice.batch and torch.distributed.is_initialized()):
            return super().forward(input, target)
        probabilities = input.softmax(1)
        truth = torch.zeros_like(probabilities).scatter_(1, target.long(), 1.0)
        return self.lambda_dice * _shared_dice(self.dice, probabilities, truth) + self.lambda_ce * self.ce(
            input, target
        )


class SharedKnownVoxelsLoss(KnownVoxelsLoss):
    """:class:`scripts.losses.KnownVoxelsLoss` of a batch that is divided over the ranks: the step of the ranks equals
    the step of one process with the whole batch, although one rank may know more voxels than another."""

    def dice_of(self, probabilities: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Dice loss; batch Dice is that of all ranks."""
        if not (self.dice.batch and torch.distributed.is_initialized()):
            return super().dice_of(probabilities, truth)
        return _shared_dice(self.dice, probabilities, truth)

    def count(self, known: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks of the voxels that each knows."""
        number = super().count(known).float()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(number)
            number /= torch.distributed.get_world_size()
        return number


def _shared_dice(dice: DiceLoss, probabilities: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The loss of batch Dice, whose sums are taken over the samples of all ranks, with gradients."""
    axes = [0, *range(2, probabilities.ndim)]
    sums = torch.stack([(probabilities * truth).sum(axes), probabilities.sum(axes), truth.sum(axes)])
    overlap, predicted, true = torch.distributed.nn.functional.all_reduce(sums)
    return (1 - (2 * overlap + dice.smooth_nr) / (predicted + true + dice.smooth_dr)).mean()
