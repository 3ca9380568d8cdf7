"""The bundle to share: all networks of the model or the pair that cross-validation chose, in one file of weights.

`render` writes it down as text; this module adds the weights.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoplan import render, results
from autoplan.choice import Choice
from autoplan.errors import TemplateError, one_line
from autoplan.facts import Configuration, Plan
from autoplan.files import write_atomically, write_text_atomically
from autoplan.results import FoldResult
from autoplan.settings import MEMBERS

LARGE_FILE_BYTES = 25 * 2**20
"""What the Model Zoo keeps in a repository at most; larger files are listed with an address."""
ADDRESS = "https://fill.in.the.address/model.pt"

DEPTHS = {"target_spacing": 1, "patch_size": 1, "features": 1, "strides": 2}
"""Settings of a prediction that are numbers in lists, and how deep."""


def share(
    plan: Plan, choice: Choice, dataset_root: Path, bundles: Path, *, name: str | None, fingerprint_key: str
) -> Path:
    """Write the bundle of the chosen model, with the networks of all its finished folds.

    Args:
        plan: the plan of the bundles that the networks come from.
        choice: which model.
        dataset_root: folder of the dataset.
        bundles: folder of the bundles of all datasets.
        name: of the bundle and its folder; None: the folder is "best".
        fingerprint_key: of the dataset, for the metadata.

    Returns:
        The bundle's folder, bundles/<dataset>/<name>.

    Raises:
        TemplateError: the folds were predicted with different settings, or the folder is that of a configuration.
    """
    root = bundles / plan.name
    folder = root / (name or "best")
    check_name(name)
    found = {m: _finished(plan, root / m) for m in choice.winner.members}
    folds = {m: tuple(found[m]) for m in found}
    settings = _settings({m: [found[m][k].settings for k in folds[m]] for m in folds}, root)
    _check_spacing(plan, settings, root)
    trained = _trained(plan, folds, settings)
    files = render.render_shared(
        plan,
        trained,
        render.relative_path(dataset_root, folder),
        name=name or f"{plan.name}_best",
        mirror=all(s["mirror"] for s in settings.values()),
        overlap=max(s["overlap"] for s in settings.values()),
        performance=_performance(choice),
        provenance={
            "dataset": {"name": plan.name, "cases": plan.num_training, "fingerprint": fingerprint_key},
            "networks": {m: {f"fold_{k}": found[m][k].model for k in folds[m]} for m in folds},
        },
    )
    _write_weights({m: [root / m / "models" / f"fold_{k}" / "model.pt" for k in folds[m]] for m in folds}, folder)
    render.write(folder, files)
    return folder


def _finished(plan: Plan, bundle: Path) -> dict[int, FoldResult]:
    """The finished folds of a bundle.

    Raises:
        TemplateError: there is none any more.
    """
    read = {k: results.read(results.fold_folder(bundle, k), cases) for k, cases in enumerate(plan.folds)}
    found = {k: result for k, result in read.items() if isinstance(result, FoldResult)}
    if not found:
        raise TemplateError(f"{bundle}: no fold is finished any more: fold 0 {read[0]}. Choose again.")
    return found


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
    planned = plan.configuration("3d_fullres").spacing
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
    plan: Plan, folds: Mapping[str, tuple[int, ...]], settings: Mapping[str, Mapping[str, Any]]
) -> list[render.Trained]:
    """The networks of the chosen configurations, a cascade's first stage before its second."""
    trained = []
    for name, ks in folds.items():
        if name == "3d_cascade_fullres":
            trained.append(render.Trained(_network(plan, name, "3d_lowres", settings[name], "lowres_"), ks))
        trained.append(render.Trained(_network(plan, name, name, settings[name]), ks))
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


def _performance(choice: Choice) -> render.Performance:
    best = choice.scores[0].postprocessed
    classes = zip(choice.setting.classes, best.classes, strict=True)
    return render.Performance(len(choice.cases), choice.setting.folds, (("mean foreground", best.foreground), *classes))


def _write_weights(models: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """One flat file of all networks, and large_files.yml where it is too large for a repository."""
    import torch

    weights = {}
    for name, paths in models.items():
        for number, path in enumerate(paths):
            weights.update({_key(name, number, key): value for key, value in _weights(path).items()})
    target = folder / "models" / "model.pt"
    target.parent.mkdir(parents=True, exist_ok=True)

    def save(path: Path) -> None:
        with path.open("wb") as file:  # a name instead would become a part of the file
            torch.save(weights, file)

    write_atomically(target, save)
    listed = folder / "large_files.yml"
    if target.stat().st_size <= LARGE_FILE_BYTES:
        listed.unlink(missing_ok=True)
        return
    md5 = hashlib.md5(target.read_bytes(), usedforsecurity=False).hexdigest()
    lines = [
        "large_files:", '- path: "models/model.pt"', f'  url: "{ADDRESS}"',
        f'  hash_val: "{md5}"', '  hash_type: "md5"',
    ]  # fmt: skip
    write_text_atomically(listed, "\n".join(lines) + "\n")


def _weights(path: Path) -> dict[str, Any]:
    """The weights of a network.

    Raises:
        TemplateError: the file is damaged, or holds something else than tensors by name.
    """
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in too many ways to name
        raise TemplateError(
            f"{path}: is no file of weights ({type(error).__name__}). Remove the fold's folder and train it again."
        ) from error
    named = isinstance(found, dict) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()
    )
    if not named:
        raise TemplateError(f"{path}: holds no weights by name. Remove the fold's folder and train it again.")
    return dict(found)


def _key(configuration: str, number: int, key: str) -> str:
    """Name of a weight among those of all networks; a cascade's file has both stages as `lowres.0.…`, `cascade.0.…`."""
    if configuration != "3d_cascade_fullres":
        return f"{MEMBERS[configuration]}.{number}.{key}"
    stage, _, rest = key.split(".", 2)
    return f"{stage}.{number}.{rest}"
