"""The trainings of an experiment: which jobs there are, what each still needs, how it stands and why it failed.

A job is one fold of one configuration: its training, then the prediction and scores of its validation cases. Nothing
records how a job stands but its files in bundles/TASK/CONFIGURATION/models/fold_K/: finished.json (the training has
ended, and by which recipe), model.pt, validation/dice.json (the scores of that network), last.pt and curve.csv (how far
it is), lease.json (a process works on it) and train.log. This module reads them and starts nothing.
"""

import csv
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from autoplan import lease, tables
from autoplan.errors import TrainingError
from autoplan.facts import ConfigurationName
from autoplan.files import read_json, read_object

CONFIGURATIONS: tuple[str, ...] = get_args(ConfigurationName)
LOWRES, CASCADE = "3d_lowres", "3d_cascade_fullres"
"""Every training of the second waits for all of the first: it needs the out-of-fold predictions of all cases."""
MANAGED = (
    "imports", "bundle_root", "fold", "ckpt_dir", "output_dir", "network_def", "network", "cases", "preprocessing",
    "cache", "lowres", "lowres_bundle", "loss", "optimizer", "train", "validate", "training", "caching", "run",
    "lowres_networks", "cascade_networks",
)  # fmt: skip
"""Keys of train.json that are no settings: every job has its own, or they are the structure."""
MIRROR = "mirror"
"""The setting that is one of evaluate.json: of the prediction of the validation cases, not of the training."""
PATHS = ("dataset_dir", "cache_dir")
"""Settings that are paths: relative to where the command was typed, not to where a job runs."""
SHARED_BY_A_CACHE = (
    "cache_dir", "dataset_dir", "target_spacing", "slice_axis", "normalization", "nonzero_only", "label_values",
    "preprocessing", "cache",
)  # fmt: skip
"""Configurations that agree in these keys of train.json have the same preprocessed cases."""
SETTINGS = {"target_spacing", "patch_size", "strides", "features", "mirror", "overlap"}
"""What dice.json tells of the prediction; one of an older bundle tells less, and its fold has to be predicted again."""
START = "autoplan: started"
END = "autoplan: ended with status"
"""How lines begin that a job adds to its log."""
RETRIES = 2
TAIL_BYTES = 200_000
"""How much of a log's end is read to explain a failure."""


@dataclass(frozen=True)
class Job:
    """One fold of one configuration; without a fold, the filling of the cache that all folds read.

    `bundle` is the absolute path of the configuration's bundle. `settings` are keys of train.json with their new
    values, as they stand on a command line.
    """

    bundle: str
    configuration: str
    fold: int | None
    quick: bool = False
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.configuration} {'cache' if self.fold is None else f'fold {self.fold}'}"

    @property
    def folder(self) -> Path:
        """Where its results lie."""
        models = Path(self.bundle) / "models"
        return models if self.fold is None else models / f"fold_{self.fold}"

    @property
    def log(self) -> Path:
        """What its processes print, of all starts."""
        return self.folder / ("caching.log" if self.fold is None else "train.log")


@dataclass(frozen=True)
class Failure:
    """Why a job died: one line each for the reason and for what to try. `retry`: whether it may go well next time."""

    reason: str
    remedy: str
    retry: bool


@dataclass(frozen=True)
class Row:
    """How a job stands. Averages are of the losses, of the last epoch; `dice` is the mean over the foreground classes;
    `seconds_left` supposes that all `max_epochs` are trained. None is what is not known."""

    configuration: str
    fold: int
    state: str
    epoch: int
    max_epochs: int
    train_average: float | None = None
    val_average: float | None = None
    dice: float | None = None
    seconds_left: float | None = None
    reason: str = ""


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
    folds: Sequence[int] = (),
    *,
    quick: bool = False,
    settings: Mapping[str, str] | None = None,
) -> list[Job]:
    """The jobs of the bundles, all folds if none are named.

    Raises:
        TrainingError: a bundle has no such fold, or no setting of that name.
    """
    jobs = []
    for bundle in bundles:
        check_settings(settings or {}, read_object(bundle / "configs" / "train.json"))
        count = len(_folds(bundle))
        for fold in folds or range(count):
            if fold not in range(count):
                raise TrainingError(f"{bundle}: there is no fold {fold}: there are {count}, counted from 0.")
            given = tuple(sorted((settings or {}).items()))
            jobs.append(Job(str(bundle.absolute()), bundle.name, fold, quick, given))
    return jobs


