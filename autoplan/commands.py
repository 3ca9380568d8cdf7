"""The commands, each a function whose signature and docstring are its command line and its help (see `flags`).

They read, call, write and print; they decide nothing.
"""

import math
import os
import re
from itertools import groupby
from json import dumps
from pathlib import Path
from typing import get_args

from autoplan import backends, saved, topology
from autoplan import choice as choices
from autoplan import dataset as datasets
from autoplan import evaluation as evaluations
from autoplan import fingerprint as fingerprints
from autoplan import plan as plans
from autoplan import prediction as predictions
from autoplan.choice import Choice
from autoplan.errors import AutoplanError
from autoplan.facts import Configuration, ConfigurationName, Dataset, Fingerprint, Plan, to_dict
from autoplan.files import check_writable
from autoplan.flags import Command
from autoplan.jobs import (
    Job,
    as_last_started,
    check_all_done,
    check_settings,
    find_bundles,
    jobs_of,
    row,
)
from autoplan.jobs import table as jobs_table
from autoplan.rules import Cascade
from autoplan.settings import flags_of_training
from autoplan.settings import paths as setting_paths
from autoplan.tables import table


def plan(
    dataset: str,
    *,
    root: str = "data",
    bundles: str = "bundles",
    explain: bool = False,
    force: bool = False,
    cascade: Cascade = "auto",
    num_processes: int | None = None,
) -> None:
    """Plans a dataset and writes a bundle for each configuration.

    Args:
        dataset: folder with a dataset.json, or the name of a task under root; a task of the Decathlon is downloaded.
        root: folder of the datasets.
        bundles: folder that the bundles are written to, as bundles/TASK/CONFIGURATION.
        explain: also print the reason for each decision.
        force: rewrite bundles that hold another plan; their trained models stay.
        cascade: auto, never or always.
        num_processes: processes that read the images; one per processor if not given.
    """
    _check("explain", explain, holds=isinstance(explain, bool), takes="no value")
    _check("force", force, holds=isinstance(force, bool), takes="no value")
    _check("cascade", cascade, holds=cascade in get_args(Cascade), takes="auto, never or always")
    _check_processes(num_processes)
    check_writable(Path(bundles), "--bundles")
    loaded = datasets.load(datasets.locate(dataset, Path(root)))
    task = Path(bundles) / loaded.name
    facts = _fingerprint(loaded, task / saved.FINGERPRINT, num_processes)
    planned = plans.plan(facts, cascade=cascade)
    saved.save_fingerprint(facts, task / saved.FINGERPRINT)
    written = _render(planned, loaded.root, Path(bundles), force=force)
    saved.save_plan(planned, task, fingerprint_key=facts.key)
    print(f"\n{summary(planned)}\n")
    cascade_decision = next(d for d in planned.decisions if d.name == "cascade")
    print(f"Cascade: {cascade_decision.value}. {cascade_decision.because}")
    for warning in plans.warnings(planned):
        print(f"Warning: {warning.because}")
    if explain:
        print(f"{explanation(planned)}\n")
    for path in written:
        print(path)


def phantom(folder: str, *, num_cases: int = 10, num_test: int = 3, seed: int = 0) -> None:
    """Writes a small synthetic dataset: two channels, three classes, no download.

    Args:
        folder: where to write; it must be empty or not exist.
        num_cases: training cases.
        num_test: images without labels.
        seed: of the random numbers; another seed makes another dataset.
    """
    for name, value in (("num_cases", num_cases), ("num_test", num_test), ("seed", seed)):
        _check(name, value, holds=_is_count(value), takes="a whole number, 0 or more")
    from autoplan.phantom import generate

    generate(Path(folder), num_cases=num_cases, num_test=num_test, seed=seed)
    print(folder)


