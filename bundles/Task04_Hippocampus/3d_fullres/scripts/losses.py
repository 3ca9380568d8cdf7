"""A loss for labels that say of some voxels that nobody knows what they are."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import DiceCELoss
from torch.nn.functional import cross_entropy


class KnownVoxelsLoss(DiceCELoss):
    """MONAI's DiceCELoss over the voxels whose class is known: no other has an influence on the loss or its gradient.

    A voxel is not known where its label is no class of the network, but a larger number. Patches without such voxels
    have the same loss as with DiceCELoss; a patch in which nothing is known has no gradient.

    MONAI's MaskedDiceLoss masks the logits before the softmax, so that masked voxels still count as predicted.

    Args:
        options: those of DiceCELoss; `softmax` and `to_onehot_y` must be true.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not (self.dice.softmax and self.dice.to_onehot_y):
            raise ValueError("KnownVoxelsLoss takes logits and class numbers: softmax and to_onehot_y must be true")
        self.dice.softmax = self.dice.to_onehot_y = False

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of logits (B, classes, *spatial) and labels (B, 1, *spatial)."""
        number = input.shape[1]
        known = target < number
        classes = torch.where(known, target, 0).long()
        code = torch.zeros_like(input).scatter_(1, classes, 1) * known
        dice = self.dice_of(torch.softmax(input, 1) * known, code)
        entropy = cross_entropy(input, classes[:, 0], reduction="none") * known[:, 0]
        return self.lambda_dice * dice + self.lambda_ce * entropy.sum() / self.count(known).clamp(min=1)

    def dice_of(self, probabilities: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Dice loss of probabilities and one-hot labels, both 0 where nothing is known."""
        loss: torch.Tensor = self.dice(probabilities, truth)
        return loss

    def count(self, known: torch.Tensor) -> torch.Tensor:
        """Voxels that the cross-entropy is the mean of."""
        return known.sum()
