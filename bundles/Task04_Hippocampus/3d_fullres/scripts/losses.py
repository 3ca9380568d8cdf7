"""Dice and cross-entropy from class numbers, without a copy of the labels for each class."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class SparseDiceCELoss(torch.nn.Module):
    """Dice and cross-entropy of logits and class numbers: value and gradient of MONAI's DiceCELoss with `softmax` and
    `to_onehot_y`, but only the probabilities and the labels are kept for the gradient.

    Sums are in float32 at least, under autocast and for float16 and bfloat16, too.

    Args:
        batch: whether Dice is of the sums over the batch, and not the mean over its samples.
        smooth_nr: added to the numerator of Dice.
        smooth_dr: added to its denominator.
        lambda_dice: weight of the Dice loss.
        lambda_ce: weight of the cross-entropy.
        unknown: whether a label may be larger than any class: nobody knows what the voxel is. It has no influence on
            the loss or its gradient; where nothing is known, the gradient is 0. (MONAI's MaskedDiceLoss masks the
            logits before the softmax, so that masked voxels still count as predicted.) Otherwise such a label raises
            an error.
        shared: whether the batch is divided over the processes of `torch.distributed`. Sums over the batch are then
            taken over all of them, with gradients: the step of the ranks, whose gradients DistributedDataParallel
            averages, equals that of one process with the whole batch, also if one rank knows more voxels than another.
            Equal up to rounding, as the ranks add in another order. Adam divides a gradient by its size: where it is
            only rounding, the weight moves by a whole learning rate in each training, to one side or the other.

    Source: arXiv:1809.10486, section 2.3, equations 1 and 2, and the pseudo-volume of the batch.
    """

    def __init__(
        self,
        batch: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        unknown: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.batch = batch
        self.smooth_nr, self.smooth_dr = smooth_nr, smooth_dr
        self.lambda_dice, self.lambda_ce = lambda_dice, lambda_ce
        self.unknown, self.shared = unknown, shared

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of logits (B, classes, *spatial) and labels (B, 1, *spatial).

        Raises:
            ValueError: the labels have another shape.
        """
        if target.shape != (len(input), 1, *input.shape[2:]):
            raise ValueError(f"logits {tuple(input.shape)} need labels (B, 1, *spatial), not {tuple(target.shape)}")
        entropy, sums = _ClassSums.apply(input, target, self.unknown)
        number = sums[2].sum()
        shared = self.shared and torch.distributed.is_initialized()
        if shared and self.unknown:
            torch.distributed.all_reduce(number)
            number /= torch.distributed.get_world_size()
        if self.batch:
            sums = sums.sum(1)
            if shared:
                from torch.distributed.nn.functional import all_reduce  # not in every build of PyTorch

                sums = all_reduce(sums)
        overlap, predicted, true = sums
        dice = 1 - (2 * overlap + self.smooth_nr) / (predicted + true + self.smooth_dr)
        loss: torch.Tensor = self.lambda_dice * dice.mean() + self.lambda_ce * entropy / number.clamp(min=1)
        return loss


class _ClassSums(torch.autograd.Function):
    """(logits, labels, unknown) -> cross-entropy, summed over all voxels, and (3, B, classes): probabilities of the
    true class, probabilities, and voxels, summed over the voxels of each sample. The last has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, label: torch.Tensor, unknown: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log = torch.log_softmax(logits, 1, dtype=torch.promote_types(logits.dtype, torch.float32))
        number = log.shape[1]
        classes, known = _known_classes(label, number, unknown)
        entropy = -(log.gather(1, classes) * known).sum()
        probabilities = log.exp_()
        if unknown:
            probabilities *= known
        ctx.save_for_backward(probabilities, label)
        ctx.unknown = unknown
        overlap = _sum_by_class(probabilities.gather(1, classes), classes, number)
        true = _sum_by_class(known.to(log.dtype).expand(label.shape), classes, number)
        return entropy, torch.stack([overlap, probabilities.flatten(2).sum(2), true])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, entropy: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        probabilities, label = ctx.saved_tensors
        classes, known = _known_classes(label, probabilities.shape[1], ctx.unknown)
        overlap, predicted = (s.reshape(*s.shape, *[1] * (label.ndim - 2)) for s in sums[:2])
        own = probabilities.gather(1, classes) * overlap.expand_as(probabilities).gather(1, classes)
        # The derivative of the softmax: p * (g - sum of p * g over the classes).
        gradient = probabilities * predicted
        gradient.addcmul_(probabilities, entropy - own - gradient.sum(1, keepdim=True))
        return gradient.scatter_add_(1, classes, own - entropy * known), None, None


def _known_classes(label: torch.Tensor, number: int, unknown: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each voxel, 0 where it is not known, and whether it is: one value for all if all are."""
    if not unknown:
        return label.long(), label.new_ones((), dtype=torch.bool)
    known = label < number
    return torch.where(known, label, 0).long(), known


def _sum_by_class(values: torch.Tensor, classes: torch.Tensor, number: int) -> torch.Tensor:
    """(B, number): for each class the sum of the values of its voxels. First along one axis: one sum over so many
    voxels would be rounded again and again, and all threads of a GPU would wait for the same few numbers."""
    lines = values.new_zeros(len(values), number, *values.shape[3:])
    return lines.scatter_add_(1, classes[:, 0], values[:, 0]).flatten(2).sum(2)
