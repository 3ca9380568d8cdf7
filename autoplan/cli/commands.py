"""The commands, each a function whose signature and docstring are its command line and its help (see `flags`).

They read, call, write and print; they decide nothing.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import groupby
from json import dumps
from pathlib import Path
from typing import Any, TypeVar, get_args

from autoplan.base.axes import Spacing, as_flag
from autoplan.base.codec import to_dict
from autoplan.base.errors import AutoplanError, PlanError, TrainingError, one_line, shortened
from autoplan.base.files import check_writable
from autoplan.base.numbers import MAX_DIGITS
from autoplan.base.tables import duration, table
from autoplan.budget import division
from autoplan.budget.division import Training
from autoplan.budget.ledger import Ledger, key_of
from autoplan.budget.request import Within, coarser_if_short, decided_spacing, task_is_trained
from autoplan.budget.trainings import Timed, jobs_by_training, listed
from autoplan.bundle import saved
from autoplan.bundle.settings import flags_of_training
from autoplan.bundle.settings import paths as setting_paths
from autoplan.cli.flags import Command
from autoplan.cost import pace
from autoplan.data import decathlon as datasets
from autoplan.data import fingerprint as fingerprints
from autoplan.data import layouts, readings, stored
from autoplan.data.facts import Case, Dataset, Fingerprint
from autoplan.evaluation import choice as choices
from autoplan.evaluation import evaluate as evaluations
from autoplan.evaluation import segmenter, tables
from autoplan.evaluation.choice import Choice
from autoplan.planning import gpu_memory as budget
from autoplan.planning import plan as plans
from autoplan.planning import reasons, topology
from autoplan.planning.rules import Cascade
from autoplan.planning.values import ALL, Configuration, ConfigurationName, Fold, Plan
from autoplan.prediction import predict as predictions
from autoplan.training import backends, standing
from autoplan.training.jobs import Job, check_settings, find_bundles, jobs_of
from autoplan.training.machine import gpus
from autoplan.training.recipe import as_last_started
from autoplan.training.results import Recipe
from autoplan.training.standing import check_all_done, check_fit, row, set_aside
from autoplan.training.standing import table as jobs_table

MAX_JOBS = 1000
"""Trainings at a time on one machine, at most. Our choice: far more than any has GPUs."""
T = TypeVar("T")


def plan(
    dataset: str,
    *,
    root: str = "data",
    bundles: str = "bundles",
    explain: bool = False,
    force: bool = False,
    cascade: Cascade = "auto",
    num_processes: int | None = None,
    scheduler: str = "",
    images: str = "",
    labels: str = "",
    labels_are: str = "",
    channels: str = "",
    table: str = "",
    group_by: str = "",
    gpu_memory: str = "",
    spacing: str = "",
) -> None:
    """Plans a dataset and writes a bundle for each configuration.

    Args:
        dataset: folder of a dataset, or the name of a task under root; a task of the Decathlon is downloaded.
        root: folder of the datasets.
        bundles: folder that the bundles are written to, as bundles/TASK/CONFIGURATION.
        explain: also print the reason for each decision.
        force: rewrite bundles that hold another plan; their trained models stay. Of files that were changed by hand a
            copy is kept in bundles/TASK/CONFIGURATION.before.
        cascade: auto, never or always.
        num_processes: processes that read the images; one per processor if not given.
        scheduler: address of a Dask scheduler; its workers then read the images.
        images: folder of the images inside the dataset's; several, such as t1,flair, are channels.
        labels: folder of the labels inside the dataset's.
        labels_are: names of the classes, such as background,nucleus, in the order of their values.
        channels: names of the channels, such as CT; a name with ct makes the rules for CT apply.
        table: CSV file with the columns case, label, one per channel and, optionally, fold.
        group_by: column of the table, or regular expression on the names: the cases of one, such as a patient,
            stay in one fold.
        gpu_memory: memory of the smallest GPU used for training, such as 8GB (10^9 bytes each) or 7.5GiB (2^30).
            Configurations that do not fit get a smaller batch, then a smaller patch. Remembered for this task; none
            removes it.
        spacing: target spacing in mm along x, y and z, such as 3,3,10, instead of the median of the cases. Remembered
            for this task.
    """
    _check("explain", explain, holds=isinstance(explain, bool), takes="no value")
    _check_planning(cascade, force=force)
    _check_processes(num_processes)
    check_writable(Path(bundles), "--bundles")
    given = layouts.Layout(images, labels, labels_are, channels, table, group_by)
    loaded, layout = _load(dataset, root, bundles, given)
    task = Path(bundles) / loaded.name
    limit, own_spacing = _gpu_memory(gpu_memory, task), _own_spacing(spacing, task)
    for line in layouts.notes(loaded, layout):
        print(line)
    facts = _fingerprint(loaded, task / stored.FINGERPRINT, num_processes, scheduler)
    planned = _planned_by(divided := _divided(loaded, task), facts, cascade, limit, own_spacing)
    stored.save_fingerprint(facts, task / stored.FINGERPRINT)
    written = _render(planned, loaded, Path(bundles), force=force)
    saved.save_plan(planned, task, fingerprint_key=facts.key)
    layouts.save(layout, task)
    print(f"\n{summary(planned)}\n")
    cascade_decision = next(d for d in planned.decisions if d.name == "cascade")
    print(f"Cascade: {cascade_decision.value}. {cascade_decision.because}")
    for decision in (d for d in planned.decisions if d.name == "gpu_memory"):
        print(f"GPU memory: {decision.because}")
    for line in standing.told(task, planned.folds, divided["before"]):
        print(line)
    suspicions = (layouts.suspicion(loaded), datasets.shared_labels(loaded), budget.suspicion(planned))
    for text in filter(None, (*(w.because for w in reasons.warnings(planned)), *suspicions)):
        print(f"Warning: {text}")
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
        _check(name, value, holds=_is_count(value), takes=f"a whole number, 0 or more, of at most {MAX_DIGITS} digits")
    from autoplan.data.phantom import generate

    generate(Path(folder), num_cases=num_cases, num_test=num_test, seed=seed)
    print(folder)


def evaluate(
    *,
    labels: str = "",
    predictions: str = "",
    output: str | None = None,
    tolerance: float = 1.0,
    overlap: float = 0.5,
    num_processes: int | None = None,
    force: bool = False,
) -> None:
    """Scores predictions: Dice, surface Dice, Hausdorff distance (95 %), lesions.

    Args:
        labels: folder of the labels. A dataset.json in it or above it names the classes.
        predictions: folder of the predictions, files named as the labels are.
        output: folder for scores.csv and scores.json; nothing is written if not given.
        tolerance: of the surface Dice in mm; for a case with coarser voxels, their shortest edge.
        overlap: intersection over union from which on two connected components are the same lesion.
        num_processes: processes that score; one per processor if not given.
        force: write over scores that were changed by hand; a copy is kept in OUTPUT/scores.before.
    """
    _check("force", force, holds=isinstance(force, bool), takes="no value")
    _check("labels", labels, holds=bool(labels), takes="the folder of the labels")
    _check("predictions", predictions, holds=bool(predictions), takes="the folder of the predictions")
    _check("tolerance", tolerance, holds=_is_length(tolerance), takes="a length in mm, more than 0")
    _check("overlap", overlap, holds=_is_length(overlap) and overlap <= 1, takes="a number above 0, at most 1")
    _check_processes(num_processes)
    if output is not None:
        check_writable(Path(output), "--output")
        tables.check_saved(Path(output), force=force)
    scores = evaluations.evaluate(
        Path(labels), Path(predictions), tolerance=float(tolerance), overlap=float(overlap), num_processes=num_processes
    )
    written = () if output is None else tables.save(scores, Path(output), force=force)
    print(tables.report(scores))
    for path in written:
        print(path)


def select(
    dataset: str,
    *,
    root: str = "data",
    bundles: str = "bundles",
    name: str | None = None,
    folds: str = "",
    configurations: str = "",
    num_processes: int | None = None,
    force: bool = False,
) -> None:
    """Chooses the best model or ensemble by cross-validation and writes it as a bundle.

    It compares the folds that are finished, and names those that are missing.

    Args:
        dataset: folder with a dataset.json, or the name of a task under root.
        root: folder of the datasets.
        bundles: folder of the bundles.
        name: of the bundle to write, a folder under bundles/TASK; best if not given.
        folds: all: the bundle gets the networks of the chosen model that were trained on all cases, not those of the
            cross-validation. Where no fold is finished, it has no score.
        configurations: with folds all: the model is made of these alone, such as 3d_fullres.
        num_processes: processes that score; one per processor if not given.
        force: write over files of the bundle that were changed by hand; a copy is kept in bundles/TASK/NAME.before.
    """
    _check_processes(num_processes)
    _check("force", force, holds=isinstance(force, bool), takes="no value")
    _check("folds", folds, holds=folds in ("", ALL), takes="all; cross-validation compares whatever is finished")
    if configurations and not folds:
        raise AutoplanError("--configurations goes with --folds all: cross-validation compares all of them.")
    loaded, _ = _load(dataset, root, bundles)
    folder = Path(bundles) / loaded.name
    _check_name(folder, name, force=force)
    key = fingerprints.key(loaded, folder)
    planned = saved.load_plan(folder, fingerprint_key=key)
    names = [bundle.name for bundle in find_bundles(folder, _names(configurations))] if configurations else []
    chosen = None
    if not folds or _has_folds(planned, folder):
        chosen = _crossvalidated(planned, loaded, Path(bundles), key, num_processes)
        print(f"\n{choices.report(chosen)}\n")
        print(folder / "choice.json")
    options = {"name": name, "fingerprint_key": key, "force": force}
    for line in _share(planned, chosen, loaded.root, Path(bundles), names if folds else None, options):
        print(line)


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
    max_memory: str = "",
    preview: bool = False,
    dicom_seg: bool = False,
    strict: bool = False,
    overlap: float | None = None,
    no_mirror: bool = False,
    region_first: bool = False,
) -> None:
    """Predicts test images, or the images of any folder, with the chosen model.

    After an interruption the same command continues. Images that fail, or look unlike the training images, are
    listed at the end; the others are still predicted. OUTPUT/predictions.json has times, memory and volumes.

    Args:
        dataset: name of the task, or the dataset's folder.
        root: folder of the datasets.
        bundles: folder of the bundles.
        name: the bundle, a folder under bundles/TASK.
        images: folder with images, instead of the dataset's test images; or with folders of patients, studies and DICOM
            series.
        output: folder for the segmentations; predictions/TASK, or predictions/FOLDER for the images of a folder.
        force: overwrite segmentations of other images, of unknown origin, or that were changed by hand, in the folder.
            Without it, those that were changed by hand stay, and are named.
        device: cpu or cuda:0; the GPU, where there is one, if not given.
        max_memory: what the prediction of an image on a CPU may take, such as 4GB (10^9 bytes each) or 3.5GiB (2^30);
            three quarters of what there is, if not given.
        preview: also write a picture of each segmentation, OUTPUT/previews/CASE.png: three planes through its largest
            class, with outlines.
        dicom_seg: also write a DICOM Segmentation object of each DICOM series, OUTPUT/CASE.dcm.
        strict: refuse images that are unlike those of the training, instead of warning of them.
        overlap: part of a window by which neighbours overlap; as in cross-validation, if not given. 0.25 is faster.
        no_mirror: disable test-time mirroring. Faster.
        region_first: look at each image once with little overlap and without mirroring, or with the first stage of a
            cascade, and predict only where that sees an object. Faster where objects are small.
    """
    switches = {"dicom_seg": dicom_seg, "strict": strict, "region_first": region_first}
    for flag, value in {"force": force, "preview": preview, "no_mirror": no_mirror, **switches}.items():
        _check(flag, value, holds=isinstance(value, bool), takes="no value")
    settings: dict[str, Any] = {"device": device or None, "max_memory": max_memory or None, "overlap": overlap}
    settings = {name: value for name, value in settings.items() if value is not None}
    check_settings({name: str(value) for name, value in settings.items()}, list(settings))
    _check_gpu(settings.get("device", ""))
    settings |= {name: True for name, given in switches.items() if given} | ({"mirror": False} if no_mirror else {})
    if images is None:
        loaded, _ = _load(dataset, root, bundles)
        folder, cases = loaded.root, list(loaded.test)
    else:
        folder, cases = Path(images), predictions.images_in(Path(images), Path(bundles) / _task(dataset) / name)
        for line in predictions.left_out(folder, cases):
            print(line)
    results = Path(output or Path("predictions") / folder.resolve().name)
    bundle = Path(bundles) / _task(dataset) / name

    def tell() -> int:
        failed = _preview(bundle, folder, cases if preview else [], results, force=force)
        for line in predictions.changed_by_hand(results, cases):
            print(line)
        return failed

    try:
        done = predictions.predict(bundle, folder, cases, results, force=force, settings=settings)
    except AutoplanError:
        tell()
        raise
    failed = tell()
    for line in predictions.warnings(results, cases):
        print(line)
    print(f"{results}: {len(cases)} segmentations, {done} of them new")
    if failed:
        raise AutoplanError(f"{failed} of {len(cases)} segmentations have no preview; the reasons are above.")


def train(
    dataset: str,
    *,
    bundles: str = "bundles",
    configurations: str = "",
    folds: str = "",
    quick: bool = False,
    budget: str = "",
    jobs: int | None = None,
    scheduler: str = "",
    slurm: str = "",
    mirror: str = "",
    from_: str = "",
    anew: bool = False,
    root: str = "data",
    **settings: str,
) -> None:
    """Trains the folds of all configurations and scores their validation cases.

    Skips what is done; after an interruption the same command continues.

    Args:
        dataset: name of a planned task, or its folder.
        bundles: folder of the bundles.
        configurations: only these, such as 2d,3d_fullres.
        folds: only these, such as 0,1; all is one network on all cases, validated on none.
        quick: train by the short recipe.
        budget: time that the command may take, such as 30m or 2h; it is divided over what fits into it.
        jobs: trainings at a time on this machine; one per GPU, or one on the CPU, if not given.
        scheduler: address of a Dask scheduler; its workers then train.
        slurm: YAML file with the Slurm job of a worker; workers then train.
        mirror: True or False: average the predictions of the validation cases over mirrored images.
        from: a bundle to go on from: trainings start from its weights, with its topology, spacing and normalization.
        anew: train anew what was trained by another plan, or on cases that it would now be validated on. What is there
            moves to models/before.
        root: folder of the datasets, for --from.
    """
    _check("anew", anew, holds=isinstance(anew, bool), takes="no value")
    _check_training(folds, quick=quick, jobs=jobs, device=settings.get("device", ""), mirror=mirror)
    _check_budget(budget, {"quick": quick, "from": from_, "scheduler": scheduler, "slurm": slurm})
    if from_:
        _go_on(dataset, Path(root), Path(bundles), Path(from_), _names(configurations), scheduler)
    given = settings | ({"mirror": mirror} if mirror else {})
    if budget:
        with _ledger(dataset, bundles, "train", configurations, folds, budget) as held:
            within = _within(held, dataset, bundles, configurations, folds, jobs, given, num_images=0)
            _fitting(within.asked, anew=anew)
            _, failed = _train_within(within)
        if failed:
            raise failed
        return
    asked = _jobs(dataset, bundles, configurations, folds, _recipe(quick), given)
    _fitting(asked, anew=anew)
    backend = _backend(jobs, scheduler, slurm, settings)
    _tell_end(asked, backends.run_all(asked, backend, backends.Display()))


def _fitting(asked: Sequence[Job], *, anew: bool) -> None:
    """Refuses trainings that do not fit the plan any more, or makes room for new ones."""
    for path in set_aside(asked) if anew else ():
        print(f"What was trained before is in {path}")
    check_fit(asked)


def _recipe(quick: bool) -> Recipe:
    return "quick" if quick else "paper"


def _tell_end(asked: Sequence[Job], outcomes: Mapping[Job, backends.Outcome]) -> None:
    """Prints how jobs stand that were asked for, and others that they needed."""
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
        folds: only these, such as 0,1, or all; if not given, all where it was begun, too.
        quick: assume the short recipe, which has fewer epochs.
        json: print a JSON list of objects.
    """
    _check("json", json, holds=isinstance(json, bool), takes="no value")
    _check_training(folds, quick=quick)
    asked = _jobs(dataset, bundles, configurations, folds, _recipe(quick), settings, begun_on_all=True)
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
    budget: str = "",
    jobs: int | None = None,
    scheduler: str = "",
    slurm: str = "",
    mirror: str = "",
    from_: str = "",
    anew: bool = False,
    images: str = "",
    labels: str = "",
    labels_are: str = "",
    channels: str = "",
    table: str = "",
    group_by: str = "",
    gpu_memory: str = "",
    spacing: str = "",
    **settings: str,
) -> None:
    """Plans, trains, selects and predicts, one after the other.

    Skips what is done; after an interruption the same command continues. bundles/TASK/report.html shows what is there,
    from planning on. What the paper's recipe will cost is told before the first training.

    Args:
        dataset: folder with a dataset.json, or the name of a task, as for plan.
        root: folder of the datasets.
        bundles: folder of the bundles.
        cascade: auto, never or always.
        force: rewrite bundles that hold another plan, as for plan, and the chosen one where it was changed by hand, as
            for select.
        configurations: train only these, such as 2d,3d_fullres.
        folds: train only these, such as 0,1; all is one network on all cases, validated on none, which is then shared.
        quick: train by the short recipe.
        budget: time that the whole command may take, such as 30m or 2h; it is divided over what fits into it.
        jobs: trainings at a time on this machine; one per GPU, or one on the CPU, if not given.
        scheduler: address of a Dask scheduler; its workers then read the images and train.
        slurm: YAML file with the Slurm job of a worker; workers then train.
        mirror: True or False: average the predictions of the validation cases over mirrored images.
        from: a bundle to go on from, as for train; its topology takes the place of the plan.
        anew: train anew what does not fit the plan any more, as for train.
        images: folder of the images inside the dataset's, as for plan.
        labels: folder of the labels inside the dataset's.
        labels_are: names of the classes, in the order of their values.
        channels: names of the channels, such as CT.
        table: CSV file with the columns case, label, one per channel and, optionally, fold.
        group_by: column of the table, or regular expression on the names, as for plan.
        gpu_memory: of the smallest GPU that will train, as for plan.
        spacing: that the networks see, as for plan.
    """
    started, overwrites = time.monotonic(), force
    _check("anew", anew, holds=isinstance(anew, bool), takes="no value")
    _check_budget(budget, {"quick": quick, "from": from_, "scheduler": scheduler, "slurm": slurm})
    if from_ and gpu_memory:
        raise AutoplanError("--gpu_memory and --from exclude each other: a bundle's networks are as large as they are.")
    if from_ and spacing:
        raise AutoplanError("--spacing and --from exclude each other: a bundle's networks have their own spacing.")
    _check_planning(cascade, force=force)
    _check_training(folds, quick=quick, jobs=jobs, device=settings.get("device", ""), mirror=mirror)
    check_settings(settings, _keys())
    reported = partial(_reported, dataset, root, bundles)
    held = _ledger(dataset, bundles, "run", configurations, folds, budget, started) if budget else None
    if held is not None and not spacing and not task_is_trained(held):
        # It may have been killed while it planned for this spacing: bundles are in the way then.
        spacing = as_flag(decided_spacing(held) or ())
        force = force or bool(spacing)
    if from_:
        loaded, layout = _load(
            dataset, root, bundles, layouts.Layout(images, labels, labels_are, channels, table, group_by)
        )
        layouts.save(layout, Path(bundles) / loaded.name)
    else:
        with nullcontext() if budget else reported():
            plan(
                dataset, root=root, bundles=bundles, cascade=cascade, force=force, images=images, labels=labels,
                labels_are=labels_are, channels=channels, table=table, group_by=group_by, gpu_memory=gpu_memory,
                spacing=spacing, scheduler=scheduler,
            )  # fmt: skip
            if not quick and not budget:
                _cost_if_unknown(dataset, root, bundles)
    loaded, _ = _load(dataset, root, bundles)
    on_all, failed = ALL in _listed(folds), None
    with held or nullcontext():
        with nullcontext() if held else reported():
            if held is None:
                train(
                    dataset, bundles=bundles, configurations=configurations, folds=folds, quick=quick, jobs=jobs,
                    scheduler=scheduler, slurm=slurm, mirror=mirror, from_=from_, anew=anew, root=root, **settings,
                )  # fmt: skip
            else:
                given = settings | ({"mirror": mirror} if mirror else {})
                asked = partial(_within, held, dataset, bundles, configurations, folds, jobs, given, len(loaded.test))
                again = partial(plan, dataset, root=root, bundles=bundles, cascade=cascade, force=True)
                within, paces = (asked(), None) if spacing else _coarser_if_short(asked, loaded, cascade, again)
                _fitting(within.asked, anew=anew)
                done, failed = _train_within(within, paces)
                configurations = ",".join(_trained_on_all(done))
                on_all = bool(configurations)
        with reported():
            select(
                dataset, root=root, bundles=bundles, folds=ALL if on_all else "",
                configurations=configurations if on_all else "", force=overwrites,
            )  # fmt: skip
        if loaded.test:
            predict(dataset, root=root, bundles=bundles, device=settings.get("device"))
        if held is not None:
            print(f"Finished in {duration(held.gone)} of {duration(held.seconds)}.")
    if failed:
        raise failed


