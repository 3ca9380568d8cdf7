"""The bundle to share: all networks of the model or the pair that cross-validation chose, in one file of weights.

`render` writes it down as text; this module adds the weights.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoplan.base import written
from autoplan.base.errors import TemplateError, one_line
from autoplan.bundle import ensemble, metadata, weights, writing
from autoplan.bundle.settings import MEMBERS
from autoplan.evaluation import weak
from autoplan.evaluation.choice import Candidate, Choice, Score
from autoplan.planning.values import ALL, Configuration, Fold, Plan
from autoplan.training import results
from autoplan.training.results import FoldResult

Finished = Mapping[str, Mapping[Fold, FoldResult]]
"""Finished folds of configurations, by name and number; or fold "all", alone."""
DEPTHS = {"target_spacing": 1, "patch_size": 1, "features": 1, "strides": 2}
"""Settings of a prediction that are numbers in lists, and how deep."""


def share(
    plan: Plan,
    choice: Choice,
    dataset_root: Path,
    bundles: Path,
    *,
    name: str | None,
    fingerprint_key: str,
    force: bool = False,
) -> list[Path]:
    """Write the bundle of the chosen model, with the networks of its finished folds, but for those that are far worse
    than the others; see `weak`.

    Args:
        plan: the plan of the bundles that the networks come from.
        choice: which model.
        dataset_root: folder of the dataset.
        bundles: folder of the bundles of all datasets.
        name: of the bundle and its folder; None: the folder is "best".
        fingerprint_key: of the dataset, for the metadata.
        force: write over files of the folder that were changed by hand; a copy is kept.

    Returns:
        The bundle's folder, bundles/<dataset>/<name>, and one with such copies.

    Raises:
        TemplateError: the folds were predicted with different settings, the folder is that of a configuration, or its
            files were changed.
    """
    root = bundles / plan.name
    folder = root / (name or "best")
    check_name(name)
    found: Finished = {m: _without_weak(root / m, _finished(plan, root / m)) for m in choice.winner.members}
    _, kept = _write(
        plan, found, root, folder, writing.relative_path(dataset_root, folder), name=name or f"{plan.name}_best",
        performance=_performance(choice, choice.scores[0]), about=_about(plan, fingerprint_key, "cross-validation"),
        force=force,
    )  # fmt: skip
    return [folder, *kept]


def share_on_all(
    plan: Plan,
    choice: Choice | None,
    configurations: Sequence[str],
    dataset_root: Path,
    bundles: Path,
    *,
    name: str | None,
    fingerprint_key: str,
    force: bool = False,
) -> list[Path | str]:
    """Write the bundle of networks that were trained on all cases.

    Args:
        plan: the plan of the bundles that the networks come from.
        choice: what cross-validation says of the models; None where no fold is finished.
        configurations: the model is made of these alone; empty: of any.
        dataset_root: folder of the dataset.
        bundles: folder of the bundles of all datasets.
        name: of the bundle and its folder; None: the folder is "best".
        fingerprint_key: of the dataset, for the metadata.
        force: write over files of the folder that were changed by hand; a copy is kept.

    Returns:
        The bundle's folder, bundles/<dataset>/<name>, one with such copies, and what is to be said: which model it is,
        and of its score.

    Raises:
        TemplateError: a network has not finished training, or nothing tells which one is wanted.
    """
    root = bundles / plan.name
    folder = root / (name or "best")
    check_name(name)
    scores = () if choice is None else choice.scores
    score = next((s for s in scores if not configurations or {*s.candidate.members} <= {*configurations}), None)
    model = score.candidate if score else Candidate((_only_on_all(plan, root, configurations),))
    found: Finished = {m: {ALL: _trained_on_all(root / m)} for m in model.members}
    performance = None if choice is None or score is None else _performance(choice, score)
    by = "cross-validation" if choice is not None and model == choice.winner else "by hand"
    trained, kept = _write(
        plan, found, root, folder, writing.relative_path(dataset_root, folder), name=name or f"{plan.name}_best",
        performance=performance, about=_about(plan, fingerprint_key, by), force=force,
    )  # fmt: skip
    return [folder, *kept, f"{model.name}. {metadata.on_all(trained, performance)}"]


def _only_on_all(plan: Plan, root: Path, configurations: Sequence[str]) -> str:
    """The only configuration that has a network that was trained on all cases; the one that is named, where one is.

    Raises:
        TemplateError: there are several, or none.
    """
    if len(configurations) == 1:
        return configurations[0]
    names = [c.name for c in plan.configurations if not configurations or c.name in configurations]
    there = [name for name in names if isinstance(results.read_all(root / name), FoldResult)]
    if len(there) == 1:
        return there[0]
    if not there:
        raise TemplateError(f"{root}: no network is trained on all cases to its end. {_training_command(root, '')}")
    raise TemplateError(
        f"{root}: {' and '.join(there)} are trained on all cases, and no fold is finished that would tell which one is "
        f"better. Name one: --configurations {there[0]}"
    )


def _trained_on_all(bundle: Path) -> FoldResult:
    """The result of fold "all" of a bundle.

    Raises:
        TemplateError: it is not finished.
    """
    found = results.read_all(bundle)
    if isinstance(found, str):
        command = _training_command(bundle.parent, f" --configurations {bundle.name}")
        raise TemplateError(f"{bundle}: fold {ALL} {found}. {command}")
    return found


def _training_command(root: Path, configuration: str) -> str:
    where = "" if root.parent.as_posix() == "bundles" else f" --bundles {root.parent.as_posix()}"
    return f"Train it: python -m autoplan train {root.name}{configuration} --folds {ALL}{where}"


def share_configuration(
    plan: Plan, root: Path, folder: Path, configuration: str, folds: Sequence[Fold], *, name: str, fingerprint_key: str
) -> None:
    """Write a bundle of the networks of one configuration, whatever cross-validation would choose.

    Args:
        plan: the plan of the bundles that the networks come from.
        root: folder of the task's bundles.
        folder: where to write.
        configuration: its name.
        folds: whose networks; if empty, all that are finished and not far worse than the others, but for fold "all",
            which goes alone.
        name: of the bundle.
        fingerprint_key: of the dataset, for the metadata.

    Raises:
        TemplateError: a fold is not finished, or they were predicted with different settings.
    """
    bundle = root / configuration
    found: Finished
    if ALL in folds:
        if len(folds) > 1:
            raise TemplateError(f"{bundle}: the network that was trained on all cases is shared alone: --folds {ALL}")
        scored = tuple(_finished_folds(plan, bundle))
        found = {configuration: {ALL: _trained_on_all(bundle)}}
    else:
        finished = _finished(plan, bundle)
        scored = tuple(sorted(folds, key=int)) or tuple(finished)
        if absent := [k for k in scored if k not in finished]:
            there = ", ".join(map(str, finished))
            raise TemplateError(f"{bundle}: fold {absent[0]} is not finished. Finished are: {there}.")
        networks = scored if folds else tuple(_without_weak(bundle, finished))
        found = {configuration: {k: finished[k] for k in networks}}
    performance = _validated(plan, bundle, scored) if scored else None
    about = _about(plan, fingerprint_key, "by hand")
    _write(plan, found, root, folder, "data", name=name, performance=performance, about=about)


def _validated(plan: Plan, bundle: Path, folds: tuple[Fold, ...]) -> metadata.Performance:
    """Scores of the validation cases of folds of a configuration."""
    cases = [case for k in folds for case in results.dice(results.fold_folder(bundle, k)).values()]
    classes = [name for _, name in plan.labels[1:]]
    scores = {name: [v for case in cases if (v := case.get(name)) is not None] for name in classes}
    means = [(name, sum(values) / len(values) if values else None) for name, values in scores.items()]
    known = [value for _, value in means if value is not None]
    foreground = sum(known) / len(known) if known else None
    return metadata.Performance(len(cases), folds, (("mean foreground", foreground), *means))


def _about(plan: Plan, fingerprint_key: str, choice: str) -> dict[str, Any]:
    """Where a bundle comes from, for its metadata, but for the networks."""
    dataset = {"name": plan.name, "cases": plan.num_training, "fingerprint": fingerprint_key}
    return {"choice": choice, "dataset": dataset}


def _write(
    plan: Plan,
    found: Finished,
    root: Path,
    folder: Path,
    dataset_dir: str,
    *,
    name: str,
    performance: metadata.Performance | None,
    about: Mapping[str, Any],
    force: bool = False,
) -> tuple[list[metadata.Trained], list[Path]]:
    """Write the bundle of some finished folds of configurations, and tell what it holds, and where copies are of what
    was changed by hand; see `written.put`."""
    folds = {m: tuple(found[m]) for m in found}
    settings = _settings({m: [found[m][k].settings for k in folds[m]] for m in folds}, root)
    _check_spacing(plan, settings, root)
    trained = _trained(plan, folds, settings)
    files = ensemble.render_shared(
        plan,
        trained,
        dataset_dir,
        name=name,
        mirror=all(s["mirror"] for s in settings.values()),
        overlap=max(s["overlap"] for s in settings.values()),
        performance=performance,
        provenance={**about, "networks": {m: {f"fold_{k}": found[m][k].model for k in folds[m]} for m in folds}},
    )
    tensors = _weights({m: [results.fold_folder(root / m, k) / "model.pt" for k in folds[m]] for m in folds})
    _check_weights(plan, trained, tensors, root)
    with written.anew(folder) as work:
        made = work / "new"
        weights.save(tensors, made / "models" / "model.pt")
        writing.fill(made, files)
        return trained, written.put(made, folder, last=writing.mark(files), parts=writing.GENERATED, force=force)


def _finished(plan: Plan, bundle: Path) -> dict[Fold, FoldResult]:
    """The finished folds of a bundle.

    Raises:
        TemplateError: there is none any more.
    """
    found = _finished_folds(plan, bundle)
    if not found:
        if isinstance(results.read_all(bundle), FoldResult):
            raise TemplateError(
                f"{bundle}: only a network that was trained on all cases is there. Name it: --folds {ALL}"
            )
        first = results.read(results.fold_folder(bundle, 0), plan.folds[0])
        raise TemplateError(f"{bundle}: no fold is finished any more: fold 0 {first}. Choose again.")
    return found


def _without_weak(bundle: Path, found: Mapping[Fold, FoldResult]) -> dict[Fold, FoldResult]:
    """The folds whose networks an ensemble averages: all but those that are far worse than the others."""
    out = weak.left_out(weak.case_means(bundle, [k for k in found if k != ALL]))
    return {k: fold for k, fold in found.items() if k not in out}


def _finished_folds(plan: Plan, bundle: Path) -> dict[Fold, FoldResult]:
    """The finished folds of a bundle, if any, but for fold "all"."""
    read = {k: results.read(results.fold_folder(bundle, k), cases) for k, cases in enumerate(plan.folds)}
    return {k: result for k, result in read.items() if isinstance(result, FoldResult)}


def check_name(name: str | None) -> None:
    """Refuses a name that a shared bundle and its folder cannot have. None stands for "best".

    Raises:
        TemplateError: it is no plain name, or that of another folder.
    """
    if not re.fullmatch(r"\w[\w.-]*", "best" if name is None else name) or name in (*MEMBERS, "cache"):
        raise TemplateError(
            f"a bundle cannot be called {name!r}. Take another --name of letters, digits, _, - and ., neither cache "
            "nor a configuration, such as hippocampus_mri_segmentation."
        )


def _settings(found: Mapping[str, Sequence[Mapping[str, Any]]], root: Path) -> dict[str, Mapping[str, Any]]:
    """The settings that the cases of a configuration were predicted with, which all its folds must share."""
    for name, settings in found.items():
        if not all(_is_sound(s) for s in settings):
            raise TemplateError(
                f"{root / name}: a validation/dice.json holds settings that no prediction has. Remove it; "
                f"python -m autoplan train {root.name} --configurations {name} then predicts the cases again."
            )
        if any(s != settings[0] for s in settings):
            raise TemplateError(
                f"{root / name}: the folds were predicted with different settings ({_difference(settings)}). Predict "
                "them again with the same ones: run evaluating, by the bundle's docs/README.md."
            )
    return {name: settings[0] for name, settings in found.items()}


def _is_sound(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of a prediction have the types that they must have; a file may be damaged."""
    shaped = {name: value for name, value in settings.items() if name.removeprefix("lowres_") in DEPTHS}
    sound = all(_is_nested(value, DEPTHS[name.removeprefix("lowres_")]) for name, value in shaped.items())
    return sound and isinstance(settings["mirror"], bool) and isinstance(settings["overlap"], (int, float))