def check_settings(names: Iterable[str], config: Mapping[str, Any]) -> None:
    """Refuses settings that train.json does not have.

    Raises:
        TrainingError: the first of them, by its name.
    """
    known = [*(name for name in config if name not in MANAGED), MIRROR]
    for name in names:
        if name in MANAGED:
            raise TrainingError(f"--{name} cannot be set here: it is a part of the bundles, or every job has its own.")
        if name not in known:
            raise TrainingError(f"there is no flag --{name}. The settings of a training are {', '.join(known)}.")


def caching_jobs(jobs: Sequence[Job]) -> dict[Job, Job]:
    """For each job the one that fills its cache first. Configurations with the same preprocessing share one."""
    fillers: dict[str, Job] = {}
    found = {}
    for job in jobs:
        config = {**read_object(Path(job.bundle) / "configs" / "train.json"), **dict(job.settings)}
        key = json.dumps([config.get(name) for name in SHARED_BY_A_CACHE] + [str(Path(job.bundle).parent)])
        # A setting that is a string here is a number there: the comparison needs equality only.
        fillers.setdefault(key, Job(job.bundle, job.configuration, None, job.quick, job.settings))
        found[job] = fillers[key]
    return found


def needs(job: Job) -> list[Job]:
    """Jobs whose results another needs: of the cascade's second stage all folds of the first, as they were trained."""
    if job.configuration != CASCADE or job.fold is None:
        return []
    bundle = Path(job.bundle).with_name(LOWRES)
    settings, folds = settings_of_lowres(job), range(len(_folds(Path(job.bundle))))
    return [as_trained(Job(str(bundle), LOWRES, fold, job.quick, settings)) for fold in folds]


def settings_of_lowres(job: Job) -> tuple[tuple[str, str], ...]:
    """What a job of the second stage says about the first: lowres_patch_size is the first stage's patch_size, and
    patch_size says nothing about it; settings that both have are the same."""
    configs = [read_object(Path(job.bundle).with_name(name) / "configs" / "train.json") for name in (LOWRES, CASCADE)]
    known, own = [{name for name in config if name not in MANAGED} for config in configs]
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
    names = ["train", *(["evaluate"] if step == "evaluating" else []), *(["quick"] if job.quick else [])]
    files = [f"{Path(job.bundle) / 'configs' / name}.json" for name in names]
    config = files[0] if len(files) == 1 else str(files)
    given = {name: value for name, value in job.settings if name != MIRROR or step == "evaluating"}
    settings = given | ({} if job.fold is None else {"fold": str(job.fold)})
    words = [text for name, value in settings.items() for text in (f"--{name}", value)]
    return [sys.executable, "-m", "monai.bundle", "run", step, "--config_file", config, *words]


def missing_steps(job: Job) -> list[str]:
    """What is still to be run, in order; nothing when the job is done."""
    if job.fold is None:
        return ["caching"]
    if not is_trained(job):
        return ["training", "evaluating"]
    return [] if is_done(job) else ["evaluating"]


def max_epochs(job: Job) -> int:
    """Epochs that the training has at most; 0 where that is an expression."""
    value = str(_setting(job, "max_epochs"))
    return int(value) if value.isdecimal() else 0


def has_schedule(job: Job) -> bool:
    """Whether the learning rate follows a schedule that ends with the last epoch, as that of quick.json does."""
    return _setting(job, "lr_schedule") not in (None, "None")


def _setting(job: Job, name: str) -> Any:
    configs = Path(job.bundle) / "configs"
    value: Any = read_object(configs / "train.json").get(name)
    if job.quick:
        value = read_object(configs / "quick.json").get(name, value)
    return dict(job.settings).get(name, value)


def other_recipe(job: Job) -> str:
    """What to say when a finished training had another recipe than a job asks for; nothing when it is the same, or may
    go on, or was finished by a version that has not recorded it."""
    finished = read_object(job.folder / "finished.json")
    if "schedule" not in finished:
        return ""
    asked = has_schedule(job)
    if asked == finished["schedule"] and not (asked and max_epochs(job) != finished["max_epochs"]):
        return ""
    return (
        "this fold was begun with another recipe (quick.json, or another --max_epochs with it). "
        f"Go on with that one, or remove {job.folder} to start anew."
    )


def as_trained(job: Job) -> Job:
    """The job with the recipe and the number of epochs of its finished training, where they are recorded."""
    finished = read_object(job.folder / "finished.json")
    if "schedule" not in finished:
        return job
    quick = job.quick if has_schedule(job) == finished["schedule"] else bool(finished["schedule"])
    return _with_epochs(replace(job, quick=quick), str(finished["max_epochs"]))