def _ledger(
    dataset: str, bundles: str, command: str, configurations: str, folds: str, given: str, started: float | None = None
) -> Ledger:
    """The time of a command on a task."""
    folder, seconds = Path(bundles) / _task(dataset), division.parsed(given)
    named = filter(None, (command, configurations, f"folds {folds}" if folds else ""))
    return Ledger(folder, key_of(", ".join(named), seconds), seconds, started=started)


def _within(
    held: Ledger,
    dataset: str,
    bundles: str,
    configurations: str,
    folds: str,
    jobs: int | None,
    settings: dict[str, str],
    num_images: int,
) -> Within:
    """What the flags ask for."""
    folder = Path(bundles) / _task(dataset)
    find_bundles(folder)
    planned, facts = saved.load_plan(folder), stored.load_fingerprint(folder / stored.FINGERPRINT)
    sizes = tuple(map(len, planned.folds))
    every = ",".join(map(str, [*range(len(sizes)), ALL]))
    asked = _jobs(dataset, bundles, configurations, folds or every, "budget", settings)
    _check_gpu(settings.get("device", ""))
    devices = [] if settings.get("device") == "cpu" else gpus()
    places = backends.Machine(jobs, devices).places
    named, promise = _names(configurations), division.promise(planned.spacing)
    setting = division.Setting(
        held.seconds, sizes, num_images, places, promise, tuple(_folds(folds)), names_configurations=bool(named)
    )
    return Within(held, planned, facts, asked, named, settings, jobs, devices, setting)