def _is_nested(value: object, depth: int) -> bool:
    """Whether a value is numbers in lists, so deep."""
    if depth == 0:
        return type(value) in (int, float)
    return isinstance(value, list) and bool(value) and all(_is_nested(v, depth - 1) for v in value)


def _check_spacing(plan: Plan, settings: Mapping[str, Mapping[str, Any]], root: Path) -> None:
    """Refuses networks that were trained for another spacing than the planned one, which the bundle would have."""
    planned = plan.spacing
    for name, used in settings.items():
        if tuple(used["target_spacing"]) != planned:
            raise TemplateError(
                f"{root / name}: trained with target_spacing {used['target_spacing']}, but the plan says "
                f"{list(planned)}. Train with the planned spacing."
            )


def _difference(settings: Sequence[Mapping[str, Any]]) -> str:
    keys = sorted({key for s in settings for key in s})
    values = {key: {json.dumps(s.get(key)) for s in settings} for key in keys}
    return "; ".join(f"{key}: {' and '.join(sorted(v))}" for key, v in values.items() if len(v) > 1)


def _trained(
    plan: Plan, folds: Mapping[str, tuple[Fold, ...]], settings: Mapping[str, Mapping[str, Any]]
) -> list[metadata.Trained]:
    """The networks of the chosen configurations, a cascade's first stage before its second."""
    trained = []
    for name, ks in folds.items():
        if name == "3d_cascade_fullres":
            trained.append(metadata.Trained(_network(plan, name, "3d_lowres", settings[name], "lowres_"), ks))
        trained.append(metadata.Trained(_network(plan, name, name, settings[name]), ks))
    return trained


