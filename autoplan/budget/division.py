"""How a given time is divided over trainings: which there are, and how long each takes. Pure: no files, no clock.

The best model that fits comes first: a second configuration, and with it the pair of both, only where every training of
the first is long enough; then as many folds of one configuration as are worth it; and where that is one, a network on
all cases in its place. All numbers here are our choice; docs/recipes.md has what was measured.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoplan.base.errors import AutoplanError
from autoplan.base.tables import duration, table
from autoplan.cost.pace import Pace
from autoplan.planning.values import ALL, CASCADE, LOWRES, Fold

PROMISE = ("3d_fullres", "2d", LOWRES, CASCADE)
"""Configurations from the one that promises most in little time. Source: arXiv:1809.10486, Table 2, where 3D is ahead
of 2D in most classes."""
THICK = 3.0
"""Slices are thick where the coarsest spacing of the networks is so many times the finest; there 2D promises most.
Source: the number is nnU-Net's threshold of anisotropy (doi:10.1038/s41592-020-01008-z), the order was measured."""
PLENTY = 4000
"""Iterations that each training of a configuration has before another one gets time."""
WIDE = 5000
"""Iterations of each training from which on the networks have as many feature maps as planned."""
NARROW = 16
"""Feature maps on the first level of a narrow network; twice as many on each level below, as planned."""
WORTHWHILE = 1000
"""Iterations below which a training is left out rather than made."""
LEAST = 30
"""Iterations that the only training has, or the time is too short."""
SCORE_SECONDS = 0.15
"""Selection and report, for each validated case."""
KEPT = 0.03
"""Part of the whole time that nothing is planned for."""
NUM_EPOCHS, EPOCH_LENGTHS = 20, (5, 100)
"""A training should have so many epochs, at the end of which it is saved, each of so many iterations."""
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Setting:
    """What the time is for: seconds of the whole command, the cases of each fold, the images to predict afterwards, how
    many trainings run at a time, and the configurations from the one that promises most, see `promise`; then what the
    user named: the folds, and whether any configurations. All that was named is trained."""

    seconds: float
    folds: tuple[int, ...]
    num_images: int
    places: int = 1
    promise: tuple[str, ...] = PROMISE
    named_folds: tuple[Fold, ...] = ()
    names_configurations: bool = False


@dataclass(frozen=True)
class Training:
    """One that gets time."""

    configuration: str
    fold: Fold


@dataclass(frozen=True)
class Division:
    """What is trained, in this order, by which networks, and what is not, in words."""

    trainings: tuple[Training, ...]
    paces: tuple[Pace, ...]
    left_out: tuple[str, ...] = ()


def parsed(text: str) -> float:
    """Seconds that a text such as 2h, 90m or 1h30m means.

    Raises:
        AutoplanError: it means none.
    """
    parts = re.findall(r"(\d{1,6}(?:\.\d{1,3})?) ?(min|[smhd])", text.strip().lower())
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not seconds or re.sub(r"\s", "", text.lower()) != "".join(number + unit for number, unit in parts):
        raise AutoplanError(f"--budget takes a time such as 30m, 2h or 1d, not {text[:40]!r}.")
    return seconds


def promise(spacing: Sequence[float]) -> tuple[str, ...]:
    """Configurations from the one that promises most in little time.

    Args:
        spacing: that the networks see, mm.
    """
    is_thick = max(spacing) >= THICK * min(spacing)
    return tuple(sorted(PROMISE, key=lambda name: name != "2d")) if is_thick else PROMISE