def evaluate(
    *,
    labels: str = "",
    predictions: str = "",
    output: str | None = None,
    tolerance: float = 1.0,
    num_processes: int | None = None,
) -> None:
    """Scores predictions: Dice, surface Dice and Hausdorff distance (95th percentile).

    Args:
        labels: folder of the labels. A dataset.json in it or above it names the classes.
        predictions: folder of the predictions, files named as the labels are.
        output: folder for scores.csv and scores.json; nothing is written if not given.
        tolerance: of the surface Dice in mm; for a case with coarser voxels, their shortest edge.
        num_processes: processes that score; one per processor if not given.
    """
    _check("labels", labels, holds=bool(labels), takes="the folder of the labels")
    _check("predictions", predictions, holds=bool(predictions), takes="the folder of the predictions")
    _check("tolerance", tolerance, holds=_is_length(tolerance), takes="a length in mm, more than 0")
    _check_processes(num_processes)
    if output is not None:
        check_writable(Path(output), "--output")
    scores = evaluations.evaluate(
        Path(labels), Path(predictions), tolerance=float(tolerance), num_processes=num_processes
    )
    written = () if output is None else evaluations.save(scores, Path(output))
    print(evaluations.report(scores))
    for path in written:
        print(path)


def select(
    dataset: str,
    *,
    root: str = "data",
    bundles: str = "bundles",
    name: str | None = None,
    num_processes: int | None = None,
) -> None:
    """Chooses the best model or ensemble by cross-validation and writes it as a bundle.

    It compares the folds that are finished, and names those that are missing.

    Args:
        dataset: folder with a dataset.json, or the name of a task under root.
        root: folder of the datasets.
        bundles: folder of the bundles.
        name: of the bundle to write, a folder under bundles/TASK; best if not given.
        num_processes: processes that score; one per processor if not given.
    """
    _check_processes(num_processes)
    loaded = datasets.load(datasets.locate(dataset, Path(root)))
    folder = Path(bundles) / loaded.name
    _check_name(folder, name)
    key = fingerprints.key(loaded)
    planned = saved.load_plan(folder, fingerprint_key=key)
    chosen = _crossvalidated(planned, loaded, Path(bundles), key, num_processes)
    print(f"\n{choices.report(chosen)}\n")
    print(folder / "choice.json")
    print(_share(planned, chosen, loaded.root, Path(bundles), name, key))


def predict(
    dataset: str,
    *,
    root: str = "data",
    bundles: str = "bundles",
    name: str = "best",
    images: str | None = None,
    output: str | None = None,
    force: bool = False,
    device: str | None = None,
) -> None:
    """Predicts test images, or the images of any folder, with the chosen model.

    After an interruption the same command continues. An image that cannot be predicted is named at the end and does not
    stop the others.

    Args:
        dataset: name of the task, or the dataset's folder.
        root: folder of the datasets.
        bundles: folder of the bundles.
        name: the bundle, a folder under bundles/TASK.
        images: folder with NIfTI images, instead of the dataset's test images.
        output: folder for the segmentations; predictions/TASK, or predictions/FOLDER for the images of a folder.
        force: overwrite segmentations of other images, or of unknown origin, in the folder.
        device: cpu or cuda:0; the GPU, where there is one, if not given.
    """
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
    print(f"{results}: {len(paths)} segmentations, {done} of them new")


def train(
    dataset: str,
    *,
    bundles: str = "bundles",
    configurations: str = "",
    folds: str = "",
    quick: bool = False,
    jobs: int | None = None,
    scheduler: str = "",
    slurm: str = "",
    mirror: str = "",
    **settings: str,
) -> None:
    """Trains all folds of all configurations and scores their validation cases.

    Skips what is done; after an interruption the same command continues.

    Args:
        dataset: name of a planned task, or its folder.
        bundles: folder of the bundles.
        configurations: only these, such as 2d,3d_fullres.
        folds: only these, such as 0,1.
        quick: train by the short recipe.
        jobs: trainings at a time on this machine; one per GPU, or one on the CPU, if not given.
        scheduler: address of a Dask scheduler; its workers then train.
        slurm: YAML file with the Slurm job of a worker; workers then train.
        mirror: True or False: average the predictions of the validation cases over mirrored images.
    """
    _check_training(folds, quick=quick, jobs=jobs, device=settings.get("device", ""), mirror=mirror)
    given = settings | ({"mirror": mirror} if mirror else {})
    asked = _jobs(dataset, bundles, configurations, folds, quick, given)
    backend = _backend(jobs, scheduler, slurm, settings)
    outcomes = backends.run_all(asked, backend, backends.Display())
    others = [job for job in outcomes if job.fold is not None and job not in asked]
    rows = [row(job) for job in [*others, *asked]]
    print(f"\n{jobs_table(rows)}")
    check_all_done(rows, failed=[job for job, outcome in outcomes.items() if outcome.state == "failed"])


