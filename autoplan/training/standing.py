"""How trainings stand: what each still needs, which networks still hold after a plan, and the table of `status`.

It is read from the fold on disk (see `results`), from last.pt (the training can go on), lease.json (a process is
training it) and train.log. This module starts nothing.
"""

import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoplan.base import tables
from autoplan.base.axes import as_flag
from autoplan.base.errors import TrainingError
from autoplan.base.files import LARGEST, number, read_object
from autoplan.bundle.settings import evaluation_only, flags_of_training
from autoplan.planning.values import ALL, CASCADE, LOWRES, NOT_VALIDATED, Fold
from autoplan.training import lease, results
from autoplan.training.failures import STOPS, explain, last_status, log_tail
from autoplan.training.jobs import Job, asked_of, find_bundles, jobs_of
from autoplan.training.recipe import as_trained, max_epochs, other_recipe

Folds = Sequence[Sequence[str]]


def told(task: Path, folds: Folds, before: Folds) -> list[str]:
    """What a user should know who plans a task again, a line each; nothing where nothing has changed.

    Args:
        task: folder of the task's bundles, as they are now.
        folds: validation cases of each fold.
        before: as they were; none for a task that was not planned before.
    """
    lines = [_of_folds(folds, before)] if before and sorted(map(sorted, folds)) != sorted(map(sorted, before)) else []
    for bundle in find_bundles(task):
        jobs = [job for job in _jobs(bundle) if results.training(job.folder) is not None]
        reasons = {job: unfit(job) for job in jobs}
        lines += [f"{job.name} {reason}; train --anew trains it anew." for job, reason in reasons.items() if reason]
        lines += [f"{job.name} holds: {said}." for job in jobs if not reasons[job] and (said := _of_cases(job, folds))]
    return lines


def _jobs(bundle: Path) -> list[Job]:
    try:
        return jobs_of([bundle], begun_on_all=True)
    except TrainingError:
        return []


def _of_folds(folds: Folds, before: Folds) -> str:
    """Which cases are where they were."""
    was, now = ({name: k for k, fold in enumerate(found) for name in fold} for found in (before, folds))
    stay, new = sum(was.get(name) == k for name, k in now.items()), len(now.keys() - was.keys())
    moved, gone = len(now) - stay - new, len(was.keys() - now.keys())
    parts = [f"{stay} cases stay in their folds", f"{new} are new" if new else "", f"{gone} are gone" if gone else ""]
    parts += [f"{moved} are in another fold than before" if moved else ""]
    return f"Folds: {', '.join(filter(None, parts))}."


def _of_cases(job: Job, folds: Folds) -> str:
    """What a network that holds was not trained on, though it is in the dataset now; nothing where there is none."""
    added, changed = results.unseen(job.folder, folds, job.fold or 0)
    parts = [f"it was trained without {len(added)} of the cases" if added else ""]
    parts += [f"on earlier files of {len(changed)} cases" if changed else ""]
    return " and ".join(filter(None, parts))


BEFORE = "before"
"""Folder in models/ of what was trained before by another plan, or on other folds."""


@dataclass(frozen=True)
class Row:
    """How a job stands. Averages are of the losses, of the last epoch; `dice` is the mean over the foreground classes;
    `seconds_left` supposes that all `max_epochs` are trained. None is what is not known; fold "all" has no loss and no
    Dice of validation cases."""

    configuration: str
    fold: Fold
    state: str
    epoch: int
    max_epochs: int
    train_average: float | None = None
    val_average: float | None = None
    dice: float | None = None
    seconds_left: float | None = None
    reason: str = ""

    @property
    def epochs(self) -> str:
        """`3/40`, or `3` where nobody knows yet how many there will be."""
        return f"{self.epoch}/{self.max_epochs}" if self.max_epochs else str(self.epoch)


def needs(job: Job) -> list[Job]:
    """Jobs whose results another needs: of the cascade's second stage all folds of the first, as they were trained.
    Fold "all" learns from their segmentations, too, and needs that of the first, whose network it predicts with."""
    if job.configuration != CASCADE or job.fold is None:
        return []
    bundle = Path(job.bundle).with_name(LOWRES)
    settings, folds = settings_of_lowres(job), [*range(len(results.folds(Path(job.bundle))))]
    folds += [ALL] if job.fold == ALL else []
    return [as_trained(Job(str(bundle), LOWRES, fold, job.recipe, settings)) for fold in folds]