def divide(seconds: float, paces: Sequence[Pace], setting: Setting) -> Division:
    """Which trainings the time is worth.

    Args:
        seconds: that are left for training, validation and what comes after.
        paces: of the configurations that may be trained; of one that may have a narrow network, that one comes last.
        setting: what the time is for.

    Raises:
        AutoplanError: the time is too short for one training, or a cascade lacks trainings of its first stage.
    """
    folds, names = setting.named_folds, {pace.configuration for pace in paces}
    if CASCADE in names and (folds or LOWRES not in names):
        if setting.names_configurations:
            raise AutoplanError(f"--budget: {CASCADE} needs all folds of {LOWRES}. Name both, and leave out --folds.")
        paces = [pace for pace in paces if pace.configuration != CASCADE]
    by_name = {pace.configuration: pace for pace in paces}
    ranked = sorted(by_name, key=setting.promise.index)
    # Of networks on all cases nobody knows which one is the best: one is trained, unless others are named.
    most = 1 if folds == (ALL,) and not setting.names_configurations else len(ranked)
    for number in range(most, 0, -1):
        some = ranked[:number]
        is_last = setting.names_configurations or number == 1
        choices = [list(folds)] if folds else _fewer(len(setting.folds))
        if CASCADE in some:
            choices = choices[:1]
        for wanted in choices if is_last else choices[:1]:
            trainings = tuple(Training(name, fold) for name in some for fold in wanted)
            given = share(seconds, trainings, trainings, by_name, setting)
            enough = LEAST if is_last and wanted == choices[-1] else WORTHWHILE if is_last else PLENTY
            if min(iterations(given, by_name[name]) for name in some) >= enough:
                left_out = tuple(_left_out(ranked, some, [] if folds else wanted, setting))
                return Division(trainings, _as_wide_as_possible(seconds, trainings, paces, setting), left_out)
        if is_last:
            break
    longest = max(by_name[name].step_seconds for name in some)
    longest += max(pace.start_seconds for pace in paces) / LEAST
    lacking = (LEAST * longest - given) * len(waves(trainings, setting.places))
    raise AutoplanError(
        f"--budget is too short: {LEAST} iterations of "
        f"{'one training' if len(trainings) == 1 else f'{len(trainings)} trainings'}, and what comes after, take about "
        f"{math.ceil((setting.seconds + lacking / (1 - KEPT)) / 60)} min here."
    )


def is_short(seconds: float, paces: Sequence[Pace], setting: Setting) -> bool:
    """Whether trainings would be left out, or have fewer than `WORTHWHILE` iterations: those of the configuration that
    promises most, or of all that the user named. Arguments as for `divide`."""
    by_name = {pace.configuration: pace for pace in paces}
    names = sorted(by_name, key=setting.promise.index)[: None if setting.names_configurations else 1]
    trainings = [Training(name, fold) for name in names for fold in setting.named_folds or range(len(setting.folds))]
    given = share(seconds, trainings, trainings, by_name, setting)
    return min(iterations(given, by_name[name]) for name in names) < WORTHWHILE


def _as_wide_as_possible(
    seconds: float, trainings: Sequence[Training], paces: Sequence[Pace], setting: Setting
) -> tuple[Pace, ...]:
    """The planned network of each configuration where all of them are trained long enough, else the narrow ones."""
    names = {t.configuration for t in trainings}
    narrow = {pace.configuration: pace for pace in paces if pace.configuration in names}
    wide = {pace.configuration: pace for pace in reversed(paces) if pace.configuration in names}
    given = share(seconds, trainings, trainings, wide, setting)
    enough = all(iterations(given, pace) >= WIDE for pace in wide.values())
    return tuple((wide if enough else narrow).values())


def _fewer(num_folds: int) -> list[list[Fold]]:
    """All folds, then fewer, then the training on all cases."""
    return [*([*range(number)] for number in range(num_folds, 1, -1)), [ALL]]


def _left_out(ranked: Sequence[str], some: Sequence[str], folds: Sequence[Fold], setting: Setting) -> Iterable[str]:
    """What there is no time for; of `folds`, which are empty where the user named them."""
    if others := [name for name in ranked if name not in some]:
        listed = " and ".join(filter(None, (", ".join(others[:-1]), others[-1])))
        yield f"{listed}, and ensembles with {'it' if len(others) == 1 else 'them'}" if len(some) == 1 else listed
    missing = [fold for fold in range(len(setting.folds)) if folds and fold not in folds]
    if missing and list(folds) == [ALL]:
        yield "cross-validation: the one network is trained on all cases, and has no score"
    elif missing:
        yield f"fold{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"


