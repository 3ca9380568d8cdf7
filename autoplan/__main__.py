"""The command line: `python -m autoplan DATASET`. Reads, calls, writes, prints; decides nothing."""

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from json import dumps
from pathlib import Path
from typing import Any, get_args

import fire
from fire.decorators import SetParseFn, SetParseFns
from fire.parser import DefaultParseValue

from autoplan import backends, topology
from autoplan import choice as choices
from autoplan import dataset as datasets
from autoplan import evaluation as evaluations
from autoplan import fingerprint as fingerprints
from autoplan import plan as plans
from autoplan import prediction as predictions
from autoplan.choice import Choice
from autoplan.errors import AutoplanError
from autoplan.facts import Configuration, ConfigurationName, Dataset, Fingerprint, Plan, to_dict
from autoplan.files import read_object
from autoplan.jobs import PATHS, Job, as_last_started, check_all_done, check_settings, find_bundles, jobs_of, row
from autoplan.jobs import table as jobs_table
from autoplan.rules import Cascade


def plan(
    dataset: str,
    *extra: str,
    root: str = "data",
    bundles: str = "bundles",
    explain: bool = False,
    force: bool = False,
    cascade: Cascade = "auto",
    num_processes: int | None = None,
    **unknown: Any,
) -> None:
    """Plans a dataset and writes a bundle for each configuration.

    Args:
        dataset: folder with a dataset.json, or the name of a task: looked up under root, downloaded if it is not there.
        root: folder of the datasets.
        bundles: folder that the bundles are written to, as bundles/TASK/CONFIGURATION.
        explain: also print one sentence a decision.
        force: write over bundles that hold another plan; their trained models stay.
        cascade: auto, never or always.
        num_processes: processes that read the images; as many as there are processors if not given.
    """
    _refuse("plan", extra, unknown)
    _check("explain", explain, holds=isinstance(explain, bool), takes="no value")
    _check("force", force, holds=isinstance(force, bool), takes="no value")
    _check("cascade", cascade, holds=cascade in get_args(Cascade), takes="auto, never or always")
    _check_processes(num_processes)
    loaded = datasets.load(datasets.locate(dataset, Path(root)))
    saved = Path(bundles) / loaded.name / "fingerprint.json"
    facts, is_new = _fingerprint(loaded, saved, num_processes)
    planned = plans.plan(facts, cascade=cascade)
    if is_new:
        fingerprints.save(facts, saved)
    written = _render(planned, loaded.root, Path(bundles), force=force)
    print(f"\n{table(planned)}\n")
    cascade_decision = next(d for d in planned.decisions if d.name == "cascade")
    print(f"Cascade: {cascade_decision.value}. {cascade_decision.because}")
    for warning in plans.warnings(planned):
        print(f"Warning: {warning.because}")
    if explain:
        print(f"{explanation(planned)}\n")
    for path in written:
        print(path)


def phantom(folder: str, *extra: str, num_cases: int = 10, num_test: int = 3, seed: int = 0, **unknown: Any) -> None:
    """Writes a small made-up dataset: two channels, three classes, no internet needed.

    Args:
        folder: where to; it must not exist or be empty.
        num_cases: training cases.
        num_test: images without labels.
        seed: another number makes another dataset.
    """
    _refuse("phantom", extra, unknown)
    for name, value in (("num_cases", num_cases), ("num_test", num_test), ("seed", seed)):
        _check(name, value, holds=_is_count(value), takes="a whole number, 0 or more")
    from autoplan.phantom import generate

    generate(Path(folder), num_cases=num_cases, num_test=num_test, seed=seed)
    print(folder)


