"""The choice of the best model or ensemble from the scores of cross-validation. Pure: no files, no torch, no clock.

Candidates are the trained models by themselves and the pairs of `ENSEMBLED`. The score of a candidate is its mean
foreground Dice: the mean over the classes of the mean over the cases, after postprocessing, as the predictions of the
chosen model will have it. The best wins; among equals the one of fewer networks, then the first in `ORDER`.

A class that is absent from both label and prediction of a case has no Dice there (None) and is left out of the mean;
absent from the label alone it counts 0.

Source: arXiv:1809.10486, section 2.6.
"""

import itertools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoplan.base.tables import table
from autoplan.planning.values import ConfigurationName

ORDER: tuple[str, ...] = typing.get_args(ConfigurationName)
"""From simple to complex: 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres. Our choice; it matters for ties only."""
ENSEMBLED = ("2d", "3d_fullres", "3d_cascade_fullres")
"""Models that pairs are made of. Source: section 2.6 ("two out of three of our models"), Table 2."""
NUM_RESAMPLES = 10_000
"""Resamples of the bootstrap: its interval is stable to the second digit. Our choice."""
SEED = 0
CONFIDENCE = 0.95
MIN_CASES = 6
"""Cases from which on a difference can be told from chance: even where all of them agree in its sign, fewer do so by
chance in more than 5 % of all experiments (5 cases in 2 / 2^5 = 6 %). Our choice."""
TIE_DIGITS = 9
"""Digits to which means are compared, so that the order of a sum decides nothing."""


@dataclass(frozen=True)
class Candidate:
    """A model, or an ensemble of two. `members` are configurations, in `ORDER`."""

    members: tuple[str, ...]

    @property
    def name(self) -> str:
        """`2d + 3d_fullres`."""
        return " + ".join(self.members)

    @property
    def complexity(self) -> tuple[int, ...]:
        """Sorts candidates from simple to complex: by the number of members, then by `ORDER`."""
        return (len(self.members), *map(ORDER.index, self.members))


@dataclass(frozen=True)
class CaseDice:
    """Dice of one case, an entry for each foreground class, with and without postprocessing (largest components)."""

    postprocessed: tuple[float | None, ...]
    plain: tuple[float | None, ...]


@dataclass(frozen=True)
class Means:
    """Mean Dice over the cases: of each foreground class, and the mean over those that have one."""

    classes: tuple[float | None, ...]
    foreground: float | None


@dataclass(frozen=True)
class Score:
    """A candidate's means. `behind` is how far its foreground mean lies below the winner's, and `interval` the
    bootstrap interval of that difference; None where there is nothing to compare: for the winner, and for one case."""

    candidate: Candidate
    postprocessed: Means
    plain: Means
    behind: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Missing:
    """What is not there for the comparison, and the command that makes it. `folds` is empty for the whole
    configuration."""

    configuration: str
    folds: tuple[int, ...]
    what: str
    command: str


