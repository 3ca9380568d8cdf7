"""Batch sizes and rates of the recipes beside the paper's."""

from autoplan.planning.topology import MIN_BATCH_SIZE
from autoplan.planning.values import Configuration

QUICK_BATCH_DIVISOR = 4
"""The quick recipe's batch is the planned one divided by this. Our choice: on CPUs more small steps learn faster than
few large ones."""

SHARED_BATCH_SIZE = {2: 32, 3: 4}
"""Windows at most that a 2D or 3D network of the bundle to share sees at once: it runs on machines that did not train
it. Our choice."""

FINE_TUNING_DIVISOR = 3
"""The learning rate of a training that goes on from a bundle is that of a fresh one divided by this. Our choice: with
the whole rate the first steps undo much of what the network knows; with much less, the weights of new classes, which
start at random, take too long."""


def quick_batch_size(batch_size: int) -> int:
    """Batch of the quick recipe, for a planned batch.

    Source: our choice; see `QUICK_BATCH_DIVISOR`.
    """
    return max(MIN_BATCH_SIZE, batch_size // QUICK_BATCH_DIVISOR)


def budget_batch_size(batch_size: int) -> int:
    """Batch of a training for a given time, for a planned batch: that of the quick recipe, but one patch may do.

    Source: our choice; see docs/recipes.md.
    """
    return max(1, batch_size // QUICK_BATCH_DIVISOR)


def shared_batch_size(configuration: Configuration) -> int:
    """Windows that a network of the bundle to share sees at once.

    Source: our choice; see `SHARED_BATCH_SIZE`.
    """
    return min(configuration.batch_size, SHARED_BATCH_SIZE[len(configuration.patch_size)])


def fine_tuning_rate(learning_rate: float) -> float:
    """Learning rate at the start of a training that goes on from a bundle, for that of a fresh one.

    Source: our choice; see `FINE_TUNING_DIVISOR`.
    """
    return round(learning_rate / FINE_TUNING_DIVISOR, 6)