def _with_epochs(job: Job, epochs: str) -> Job:
    """The job with a number of epochs, which is a setting where it is not that of the recipe."""
    others = tuple((name, value) for name, value in job.settings if name != "max_epochs")
    plain = replace(job, settings=others)
    if epochs == str(max_epochs(plain)):
        return plain
    return replace(job, settings=tuple(sorted((*others, ("max_epochs", epochs)))))


def flags_of_recipe(bundle: Path, fold: int) -> str:
    """Flags of `train` by which a fold is trained as it was before, or as other folds of its configuration were: from
    the first that is finished, with a space before each."""
    for folder in (bundle / "models" / f"fold_{fold}", *sorted((bundle / "models").glob("fold_*"))):
        if "schedule" in read_object(folder / "finished.json"):
            job = as_trained(Job(str(bundle), bundle.name, int(folder.name.removeprefix("fold_"))))
            return " --quick" * job.quick + "".join(f" --{name} {value}" for name, value in job.settings)
    return ""


def is_trained(job: Job) -> bool:
    """Whether the training has ended, by the job's recipe, and would not go on if it were started again."""
    finished = read_object(job.folder / "finished.json")
    if "model" not in finished or not (job.folder / "model.pt").is_file() or other_recipe(job):
        return False
    return bool(finished.get("stopped")) or int(finished.get("epochs", 0)) >= max_epochs(job)


def is_done(job: Job) -> bool:
    """Whether the training has ended, by the job's recipe, and its results are there."""
    return is_trained(job) and has_results(job)


def has_results(job: Job) -> bool:
    """Whether all result files are there and belong together: the scores of the fold's cases by the trained network, by
    whatever recipe. Nothing else is asked of what another job needs."""
    if job.fold is None:
        return False
    validation, cases = job.folder / "validation", _folds(Path(job.bundle))[job.fold]
    finished, scores = read_object(job.folder / "finished.json"), read_object(validation / "dice.json")
    same = "model" in finished and scores.get("model") == finished["model"] and (job.folder / "model.pt").is_file()
    stored = all((validation / "probabilities" / f"{case}.npz").is_file() for case in cases)
    told = set(scores.get("settings") or ()) >= SETTINGS
    return same and told and stored and set(scores.get("cases", {})) == set(cases)


def row(job: Job) -> Row:
    """How a job stands, by its files."""
    if job.fold is None:
        raise ValueError("the filling of a cache has no row")
    curve = _curve(job.folder / "curve.csv")
    last = curve[-1] if curve else {}
    held = lease.holder(job.folder)
    epochs = int(held.get("max_epochs") or 0) if held else max_epochs(job)
    name, reason = state(job, is_held=held is not None)
    seconds = [float(r["seconds"]) for r in curve]
    left = (epochs - len(curve)) * sum(seconds) / len(seconds) if seconds and epochs and name == "training" else None
    scores = read_object(job.folder / "validation" / "dice.json") if name == "done" else {}
    return Row(
        job.configuration, job.fold, name, int(last.get("epoch", 0)), epochs,
        _number(last.get("train_average")), _number(last.get("val_average")), scores.get("mean_foreground_dice"),
        left, reason,
    )  # fmt: skip


def state(job: Job, *, is_held: bool) -> tuple[str, str]:
    """One word, and a reason for "failed" or for waiting. `is_held`: a process works on the job."""
    if is_done(job):
        return "done", ""
    if is_held:
        return ("predicting" if is_trained(job) else "training"), ""
    if reason := other_recipe(job):
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
    raise TrainingError("\n".join([*lines, "Mend what failed, then the same command does what is missing."]))


def as_last_started(job: Job) -> Job:
    """The job with the recipe and the number of epochs of its training: of a finished one as it is recorded, else as it
    was last started, by its log."""
    start = _last_start(job.log)
    if not start or "schedule" in read_object(job.folder / "finished.json"):
        return as_trained(job)
    epochs = re.findall(r"--max_epochs (\S+)", start)
    return replace(job, quick="quick.json" in start, settings=(("max_epochs", epochs[-1]),) if epochs else ())


def _last_start(log: Path) -> str:
    """The line of a log that says how the training was last started."""
    found, wanted = b"", f"{START} training".encode()
    try:
        with log.open("rb") as file:
            for line in file:
                found = line if line.startswith(wanted) else found
    except OSError:
        pass
    return found.decode("utf-8", "replace")


def table(rows: Sequence[Row]) -> str:
    """Rows as text with aligned columns."""
    header = ("configuration", "fold", "state", "epoch", "train", "validation", "Dice", "time left", "")
    return tables.table([header, *(_cells(r) for r in rows)])