def settings_of_lowres(job: Job) -> tuple[tuple[str, str], ...]:
    """What a job of the second stage says about the first: lowres_patch_size is the first stage's patch_size, and
    patch_size says nothing about it; settings that both have are the same."""
    configs = [read_object(Path(job.bundle).with_name(name) / "configs" / "train.json") for name in (LOWRES, CASCADE)]
    known, own = [set(flags_of_training(config)) for config in configs]
    names = {name: name for name in known if f"lowres_{name}" not in own}
    names |= {f"lowres_{name}": name for name in known if f"lowres_{name}" in own}
    return tuple(sorted((names[name], value) for name, value in job.settings if name in names))


def ready(
    jobs: Iterable[Job], prerequisites: Mapping[Job, Collection[Job]], *, done: Collection[Job], begun: Collection[Job]
) -> list[Job]:
    """Jobs that can start: not begun, and all that they need is done."""
    return [job for job in jobs if job not in begun and all(other in done for other in prerequisites.get(job, ()))]


def missing_steps(job: Job) -> list[str]:
    """What is still to be run, in order; nothing when the job is done."""
    if job.fold is None:
        return ["caching"]
    after = [] if job.fold == ALL else ["evaluating"]
    if not is_trained(job):
        return ["training", *after]
    return [] if is_done(job) else after


def unfit(job: Job) -> str:
    """Why what is trained for a job can be used no more, as its dataset, its plan or its flags are now: the end of a
    sentence that starts with "the fold"; nothing where it can."""
    if job.fold is None:
        return ""
    bundle = Path(job.bundle)
    return results.unfit(job.folder, () if job.fold == ALL else results.folds(bundle)[job.fold], asked_of(job))


def unfit_reason(job: Job) -> str:
    """What to say of a job where `unfit` finds a reason; nothing where it finds none."""
    reason = unfit(job)
    return f"this fold {reason}. Train it anew, with --anew." if reason else ""


def check_fit(asked: Sequence[Job]) -> None:
    """Refuses jobs whose folds were trained by another plan or on other folds than there are now.

    Raises:
        TrainingError: there are some; with the command that trains them anew.
    """
    found = {job: reason for job in with_needs(asked) if (reason := unfit(job))}
    if not found:
        return
    task = Path(asked[0].bundle).parent
    named = [f"  {job.name} {reason}." for job, reason in found.items()]
    names = ",".join(dict.fromkeys(job.configuration for job in found))
    folds = ",".join(dict.fromkeys(str(job.fold) for job in found))
    where = "" if os.path.relpath(task.parent) == "bundles" else f" --bundles {task.parent}"
    lines = ["these trainings do not fit the plan and the folds as they are now:", *named]
    lines += [
        f"Train them anew: python -m autoplan train {task.name} --configurations {names} --folds {folds} --anew{where} "
        f"(what is there moves to models/{BEFORE})."
    ]
    if spacings := {_own_spacing(job, reason) for job, reason in found.items()} - {""}:
        lines += [f"Or plan with their spacing, and they stay: --spacing {' or '.join(sorted(spacings))} --force."]
    raise TrainingError("\n".join(lines))


def _own_spacing(job: Job, reason: str) -> str:
    """The spacing that a fold was trained with, as a flag of planning, where that is why it fits no more."""
    trained = results.training(job.folder)
    found = None if trained is None or " target_spacing " not in reason else trained.settings.get("target_spacing")
    return as_flag(found) if isinstance(found, list) and all(map(number, found)) else ""


def set_aside(asked: Sequence[Job]) -> list[Path]:
    """Moves the folders of folds that fit no more to models/before/, and gives their new places.

    Raises:
        TrainingError: a process works on one of them.
    """
    moved = []
    for job in with_needs(asked):
        if unfit(job):
            if lease.holder(job.folder) is not None:
                raise TrainingError(f"{job.name}: a process is training it. Stop it first.")
            kept = job.folder.parent / BEFORE
            kept.mkdir(exist_ok=True)
            places = (kept / f"{job.folder.name}_{n}" for n in itertools.count(1))
            moved.append(job.folder.rename(next(place for place in places if not place.exists())))
    return moved


def with_needs(asked: Sequence[Job]) -> list[Job]:
    """These jobs, and before them those whose results they need."""
    return list(dict.fromkeys([*(other for job in asked for other in needs(job)), *asked]))