def evaluate(
    *extra: str,
    labels: str = "",
    predictions: str = "",
    output: str | None = None,
    tolerance: float = 1.0,
    num_processes: int | None = None,
    **unknown: Any,
) -> None:
    """Scores predictions: Dice, surface Dice and 95th percentile of the Hausdorff distance, by case and class.

    Args:
        labels: folder of the labels. A dataset.json in it or above it names the classes.
        predictions: folder of the predictions, files named as the labels are.
        output: folder for scores.csv and scores.json; nothing is written if not given.
        tolerance: of the surface Dice, mm; the finest voxel edge of a case where that is longer.
        num_processes: processes that score; as many as there are processors if not given.
    """
    _refuse("evaluate", extra, unknown)
    _check("labels", labels, holds=bool(labels), takes="the folder of the labels")
    _check("predictions", predictions, holds=bool(predictions), takes="the folder of the predictions")
    _check("tolerance", tolerance, holds=_is_length(tolerance), takes="a length in mm, more than 0")
    _check_processes(num_processes)
    scores = evaluations.evaluate(
        Path(labels), Path(predictions), tolerance=float(tolerance), num_processes=num_processes
    )
    written = () if output is None else evaluations.save(scores, Path(output))
    print(evaluations.report(scores))
    for path in written:
        print(path)


def select(
    dataset: str,
    *extra: str,
    root: str = "data",
    bundles: str = "bundles",
    name: str | None = None,
    num_processes: int | None = None,
    **unknown: Any,
) -> None:
    """Chooses the best model or ensemble by cross-validation, from the folds that are finished.

    Args:
        dataset: folder with a dataset.json, or the name of a task under root.
        root: folder of the datasets.
        bundles: folder of the bundles.
        name: of the chosen bundle's folder, under bundles/TASK; best if not given.
        num_processes: processes that score; as many as there are processors if not given.
    """
    _refuse("select", extra, unknown)
    _check_processes(num_processes)
    loaded = datasets.load(datasets.locate(dataset, Path(root)))
    folder = Path(bundles) / loaded.name
    facts, is_new = _fingerprint(loaded, folder / "fingerprint.json", num_processes)
    planned = _plan_of(facts, folder)
    chosen = _crossvalidated(planned, loaded, Path(bundles), facts.key, num_processes)
    if is_new:
        fingerprints.save(facts, folder / "fingerprint.json")
    print(f"\n{choices.report(chosen)}\n")
    print(folder / "choice.json")
    print(_share(planned, chosen, loaded.root, Path(bundles), name, facts.key))


def predict(
    dataset: str,
    *extra: str,
    root: str = "data",
    bundles: str = "bundles",
    name: str = "best",
    images: str | None = None,
    output: str | None = None,
    force: bool = False,
    device: str | None = None,
    **unknown: Any,
) -> None:
    """Predicts the test images of a dataset, or those of any folder, with the bundle that select has written.

    Goes on where it stopped. An image that cannot be predicted is named at the end and does not stop the others.

    Args:
        dataset: name of the task, or the dataset's folder.
        root: folder of the datasets.
        bundles: folder of the bundles.
        name: of the bundle, under bundles/TASK.
        images: folder with NIfTI images, instead of the dataset's test images.
        output: folder for the segmentations; predictions/TASK, or predictions/FOLDER for the images of a folder.
        force: overwrite segmentations of unknown origin in the folder.
        device: cpu or cuda:0, if not what there is.
    """
    _refuse("predict", extra, unknown)
    _check("force", force, holds=isinstance(force, bool), takes="no value")
    if images is None:
        loaded = datasets.load(datasets.locate(dataset, Path(root)))
        folder, paths = loaded.root, [loaded.root / case.image for case in loaded.test]
    else:
        folder, paths = Path(images), predictions.images_in(Path(images))
    results = Path(output or Path("predictions") / folder.resolve().name)
    bundle = Path(bundles) / _task(dataset) / name
    settings = {} if device is None else {"device": device}
    done = predictions.predict(bundle, folder, paths, results, force=force, settings=settings)
    print(f"{results}: {len(paths)} segmentations, {done} of them predicted now")