def _cells(r: Row) -> tuple[str, ...]:
    epoch = f"{r.epoch}/{r.max_epochs}" if r.max_epochs else str(r.epoch)
    numbers = ["-" if v is None else f"{v:.3f}" for v in (r.train_average, r.val_average, r.dice)]
    left = "-" if r.seconds_left is None else duration(r.seconds_left)
    return (r.configuration, str(r.fold), r.state, epoch if r.epoch else "-", *numbers, left, r.reason)


def duration(seconds: float) -> str:
    """A time for people."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def log_tail(path: Path) -> str:
    """The end of a log, from the line on that says that its last process started."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text[max(text.rfind(START), 0) :]


def last_status(tail: str) -> int:
    """The exit status that the last line of `log_tail` names; 0 if it names none."""
    found = re.findall(rf"^{END} (\d+)", tail, re.MULTILINE)
    return int(found[-1]) if found else 0


NO_MEMORY = "fewer --num_workers or --jobs at a time, or a machine with more memory"
OTHER_RECIPE = "the flags of the first time, such as --quick"
CAUSES = (
    (r"ValueError: (this fold was begun with another recipe.*)$", "{0}", OTHER_RECIPE, False),
    (
        r"FloatingPointError: (.*?)(?: Try .*)?$",
        "{0}",
        "a lower --learning_rate, or --amp False",
        False,  # The training that goes on meets the same batches.
    ),
    (
        r"(?:CUDA out of memory|OutOfMemoryError)",
        "out of memory on the GPU",
        "a smaller --batch_size, or a GPU that no other program uses",
        True,
    ),
    (
        r"(?:No space left on device|Disk quota exceeded)",
        "the disk is full",
        "free space for the bundles and the cache, then the same command again",
        False,
    ),
    (
        r"insufficient shared memory|Bus error",
        "the shared memory of the machine (/dev/shm) is full",
        "--num_workers 0, or a larger /dev/shm (docker run --shm-size)",
        True,
    ),
    (r"DataLoader worker \(pid.*?\) is killed by signal: Killed", "a loading process was killed", NO_MEMORY, True),
    (r"((?:torch\.)?\w*Error: CUDA error: .*)$", "{0}", "nvidia-smi and the log; another GPU", True),
    (
        r"((?:OSError|BlockingIOError|ConnectionError|TimeoutError|InterruptedError|EOFError)\b.*)$",
        "{0}",
        "whether the disks of dataset, bundles and cache can be reached",
        True,
    ),
)
"""Pattern of a log's last lines, reason, what to try, whether a new start may go well. The first found counts."""
WRAPPERS = r"RuntimeError: (?:Failed to (?:evaluate|instantiate)|applying transform)"
"""Errors that MONAI puts around the one that tells."""
STOPS = (1, 2, 15)
"""Signals that ask a training to save and end: SIGHUP, SIGINT, SIGTERM."""
SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV"}


def explain(status: int, tail: str, *, out_of_memory: bool = False) -> Failure:
    """Why a job died.

    Args:
        status: exit status; 128 + n, or -n, after signal n.
        tail: what it printed last.
        out_of_memory: the system has counted a process that it killed for memory.
    """
    number = -status if status < 0 else status - 128 if 128 < status <= 192 else 0
    if number == 9:
        sure = "for lack of memory" if out_of_memory else "most likely for lack of memory"
        return Failure(f"killed by the system, {sure} (SIGKILL)", NO_MEMORY, retry=True)
    if number in STOPS:
        return Failure("stopped by a signal; everything is saved", "the same command goes on", retry=True)
    lines = [line for line in tail.splitlines() if line.strip() and not line.startswith((START, END))]
    end = "\n".join(lines[-60:])
    for pattern, reason, remedy, retry in CAUSES:
        if found := re.search(pattern, end, re.MULTILINE):
            return Failure(reason.format(*(g.strip() for g in found.groups())), remedy, retry)
    if number:
        return Failure(f"crashed with {SIGNALS.get(number, f'signal {number}')}", "the log", retry=True)
    errors = [line.strip() for line in lines if re.match(r"[\w.]*(?:Error|Exception|Interrupt|Exit)\b", line)]
    errors = [line for line in errors if not re.match(WRAPPERS, line)] or errors
    if status == 0:
        return Failure("ended well, but its result files are not there or do not fit", "the log", retry=False)
    said = errors[-1] if errors else lines[-1].strip() if lines else f"exit status {status}, nothing printed"
    return Failure(said[:300], "the settings, and the traceback in the log", retry=False)


def _folds(bundle: Path) -> list[list[str]]:
    path = bundle / "configs" / "folds.json"
    try:
        found: list[list[str]] = read_json(path)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}). Plan again with --force.") from None
    return found


def _curve(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def _number(text: str | None) -> float | None:
    return float(text) if text else None
