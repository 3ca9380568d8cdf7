"""The bundle to share: all networks of the model or the pair that cross-validation chose, in one file of weights.

`files_of` writes it down as text, as `render` does for a configuration; `share` adds the weights.
"""

import dataclasses
import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoplan import __version__, render
from autoplan.choice import Choice
from autoplan.crossvalidation import finished
from autoplan.errors import TemplateError
from autoplan.facts import Configuration, Plan, to_dict
from autoplan.files import write_atomically, write_text_atomically

MEMBERS = {"2d": "slices", "3d_fullres": "fullres", "3d_lowres": "lowres", "3d_cascade_fullres": "cascade"}
"""What the networks of a configuration are called in a bundle that holds those of several."""
BEST_BATCH_SIZE = {2: 32, 3: 4}
"""Windows at most that a 2D or 3D network of the bundle to share sees at once: it runs on machines that did not train
it. Our choice."""


@dataclass(frozen=True)
class Trained:
    """Networks of one configuration, as they were trained, in the bundle to share: those of `folds`."""

    configuration: Configuration
    folds: tuple[int, ...]


@dataclass(frozen=True)
class Performance:
    """Scores of the chosen model in cross-validation, to be told in its bundle. `mean_dice` pairs classes with their
    mean Dice, the mean over the foreground first; None for a class that occurs in no case."""

    num_cases: int
    folds: tuple[int, ...]
    mean_dice: tuple[tuple[str, float | None], ...]


def files_of(
    plan: Plan,
    trained: Sequence[Trained],
    dataset_dir: str,
    *,
    name: str,
    mirror: bool,
    overlap: float,
    performance: Performance,
    provenance: Mapping[str, Any],
) -> dict[str, bytes]:
    """The files of the bundle to share, but for its weights: path in the bundle -> content.

    Args:
        plan: the whole plan.
        trained: the networks that it holds; both stages of a cascade.
        dataset_dir: the dataset's folder relative to the bundle's.
        name: the bundle's name in its metadata.
        mirror: whether predictions are averaged over mirrorings, as in cross-validation.
        overlap: of the windows, as in cross-validation.
        performance: for the metadata and the README.
        provenance: for the metadata: where the plan and the networks come from.
    """
    templates = render.templates_folder()
    names = [MEMBERS[t.configuration.name] for t in trained]
    parts = ["best/inference.json", *(f"best/{n}.json" for n in names)]
    if names == ["lowres"]:
        parts = ["3d_lowres/inference.json", *parts, "best/lowres_alone.json"]
    config = render.load_json(templates / "configs" / "inference.json")
    for part in parts:
        config = render.overlaid(config, render.load_json(templates / "configs" / part))
    for key in ("patch_size", "batch_size", "strides", "features"):
        del config[key]
    values = render.planned_values(plan, trained[0].configuration, dataset_dir)
    values |= {"bundle_root": f"$scripts.root({name!r})", "mirror": mirror, "overlap": overlap}
    for member, t in zip(names, trained, strict=True):
        values |= {
            f"{member}_folds": list(t.folds),
            f"{member}_patch_size": list(t.configuration.patch_size),
            f"{member}_batch_size": min(t.configuration.batch_size, BEST_BATCH_SIZE[len(t.configuration.patch_size)]),
            f"{member}_strides": to_dict(t.configuration.strides),
            f"{member}_features": list(t.configuration.features),
        }
    config.update((key, value) for key, value in values.items() if key in config)
    metadata = _best_metadata(templates, plan, trained, name, performance, provenance)
    readme = _best_readme((templates / "docs" / "best.md").read_text(), plan, trained, metadata, performance, mirror)
    files = {
        "configs/inference.json": render.format_json(config).encode(),
        "configs/metadata.json": render.format_json(metadata).encode(),
        "docs/README.md": readme.encode(),
    }
    return dict(sorted({**files, **render.copied(templates)}.items()))