def train(
    dataset: str,
    *extra: str,
    bundles: str = "bundles",
    configurations: str = "",
    folds: str = "",
    quick: bool = False,
    jobs: int | None = None,
    scheduler: str = "",
    slurm: str = "",
    **settings: str,
) -> None:
    """Trains all folds of all configurations, and predicts and scores their validation cases; does what is missing.

    Settings of the bundles are flags, too: --max_epochs 20 --batch_size 2.

    Args:
        dataset: name of a task that is planned, or its folder.
        bundles: folder of the bundles.
        configurations: some only, such as 2d,3d_fullres.
        folds: some only, such as 0,1.
        quick: the short recipe.
        jobs: trainings at a time on this machine; one a GPU, or one on the CPU, if not given.
        scheduler: address of a Dask scheduler, whose workers then train.
        slurm: YAML file that says how to ask Slurm for workers, which then train.
    """
    _refuse("train", extra, ())
    _check_training(folds, quick=quick, jobs=jobs, device=settings.get("device", ""))
    asked = _jobs(dataset, bundles, configurations, folds, quick, settings)
    backend = _backend(jobs, scheduler, slurm, settings)
    outcomes = backends.run_all(asked, backend, backends.Display())
    others = [job for job in outcomes if job.fold is not None and job not in asked]
    rows = [row(job) for job in [*others, *asked]]
    print(f"\n{jobs_table(rows)}")
    check_all_done(rows, failed=[job for job, outcome in outcomes.items() if outcome.state == "failed"])


def status(
    dataset: str,
    *extra: str,
    bundles: str = "bundles",
    configurations: str = "",
    folds: str = "",
    quick: bool = False,
    json: bool = False,
    **settings: str,
) -> None:
    """Says how all trainings stand, supposing the recipe that they were last started with, or else that of the flags.

    Args:
        dataset: name of a task that is planned, or its folder.
        bundles: folder of the bundles.
        configurations: some only, such as 2d,3d_fullres.
        folds: some only, such as 0,1.
        quick: suppose the short recipe, which has fewer epochs.
        json: as a list of objects.
    """
    _refuse("status", extra, ())
    _check("json", json, holds=isinstance(json, bool), takes="no value")
    _check_training(folds, quick=quick)
    asked = _jobs(dataset, bundles, configurations, folds, quick, settings)
    rows = [row(job if quick or settings else as_last_started(job)) for job in asked]
    print(dumps(to_dict(tuple(rows)), indent=1) if json else jobs_table(rows))


def run(
    dataset: str,
    *extra: str,
    root: str = "data",
    bundles: str = "bundles",
    cascade: Cascade = "auto",
    **flags: Any,
) -> None:
    """Plans a dataset, trains all folds, chooses the best model and predicts the test images; does what is missing.

    Args:
        dataset: as for plan.
        root: as for plan.
        bundles: folder of the bundles.
        cascade: as for plan.
        flags: those of train.
    """
    _refuse("run", extra, ())
    _check_training(**{name: flags[name] for name in ("folds", "quick", "jobs", "device") if name in flags})
    check_settings([name for name in flags if name not in FLAGS["train"]], _template())
    plan(dataset, root=root, bundles=bundles, cascade=cascade)
    train(dataset, bundles=bundles, **flags)
    select(dataset, root=root, bundles=bundles)
    if datasets.load(datasets.locate(dataset, Path(root))).test:
        predict(dataset, root=root, bundles=bundles, device=flags.get("device"))


def _settings_stay_text(command: Callable[..., None], **parsers: Callable[[str], Any]) -> Callable[..., None]:
    """A command whose flags that are not named are settings, handed on as they were typed."""
    decorated: Callable[..., None] = SetParseFn(str)(SetParseFns(**parsers)(command))
    return decorated


# Text stays text: fire would read `--bundles 2024_01` as the number 202401.
COMMANDS = {
    "plan": SetParseFns(dataset=str, root=str, bundles=str, cascade=str)(plan),
    "phantom": SetParseFns(folder=str)(phantom),
    "train": _settings_stay_text(train, quick=DefaultParseValue, jobs=DefaultParseValue),
    "status": _settings_stay_text(status, quick=DefaultParseValue, json=DefaultParseValue),
    "run": _settings_stay_text(run, quick=DefaultParseValue, jobs=DefaultParseValue),
    "select": SetParseFns(dataset=str, root=str, bundles=str, name=str)(select),
    "predict": SetParseFns(dataset=str, root=str, bundles=str, name=str, images=str, output=str, device=str)(predict),
    "evaluate": SetParseFns(labels=str, predictions=str, output=str)(evaluate),
}
FLAGS = {
    "plan": ("root", "bundles", "explain", "force", "cascade", "num_processes"),
    "phantom": ("num_cases", "num_test", "seed"),
    "train": ("bundles", "configurations", "folds", "quick", "jobs", "scheduler", "slurm"),
    "status": ("bundles", "configurations", "folds", "quick", "json"),
    "run": ("root", "bundles", "cascade", "configurations", "folds", "quick", "jobs", "scheduler", "slurm"),
    "select": ("root", "bundles", "name", "num_processes"),
    "predict": ("root", "bundles", "name", "images", "output", "force", "device"),
    "evaluate": ("labels", "predictions", "output", "tolerance", "num_processes"),
}
SWITCHES = ("--explain", "--force", "--quick", "--json")