def _coarser_if_short(
    asked: Callable[[], Within], dataset: Dataset, cascade: Cascade, again: Callable[..., None]
) -> tuple[Within, list[pace.Pace] | None]:
    """What is `asked` for, by a plan for coarser images where time is short; and what the networks take, if it was
    measured. `again` plans the task."""
    within = asked()
    divided = _divided(dataset, within.held.path.parent)
    look = coarser_if_short(
        within, dataset, partial(_planned_by, divided, within.facts, cascade, within.planned.gpu_memory)
    )
    if look.said:
        print(look.said)
    if look.spacing is None:
        return within, look.paces
    again(spacing=as_flag(look.spacing))
    return asked(), look.paces


def _train_within(within: Within, paces: list[pace.Pace] | None = None) -> tuple[list[Training], TrainingError | None]:
    """Trains what the time of a ledger is worth; returns what is done, and what to say of the rest. `paces`: what was
    measured already.

    Raises:
        TrainingError: nothing is done.
    """
    timed = Timed(
        within.held,
        within.planned,
        within.setting,
        jobs_by_training(within.asked),
        measure=lambda: paces or within.paces(),
    )
    display, machine = backends.Display(), partial(backends.Machine, within.jobs, within.devices, fills=False)

    def run(jobs: Sequence[Job]) -> Mapping[Job, backends.Outcome]:
        return backends.run_all(jobs, machine(), display)

    print("\n".join(timed.report()))
    if timed.prepare(run):
        print("\n".join(("The caches are filled. What is left is divided anew.", *timed.report())))
    outcomes = timed.run(run)
    if timed.left_out:
        print(f"No time for {listed(timed.left_out)}.")
    try:
        _tell_end([timed.job(t) for t, share in timed.shares.items() if share.seconds], outcomes)
    except TrainingError as error:
        if not timed.done:
            raise
        return timed.done, error
    return timed.done, None