def status(
    dataset: str,
    *,
    bundles: str = "bundles",
    configurations: str = "",
    folds: str = "",
    quick: bool = False,
    json: bool = False,
    **settings: str,
) -> None:
    """Shows the state of all trainings.

    It assumes the recipe that each was last started with, or the one that the flags give.

    Args:
        dataset: name of a planned task, or its folder.
        bundles: folder of the bundles.
        configurations: only these, such as 2d,3d_fullres.
        folds: only these, such as 0,1.
        quick: assume the short recipe, which has fewer epochs.
        json: print a JSON list of objects.
    """
    _check("json", json, holds=isinstance(json, bool), takes="no value")
    _check_training(folds, quick=quick)
    asked = _jobs(dataset, bundles, configurations, folds, quick, settings)
    rows = [row(job if quick or settings else as_last_started(job)) for job in asked]
    print(dumps(to_dict(tuple(rows)), indent=1) if json else jobs_table(rows))


def run(
    dataset: str,
    *,
    root: str = "data",
    bundles: str = "bundles",
    cascade: Cascade = "auto",
    force: bool = False,
    configurations: str = "",
    folds: str = "",
    quick: bool = False,
    jobs: int | None = None,
    scheduler: str = "",
    slurm: str = "",
    mirror: str = "",
    **settings: str,
) -> None:
    """Plans, trains, selects and predicts, one after the other.

    Skips what is done; after an interruption the same command continues.

    Args:
        dataset: folder with a dataset.json, or the name of a task, as for plan.
        root: folder of the datasets.
        bundles: folder of the bundles.
        cascade: auto, never or always.
        force: rewrite bundles that hold another plan; their trained models stay.
        configurations: train only these, such as 2d,3d_fullres.
        folds: train only these, such as 0,1.
        quick: train by the short recipe.
        jobs: trainings at a time on this machine; one per GPU, or one on the CPU, if not given.
        scheduler: address of a Dask scheduler; its workers then train.
        slurm: YAML file with the Slurm job of a worker; workers then train.
        mirror: True or False: average the predictions of the validation cases over mirrored images.
    """
    _check("force", force, holds=isinstance(force, bool), takes="no value")
    _check_training(folds, quick=quick, jobs=jobs, device=settings.get("device", ""), mirror=mirror)
    check_settings(settings, _keys())
    plan(dataset, root=root, bundles=bundles, cascade=cascade, force=force)
    train(
        dataset, bundles=bundles, configurations=configurations, folds=folds, quick=quick, jobs=jobs,
        scheduler=scheduler, slurm=slurm, mirror=mirror, **settings,
    )  # fmt: skip
    select(dataset, root=root, bundles=bundles)
    if datasets.load(datasets.locate(dataset, Path(root))).test:
        predict(dataset, root=root, bundles=bundles, device=settings.get("device"))


COMMANDS: dict[str, Command] = {
    "plan": plan,
    "run": run,
    "train": train,
    "status": status,
    "select": select,
    "predict": predict,
    "evaluate": evaluate,
    "phantom": phantom,
}