def _refuse(command: str, extra: Sequence[str], unknown: Iterable[str]) -> None:
    """Refuses arguments that a command does not have, before it does anything."""
    known = ", ".join(f"--{flag}" for flag in FLAGS[command])
    takes = "none" if command == "evaluate" else "one"
    for argument in extra:
        raise AutoplanError(f"{command}: one argument too many, {argument!r}. It takes {takes}, and {known}.")
    for flag in unknown:
        raise AutoplanError(f"{command}: there is no flag --{flag}. The flags are {known}.")


def _check(flag: str, value: object, *, holds: bool, takes: str) -> None:
    """Refuses a flag's value, before anything is done."""
    if not holds:
        raise AutoplanError(f"--{flag} takes {takes}, not {value!r}.")


def _check_processes(number: object) -> None:
    """Refuses a number of processes that is none."""
    counted = number is None or _is_count(number, least=1)
    _check("num_processes", number, holds=counted, takes="a number of processes")


def _is_count(value: object, *, least: int = 0) -> bool:
    """Whether a value is a whole number that is not too small."""
    return type(value) is int and value >= least


def _is_length(value: object) -> bool:
    """Whether a value is a finite number above 0."""
    return type(value) in (int, float) and 0 < float(str(value)) < math.inf


def _jobs(
    dataset: str, bundles: str, configurations: str, folds: str, quick: bool, settings: dict[str, str]
) -> list[Job]:
    """The jobs that flags ask for."""
    names = [name.strip() for name in configurations.split(",")] if configurations else []
    given = {n: str(Path(v).absolute()) if n in PATHS else v for n, v in settings.items()}
    found = find_bundles(Path(bundles) / _task(dataset), names)
    return jobs_of(found, sorted(set(map(int, _numbers(folds)))), quick=quick, settings=given)


def _task(dataset: str) -> str:
    """Name of the task that a name or a folder, such as `.`, means."""
    return Path(os.path.abspath(dataset)).name


def _numbers(folds: str) -> list[str]:
    """The numbers that --folds names."""
    return [text.strip() for text in folds.split(",")] if folds else []


def _check_training(folds: str = "", *, quick: bool = False, jobs: int | None = None, device: str = "") -> None:
    """Refuses flags of trainings whose values cannot be right, before anything is done."""
    _check("quick", quick, holds=isinstance(quick, bool), takes="no value")
    _check("folds", folds, holds=all(n.isdecimal() for n in _numbers(folds)), takes="numbers such as 0,1")
    _check("jobs", jobs, holds=jobs is None or _is_count(jobs, least=1), takes="a number of trainings at a time")
    if found := re.search(r"cuda:0*([1-9]\d*)", device):
        raise AutoplanError(
            f"--device {device}: each training sees one GPU only, as cuda:0. To choose GPUs, put "
            f"CUDA_VISIBLE_DEVICES={found[1]} before the command, and leave out --device."
        )


def _template() -> dict[str, Any]:
    """What train.json of a bundle may hold, of any configuration."""
    from autoplan.render import templates_folder

    configs, found = templates_folder() / "configs", dict[str, Any]()
    for path in (configs / "train.json", *configs.glob("3d_*/train.json"), *configs.glob("3d_*/networks.json")):
        found |= {name: value for name, value in read_object(path).items() if "#" not in name}
    return {name: value for name, value in found.items() if not name.startswith("+")}