@dataclass(frozen=True)
class Setting:
    """What the comparison is about: dataset, foreground classes, those of them that are postprocessed, and the cases of
    the compared folds, `num_cases` being how many there are in all `num_folds`."""

    dataset: str
    classes: tuple[str, ...]
    single_component: tuple[str, ...]
    folds: tuple[int, ...]
    num_folds: int
    num_cases: int
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The scores, best first, and how they came about."""

    setting: Setting
    cases: tuple[str, ...]
    scores: tuple[Score, ...]
    num_resamples: int
    seed: int

    @property
    def winner(self) -> Candidate:
        """The chosen model or ensemble."""
        return self.scores[0].candidate

    @property
    def is_distinct(self) -> bool:
        """Whether the interval of the difference to the runner-up excludes 0, on at least `MIN_CASES` cases; so it is
        where there is no other."""
        if len(self.scores) < 2:
            return True
        interval = self.scores[1].interval
        return interval is not None and interval[0] > 0 and len(self.cases) >= MIN_CASES


def candidates(configurations: Sequence[str]) -> tuple[Candidate, ...]:
    """Every model by itself and all pairs of those in `ENSEMBLED`, from simple to complex.

    Source: arXiv:1809.10486, section 2.6; Table 2 lists the cascade's first stage by itself, too.
    """
    there = sorted(configurations, key=ORDER.index)
    pairs = itertools.combinations([c for c in there if c in ENSEMBLED], 2)
    return tuple(Candidate(members) for members in (*((c,) for c in there), *pairs))


def choose(
    setting: Setting,
    scores: Mapping[Candidate, Mapping[str, CaseDice]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> Choice:
    """Ranks the candidates; the first of the choice's scores is the winner.

    Args:
        setting: what is compared, copied into the choice.
        scores: Dice of each case, the same cases for every candidate.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no candidate, or candidates whose cases differ.

    Source: arXiv:1809.10486, section 2.6. The order of equals and the intervals are our choice.
    """
    if not scores or len({frozenset(by_case) for by_case in scores.values()}) != 1:
        raise ValueError("choose needs candidates, all of them with the same cases")
    cases = tuple(sorted(next(iter(scores.values()))))
    plain = {c: _array([by_case[n].plain for n in cases]) for c, by_case in scores.items()}
    dice = {c: _array([by_case[n].postprocessed for n in cases]) for c, by_case in scores.items()}
    means = {c: _means(values) for c, values in dice.items()}
    ranked = sorted(scores, key=lambda c: (-_rank(means[c].foreground), c.complexity))
    differences = _intervals([dice[c] for c in ranked], num_resamples=num_resamples, seed=seed)
    return Choice(
        setting=setting,
        cases=cases,
        scores=tuple(
            Score(c, means[c], _means(plain[c]), _behind(means[ranked[0]], means[c]) if i else None, interval)
            for i, (c, interval) in enumerate(zip(ranked, differences, strict=True))
        ),
        num_resamples=num_resamples,
        seed=seed,
    )


def _array(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    """Dice as (cases, classes), NaN for None."""
    return np.array(rows, dtype=np.float64)


def _rank(mean: float | None) -> float:
    """What is compared; a candidate without any score comes last."""
    return -1.0 if mean is None else round(mean, TIE_DIGITS)


def _behind(best: Means, other: Means) -> float | None:
    """Difference of two foreground means."""
    if best.foreground is None or other.foreground is None:
        return None
    return best.foreground - other.foreground


def means_of(rows: Sequence[Sequence[float | None]]) -> Means:
    """Means of the Dice of some cases, an entry of each for each class; None and NaN are left out."""
    return _means(_array(rows))


def _means(dice: NDArray[np.float64]) -> Means:
    """Means of (cases, classes)."""
    classes, foreground = _weighted(dice, np.ones((1, len(dice))))
    values = tuple(None if np.isnan(v) else float(v) for v in classes[0])
    return Means(values, None if np.isnan(foreground[0]) else float(foreground[0]))


def _weighted(
    dice: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of each class over the cases that have it, each case as often as `weights` (resamples, cases) says, and the
    mean over the classes: (resamples, classes) and (resamples,). NaN where there is nothing."""
    there = ~np.isnan(dice)
    with np.errstate(invalid="ignore"):
        classes = (weights @ np.where(there, dice, 0.0)) / (weights @ there.astype(np.float64))
        counted = ~np.isnan(classes)
        return classes, np.where(counted, classes, 0.0).sum(axis=1) / counted.sum(axis=1)


def _intervals(
    dice: Sequence[NDArray[np.float64]], *, num_resamples: int, seed: int
) -> list[tuple[float, float] | None]:
    """Interval of the difference of each candidate's foreground mean to the first one's; None for the first.

    Cases are drawn with replacement, the same ones for all candidates, as often as there are; the interval lies between
    the percentiles 2.5 and 97.5 of the differences.
    """
    count = len(dice[0])
    if count < 2:
        return [None] * len(dice)
    weights = _resamples(count, num_resamples, seed)
    best, *others = (_weighted(values, weights)[1] for values in dice)
    return [None, *(_interval(best - other) for other in others)]