def _trained_on_all(done: Sequence[Training]) -> list[str]:
    """Configurations to choose from, where networks on all cases are among what was trained: all of them where there is
    a cross-validation, else the one that promises most."""
    names = [t.configuration for t in done if t.fold == ALL]
    return names if any(t.fold != ALL for t in done) else names[:1]


def report(dataset: str, *, root: str = "data", bundles: str = "bundles", force: bool = False) -> None:
    """Writes one page on a task: its dataset, plan, trainings and result.

    bundles/TASK/report.html opens in any browser, without internet; report.json has the same content. It shows what is
    there so far, and does nothing where nothing has changed.

    Args:
        dataset: folder with a dataset.json, or the name of a task under root.
        root: folder of the datasets.
        bundles: folder of the bundles.
        force: write over a report that was changed by hand; a copy is kept in bundles/TASK/report.before.
    """
    from autoplan.report.build import build

    _check("force", force, holds=isinstance(force, bool), takes="no value")
    print(build(_load(dataset, root, bundles)[0], Path(bundles), force=force))


def cost(dataset: str, *, root: str = "data", bundles: str = "bundles") -> None:
    """Estimates what trainings will need: GPU memory, disk, time on this machine.

    It takes some seconds a configuration, needs no GPU, and writes bundles/TASK/cost.json, which the report shows.

    Args:
        dataset: name of a planned task, or its folder.
        root: folder of the datasets.
        bundles: folder of the bundles.
    """
    _tell_cost(*_planned(dataset, root, bundles))


