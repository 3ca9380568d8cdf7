"""What a training runs with, and whether that is what it was begun with."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoplan.base import tables
from autoplan.bundle.commands import where_flag
from autoplan.planning.values import Fold
from autoplan.training import results
from autoplan.training.failures import last_start
from autoplan.training.jobs import SHAPE, Job, setting, typed
from autoplan.training.results import Recipe, fold_folder


def max_epochs(job: Job) -> int:
    """Epochs that the training has at most; 0 where that is an expression, beyond all reason, or not known yet."""
    if job.recipe == "budget":
        return results.budgeted_epochs(job.folder)
    value = str(setting(job, "max_epochs"))
    return int(value) if value.isdecimal() and len(value) < 10 else 0


def has_schedule(job: Job) -> bool:
    """Whether the learning rate follows a schedule that ends with the last epoch, as those of quick.json and
    budget.json do."""
    return setting(job, "lr_schedule") not in (None, "None")


def other_recipe(job: Job) -> str:
    """What to say when a finished training had another recipe than a job asks for; nothing when it is the same, or may
    go on, or was finished by a version that has not recorded it."""
    trained = results.training(job.folder)
    if trained is None or trained.schedule is None:
        return ""
    if _is_same(job, trained):
        return ""
    return (
        "this fold was started with another recipe (quick.json or budget.json, or with one of them another "
        f"--max_epochs or --budget_seconds). Continue with that one, or remove {job.folder} to start anew."
    )


def _is_same(job: Job, trained: results.Training) -> bool:
    """Whether a job asks for the recipe that a finished training had."""
    if "budget" in (job.recipe, trained.recipe):
        asked = dict(job.settings).get("budget_seconds", trained.budget_seconds)
        return job.recipe == trained.recipe and float(str(asked)) == trained.budget_seconds
    scheduled = has_schedule(job)
    return scheduled == trained.schedule and not (scheduled and max_epochs(job) != trained.max_epochs)


def as_trained(job: Job) -> Job:
    """The job with the recipe and the number of epochs of its finished training, where they are recorded."""
    trained = results.training(job.folder)
    if trained is None or trained.schedule is None:
        return job
    if trained.recipe == "budget":
        others = tuple((name, value) for name, value in job.settings if name != "budget_seconds")
        given = ("budget_seconds", str(trained.budget_seconds))
        return replace(job, recipe="budget", settings=tuple(sorted((*others, given))))
    known = job.recipe != "budget" and has_schedule(job) == trained.schedule
    return _with_epochs(replace(job, recipe=job.recipe if known else trained.recipe), str(trained.max_epochs))


def _with_epochs(job: Job, epochs: str) -> Job:
    """The job with a number of epochs, which is a setting where it is not that of the recipe."""
    others = tuple((name, value) for name, value in job.settings if name != "max_epochs")
    plain = replace(job, settings=others)
    if epochs == str(max_epochs(plain)):
        return plain
    return replace(job, settings=tuple(sorted((*others, ("max_epochs", epochs)))))


def flags_of_recipe(bundle: Path, fold: Fold) -> str:
    """Flags of `train`, with a space before each, by which a fold is trained and predicted as it was before, or as the
    first finished fold of its configuration was: every setting that differs from what the configs say."""
    for folder in (results.fold_folder(bundle, fold), *sorted((bundle / "models").glob("fold_*"))):
        trained = results.training(folder)
        if trained is not None and trained.schedule is not None:
            job = Job(str(bundle), bundle.name, fold, trained.recipe)
            job = job if trained.recipe == "budget" else _with_epochs(job, str(trained.max_epochs))
            told = dict(job.settings)
            known = {name: setting(job, name) for name in trained.settings}
            known = {name: value for name, value in known.items() if value is not None}  # else no flag of this bundle
            other = {name for name in known if trained.settings[name] != known[name]}
            if other & set(results.OF_THE_DATA):  # it is to be trained anew
                other = other - set(results.OF_THE_DATA) - SHAPE
            told |= {name: typed(trained.settings[name]) for name in known if name in other}
            told |= _said_of_mirroring(folder, {"mirror_prob": setting(job, "mirror_prob"), **trained.settings})
            if trained.budget_seconds is not None:
                told = {name: value for name, value in told.items() if name not in ("budget_seconds", "epoch_length")}
                told = {"budget": f"{math.ceil(trained.budget_seconds)}s", **told}
            return " --quick" * (job.recipe == "quick") + tables.flags(told)
    return ""


def _said_of_mirroring(folder: Path, training: Mapping[str, Any]) -> dict[str, str]:
    """The flag --mirror, where the fold in `folder` was predicted in another way than it was trained."""
    mirror, prob = results.prediction_settings(folder).get("mirror"), training["mirror_prob"]
    known = isinstance(mirror, bool) and isinstance(prob, (int, float))
    return {"mirror": str(mirror)} if known and mirror != (prob > 0) else {}


def as_last_started(job: Job) -> Job:
    """The job with the recipe and the number of epochs of its training: of a finished one as it is recorded, else as it
    was last started, by its log."""
    start, trained = last_start(job.log), results.training(job.folder)
    if not start or (trained is not None and trained.schedule is not None):
        return as_trained(job)
    recipe: Recipe = "budget" if "budget.json" in start else "quick" if "quick.json" in start else "paper"
    return replace(job, recipe=recipe, settings=tuple(re.findall(r"--(budget_seconds|max_epochs) (\S+)", start)[-1:]))


def making_command(bundle: Path, folds: Sequence[Fold]) -> str:
    """The command that does what some folds lack, their training or the prediction of their validation cases, by the
    recipe of the first of them, or else of the configuration's finished folds."""
    flags = f"{where_flag(bundle)}{flags_of_recipe(bundle, folds[0])}"
    cases: dict[Fold, list[str]] = dict(enumerate(results.folds(bundle)))
    flags += " --anew" if any(results.unfit(fold_folder(bundle, k), cases.get(k, ())) for k in folds) else ""
    listed = ",".join(map(str, folds))
    return f"python -m autoplan train {bundle.parent.name} --configurations {bundle.name} --folds {listed}{flags}"
