"""The jobs of an experiment: which there are, what each still needs and how it stands.

A job is one fold of one configuration: its training, then the prediction and scores of its validation cases; fold "all"
is trained on all cases and has none to validate. How it stands is read from the fold on disk (see `results`), from
last.pt (the training can go on), lease.json (a process works on it) and train.log. This module starts nothing.
"""

import itertools
import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from autoplan import lease, results, tables
from autoplan.axes import as_flag
from autoplan.errors import TrainingError, shortened
from autoplan.facts import ALL, CASCADE, LOWRES, NOT_VALIDATED, ConfigurationName, Fold
from autoplan.failures import STOPS, explain, last_start, last_status, log_tail
from autoplan.files import LARGEST, number, read_object
from autoplan.results import Recipe
from autoplan.settings import evaluation_only, flags_of_training, refusal

CONFIGURATIONS: tuple[str, ...] = get_args(ConfigurationName)
SHARED_BY_A_CACHE = (
    "cache_dir", "dataset_dir", "target_spacing", "slice_axis", "normalization", "nonzero_only", "label_values",
    "preprocessing", "cache",
)  # fmt: skip
"""Configurations that agree in these keys of train.json have the same preprocessed cases."""
SHAPE = {"patch_size", "strides", "features"}
"""Settings that a network has for itself, whatever the configs say now."""
RETRIES = 2
BEFORE = "before"
"""Folder in models/ of what was trained before by another plan, or on other folds."""


@dataclass(frozen=True)
class Job:
    """One fold of one configuration; without a fold, the filling of the cache that all folds read.

    `bundle` is the absolute path of the configuration's bundle. `settings` are keys of train.json with their new
    values, as they stand on a command line; of the recipe "budget" also `budget_seconds`, once its time is known. Jobs
    that fill one cache together differ in `part` alone: each takes the cases that are missing in an order of its own.
    """

    bundle: str
    configuration: str
    fold: Fold | None
    recipe: Recipe = "paper"
    settings: tuple[tuple[str, str], ...] = ()
    part: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        cache = f"cache, part {self.part}" if self.part else "cache"
        return f"{self.configuration} {cache if self.fold is None else f'fold {self.fold}'}"

    @property
    def folder(self) -> Path:
        """Where its results lie; of a job without a fold, its log and its lease."""
        bundle = Path(self.bundle)
        caching = bundle / "models" / "caching" / str(self.part)
        return caching if self.fold is None else results.fold_folder(bundle, self.fold)

    @property
    def log(self) -> Path:
        """What its processes print, of all starts."""
        return self.folder / ("caching.log" if self.fold is None else "train.log")


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


def find_bundles(task: Path, configurations: Sequence[str] = ()) -> list[Path]:
    """The bundles of a task's folder, in the order of CONFIGURATIONS.

    Raises:
        TrainingError: there are none, or not one that is asked for.
    """
    found = [task / name for name in CONFIGURATIONS if (task / name / "configs" / "train.json").is_file()]
    if not found:
        raise TrainingError(f"{task}: no bundles. Plan first: python -m autoplan {task.name} --bundles {task.parent}")
    names = [path.name for path in found]
    for name in configurations:
        if name not in names:
            raise TrainingError(f"{task}: there is no configuration {name!r}. There are {', '.join(names)}.")
    return [path for path in found if not configurations or path.name in configurations]


def jobs_of(
    bundles: Iterable[Path],
    folds: Sequence[Fold] = (),
    *,
    recipe: Recipe = "paper",
    settings: Mapping[str, str] | None = None,
    begun_on_all: bool = False,
) -> list[Job]:
    """The jobs of the bundles; if no folds are named, those of the cross-validation, and with `begun_on_all` also fold
    "all" where it was begun.

    Raises:
        TrainingError: a bundle has no such fold, or no setting of that name.
    """
    jobs = []
    for bundle in bundles:
        config = _config(bundle)
        check_settings(settings or {}, config)
        for prefix in ("", "lowres_"):
            check_patch_size({**config, **(settings or {})}, prefix)
        count = len(results.folds(bundle))
        on_all = [ALL] if begun_on_all and results.fold_folder(bundle, ALL).is_dir() else []
        for fold in folds or [*range(count), *on_all]:
            if fold != ALL and fold not in range(count):
                raise TrainingError(f"{bundle}: there is no fold {fold}: there are {count}, counted from 0, and {ALL}.")
            given = tuple(sorted((settings or {}).items()))
            jobs.append(Job(str(bundle.absolute()), bundle.name, fold, recipe, given))
    return jobs