def share(
    dataset: str,
    *,
    name: str = "",
    authors: str = "",
    data_source: str = "",
    data_license: str = "",
    bundle: str = "best",
    folds: str = "",
    version: str = "",
    torchscript: bool = False,
    onnx: bool = False,
    url: str = "",
    faster: int = 0,
    output: str = "shared",
    root: str = "data",
    bundles: str = "bundles",
    force: bool = False,
) -> None:
    """Writes a trained bundle as a folder for the Model Zoo, and verifies it.

    Where such a folder is there and something has changed, the version is raised; else nothing is done. Files that you
    added to it stay.

    Args:
        dataset: name of a planned task, or its folder.
        name: of the bundle: anatomy, modality and task, such as hippocampus_mri_segmentation.
        authors: who trained it.
        data_source: where the data come from: a name and an address.
        data_license: license of the data: its name and address, or a file with its text.
        bundle: what to share, a folder under bundles/TASK: one that select wrote, or a configuration.
        folds: of a configuration, only the networks of these folds, such as 0,1; if not given, all that are finished.
            The word all: the one that was trained on all cases.
        version: of the bundle, such as 1.0.0; the next one if not given.
        torchscript: also write models/model.ts.
        onnx: also write models/model.onnx.
        url: folder on the web where files above 25 MiB will lie.
        faster: validation cases on which to measure what --overlap 0.25, --no_mirror and --region_first of predict gain
            and cost, such as 20; the README then says it.
        output: folder that the bundle's own folder is written to.
        root: folder of the datasets, for --faster.
        bundles: folder of the bundles.
        force: write over files of the folder that were changed by hand; a copy is kept in OUTPUT/NAME.before.
    """
    from autoplan.sharing import verification, zoo

    for flag, value in (("torchscript", torchscript), ("onnx", onnx), ("force", force)):
        _check(flag, value, holds=isinstance(value, bool), takes="no value")
    _check("faster", faster, holds=_is_count(faster), takes="a number of cases")
    _check_training(folds)
    request = zoo.Request(name, authors, data_source, data_license, version, url, torchscript, onnx)
    check_writable(Path(output), "--output")
    task = Path(bundles) / _task(dataset)
    measure = _measuring(_load(dataset, root, bundles)[0], task, faster) if faster else None
    done = zoo.publish(task, bundle, _folds(folds), Path(output), request, measure, force=force)
    if not done.checks:
        print(f"{done.folder}: nothing has changed since version {done.version}")
        return
    print(verification.report(done.checks))
    print(f"{done.folder}, version {done.version}")
    for place in done.kept:
        print(place)