def _resamples(count: int, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each case is drawn, (resamples, cases)."""
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=num_resamples)
    return drawn.astype(np.float64)


def mean_intervals(
    rows: Sequence[Sequence[float | None]], *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> tuple[list[tuple[float, float] | None], tuple[float, float] | None]:
    """Bootstrap intervals of the mean of each class and of the foreground mean; None where fewer than two cases say.

    Args:
        rows: Dice of each case, an entry for each class.
        num_resamples, seed: of the bootstrap.
    """
    dice = _array(rows)
    if len(dice) < 2:
        return [None] * dice.shape[-1], None
    classes, foreground = _weighted(dice, _resamples(len(dice), num_resamples, seed))
    several = (~np.isnan(dice)).sum(axis=0) > 1
    return [_interval(c) if s else None for c, s in zip(classes.T, several, strict=True)], _interval(foreground)


def _interval(differences: NDArray[np.float64]) -> tuple[float, float] | None:
    """Percentiles of the differences that are there."""
    found = differences[~np.isnan(differences)]
    if not found.size:
        return None
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


# The choice, in words. Nothing below decides anything.


def report(choice: Choice) -> str:
    """The choice to be read: a table, who won and by how much, what the numbers mean, what is missing."""
    parts = [_headline(choice), _table(choice), _verdict(choice), _conventions(choice)]
    return "\n\n".join([*parts, *([_missing(choice.setting)] if choice.setting.missing else [])])


def _headline(choice: Choice) -> str:
    """What was compared."""
    s = choice.setting
    folds = f"fold{'s' if len(s.folds) > 1 else ''} {', '.join(map(str, s.folds))}"
    count = len(choice.scores)
    return (
        f"{s.dataset}: mean Dice of {count} candidate{'s' if count > 1 else ''} over {len(choice.cases)} of "
        f"{s.num_cases} cases ({folds} of {s.num_folds})"
    )


def _table(choice: Choice) -> str:
    """Two lines a candidate, with and without postprocessing, best first; one where nothing is postprocessed."""
    header = ["candidate", "largest component", *choice.setting.classes, "mean", "behind", "95 % interval"]
    rows = [header]
    for score in choice.scores:
        interval = "" if score.interval is None else " to ".join(map(_cell, score.interval))
        behind = "" if score.behind is None else _cell(score.behind)
        if choice.setting.single_component:
            rows.append([score.candidate.name, "yes", *_cells(score.postprocessed), behind, interval])
            rows.append(["", "no", *_cells(score.plain), "", ""])
        else:
            rows.append([score.candidate.name, "-", *_cells(score.postprocessed), behind, interval])
    return table(rows, left=2)


def _cells(means: Means) -> list[str]:
    """Means of the classes and of the foreground."""
    return [*map(_cell, means.classes), _cell(means.foreground)]


def _cell(value: float | None) -> str:
    """A Dice, or a dash for none."""
    return "-" if value is None else f"{round(value, 4) + 0:.4f}"  # + 0 takes the sign from -0


def _verdict(choice: Choice) -> str:
    """Who won, by how much, and whether that can be told from chance."""
    best = choice.scores[0]
    first = f"Chosen: {choice.winner.name}, mean foreground Dice {_cell(best.postprocessed.foreground)}"
    if len(choice.scores) < 2:
        return f"{first}. There is no other candidate."
    second = choice.scores[1]
    by = f"{first}, {_cell(second.behind)} above {second.candidate.name}"
    if second.interval is None:
        return f"{by}. One case gives no interval: the two cannot be told apart."
    interval = "95 % interval " + " to ".join(map(_cell, second.interval))
    if choice.is_distinct:
        return f"{by} ({interval}, without 0: the cases tell the two apart)."
    if len(choice.cases) < MIN_CASES:
        return f"{by} ({interval}). {len(choice.cases)} cases are too few: the winner is not distinguishable from it."
    return f"{by} ({interval}, with 0 in it: on these cases the winner is not distinguishable from the runner-up)."


def _conventions(choice: Choice) -> str:
    """How the numbers are made."""
    s = choice.setting
    removed = (
        f"all but the largest component of {', '.join(s.single_component)} is removed, and the rows marked 'yes' count"
    )
    processed = removed if s.single_component else "none, for no class is one component in every training label"
    lines = [
        "Behind: the winner's mean minus the candidate's. Interval: paired bootstrap over the "
        f"{len(choice.cases)} cases, {choice.num_resamples} resamples, seed {choice.seed}.",
        "A class that is absent from both label and prediction of a case is left out of its mean; absent from the "
        "label alone it counts 0.",
        f"Postprocessing: {processed}.",
    ]
    return "\n".join([*lines, *s.notes])


def _missing(setting: Setting) -> str:
    """What is missing, what that means, and how to make it."""
    lines = ["Missing: " + _meaning(setting)]
    for m in setting.missing:
        numbers = ", ".join(map(str, m.folds))
        where = f"{m.configuration}, fold{'s' * (len(m.folds) > 1)} {numbers}" if m.folds else m.configuration
        lines += [f"  {where}: {m.what}", f"    {m.command}"]
    return "\n".join(lines)


def _meaning(setting: Setting) -> str:
    """What the missing parts mean for the choice."""
    left_out = sorted({m.configuration for m in setting.missing if not m.folds}, key=ORDER.index)
    sentences = []
    if left_out:
        sentences.append(f"{', '.join(left_out)} and ensembles with it are no candidates, though they may be better.")
    if len(setting.folds) < setting.num_folds:
        sentences.append(
            f"Only cases of folds that all candidates have can be compared, {len(setting.folds)} of "
            f"{setting.num_folds} folds; finishing the other folds may change the choice."
        )
    return " ".join(sentences) or "all folds are compared."
