"""How far the networks of an ensemble agree on an image: where they do not, the segmentation may well be wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch


def best_class(probabilities: torch.Tensor, axis: int) -> torch.Tensor:
    """The most probable class, uint8, the first in a tie. `argmax` takes ten times as long on a CPU."""
    return probabilities.max(axis).indices.to(torch.uint8)


class Agreement:
    """The mean, over pairs of networks and over the classes that at least one of the two sees, of the Dice between
    their label maps of one image; the background does not count.

    Pairs are the networks of one configuration, and the means of the configurations of an ensemble. Those of networks
    are counted in the windows that they see, before mirroring, so that no label map of an image is kept; where windows
    overlap, a voxel counts several times.

    Args:
        num_classes: with the background.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: dict[tuple[str, int, int], torch.Tensor] = {}

    def add(self, group: str, labels: Sequence[torch.Tensor]) -> None:
        """Take in label maps, uint8, of the same voxels.

        Args:
            group: whose they are: pairs are made within a group.
            labels: one of each network.
        """
        flat = [one.flatten() for one in labels]
        sizes = [self._count(one) for one in flat]
        for (i, first), (j, second) in itertools.combinations(enumerate(flat), 2):
            same = self._count(first[first == second])
            found = torch.stack([2 * same, sizes[i] + sizes[j]])
            self.counts[group, i, j] = self.counts.get((group, i, j), 0) + found

    def _count(self, labels: torch.Tensor) -> torch.Tensor:
        """Voxels of each foreground class."""
        return torch.bincount(labels, minlength=self.num_classes)[1:]

    @property
    def value(self) -> float | None:
        """From 0 to 1; None where there are no two networks, or none of them sees anything."""
        pairs = [(same[sizes > 0] / sizes[sizes > 0]).mean() for same, sizes in self.counts.values() if sizes.any()]
        return float(torch.stack(pairs).mean()) if pairs else None