def _best_metadata(
    templates: Path,
    plan: Plan,
    trained: Sequence[Trained],
    name: str,
    performance: Performance,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    last = trained[-1]
    metadata = render.metadata(render.load_json(templates / "configs" / "metadata.json"), plan, last.configuration)
    patch = list(last.configuration.patch_size)
    if len(patch) == 2:
        patch.insert(plan.slice_axis, 1)
    for kind in ("inputs", "outputs"):
        for tensor in metadata["network_data_format"][kind].values():
            tensor["spatial_shape"] = patch
    metadata["network_data_format"]["outputs"]["pred"]["value_range"] = [0, 1]
    metadata.update(
        name=name,
        version="1.0.0",
        changelog={"1.0.0": "chosen by cross-validation"},
        description=f"Segments {', '.join(n for _, n in plan.labels[1:])} in {', '.join(plan.modalities)} images with "
        f"{_model(trained)}, chosen by cross-validation and configured by the rules of nnU-Net (2018).",
        eval_metrics={
            "mean_dice": {n: None if v is None else round(v, 4) for n, v in performance.mean_dice},
            "cases": performance.num_cases,
            "folds": list(performance.folds),
        },
        autoplan={"version": __version__, **provenance},
    )
    return metadata


def _model(trained: Sequence[Trained]) -> str:
    """The chosen model in words."""
    stages = [t.configuration.name for t in trained]
    if "3d_cascade_fullres" in stages and "3d_lowres" in stages:
        stages.remove("3d_lowres")
    return f"the U-Net {stages[0]}" if len(stages) == 1 else f"the ensemble of the U-Nets {' and '.join(stages)}"


def _best_readme(
    template: str,
    plan: Plan,
    trained: Sequence[Trained],
    metadata: Mapping[str, Any],
    performance: Performance,
    mirror: bool,
) -> str:
    names = {t.configuration.name for t in trained}
    rows = [
        f"| {d.configuration or 'all'} | {d.name} | {d.value} | {d.source} | {d.because} |"
        for d in plan.decisions
        if d.configuration in ("", *names)
    ]
    networks = [
        f"- `{t.configuration.name}`: patches of {' x '.join(map(str, t.configuration.patch_size))} voxels, "
        f"{len(t.folds)} network{'s' if len(t.folds) > 1 else ''} (fold {', '.join(map(str, t.folds))})"
        for t in trained
    ]
    scores = [f"- {n}: {'-' if v is None else f'{v:.4f}'}" for n, v in performance.mean_dice]
    return string.Template(template).substitute(
        name=metadata["name"],
        authors=metadata["authors"],
        intended_use=metadata["intended_use"],
        dataset=plan.name,
        model=_model(trained),
        modalities=", ".join(plan.modalities),
        classes=", ".join(n for _, n in plan.labels[1:]),
        cases=plan.num_training,
        networks="\n".join(networks),
        scored_cases=performance.num_cases,
        folds=", ".join(map(str, performance.folds)),
        mirroring=", mirroring" if mirror else "",
        scores="\n".join(scores),
        decisions="\n".join(rows),
    )


LARGE_FILE_BYTES = 25 * 2**20
"""What the Model Zoo keeps in a repository at most; larger files are listed with an address."""
ADDRESS = "https://fill.in.the.address/model.pt"


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
    found, _ = finished(plan, root)
    folds = {m: tuple(sorted(found[m])) for m in choice.winner.members}
    settings = _settings({m: [json.loads(found[m][k].settings) for k in folds[m]] for m in folds}, root)
    _check_spacing(plan, settings, root)
    trained = _trained(plan, folds, settings)
    files = files_of(
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
        if any(s != settings[0] for s in settings):
            raise TemplateError(
                f"{root / name}: the folds were predicted with different settings ({_difference(settings)}). Predict "
                "them again with the same ones: run evaluating, by the bundle's docs/README.md."
            )
    return {name: settings[0] for name, settings in found.items()}


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
) -> list[Trained]:
    """The networks of the chosen configurations, a cascade's first stage before its second."""
    trained = []
    for name, ks in folds.items():
        if name == "3d_cascade_fullres":
            trained.append(Trained(_as_trained(plan.configuration("3d_lowres"), settings[name], "lowres_"), ks))
        trained.append(Trained(_as_trained(plan.configuration(name), settings[name]), ks))
    return trained


def _as_trained(configuration: Configuration, settings: Mapping[str, Any], prefix: str = "") -> Configuration:
    """The configuration with the network that was trained, which may be smaller than the planned one."""
    return dataclasses.replace(
        configuration,
        patch_size=tuple(settings[f"{prefix}patch_size"]),
        strides=tuple(map(tuple, settings[f"{prefix}strides"])),
        features=tuple(settings[f"{prefix}features"]),
    )


def _performance(choice: Choice) -> Performance:
    best = choice.scores[0].postprocessed
    classes = zip(choice.setting.classes, best.classes, strict=True)
    return Performance(len(choice.cases), choice.setting.folds, (("mean foreground", best.foreground), *classes))


def _write_weights(models: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """One flat file of all networks, and large_files.yml where it is too large for a repository."""
    import torch

    weights = {}
    for name, paths in models.items():
        for number, path in enumerate(paths):
            for key, value in torch.load(path, map_location="cpu", weights_only=True).items():
                weights[_key(name, number, key)] = value
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


def _key(configuration: str, number: int, key: str) -> str:
    """Name of a weight among those of all networks; a cascade's file has both stages as `lowres.0.…`, `cascade.0.…`."""
    if configuration != "3d_cascade_fullres":
        return f"{MEMBERS[configuration]}.{number}.{key}"
    stage, _, rest = key.split(".", 2)
    return f"{stage}.{number}.{rest}"