def verify(bundle: str, *, max_difference: float = 0.01) -> None:
    """Checks a bundle that you received: rules of the Model Zoo, weights, a prediction.

    It works offline, runs the bundle's own code, and writes nothing into it.

    Args:
        bundle: its folder.
        max_difference: share of the voxels whose class may differ from the stored segmentation.
    """
    from autoplan.sharing import verification

    share = type(max_difference) in (int, float) and 0 <= max_difference < 1
    _check("max_difference", max_difference, holds=share, takes="a share of the voxels, such as 0.01")
    checks = verification.verify(Path(bundle), max_difference=max_difference)
    print(verification.report(checks))
    verification.check_passed(Path(bundle), checks)


COMMANDS: dict[str, Command] = {
    "plan": plan,
    "run": run,
    "train": train,
    "status": status,
    "select": select,
    "predict": predict,
    "evaluate": evaluate,
    "cost": cost,
    "report": report,
    "share": share,
    "verify": verify,
    "phantom": phantom,
}


def _check(flag: str, value: object, *, holds: bool, takes: str) -> None:
    """Refuses a flag's value, before anything is done."""
    if not holds:
        raise AutoplanError(f"--{flag} takes {takes}, not {shortened(repr(value))}.")


def _check_planning(cascade: str, *, force: bool) -> None:
    """Refuses flags of a plan whose values cannot be right."""
    _check("force", force, holds=isinstance(force, bool), takes="no value")
    _check("cascade", cascade, holds=cascade in get_args(Cascade), takes="auto, never or always")


def _check_processes(number: object) -> None:
    """Refuses a number of processes that is none."""
    counted = number is None or _is_count(number, least=1)
    _check("num_processes", number, holds=counted, takes="a number of processes, such as 4")


def _is_count(value: object, *, least: int = 0) -> bool:
    """Whether a value is a whole number that is not too small."""
    return type(value) is int and value >= least


def _is_length(value: object) -> bool:
    """Whether a value is a finite number above 0."""
    return type(value) in (int, float) and 0 < float(str(value)) < math.inf


def _jobs(
    dataset: str,
    bundles: str,
    configurations: str,
    folds: str,
    recipe: Recipe,
    settings: dict[str, str],
    *,
    begun_on_all: bool = False,
) -> list[Job]:
    """The jobs that flags ask for, see `jobs.jobs_of`."""
    folder = Path(bundles) / _task(dataset)
    there = [bundle.name for bundle in find_bundles(folder)]
    planned = [c.name for c in saved.load_plan(folder).configurations if c.name in there]
    names = _names(configurations) or planned
    if unplanned := sorted(set(names) & set(there) - set(planned)):
        raise AutoplanError(f"{folder}: the plan has no configuration {unplanned[0]}. It has {', '.join(planned)}.")
    given = {n: str(Path(v).absolute()) if n in setting_paths() else v for n, v in settings.items()}
    found = find_bundles(folder, names)
    return jobs_of(found, _folds(folds), recipe=recipe, settings=given, begun_on_all=begun_on_all)


def _load(dataset: str, root: str, bundles: str, given: layouts.Layout | None = None) -> tuple[Dataset, layouts.Layout]:
    """A dataset, by the flags that are given or else by those that it was planned with; and these."""
    folder = datasets.locate(dataset, Path(root))
    task = Path(bundles) / _task(str(folder))
    layout = given if given is not None and given.is_given else layouts.read(task)
    loaded = layouts.load(folder, layout)
    return loaded, layouts.complete(loaded, layout)


def _divided(dataset: Dataset, task: Path) -> dict[str, Any]:
    """What a dataset, and the plan that is there, say of its folds, for planning."""
    groups = {case.name: case.group for case in dataset.training if case.group is not None}
    folds = {case.name: case.fold for case in dataset.training if case.fold is not None}
    earlier = _earlier(task)
    return {"groups": groups or None, "own_folds": folds or None, "before": earlier.folds if earlier else ()}


def _names(configurations: str) -> list[str]:
    """The configurations that --configurations names."""
    return [name.strip() for name in configurations.split(",")] if configurations else []


def _task(dataset: str) -> str:
    """Name of the task that a name or a folder, such as `.`, means."""
    return Path(os.path.abspath(dataset)).name


def _folds(folds: str) -> list[Fold]:
    """The folds that --folds names, "all" behind the numbers."""
    named = _listed(folds)
    return [*sorted({int(text) for text in named if text != ALL}), *[ALL][: ALL in named]]


def _listed(folds: str) -> list[str]:
    """What --folds lists."""
    return [text.strip() for text in folds.split(",")] if folds else []


def _check_training(
    folds: str = "", *, quick: bool = False, jobs: int | None = None, device: str = "", mirror: str = ""
) -> None:
    """Refuses flags of trainings whose values cannot be right, before anything is done."""
    _check("quick", quick, holds=isinstance(quick, bool), takes="no value")
    known = all(re.fullmatch(r"\d{1,9}|all", text) for text in _listed(folds))
    _check("folds", folds, holds=known, takes="numbers such as 0,1, or all")
    counted = jobs is None or (_is_count(jobs, least=1) and jobs <= MAX_JOBS)
    _check("jobs", jobs, holds=counted, takes=f"a number of trainings at a time, at most {MAX_JOBS}")
    _check("mirror", mirror, holds=mirror in ("", "True", "False"), takes="True or False")
    if found := re.search(r"cuda:0*([1-9]\d*)", device):
        raise AutoplanError(
            f"--device {device}: each training sees one GPU only, as cuda:0. To choose GPUs, put "
            f"CUDA_VISIBLE_DEVICES={found[1]} before the command, and leave out --device."
        )


