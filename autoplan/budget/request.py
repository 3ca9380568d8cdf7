"""The trainings of a command that was given a time: what is asked for, what it takes here, whether coarser images would
do."""

import ast
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from autoplan.base.axes import Spacing
from autoplan.base.errors import AutoplanError
from autoplan.budget import coarser, division
from autoplan.budget.ledger import Ledger
from autoplan.cost import pace
from autoplan.cost.pace import Pace
from autoplan.data.facts import Dataset, Fingerprint
from autoplan.planning import recipes, rules, topology
from autoplan.planning.values import CASCADE, LOWRES, Configuration, Plan
from autoplan.training.jobs import Job

SPACING = "spacing"
"""What a ledger keeps: the one that was chosen because time is short, mm."""


@dataclass(frozen=True)
class Within:
    """What flags ask for: jobs, without their share of the time; the configurations that the user named, and the
    settings; what the time is for; how many jobs run at a time, and on which GPUs."""

    held: Ledger
    planned: Plan
    facts: Fingerprint
    asked: list[Job]
    configurations: list[str]
    settings: dict[str, str]
    jobs: int | None
    devices: list[str]
    setting: division.Setting

    def paces(self) -> list[Pace]:
        """What each network takes here. Jobs that run at a time share the processors, or a GPU."""
        there = {c.name for c in self.planned.configurations}
        names = [name for name in dict.fromkeys(job.configuration for job in self.asked) if name in there]
        every = [c for name in names for c in widths(self.planned, name, self.settings)]
        last = {c.name: c for c in every}
        measured = dict(zip(last.values(), self._measured(last.values()), strict=True))
        # A planned network is slower than a narrow one: where all the time is too little for one of those, it is none.
        most = self.held.left / division.WIDE
        wide = [c for c in every if c not in measured and most >= measured[last[c.name]].step_seconds]
        measured |= dict(zip(wide, self._measured(wide), strict=True))
        return [measured[c] for c in every if c in measured]

    def _measured(self, configurations: Iterable[Configuration]) -> list[Pace]:

        found = pace.paces(
            self.planned,
            self.facts,
            list(configurations),
            "cuda" if self.devices else "cpu",
            is_mirrored=is_mirrored(self.settings),
        )
        has_own_threads = "OMP_NUM_THREADS" in os.environ and not self.devices
        shared = 1.0 if has_own_threads else self.setting.places / max(1, len(self.devices))
        return [replace(p, step_seconds=shared * p.step_seconds, image_seconds=shared * p.image_seconds) for p in found]


def is_mirrored(settings: Mapping[str, str]) -> bool:
    """Whether the settings of a training for a given time have predictions averaged over mirrored images."""
    mirror = settings.get("mirror", "")
    return mirror == "True" if mirror else _value(settings.get("mirror_prob", "0")) != 0


def widths(planned: Plan, name: str, settings: Mapping[str, str]) -> list[Configuration]:
    """A configuration as it is trained for a given time; and as a narrow network, unless the features are set, or it is
    part of a cascade, whose stages are one bundle."""
    c = planned.configuration(name)
    c = replace(
        c,
        batch_size=_number(settings.get("batch_size", ""), recipes.budget_batch_size(c.batch_size)),
        features=_given(settings, "features", c.features),
        patch_size=_given(settings, "patch_size", c.patch_size),
    )
    if "features" in settings or name in (LOWRES, CASCADE) or c.features[0] <= division.NARROW:
        return [c]
    return [c, replace(c, features=topology.features(len(c.strides), base=division.NARROW))]


def _given(settings: Mapping[str, str], name: str, planned: tuple[int, ...]) -> tuple[int, ...]:
    """Counts that a user has set, or else the planned ones: also where that is an expression, or has another length."""
    found = _value(settings.get(name, ""))
    if isinstance(found, list) and len(found) == len(planned) and all(type(n) is int and n > 0 for n in found):
        return tuple(found)
    return planned


def _number(text: str, planned: int) -> int:
    """A count that a user has set, or else the planned one."""
    found = _value(text)
    return found if type(found) is int and found > 0 else planned


def _value(text: str) -> object:
    """What a text means as a literal of Python; the text, where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


@dataclass(frozen=True)
class Look:
    """What came of a look at coarser images: the spacing of the networks, mm, where it is another than planned; what
    these take, if it was measured; and what is to be said."""

    spacing: Spacing | None = None
    paces: list[Pace] | None = None
    said: str = ""


def coarser_if_short(within: Within, dataset: Dataset, again: Callable[[Spacing], Plan]) -> Look:
    """Twice the spacing, where trainings would be short and labels keep enough at it: that is decided then. Not where
    the user chose a spacing or a network, or anything was decided or trained.

    Args:
        within: the trainings.
        dataset: whose labels are looked at.
        again: plans for another spacing, and writes nothing.
    """
    planned, held = within.planned, within.held
    is_chosen = planned.own_spacing or any(name.endswith(("features", "patch_size")) for name in within.settings)
    if held.decisions or task_is_trained(held) or is_chosen:
        return Look()
    paces = within.paces()
    if not division.is_short(held.left, paces, within.setting):
        return Look(paces=paces)
    spacing = rules.coarser(planned.spacing)
    kept = coarser.dice_kept(dataset, spacing)
    if kept < coarser.LEAST_DICE:
        return Look(paces=paces, said=coarser.told(spacing, kept))
    setting = replace(within.setting, promise=division.promise(spacing))
    other = replace(within, planned=again(spacing), setting=setting)
    if not {c.name for c in other.planned.configurations}.issuperset(within.configurations):
        return Look(paces=paces)
    faster = other.paces()
    try:
        division.divide(held.left, faster, setting)
    except AutoplanError:  # too short in any case, which is said of the plan that is there
        return Look(paces=paces)
    held.decide(SPACING, spacing)
    return Look(spacing, faster, coarser.told(spacing, kept))


def decided_spacing(held: Ledger) -> Spacing | None:
    """The spacing that was chosen because time is short, mm; None where none was.

    Raises:
        AutoplanError: the ledger is damaged.
    """
    found = held.decisions.get(SPACING)
    if found is None:
        return None
    if isinstance(found, (list, tuple)) and len(found) == 3 and all(isinstance(mm, float) and mm > 0 for mm in found):
        return tuple(found)
    raise AutoplanError(f"{held.path} is damaged. Remove it to divide the time anew.")


def task_is_trained(held: Ledger) -> bool:
    """Whether anything was trained of the task whose time is held."""
    return any(held.path.parent.glob("*/models/*"))