def waves(trainings: Iterable[Training], places: int) -> list[list[Training]]:
    """Trainings that run at a time: as many as there are places, and the second stage of a cascade after the first."""
    found: list[list[Training]] = []
    for _, stage in itertools.groupby(trainings, key=lambda t: t.configuration == CASCADE):
        some = list(stage)
        found += [some[start : start + places] for start in range(0, len(some), places)]
    return found


def share(
    seconds: float,
    missing: Sequence[Training],
    trainings: Sequence[Training],
    paces: Mapping[str, Pace],
    setting: Setting,
) -> float:
    """Seconds that each training gets that is still missing, by its own clock, from the import of libraries to its end:
    what it takes besides, and what comes after all trainings, is taken off before. Not above 0 where there is no time.

    Args:
        seconds: that are left.
        missing: trainings that have not begun.
        trainings: all of them.
        paces: by configuration.
        setting: what the time is for.
    """
    some = waves(missing, setting.places)
    others = sum(max(besides(t, paces[t.configuration], setting) for t in wave) for wave in some)
    return (seconds - KEPT * setting.seconds - others - after(trainings, paces, setting)) / max(1, len(some))


def besides(training: Training, pace: Pace, setting: Setting) -> float:
    """Seconds of a training that its own clock does not count: its process starts before that, and another one predicts
    the validation cases after."""
    if training.fold == ALL:
        return pace.start_seconds
    return 2 * pace.start_seconds + setting.folds[training.fold] * (pace.image_seconds + pace.case_seconds)


def after(trainings: Sequence[Training], paces: Mapping[str, Pace], setting: Setting) -> float:
    """Seconds that selection, report and prediction take. They suppose that all networks predict."""
    scored = {t.fold for t in trainings if t.fold != ALL}
    start = max(paces[t.configuration].start_seconds for t in trainings)
    selection = start + SCORE_SECONDS * sum(setting.folds[fold] for fold in scored)
    image = sum(paces[t.configuration].image_seconds for t in trainings)
    image += max(paces[t.configuration].case_seconds for t in trainings)
    return selection + (start + setting.num_images * image if setting.num_images else 0.0)


def iterations(seconds: float, pace: Pace) -> int:
    """How many a training of so many seconds has."""
    return max(0, math.floor((seconds - pace.start_seconds) / pace.step_seconds))


def epoch_length(seconds: float, pace: Pace) -> int:
    """Iterations of an epoch of a training of so many seconds."""
    fewest, most = EPOCH_LENGTHS
    return min(most, max(fewest, iterations(seconds, pace) // NUM_EPOCHS))


# The division, in words.


def report(
    seconds: float,
    division: Division,
    missing: Sequence[Training],
    paces: Mapping[str, Pace],
    setting: Setting,
    given: float,
) -> list[str]:
    """What is trained and what is left out, before it begins or goes on.

    Args:
        seconds: that are left.
        division: what is trained.
        missing: trainings that have not begun; there are some.
        paces: by configuration.
        setting: what the time is for.
        given: seconds of each of them.
    """
    rows: list[tuple[str, ...]] = [("configuration", "features", "folds", "a training", "iterations")]
    for name in dict.fromkeys(t.configuration for t in missing):
        folds = ", ".join(str(t.fold) for t in missing if t.configuration == name)
        features = "-".join(map(str, (paces[name].features[:1] + paces[name].features[-1:])))
        rows.append((name, features, folds, duration(max(0.0, given)), f"about {iterations(given, paces[name]):,}"))
    rest = max(0.0, seconds - max(0.0, given) * len(waves(missing, setting.places)))
    lines = [f"Time: {duration(max(0.0, seconds))} of {duration(setting.seconds)} left.", table(rows, left=3)]
    begun, every = len(division.trainings) - len(missing), len(division.trainings)
    what = f"{begun} of {every} trainings have begun; what they lack, validation" if begun else "Validation"
    lines.append(f"{what} and what comes after the trainings: about {duration(rest)}.")
    return lines + [f"No time for {text}." for text in division.left_out]