def _config(bundle: Path) -> dict[str, Any]:
    """The train.json of a bundle.

    Raises:
        TrainingError: it is damaged.
    """
    path = bundle / "configs" / "train.json"
    config = read_object(path)
    if "strides" not in config or "patch_size" not in config:
        raise TrainingError(f"{path} is damaged. Write the bundle anew: plan again with --force (models/ stays).")
    return config


def check_settings(given: Mapping[str, str], keys: Collection[str]) -> None:
    """Refuses settings that a train.json with these keys does not have, and values that cannot be theirs.

    Raises:
        TrainingError: the first of them, by its name.
    """
    known = flags_of_training(keys)
    for name, value in given.items():
        if name in keys and name not in known:
            raise TrainingError(f"--{name} cannot be set here: it is a part of the bundles, or every job has its own.")
        if name not in known:
            raise TrainingError(f"there is no flag --{name}. The settings of a training are {', '.join(known)}.")
        if takes := refusal(name, value):
            raise TrainingError(f"--{name} takes {takes}, not {shortened(value)}.")


def check_patch_size(config: Mapping[str, Any], prefix: str = "") -> None:
    """Refuses a patch that the network cannot take: each axis must be a multiple of its strides, and the deepest level
    needs more than one voxel for its instance norm.

    Args:
        config: keys of train.json; those that were set are text.
        prefix: of the keys that are about the cascade's first stage.

    Raises:
        TrainingError: it does not fit; with the smallest patch that does.
    """
    patch, strides = (_parsed(config.get(f"{prefix}{name}")) for name in ("patch_size", "strides"))
    if patch is None or strides is None:
        return
    name = f"--{prefix}patch_size {shortened(str(config[f'{prefix}patch_size']))}"
    try:
        if not all(type(n) is int and n > 0 for n in (*patch, *(n for axis in strides for n in axis))):
            raise ValueError
        steps = [math.prod(axis) for axis in zip(*strides, strict=True)]
        fits = len(patch) == len(steps) and all(n >= s and n % s == 0 for n, s in zip(patch, steps, strict=True))
        voxels = math.prod(n // s for n, s in zip(patch, steps, strict=True)) if fits else 0
    except (TypeError, ValueError):
        said = 'takes a list of whole numbers, such as "[64,64,32]", and strides a list of such lists'
        raise TrainingError(f"{name}: {said}.") from None
    if voxels < 2:
        raise TrainingError(
            f"{name}: does not fit the network. Each axis must be a multiple of {steps}, one of them at least twice "
            f"that; the smallest patch is {[2 * steps[0], *steps[1:]]}."
        )


def _parsed(value: Any) -> Any:
    """A value of a config; one that was typed is read as JSON, where it is some. None for an expression."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None if value.startswith(("$", "@")) else value
    return value if found is None else found


def caching_jobs(jobs: Sequence[Job], number: int) -> dict[Job, list[Job]]:
    """For each job those that fill its cache first, so many together. Configurations with the same preprocessing share
    one cache."""
    fillers: dict[str, list[Job]] = {}
    found = {}
    for job in jobs:
        config = {**read_object(Path(job.bundle) / "configs" / "train.json"), **dict(job.settings)}
        key = json.dumps([config.get(name) for name in SHARED_BY_A_CACHE] + [str(Path(job.bundle).parent)])
        # A setting that is a string here is a number there: the comparison needs equality only.
        first = Job(job.bundle, job.configuration, None, job.recipe, job.settings)
        fillers.setdefault(key, [replace(first, part=part) for part in range(number)])
        found[job] = fillers[key]
    return found


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


def command(job: Job, step: str) -> list[str]:
    """The command of a step: training, evaluating or caching."""
    names = ["train", *(["evaluate"] if step == "evaluating" else []), *([] if job.recipe == "paper" else [job.recipe])]
    files = [f"{Path(job.bundle) / 'configs' / name}.json" for name in names]
    config = files[0] if len(files) == 1 else str(files)
    given = {name: value for name, value in job.settings if step == "evaluating" or name not in evaluation_only()}
    settings = given | (_of_its_network(job) if step == "evaluating" else {})
    settings |= {} if job.fold is None else {"fold": str(job.fold)}
    words = [text for name, value in settings.items() for text in (f"--{name}", value)]
    return [sys.executable, "-m", "monai.bundle", "run", step, "--config_file", config, *words]


def _of_its_network(job: Job) -> dict[str, str]:
    """Settings of the network that was trained for a job, where they are not those of the configs: its plan may have
    been another one."""
    trained = results.training(job.folder)
    known = {} if trained is None else {n: v for n, v in trained.settings.items() if n.removeprefix("lowres_") in SHAPE}
    return {name: _typed(value) for name, value in known.items() if _parsed(_setting(job, name)) != value}


def missing_steps(job: Job) -> list[str]:
    """What is still to be run, in order; nothing when the job is done."""
    if job.fold is None:
        return ["caching"]
    after = [] if job.fold == ALL else ["evaluating"]
    if not is_trained(job):
        return ["training", *after]
    return [] if is_done(job) else after


def max_epochs(job: Job) -> int:
    """Epochs that the training has at most; 0 where that is an expression, beyond all reason, or not known yet."""
    if job.recipe == "budget":
        return results.budgeted_epochs(job.folder)
    value = str(_setting(job, "max_epochs"))
    return int(value) if value.isdecimal() and len(value) < 10 else 0


def has_schedule(job: Job) -> bool:
    """Whether the learning rate follows a schedule that ends with the last epoch, as those of quick.json and
    budget.json do."""
    return _setting(job, "lr_schedule") not in (None, "None")


def _setting(job: Job, name: str) -> Any:
    configs = Path(job.bundle) / "configs"
    value: Any = read_object(configs / "train.json").get(name)
    if job.recipe != "paper":
        value = read_object(configs / f"{job.recipe}.json").get(name, value)
    return dict(job.settings).get(name, value)


def unfit(job: Job) -> str:
    """Why what is trained for a job can be used no more, as its dataset, its plan or its flags are now: the end of a
    sentence that starts with "the fold"; nothing where it can."""
    if job.fold is None:
        return ""
    bundle = Path(job.bundle)
    return results.unfit(job.folder, () if job.fold == ALL else results.folds(bundle)[job.fold], _asked(job))


def unfit_reason(job: Job) -> str:
    """What to say of a job where `unfit` finds a reason; nothing where it finds none."""
    reason = unfit(job)
    return f"this fold {reason}. Train it anew, with --anew." if reason else ""


def _asked(job: Job) -> dict[str, Any]:
    """The settings that a job is to be trained with, of those that decide what its network sees of a case."""
    config = read_object(Path(job.bundle) / "configs" / "train.json")
    given = {name: _parsed(value) for name, value in job.settings}
    return {name: given.get(name, config[name]) for name in results.OF_THE_DATA if name in config}


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


def other_recipe(job: Job) -> str:
    """What to say when a finished training had another recipe than a job asks for; nothing when it is the same, or may
    go on, or was finished by a version that has not recorded it."""
    trained = results.training(job.folder)
    if trained is None or trained.schedule is None:
        return ""
    if _is_same(job, trained):
        return ""
    return (
        "this fold was begun with another recipe (quick.json or budget.json, or with one of them another --max_epochs "
        f"or --budget_seconds). Go on with that one, or remove {job.folder} to start anew."
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
            known = {name: _setting(job, name) for name in trained.settings}
            known = {name: value for name, value in known.items() if value is not None}  # else no flag of this bundle
            other = {name for name in known if trained.settings[name] != known[name]}
            if other & set(results.OF_THE_DATA):  # it is to be trained anew
                other = other - set(results.OF_THE_DATA) - SHAPE
            told |= {name: _typed(trained.settings[name]) for name in known if name in other}
            told |= _said_of_mirroring(folder, {"mirror_prob": _setting(job, "mirror_prob"), **trained.settings})
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


def _typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else str(value)


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
        found = results.read_all(bundle, _asked(job))
    else:
        found = results.read(job.folder, results.folds(bundle)[job.fold], _asked(job))
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


def as_last_started(job: Job) -> Job:
    """The job with the recipe and the number of epochs of its training: of a finished one as it is recorded, else as it
    was last started, by its log."""
    start, trained = last_start(job.log), results.training(job.folder)
    if not start or (trained is not None and trained.schedule is not None):
        return as_trained(job)
    recipe: Recipe = "budget" if "budget.json" in start else "quick" if "quick.json" in start else "paper"
    return replace(job, recipe=recipe, settings=tuple(re.findall(r"--(budget_seconds|max_epochs) (\S+)", start)[-1:]))


def table(rows: Sequence[Row]) -> str:
    """Rows as text with aligned columns."""
    header = ("configuration", "fold", "state", "epoch", "train", "validation", "Dice", "time left", "")
    return tables.table([header, *(_cells(r) for r in rows)])


def _cells(r: Row) -> tuple[str, ...]:
    numbers = ["-" if v is None else f"{v:.3f}" for v in (r.train_average, r.val_average, r.dice)]
    left = "-" if r.seconds_left is None else tables.duration(r.seconds_left)
    said = "; ".join(filter(None, (NOT_VALIDATED if r.fold == ALL else "", r.reason)))
    return (r.configuration, str(r.fold), r.state, r.epochs if r.epoch else "-", *numbers, left, said)