def _check_budget(given: str, others: Mapping[str, object]) -> None:
    """Refuses a time that is none, and flags that a budget does not go with."""
    if given:
        division.parsed(given)
        for flag in (flag for flag, value in others.items() if value):
            raise AutoplanError(f"--budget and --{flag} exclude each other.")


def _check_gpu(device: str) -> None:
    """Refuses a GPU where there is none."""
    if device.startswith("cuda") and not gpus():
        raise AutoplanError(f"--device {device}: no GPU is visible here. Leave it out, or name cpu.")


def known_settings() -> tuple[list[str], list[str]]:
    """Names of the settings of a training, and of the keys beside them that cannot be set."""
    keys = _keys()
    known = flags_of_training(keys)
    return known, [key for key in keys if key not in known]


def _keys() -> list[str]:
    """Keys of train.json, of any configuration."""
    from autoplan.bundle.templates import template

    configs = (template("train.json", name, goes_on=True) for name in get_args(ConfigurationName))
    return list(dict.fromkeys(key for config in configs for key in config))


def _backend(jobs: int | None, scheduler: str, slurm: str, settings: dict[str, str]) -> backends.Backend:
    """What runs the jobs that flags ask for."""
    if scheduler or slurm:
        from autoplan.training import cluster

        return cluster.connect(scheduler) if scheduler else cluster.start(Path(slurm))
    _check_gpu(settings.get("device", ""))
    return backends.Machine(jobs, devices=[] if settings.get("device") == "cpu" else None)


def _fingerprint(dataset: Dataset, path: Path, num_processes: int | None, scheduler: str) -> Fingerprint:
    """The saved fingerprint while the dataset is unchanged, else a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = fingerprints.keys_of(dataset, path.parent)
    known = fingerprints.reusable(path, dataset, keys)
    if known is not None:
        print(f"{dataset.name}: fingerprint of {len(known.cases)} cases reused from {path}")
        return known
    kept = readings.Readings(path.with_name(readings.NAME))
    if before := sum(key in kept for key in keys.cases):
        print(f"{dataset.name}: {before} of {len(keys.cases)} cases were read before")
    workers = _workers(scheduler, dataset.root) if scheduler else None
    computed = fingerprints.fingerprint(dataset, num_processes=num_processes, keys=keys, readings=kept, workers=workers)
    print(f"{dataset.name}: fingerprint of {len(computed.cases)} cases computed")
    return computed


def _workers(scheduler: str, folder: Path) -> AbstractContextManager[fingerprints.Map]:
    """A `map` that reads the images of a folder on a cluster."""
    from autoplan.training import cluster

    return cluster.mapper(scheduler, folder)


def _gpu_memory(given: str, task: Path) -> int | None:
    """The limit that a flag gives, or else that of the plan that is there; None where there is none."""
    return _kept(given, task, budget.parsed, lambda planned: planned.gpu_memory)


def _own_spacing(given: str, task: Path) -> Spacing | None:
    """The spacing that a flag gives, or else that of the plan that is there, if it was given; None where none was."""
    return _kept(given, task, _spacing, lambda planned: planned.own_spacing)


def _kept(given: str, task: Path, parsed: Callable[[str], T], of: Callable[[Plan], T | None]) -> T | None:
    """What a flag of planning gives, none being nothing, or else what the plan that is there keeps."""
    if given:
        return None if given == "none" else parsed(given)
    earlier = _earlier(task)
    return of(earlier) if earlier else None


def _earlier(task: Path) -> Plan | None:
    """The plan that is there; None where there is none that can be read."""
    try:
        return saved.load_plan(task)
    except PlanError:
        return None


def _spacing(text: str) -> Spacing:
    """Lengths along x, y and z, mm."""
    number = r" *(\d{1,4}(?:\.\d{1,17})?(?:e-\d\d?)?) *"
    found = re.fullmatch(",".join([number] * 3), text)
    lengths = tuple(map(float, found.groups())) if found else (0.0,)
    _check("spacing", text, holds=min(lengths) > 0, takes="three lengths in mm along x, y and z, such as 3,3,10")
    return lengths


def _measuring(dataset: Dataset, task: Path, num_cases: int) -> Callable[[str, Fold], None]:
    """A function that measures what faster predictions cost the network of a configuration and fold."""
    from autoplan.sharing import faster

    folds, cases = saved.load_plan(task).folds, {case.name: case for case in dataset.training}

    def measure(configuration: str, fold: Fold) -> None:
        if fold == ALL:
            raise AutoplanError("--faster measures on validation cases, and a network trained on all cases has none.")
        some = [cases[name] for name in folds[fold][:num_cases] if name in cases]
        found = faster.measure(task / configuration, fold, dataset.root, some, {})
        print(f"\n{configuration}, fold {fold}, {len(some)} validation cases:\n{faster.report(found)}\n")

    return measure


def _planned_by(
    divided: Mapping[str, Any],
    facts: Fingerprint,
    cascade: Cascade,
    gpu_memory: int | None,
    own_spacing: Spacing | None,
) -> Plan:
    """The plan, or the one whose trainings fit a GPU."""
    planned = plans.plan(facts, cascade=cascade, own_spacing=own_spacing, **divided)
    if gpu_memory is None:
        return planned
    from autoplan.cost import footprint

    return budget.fitted(planned, gpu_memory, footprint.training_bytes)


def _preview(bundle: Path, folder: Path, cases: list[Case], output: Path, *, force: bool) -> int:
    """Draws what was predicted; returns how many pictures could not be drawn."""
    from autoplan.prediction import preview
    from autoplan.report.blocks import counted

    written, stay, faults = preview.write(bundle, folder, cases, output, force=force)
    for fault in (*stay, *faults):
        print(f"Warning: {fault}")
    if written:
        print(f"{written[0].parent}: {counted(len(written), 'preview')}")
    return len(faults)


def _render(planned: Plan, dataset: Dataset, bundles: Path, *, force: bool) -> list[Path]:
    """Writes the bundles."""
    from autoplan.bundle.render import render_all

    written: list[Path] = render_all(planned, dataset, bundles, force=force)
    return written


def _go_on(dataset: str, root: Path, bundles: Path, source: Path, configurations: list[str], scheduler: str) -> None:
    """Plans a dataset around the networks of a bundle, and writes bundles that start from its weights."""
    from autoplan.bundle import pretrained
    from autoplan.planning import finetuning

    found = pretrained.read(source)
    finetuning.check_configurations(found, configurations)
    loaded, _ = _load(dataset, str(root), str(bundles))
    task = bundles / loaded.name
    facts = _fingerprint(loaded, task / stored.FINGERPRINT, None, scheduler)
    own = plans.plan(facts, **_divided(loaded, task))
    adapted = finetuning.adapted(own, found)
    done = pretrained.install(source, found, adapted, dataset=loaded, bundles=bundles, key=facts.key)
    stored.save_fingerprint(facts, task / stored.FINGERPRINT)
    print(f"\n{finetuning.report(own, adapted, found)}\n")
    for path in done:
        print(path)


@contextmanager
def _reported(dataset: str, root: str, bundles: str) -> Iterator[None]:
    """Writes the report when a phase has ended, well or not. It is no reason for a run to end: what keeps it from being
    written is said in one line."""
    try:
        yield
    except AutoplanError:
        _report_if_possible(dataset, root, bundles)
        raise
    _report_if_possible(dataset, root, bundles)


def _planned(dataset: str, root: str, bundles: str) -> tuple[Path, Plan, Fingerprint]:
    """The folder of a task's bundles, its plan, and the facts that it was planned from."""
    loaded, _ = _load(dataset, root, bundles)
    folder = Path(bundles) / loaded.name
    planned = saved.load_plan(folder, fingerprint_key=fingerprints.key(loaded, folder))
    return folder, planned, stored.load_fingerprint(folder / stored.FINGERPRINT)