def _backend(jobs: int | None, scheduler: str, slurm: str, settings: dict[str, str]) -> backends.Backend:
    """What runs the jobs that flags ask for."""
    if scheduler or slurm:
        from autoplan import cluster

        return cluster.connect(scheduler) if scheduler else cluster.start(Path(slurm))
    return backends.Machine(jobs, devices=[] if settings.get("device") == "cpu" else None)


def _fingerprint(dataset: Dataset, path: Path, num_processes: int | None) -> tuple[Fingerprint, bool]:
    """The saved fingerprint while the dataset is unchanged, else a new one, and whether it is new."""
    saved = fingerprints.reusable(path, dataset)
    if saved is not None:
        print(f"{dataset.name}: fingerprint of {len(saved.cases)} cases reused from {path}")
        return saved, False
    computed = fingerprints.fingerprint(dataset, num_processes=num_processes)
    print(f"{dataset.name}: fingerprint of {len(computed.cases)} cases computed, saved as {path}")
    return computed, True


def _render(planned: Plan, dataset_root: Path, bundles: Path, *, force: bool) -> list[Path]:
    """Writes the bundles."""
    from autoplan.render import render_all

    written: list[Path] = render_all(planned, dataset_root, bundles, force=force)
    return written


def _plan_of(facts: Fingerprint, folder: Path) -> Plan:
    """The plan that the bundles in a folder were written by: with or without a cascade."""
    there = {name for name in get_args(ConfigurationName) if (folder / name / "configs" / "train.json").is_file()}
    options: tuple[Cascade, ...] = ("auto", "always", "never")
    candidates = [plans.plan(facts, cascade=option) for option in options]
    return next((p for p in candidates if {c.name for c in p.configurations} == there), candidates[0])


def _crossvalidated(
    planned: Plan, dataset: Dataset, bundles: Path, fingerprint_key: str, num_processes: int | None
) -> Choice:
    """Scores the candidates and chooses."""
    from autoplan import crossvalidation

    return crossvalidation.select(
        planned,
        dataset,
        bundles,
        fingerprint_key=fingerprint_key,
        segmenter=crossvalidation.segmentations,
        num_processes=num_processes,
    )


def _share(planned: Plan, chosen: Choice, root: Path, bundles: Path, name: str | None, fingerprint_key: str) -> Path:
    """Writes the chosen model as one more bundle, the one to share."""
    from autoplan import sharing

    return sharing.share(planned, chosen, root, bundles, name=name, fingerprint_key=fingerprint_key)


def table(planned: Plan) -> str:
    """The configurations as an aligned table, as Table 1 has them but with axes in x, y, z order."""
    header = ("configuration", "median shape", "spacing (mm)", "patch", "batch", "poolings", "features", "parameters")
    rows = [header, *(_row(c, planned) for c in planned.configurations)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(c: Configuration, planned: Plan) -> tuple[str, ...]:
    """One line of the table."""
    inputs = plans.num_input_channels(c.name, modalities=planned.modalities, labels=planned.labels)
    parameters = topology.num_parameters(c, inputs, len(planned.labels))
    return (
        c.name,
        "x".join(map(str, c.median_shape)),
        " x ".join(f"{s:.4g}" for s in c.spacing),
        "x".join(map(str, c.patch_size)),
        str(c.batch_size),
        ", ".join(map(str, c.num_pool)),
        f"{c.features[0]}-{c.features[-1]}",
        f"{parameters:,}",
    )


def explanation(planned: Plan) -> str:
    """One sentence a decision, grouped by configuration."""
    decisions = [d for d in planned.decisions if d.name != plans.WARNING]
    lines: list[str] = []
    for name, group in groupby(decisions, key=lambda d: d.configuration):
        lines += ["", name or "all configurations"]
        lines += [f"  {d.name}: {d.value}. {d.because} [{d.source}]" for d in group]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a first argument that names none means `plan`. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] not in (*COMMANDS, "-h", "--help", "--"):
        given.insert(0, "plan")
    # At the end, for fire would take the word that follows a switch for its value.
    ordered = [a for a in given if a not in SWITCHES] + [a for a in given if a in SWITCHES]
    try:
        fire.Fire(COMMANDS, command=ordered, name="autoplan")
    except AutoplanError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