def _check(flag: str, value: object, *, holds: bool, takes: str) -> None:
    """Refuses a flag's value, before anything is done."""
    if not holds:
        raise AutoplanError(f"--{flag} takes {takes}, not {datasets.shortened(repr(value))}.")


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
    folder = Path(bundles) / _task(dataset)
    there = [bundle.name for bundle in find_bundles(folder)]
    planned = [c.name for c in saved.load_plan(folder).configurations if c.name in there]
    names = [name.strip() for name in configurations.split(",")] if configurations else planned
    given = {n: str(Path(v).absolute()) if n in setting_paths() else v for n, v in settings.items()}
    found = find_bundles(folder, names)
    return jobs_of(found, sorted(set(map(int, _numbers(folds)))), quick=quick, settings=given)


def _task(dataset: str) -> str:
    """Name of the task that a name or a folder, such as `.`, means."""
    return Path(os.path.abspath(dataset)).name


def _numbers(folds: str) -> list[str]:
    """The numbers that --folds names."""
    return [text.strip() for text in folds.split(",")] if folds else []


def _check_training(
    folds: str = "", *, quick: bool = False, jobs: int | None = None, device: str = "", mirror: str = ""
) -> None:
    """Refuses flags of trainings whose values cannot be right, before anything is done."""
    _check("quick", quick, holds=isinstance(quick, bool), takes="no value")
    _check("folds", folds, holds=all(re.fullmatch(r"\d{1,9}", n) for n in _numbers(folds)), takes="numbers such as 0,1")
    _check("jobs", jobs, holds=jobs is None or _is_count(jobs, least=1), takes="a number of trainings at a time")
    _check("mirror", mirror, holds=mirror in ("", "True", "False"), takes="True or False")
    if found := re.search(r"cuda:0*([1-9]\d*)", device):
        raise AutoplanError(
            f"--device {device}: each training sees one GPU only, as cuda:0. To choose GPUs, put "
            f"CUDA_VISIBLE_DEVICES={found[1]} before the command, and leave out --device."
        )


def known_settings() -> tuple[list[str], list[str]]:
    """Names of the settings of a training, and of the keys beside them that cannot be set."""
    keys = _keys()
    known = flags_of_training(keys)
    return known, [key for key in keys if key not in known]


def _keys() -> list[str]:
    """Keys of train.json, of any configuration."""
    from autoplan.render import template

    return list(dict.fromkeys(key for name in get_args(ConfigurationName) for key in template("train.json", name)))


def _backend(jobs: int | None, scheduler: str, slurm: str, settings: dict[str, str]) -> backends.Backend:
    """What runs the jobs that flags ask for."""
    if scheduler or slurm:
        from autoplan import cluster

        return cluster.connect(scheduler) if scheduler else cluster.start(Path(slurm))
    return backends.Machine(jobs, devices=[] if settings.get("device") == "cpu" else None)


def _fingerprint(dataset: Dataset, path: Path, num_processes: int | None) -> Fingerprint:
    """The saved fingerprint while the dataset is unchanged, else a new one."""
    known = fingerprints.reusable(path, dataset)
    if known is not None:
        print(f"{dataset.name}: fingerprint of {len(known.cases)} cases reused from {path}")
        return known
    computed = fingerprints.fingerprint(dataset, num_processes=num_processes)
    print(f"{dataset.name}: fingerprint of {len(computed.cases)} cases computed")
    return computed


def _render(planned: Plan, dataset_root: Path, bundles: Path, *, force: bool) -> list[Path]:
    """Writes the bundles."""
    from autoplan.render import render_all

    written: list[Path] = render_all(planned, dataset_root, bundles, force=force)
    return written


def _check_name(folder: Path, name: str | None) -> None:
    """Refuses the name of a bundle that cannot become a folder beside the others."""
    from autoplan import sharing

    sharing.check_name(name)
    if name in (saved.FINGERPRINT, saved.PLAN, "choice.json") or (folder / (name or "best")).is_file():
        raise AutoplanError(f"--name {name}: a file has that name. Take another, such as hippocampus_segmentation.")


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


def summary(planned: Plan) -> str:
    """The configurations as a table, as Table 1 has them but with axes in x, y, z order."""
    header = ("configuration", "median shape", "spacing (mm)", "patch", "batch", "poolings", "features", "parameters")
    return table([header, *(_row(c, planned) for c in planned.configurations)])


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
