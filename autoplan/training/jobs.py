"""The jobs of an experiment: which there are, and with which settings.

A job is one fold of one configuration: its training, then the prediction and scores of its validation cases; fold "all"
is trained on all cases and has none to validate. How it stands is told by `standing`.
"""

import json
import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from autoplan.base.errors import TrainingError, shortened
from autoplan.base.files import read_object
from autoplan.bundle.settings import evaluation_only, flags_of_training, refusal
from autoplan.planning.values import ALL, ConfigurationName, Fold
from autoplan.training import results
from autoplan.training.results import Recipe

CONFIGURATIONS: tuple[str, ...] = get_args(ConfigurationName)
SHARED_BY_A_CACHE = (
    "cache_dir", "dataset_dir", "target_spacing", "slice_axis", "normalization", "nonzero_only", "label_values",
    "preprocessing", "cache",
)  # fmt: skip
"""Configurations that agree in these keys of train.json have the same preprocessed cases."""
SHAPE = {"patch_size", "strides", "features"}
"""Settings that a network has for itself, whatever the configs say now."""
RETRIES = 2


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


def find_bundles(task: Path, configurations: Sequence[str] = ()) -> list[Path]:
    """The bundles of a task's folder, in the order of CONFIGURATIONS.

    Raises:
        TrainingError: there are none, or not one that is asked for.
    """
    found = [task / name for name in CONFIGURATIONS if (task / name / "configs" / "train.json").is_file()]
    if not found:
        raise TrainingError(
            f"{task} contains no bundles. Plan first: python -m autoplan {task.name} --bundles {task.parent}"
        )
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
    return {name: typed(value) for name, value in known.items() if _parsed(setting(job, name)) != value}


def setting(job: Job, name: str) -> Any:
    configs = Path(job.bundle) / "configs"
    value: Any = read_object(configs / "train.json").get(name)
    if job.recipe != "paper":
        value = read_object(configs / f"{job.recipe}.json").get(name, value)
    return dict(job.settings).get(name, value)


def asked_of(job: Job) -> dict[str, Any]:
    """The settings that a job is to be trained with, of those that decide what its network sees of a case."""
    config = read_object(Path(job.bundle) / "configs" / "train.json")
    given = {name: _parsed(value) for name, value in job.settings}
    return {name: given.get(name, config[name]) for name in results.OF_THE_DATA if name in config}


def typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else str(value)