def _network(plan: Plan, name: str, stage: str, settings: Mapping[str, Any], prefix: str = "") -> Configuration:
    """A network of the configuration `name` as `_as_trained` has it.

    Raises:
        TemplateError: the settings make none.
    """
    try:
        return _as_trained(plan.configuration(stage), settings, prefix)
    except (KeyError, ValueError, IndexError) as error:
        raise TemplateError(
            f"{plan.name}/{name}: the settings in validation/dice.json of its folds make no network "
            f"({one_line(error)}). Remove these files; train then predicts the cases again."
        ) from None


def _as_trained(configuration: Configuration, settings: Mapping[str, Any], prefix: str = "") -> Configuration:
    """The configuration with the network that was trained, which may be smaller than the planned one.

    Raises:
        KeyError, ValueError, IndexError: there is no such network.
    """
    if len(settings[f"{prefix}patch_size"]) != len(configuration.patch_size):
        raise ValueError(f"patch {settings[f'{prefix}patch_size']} has other axes than the images")
    return dataclasses.replace(
        configuration,
        patch_size=tuple(settings[f"{prefix}patch_size"]),
        strides=tuple(map(tuple, settings[f"{prefix}strides"])),
        features=tuple(settings[f"{prefix}features"]),
    )


def _performance(choice: Choice, score: Score) -> metadata.Performance:
    best = score.postprocessed
    classes = zip(choice.setting.classes, best.classes, strict=True)
    return metadata.Performance(
        len(choice.cases), choice.setting.folds, (("mean foreground", best.foreground), *classes)
    )