def _tell_cost(folder: Path, planned: Plan, facts: Fingerprint) -> None:
    """Computes the costs of a plan, prints them, and keeps them in the folder of its bundles."""
    from autoplan.cost import bill as costs

    bill = costs.compute(planned, facts)
    print(costs.save(bill, folder))
    print("\n" + table(costs.rows(bill), left=1) + "\n")
    for note in costs.notes(bill):
        print(note)


def _cost_if_unknown(dataset: str, root: str, bundles: str) -> None:
    """Tells what a plan costs, once. It is no reason for a run to end."""
    from autoplan.cost import bill as costs

    try:
        folder, planned, facts = _planned(dataset, root, bundles)
        if costs.load(planned, facts, folder) is None:
            _tell_cost(folder, planned, facts)
    except (AutoplanError, OSError, MemoryError) as error:
        print(f"Warning: the cost is not known: {one_line(error)}")


def _report_if_possible(dataset: str, root: str, bundles: str) -> None:
    if not (Path(bundles) / _task(dataset) / saved.PLAN).exists():
        return
    try:
        report(dataset, root=root, bundles=bundles)
    except (AutoplanError, OSError) as error:
        print(f"Warning: there is no report: {one_line(error)}")


def _check_name(folder: Path, name: str | None, *, force: bool) -> None:
    """Refuses the name of a bundle that cannot become a folder beside the others, or is one that was changed by hand,
    unless `force`."""
    from autoplan.base import written
    from autoplan.sharing import ensemble

    ensemble.check_name(name)
    if name in (stored.FINGERPRINT, saved.PLAN, "choice.json") or (folder / (name or "best")).is_file():
        raise AutoplanError(f"--name {name}: a file has that name. Take another, such as hippocampus_segmentation.")
    bundle = folder / (name or "best")
    written.settle(bundle)
    if not force:
        written.check_own(bundle, written.recorded(bundle))


def _has_folds(planned: Plan, folder: Path) -> bool:
    """Whether a fold of the cross-validation is finished."""
    from autoplan.evaluation import crossvalidation

    return bool(crossvalidation.finished(planned, folder)[0])


def _crossvalidated(
    planned: Plan, dataset: Dataset, bundles: Path, fingerprint_key: str, num_processes: int | None
) -> Choice:
    """Scores the candidates and chooses."""
    from autoplan.evaluation import crossvalidation

    return crossvalidation.select(
        planned,
        dataset,
        bundles,
        fingerprint_key=fingerprint_key,
        segmenter=segmenter.segmentations,
        num_processes=num_processes,
    )


def _share(
    planned: Plan,
    chosen: Choice | None,
    root: Path,
    bundles: Path,
    on_all: list[str] | None,
    options: dict[str, Any],
) -> tuple[object, ...]:
    """Writes the chosen model as one more bundle, the one to share: the networks of the cross-validation, or those of
    configurations that were trained on all cases. Returns its folder and what is to be said."""
    from autoplan.sharing import ensemble

    if chosen is not None and on_all is None:
        return tuple(ensemble.share(planned, chosen, root, bundles, **options))
    return tuple(ensemble.share_on_all(planned, chosen, on_all or [], root, bundles, **options))


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
    decisions = [d for d in planned.decisions if d.name != reasons.WARNING]
    lines: list[str] = []
    for name, group in groupby(decisions, key=lambda d: d.configuration):
        lines += ["", name or "all configurations"]
        lines += [f"  {d.name}: {d.value}. {d.because} [{d.source}]" for d in group]
    return "\n".join(lines)
