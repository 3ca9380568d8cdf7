"""Networks of a configuration that are far worse than the others, or were trained far shorter: what an ensemble should
not average without a word.

Nothing here changes a score of cross-validation: every case is scored by the one network that has not seen it.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from autoplan.base.files import number
from autoplan.training import results

GAP = 0.1
"""Dice by which the cases of a weak network lie below those of the others at least. Our choice: folds of sound
trainings differ by 0.01 to 0.03 where there are tens of cases; a network of 90 iterations beside ones of 1,000 lay 0.42
below."""
STANDARD_ERRORS = 3
"""By how many standard errors, too: folds validate on different cases, and few hard ones make a mean low."""
LEAST_NETWORKS = 2
"""Of an ensemble that leaves some out."""
LEAST_SHARE = 0.5
"""Of the iterations of the other networks: with fewer, a network is named."""


def far_below(scores: Mapping[int, Sequence[float]]) -> tuple[int, ...]:
    """The folds whose networks are far worse than those of the others.

    A fold is far below if its mean lies below the median of the other folds' means by `GAP` or more, and by more than
    `STANDARD_ERRORS` standard errors of the difference between its cases and all others. With two folds nothing tells
    which one is right.

    Source: our choice; arXiv:1809.10486, section 2.6, averages the networks of all five folds.

    Args:
        scores: for each fold, the mean foreground Dice of its validation cases.
    """
    known = {fold: list(values) for fold, values in scores.items() if values}
    if len(known) <= LEAST_NETWORKS:
        return ()
    means = {fold: statistics.fmean(values) for fold, values in known.items()}
    spread = _within(known.values())

    def is_far(fold: int) -> bool:
        others = [other for other in known if other != fold]
        gap = statistics.median(means[other] for other in others) - means[fold]
        error = spread * (1 / len(known[fold]) + 1 / sum(len(known[other]) for other in others)) ** 0.5
        return gap >= GAP and gap > STANDARD_ERRORS * error

    return tuple(fold for fold in known if is_far(fold))


def _within(groups: Iterable[Sequence[float]]) -> float:
    """Standard deviation of cases around the mean of their fold; 1, the whole range, where no fold has two cases."""
    listed = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in listed)
    return (sum(statistics.variance(group) * (len(group) - 1) for group in listed) / freedom) ** 0.5 if freedom else 1.0


def left_out(scores: Mapping[int, Sequence[float]]) -> tuple[int, ...]:
    """The folds whose networks an ensemble leaves out: those that are `far_below`, as long as `LEAST_NETWORKS` stay."""
    weak = far_below(scores)
    return weak if len(scores) - len(weak) >= LEAST_NETWORKS else ()


def case_means(bundle: Path, folds: Iterable[int]) -> dict[int, list[float]]:
    """For each fold of a configuration's bundle the mean foreground Dice of each validation case that has one."""
    found: dict[int, list[float]] = {}
    for fold in folds:
        cases = results.dice(results.fold_folder(bundle, fold)).values()
        known = [[value for value in case.values() if value is not None] for case in cases]
        found[fold] = [statistics.fmean(values) for values in known if values]
    return found


def told(bundle: Path, folds: Sequence[int]) -> list[str]:
    """What a user should know of the networks of a configuration, a sentence each.

    Args:
        bundle: folder of the configuration.
        folds: those that are finished.
    """
    scores = case_means(bundle, folds)
    out, lines = left_out(scores), []
    for fold in far_below(scores):
        others = sorted(statistics.fmean(values) for k, values in scores.items() if k != fold and values)
        said = (
            f"Its network is left out of the bundle to share; remove {results.fold_folder(bundle, fold)} and train it "
            "again to have it there."
            if fold in out
            else "It stays in the bundle to share, for too few would be left without it."
        )
        lines.append(
            f"Warning: fold {fold} of {bundle.name} has a mean Dice of {statistics.fmean(scores[fold]):.3f}, the "
            f"others {_between(f'{others[0]:.3f}', f'{others[-1]:.3f}')}. {said}"
        )
    iterations = {fold: n for fold in folds if (n := _iterations(bundle, fold))}
    for fold, count in iterations.items():
        others = [n for k, n in iterations.items() if k != fold]
        if others and count < LEAST_SHARE * statistics.median(others):
            lines.append(
                f"Warning: fold {fold} of {bundle.name} was trained for {count:,.0f} iterations, the others for "
                f"{_between(f'{min(others):,.0f}', f'{max(others):,.0f}')}."
            )
    return lines


def _between(least: str, largest: str) -> str:
    return least if least == largest else f"{least} to {largest}"


def _iterations(bundle: Path, fold: int) -> float:
    """How many a training took; 0 where an older version has not recorded it."""
    trained = results.training(results.fold_folder(bundle, fold))
    return 0 if trained is None else trained.epochs * (number(trained.settings.get("epoch_length")) or 0)