def _weights(models: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """The weights of all networks, flat."""
    found = {}
    for name, paths in models.items():
        for number, path in enumerate(paths):
            tensors = weights.load(path, "Remove the fold's folder and train it again.")
            found.update({_key(name, number, key): value for key, value in tensors.items()})
    return found


def _check_weights(plan: Plan, trained: Sequence[metadata.Trained], found: Mapping[str, Any], root: Path) -> None:
    """Refuses weights of other networks than the settings of the predictions say, before anything is written."""
    shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
    for network in trained:
        expected = weights.fresh(plan, network.configuration, device="meta")
        member = MEMBERS[network.configuration.name]
        for number, fold in enumerate(network.folds):
            own = {key: tuple(tensor.shape) for key, tensor in expected.items()}
            there = {key: shapes.pop(f"{member}.{number}.{key}", None) for key in own}
            if wrong := next((key for key in own if there[key] != own[key]), None):
                raise TemplateError(
                    f"{root.name}, {member}: model.pt of fold {fold} is of another network than validation/dice.json "
                    f"says: {wrong} has the shape {there[wrong]}, not {own[wrong]}. Remove the fold's folder and train "
                    "it again."
                )


def _key(configuration: str, number: int, key: str) -> str:
    """Name of a weight among those of all networks; a cascade's file has both stages as `lowres.0.…`, `cascade.0.…`."""
    if configuration != "3d_cascade_fullres":
        return f"{MEMBERS[configuration]}.{number}.{key}"
    stage, _, rest = key.split(".", 2)
    return f"{stage}.{number}.{rest}"