def is_trained(job: Job) -> bool:
    """Whether the training has ended, by the job's recipe, and would not go on if it were started again."""
    trained = results.training(job.folder)
    if trained is None or other_recipe(job) or unfit(job) or not results.has_network(job.folder, trained):
        return False  # of a finished training that lacks its network, the next start writes it again
    return trained.stopped or job.recipe == "budget" or trained.epochs >= max_epochs(job)


def is_done(job: Job) -> bool:
    """Whether the training has ended, by the job's recipe, and its results are there, predicted as the job says."""
    return is_trained(job) and (job.fold == ALL or (has_results(job) and _is_predicted_so(job)))


def _is_predicted_so(job: Job) -> bool:
    """Whether the cases were predicted with the settings of the evaluation that the job has."""
    asked = {name: value for name, value in job.settings if name in evaluation_only()}
    used = results.prediction_settings(job.folder)
    return all(name in used and value == str(used[name]) for name, value in asked.items())


def has_results(job: Job) -> bool:
    """Whether the fold is finished, by whatever recipe. Nothing else is asked of what another job needs."""
    return result(job) is not None


def result(job: Job) -> results.FoldResult | None:
    """The result of a job's fold, where it is finished."""
    if job.fold is None:
        return None
    bundle = Path(job.bundle)
    if job.fold == ALL:
        found = results.read_all(bundle, asked_of(job))
    else:
        found = results.read(job.folder, results.folds(bundle)[job.fold], asked_of(job))
    return None if isinstance(found, str) else found


def row(job: Job) -> Row:
    """How a job stands, by its files."""
    if job.fold is None:
        raise ValueError("the filling of a cache has no row")
    curve = results.curve(job.folder)
    last = curve[-1] if curve else {}
    held = lease.holder(job.folder)
    is_told = held is not None and 0 <= held.max_epochs < LARGEST and job.recipe != "budget"
    epochs = held.max_epochs if held is not None and is_told else max_epochs(job)
    name, reason = state(job, is_held=held is not None)
    seconds = [r["seconds"] for r in curve if "seconds" in r]
    left = (epochs - len(curve)) * sum(seconds) / len(seconds) if seconds and epochs and name == "training" else None
    found = result(job) if name == "done" else None
    validation = None if job.fold == ALL else last.get("val_average")
    return Row(
        job.configuration, job.fold, name, int(last.get("epoch", 0)), epochs,
        last.get("train_average"), validation, None if found is None else found.mean_dice, left, reason,
    )  # fmt: skip


def state(job: Job, *, is_held: bool) -> tuple[str, str]:
    """One word, and a reason for "failed" or for waiting. `is_held`: a process works on the job."""
    if is_done(job):
        return "done", ""
    if is_held:
        return ("predicting" if is_trained(job) else "training"), ""
    if reason := unfit_reason(job) or other_recipe(job):
        return "failed", reason
    tail = log_tail(job.log)
    status = last_status(tail)
    if status and status - 128 not in STOPS:
        return "failed", explain(status, tail).reason
    if is_trained(job):
        return "trained", ""
    if (job.folder / "last.pt").is_file():
        return "stopped", ""
    missing = [other.name for other in needs(job) if not has_results(other)]
    return "waiting", f"waits for {', '.join(missing)}" if missing else ""


def check_all_done(rows: Sequence[Row], failed: Sequence[Job]) -> None:
    """Raises TrainingError unless all jobs are done; it names those that failed and where their logs are."""
    missing = [r for r in rows if r.state != "done"]
    if not missing and not failed:
        return
    lines = [f"{len(rows) - len(missing)} of {len(rows)} jobs are done, {len(failed)} failed."]
    lines += [f"  {job.name}: {job.log}" for job in failed]
    raise TrainingError("\n".join([*lines, "Correct what failed, then the same command does what is missing."]))


def table(rows: Sequence[Row]) -> str:
    """Rows as text with aligned columns."""
    header = ("configuration", "fold", "state", "epoch", "train", "validation", "Dice", "time left", "")
    return tables.table([header, *(_cells(r) for r in rows)])


def _cells(r: Row) -> tuple[str, ...]:
    numbers = ["-" if v is None else f"{v:.3f}" for v in (r.train_average, r.val_average, r.dice)]
    left = "-" if r.seconds_left is None else tables.duration(r.seconds_left)
    said = "; ".join(filter(None, (NOT_VALIDATED if r.fold == ALL else "", r.reason)))
    return (r.configuration, str(r.fold), r.state, r.epochs if r.epoch else "-", *numbers, left, said)
