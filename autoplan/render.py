"""Writes a plan down as MONAI bundles. Chooses nothing: it sets named values in the templates and copies the rest.

MONAI's own words (`roi_size`, `filters`, `pixdim`) appear in the templates only.
"""

import json
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoplan import __version__, rules, written
from autoplan.errors import TemplateError
from autoplan.facts import ALL, Case, Configuration, Dataset, Fold, Plan, to_dict
from autoplan.formats import unneeded_packages
from autoplan.overlays import format_json, overlaid, read_template, templates_folder
from autoplan.settings import MEMBERS, explained

BATCHES = {"quick.json": rules.quick_batch_size, "budget.json": rules.budget_batch_size}
"""Recipes with a batch of their own, from the planned one."""
CONFIGS = ("train.json", "evaluate.json", "inference.json", "multi_gpu_train.json", "quick.json", "budget.json")
OVERLAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "3d_lowres": {"train.json": ("3d_lowres/train.json",), "inference.json": ("3d_lowres/inference.json",)},
    "3d_cascade_fullres": {
        "train.json": ("3d_cascade_fullres/networks.json", "3d_cascade_fullres/train.json"),
        "evaluate.json": ("3d_cascade_fullres/evaluate.json",),
        "inference.json": ("3d_cascade_fullres/networks.json", "3d_cascade_fullres/inference.json"),
        "multi_gpu_train.json": ("3d_cascade_fullres/multi_gpu_train.json",),
    },
}
"""What the stages of the cascade add to the templates of 3d_fullres; see `overlays`."""
PRETRAINED: dict[str, tuple[str, ...]] = {
    "train.json": ("pretrained/train.json",),
    "multi_gpu_train.json": ("pretrained/multi_gpu_train.json",),
}
"""What is laid over these where trainings start from the weights of another bundle."""
IGNORING: dict[str, tuple[str, ...]] = {
    "train.json": ("ignoring/train.json",),
    "evaluate.json": ("ignoring/evaluate.json",),
}
"""What is laid over these where labels have voxels that are not known."""
MARKS = ("configs/train.json", "configs/inference.json")
"""The file without which a bundle is none: the first of these that the bundle has."""

GENERATED = ("configs", "scripts", "docs")
"""Folders of a bundle in which files that are not rendered any more are removed."""


def render_all(plan: Plan, dataset: Dataset, bundles: Path, *, force: bool = False) -> list[Path]:
    """Write a bundle for each configuration of the plan.

    Args:
        plan: what to write down.
        dataset: where its files are; bundles refer to its folder relative to themselves.
        bundles: where `<name>/<configuration>/` goes.
        force: rewrite a bundle that holds other values. Its models/ stays, as does every file that is not autoplan's;
            of those that were changed by hand a copy is kept.

    Returns:
        The bundles' folders, and those with such copies.

    Raises:
        TemplateError: a bundle that is there holds other values, and `force` is not given. Nothing is written then.
    """
    rendered = {}
    for configuration in plan.configurations:
        folder = bundles / plan.name / configuration.name
        rendered[folder] = render(plan, configuration, dataset, relative_path(dataset.root, folder))
    for folder in rendered:
        written.settle(folder)
    if not force:
        changes = [line for folder, files in rendered.items() for line in _changes(folder, files)]
        if changes:
            lines = "\n".join(f"  {line}" for line in changes)
            raise TemplateError(
                f"bundles that are there differ from what would be written now:\n{lines}\n"
                "Keep them and name another folder with --bundles DIR, or rewrite them with --force (models/ stays; "
                "a copy of what was changed by hand is kept)."
            )
    kept = [place for folder, files in rendered.items() for place in write(folder, files, force=force)]
    return [*rendered, *kept]


def render(plan: Plan, configuration: Configuration, dataset: Dataset, dataset_dir: str) -> dict[str, bytes]:
    """The files of a bundle, path in the bundle -> content.

    Args:
        plan: the whole plan.
        configuration: the one of its configurations to render.
        dataset: where the files of its cases are.
        dataset_dir: the dataset's folder relative to the bundle's.
    """
    templates = templates_folder()
    values = planned_values(plan, configuration, dataset_dir)
    files, configs = {}, {}
    for name in CONFIGS:
        config = configs[name] = template(
            name, configuration.name, goes_on=plan.origin is not None, ignores=plan.ignore is not None
        )
        if name in ("train.json", "inference.json"):
            config.update((key, value) for key, value in values.items() if key in config)
        if name in BATCHES:
            config["batch_size"] = BATCHES[name](configuration.batch_size)
        if plan.origin is not None and "learning_rate" in config:
            config["learning_rate"] = rules.fine_tuning_rate(config["learning_rate"])
        files[f"configs/{name}"] = format_json(config).encode()
    described = metadata(read_template(templates / "configs" / "metadata.json"), plan, configuration)
    files["configs/metadata.json"] = format_json(_inert(described)).encode()
    files["configs/datalist.json"] = format_json(datalist(plan, dataset)).encode()
    files["docs/README.md"] = _readme(templates / "docs", plan, configuration, list(configs.values())).encode()
    return dict(sorted({**files, **copied(templates)}.items()))


def datalist(plan: Plan, dataset: Dataset) -> dict[str, Any]:
    """MONAI's list of cases, with the fold that each is validated in; paths as the dataset has them."""
    by_name = {case.name: case for case in dataset.training}
    folds = [(by_name[name], k) for k, names in enumerate(plan.folds) for name in names]
    return {
        "training": [{**_entry(case), "label": case.label, "fold": k} for case, k in folds],
        "test": [_entry(case) for case in dataset.test],
    }


def _entry(case: Case) -> dict[str, Any]:
    """An image in a datalist: one path, or a list of the paths of its channels."""
    return {"name": case.name, "image": case.images[0] if len(case.images) == 1 else list(case.images)}


def template(name: str, configuration: str, *, goes_on: bool = False, ignores: bool = False) -> dict[str, Any]:
    """A config of a configuration as the templates have it, before any plan.

    Args:
        name: file name, such as train.json.
        configuration: such as 3d_fullres.
        goes_on: whether its trainings start from the weights of another bundle.
        ignores: whether labels have voxels that are not known.
    """
    folder = templates_folder() / "configs"
    config = read_template(folder / name)
    wanted = [OVERLAYS.get(configuration, {}), *[PRETRAINED] * goes_on, *[IGNORING] * ignores]
    for overlay in (overlay for overlays in wanted for overlay in overlays.get(name, ())):
        config = overlaid(config, read_template(folder / overlay))
    return config


def copied(templates: Path) -> dict[str, bytes]:
    """The files that every bundle has alike, path in the bundle -> content."""
    paths = [templates / "LICENSE", templates / "configs" / "logging.conf", *(templates / "scripts").glob("*.py")]
    return {path.relative_to(templates).as_posix(): path.read_bytes() for path in paths}


def bundle_name(plan: Plan, configuration: Configuration) -> str:
    """The bundle's name in its metadata, by which its configs recognize their own `scripts`."""
    return f"{plan.name}_{configuration.name}"


def relative_path(target: Path, folder: Path) -> str:
    """`target` seen from `folder`, with forward slashes.

    Symbolic links are kept as they are written where that leads to the target. Where the folder lies behind a link, the
    system goes up from where the link leads to, so the path is counted from there.
    """
    written, behind = os.path.relpath(target.absolute(), folder.absolute()), os.path.realpath(folder)
    leads_there = os.path.realpath(os.path.join(behind, written)) == os.path.realpath(target)
    return Path(written if leads_there else os.path.relpath(target.absolute(), behind)).as_posix()


def planned_values(plan: Plan, configuration: Configuration, dataset_dir: str) -> dict[str, Any]:
    """What the plan says, by the names that it has in the configs."""
    low = next((c for c in plan.configurations if c.name == "3d_lowres"), configuration)
    return {
        "bundle_root": f"$scripts.root({bundle_name(plan, configuration)!r})",
        "dataset_dir": f"$@bundle_root + {_literal('/' + dataset_dir)}",
        "class_names": [_text(name) for _, name in plan.labels],
        "label_values": [value for value, _ in plan.labels],
        "ignore_value": plan.ignore,
        "single_component": list(plan.single_component),
        "target_spacing": list(plan.spacing),
        "lowres_spacing": list(low.spacing),
        "lowres_patch_size": list(low.patch_size),
        "lowres_strides": to_dict(low.strides),
        "lowres_features": list(low.features),
        "slice_axis": plan.slice_axis,
        "normalization": to_dict(plan.normalization),
        "nonzero_only": plan.nonzero_only,
        "training_range": to_dict(plan.training_range),
        "patch_size": list(configuration.patch_size),
        "batch_size": configuration.batch_size,
        "strides": to_dict(configuration.strides),
        "features": list(configuration.features),
        "batch_dice": configuration.batch_dice,
        "warp_slice_axis": rules.augmentation_slice_axis(configuration, slice_axis=plan.slice_axis),
        "rotation_degrees": rules.rotation_degrees(configuration.augmentation),
        "elastic_alpha": list(rules.elastic_alpha(configuration.augmentation)),
    }


def _literal(text: str) -> str:
    """A Python string literal that MONAI's config parser leaves alone: it takes @ and % for references and # for a
    separator wherever they stand, and "import" for a statement."""
    escaped = repr(text).replace("@", r"\x40").replace("%", r"\x25").replace("#", r"\x23")
    return escaped.replace("import", r"\x69mport")


def _text(name: str) -> str:
    """A name as it stands in a config: itself, or an expression that gives it where MONAI would read more in it."""
    return "$" + _literal(name) if any(mark in name for mark in "$@%#") or "::" in name else name


def _inert(value: Any) -> Any:
    """Metadata in which MONAI's config parser finds nothing to run or to look up: it takes what starts with $ for code,
    with @ or % for a reference, @# or %# (or :: for #) for a place, wherever they stand, and a dictionary with the key
    _target_ for a call. Programs that read the metadata expect text and no expression, so a space keeps these marks
    apart."""
    if isinstance(value, dict):
        return {" _target_" if key == "_target_" else key: _inert(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_inert(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"([@%])(?=#|::)", r"\1 ", " " + value if value.startswith(("$", "@", "%")) else value)


def metadata(metadata: dict[str, Any], plan: Plan, configuration: Configuration) -> dict[str, Any]:
    """The metadata of a configuration's bundle, made of the template's."""
    for package in unneeded_packages(plan.formats):
        del metadata["required_packages_version"][package]
    if "pydicom" not in metadata["required_packages_version"]:
        del metadata["optional_packages_version"]
    classes = {str(i): name for i, (_, name) in enumerate(plan.labels)}
    foreground = ", ".join(name for _, name in plan.labels[1:])
    channels = {str(i): name for i, name in enumerate(plan.modalities)}
    modalities, ignored = ", ".join(channels.values()), () if plan.ignore is None else ((plan.ignore, "not known"),)
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    image.update(
        modality=modalities,
        num_channels=len(plan.modalities),
        spatial_shape=list(configuration.patch_size),
        channel_def=channels,
    )
    pred.update(num_channels=len(classes), spatial_shape=list(configuration.patch_size), channel_def=classes)
    metadata.update(
        name=bundle_name(plan, configuration),
        description=f"U-Net ({configuration.name}) that segments {foreground} in {modalities} images, configured by "
        "the rules of nnU-Net (2018) for the dataset it is named after.",
        data_source=plan.name,
        data_type=", ".join(plan.formats).lower(),
        image_classes=f"{len(plan.modalities)} channel(s): {modalities}",
        label_classes=f"single channel: {', '.join(f'{value} {name}' for value, name in (*plan.labels, *ignored))}",
        pred_classes=f"{len(classes)} channels, one for each class: {', '.join(classes.values())}",
        autoplan={
            "version": __version__,
            "configuration": configuration.name,
            "cases": plan.num_training,
            **({} if plan.origin is None else {"went_on_from": to_dict(plan.origin)}),
        },
    )
    return metadata


def _row(*cells: str) -> str:
    """A line of a table in a README, whatever its cells hold."""
    return f"| {' | '.join(_markdown(cell) for cell in cells)} |"


def _markdown(text: str) -> str:
    """A text that is read as it stands: no column, no tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _explained(*configs: Mapping[str, Any]) -> str:
    """Lines of a table that explains the keys of configs."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return "\n".join(
        f"| `{s.name}` | {'yes' if s.kind in ('planned', 'dataset') else ''} | {s.meaning} |" for s in explained(keys)
    )


def _readme(templates: Path, plan: Plan, configuration: Configuration, configs: Sequence[Mapping[str, Any]]) -> str:
    decisions = [d for d in plan.decisions if d.configuration in ("", configuration.name)]
    rows = [_row(d.name, d.value, d.source, d.because) for d in decisions]
    values = {
        "name": bundle_name(plan, configuration),
        "dataset": plan.name,
        "configuration": configuration.name,
        "dimensions": f"{len(configuration.patch_size)}D",
        "modalities": _markdown(", ".join(plan.modalities)),
        "classes": _markdown(", ".join(name for _, name in plan.labels[1:])),
        "cases": plan.num_training,
        "folds": len(plan.folds),
        "last_fold": len(plan.folds) - 1,
        "decisions": "\n".join(rows),
        "keys": _explained(*configs),
        "clients": (templates / "clients.md").read_text(encoding="utf-8"),
    }
    stage = templates / f"{configuration.name}.md"
    text = "\n" + string.Template(stage.read_text(encoding="utf-8")).substitute(values) if stage.is_file() else ""
    return string.Template((templates / "README.md").read_text(encoding="utf-8")).substitute(values, stage=text)


# The bundle to share.


@dataclass(frozen=True)
class Trained:
    """Networks of one configuration, as they were trained, in the bundle to share: those of `folds`."""

    configuration: Configuration
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class Shared:
    """What a README tells of a bundle that is handed to others: where its data come from, file names of figures with
    what they show, and for a configuration and a fold the number of cases on which faster predictions were compared,
    with the table of `faster.rows`."""

    data_source: str
    figures: Mapping[str, str]
    faster: Mapping[tuple[str, Fold], tuple[int, Sequence[Sequence[str]]]]


@dataclass(frozen=True)
class Performance:
    """Scores of the chosen model in cross-validation, to be told in its bundle. `mean_dice` pairs classes with their
    mean Dice, the mean over the foreground first; None for a class that occurs in no case."""

    num_cases: int
    folds: tuple[Fold, ...]
    mean_dice: tuple[tuple[str, float | None], ...]


def render_shared(
    plan: Plan,
    trained: Sequence[Trained],
    dataset_dir: str,
    *,
    name: str,
    mirror: bool,
    overlap: float,
    performance: Performance | None,
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
        performance: for the metadata and the README; None where there is no score.
        provenance: for the metadata: where the plan and the networks come from.
    """
    templates = templates_folder()
    names = [MEMBERS[t.configuration.name] for t in trained]
    parts = ["best/inference.json", *(f"best/{n}.json" for n in names)]
    if names == ["lowres"]:
        parts = ["3d_lowres/inference.json", *parts, "best/lowres_alone.json"]
    config = read_template(templates / "configs" / "inference.json")
    for part in parts:
        config = overlaid(config, read_template(templates / "configs" / part))
    for key in ("patch_size", "batch_size", "strides", "features"):
        del config[key]
    values = planned_values(plan, trained[0].configuration, dataset_dir)
    values |= {"bundle_root": f"$scripts.root({name!r})", "mirror": mirror, "overlap": overlap}
    for member, t in zip(names, trained, strict=True):
        values |= {
            f"{member}_folds": list(t.folds),
            f"{member}_patch_size": list(t.configuration.patch_size),
            f"{member}_batch_size": rules.shared_batch_size(t.configuration),
            f"{member}_strides": to_dict(t.configuration.strides),
            f"{member}_features": list(t.configuration.features),
        }
    config.update((key, value) for key, value in values.items() if key in config)
    described = _best_metadata(templates, plan, trained, name, performance, provenance)
    text = (templates / "docs" / "best.md").read_text(encoding="utf-8")
    readme = _best_readme(text, plan, trained, described, performance, config)
    files = {
        "configs/inference.json": format_json(config).encode(),
        "configs/metadata.json": format_json(_inert(described)).encode(),
        "docs/README.md": readme.encode(),
    }
    return dict(sorted({**files, **copied(templates)}.items()))


def going_on(plan: Plan, inference: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configs that train all networks of a bundle to share together, from its weights on, and score the result.

    Args:
        plan: the whole plan.
        inference: the bundle's inference.json.

    Returns:
        The contents of train.json and evaluate.json by name.
    """
    folder = templates_folder() / "configs"
    members = {name: member for name, member in MEMBERS.items() if f"{member}_folds" in inference}
    last, base = list(members)[-1], "3d_lowres" if list(members) == ["3d_lowres"] else "3d_fullres"
    ignores = plan.ignore is not None
    train = template("train.json", base, goes_on=True, ignores=ignores)
    if base == "3d_fullres" and "lowres_spacing" in inference:
        train = overlaid(train, {"_after_": {"target_spacing": {"lowres_spacing": None}}})
    for key in ("strides", "features"):
        del train[key], train["training_settings"][key]
    own = [key for key in inference if key.partition("_")[0] in members.values() and key != "lowres_spacing"]
    parts = {key: inference[key] for key in own}
    networks = {key: parts.pop(key) for key in own if key.endswith("_networks")}
    train = overlaid(train, {"_after_": {"nonzero_only": parts, "amp": networks}})
    train = overlaid(train, {"network_def": inference["network_def"], **read_template(folder / "best" / "train.json")})
    values = planned_values(plan, as_shared(plan, inference, last), "")
    values |= {key: inference[key] for key in values if key in inference}
    train.update((key, value) for key, value in values.items() if key in train)
    train["learning_rate"] = rules.fine_tuning_rate(train["learning_rate"])
    train["pretrained"] = "$@bundle_root + '/models/model.pt'"
    train["cache_dir"] = "$@bundle_root + '/cache'"
    train["mirror_prob"] = train["mirror_prob"] if inference["mirror"] else 0.0
    evaluate = overlaid(
        template("evaluate.json", base, ignores=ignores), read_template(folder / "best" / "evaluate.json")
    )
    return {"train.json": train, "evaluate.json": {**evaluate, "validate#inferer": inference["inferer"]}}


def as_shared(plan: Plan, inference: Mapping[str, Any], name: str) -> Configuration:
    """A configuration of a plan, with the network that a bundle to share has."""
    member = MEMBERS[name]
    return replace(
        plan.configuration(name),
        patch_size=tuple(inference[f"{member}_patch_size"]),
        strides=tuple(map(tuple, inference[f"{member}_strides"])),
        features=tuple(inference[f"{member}_features"]),
    )


def _is_chosen(provenance: Mapping[str, Any]) -> bool:
    """Whether cross-validation chose a model, or somebody named it."""
    return bool(provenance.get("choice", "cross-validation") == "cross-validation")


_BY_CHOICE = "chosen by cross-validation and "
_CHOSEN = (
    "which cross-validation on the dataset $dataset chose among the models and pairs of models that were trained\n"
    "there (sections 2.1 to 2.6 of arXiv:1809.10486)"
)
_TRAINED = "trained on the dataset $dataset (sections 2.1 to 2.5 of arXiv:1809.10486)"
_TO_DO = "; add who trained it"
_NEXT = "Before it is given to others: `python -m autoplan share $dataset` adds what the Model Zoo asks for."


def _best_metadata(
    templates: Path,
    plan: Plan,
    trained: Sequence[Trained],
    name: str,
    performance: Performance | None,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    last = trained[-1]
    described = metadata(read_template(templates / "configs" / "metadata.json"), plan, last.configuration)
    patch = list(last.configuration.patch_size)
    if len(patch) == 2:
        patch.insert(plan.slice_axis, 1)
    for kind in ("inputs", "outputs"):
        for tensor in described["network_data_format"][kind].values():
            tensor["spatial_shape"] = patch
    described["network_data_format"]["outputs"]["pred"]["value_range"] = [0, 1]
    described.update(
        name=name,
        version="1.0.0",
        changelog={"1.0.0": "not shared yet"},
        description=f"Segments {', '.join(n for _, n in plan.labels[1:])} in {', '.join(plan.modalities)} images with "
        f"{_model(trained)}, {_BY_CHOICE * _is_chosen(provenance)}configured by the rules of nnU-Net (2018)."
        + (f" {on_all(trained, performance)}" if is_on_all(trained) else ""),
        eval_metrics={}
        if performance is None
        else {
            "mean_dice": {n: None if v is None else round(v, 4) for n, v in performance.mean_dice},
            "cases": performance.num_cases,
            "folds": list(performance.folds),
            **({"networks": "those of the cross-validation, not that of this bundle"} if is_on_all(trained) else {}),
        },
        autoplan={"version": __version__, **provenance},
    )
    return described


def _configurations(trained: Sequence[Trained]) -> list[str]:
    """The configurations of a model; a cascade is one."""
    stages: list[str] = [t.configuration.name for t in trained]
    if "3d_cascade_fullres" in stages and "3d_lowres" in stages:
        stages.remove("3d_lowres")
    return stages


def is_on_all(trained: Sequence[Trained]) -> bool:
    """Whether networks were trained on all cases."""
    return trained[0].folds == (ALL,)


def on_all(trained: Sequence[Trained], performance: Performance | None) -> str:
    """What is said of networks that were trained on all cases, and of scores beside them."""
    several = len(trained) > 1
    said = f"The network{'s were' if several else ' was'} trained on all cases; "
    if performance is None:
        return f"{said}{'they have' if several else 'it has'} no cross-validated score."
    number = len(_configurations(trained)) * len(performance.folds)
    counted = dict(enumerate(("one", "two", "three", "four", "five"), 1)).get(number, number)
    return f"{said}the scores are those of the {counted} network{'s' * (number > 1)} of the cross-validation."


def _model(trained: Sequence[Trained]) -> str:
    """The chosen model in words."""
    stages = _configurations(trained)
    return f"the U-Net {stages[0]}" if len(stages) == 1 else f"the ensemble of the U-Nets {' and '.join(stages)}"


def shared_readme(
    plan: Plan, metadata: Mapping[str, Any], inference: Mapping[str, Any], training: Mapping[str, Any], shared: Shared
) -> str:
    """The README of a bundle to share, once people have said what only they know.

    Args:
        plan: the whole plan.
        metadata: the bundle's metadata.json.
        inference: its inference.json.
        training: its train.json.
        shared: what was said.
    """
    names = [name for name, member in MEMBERS.items() if f"{member}_folds" in inference]
    trained = [Trained(as_shared(plan, inference, n), tuple(inference[f"{MEMBERS[n]}_folds"])) for n in names]
    performance = scored(metadata)
    config = {**training, **inference}
    template = (templates_folder() / "docs" / "best.md").read_text(encoding="utf-8")
    return _best_readme(template, plan, trained, metadata, performance, config, shared)


def scored(metadata: Mapping[str, Any]) -> Performance | None:
    """The scores in the metadata of a bundle to share; None where it has none."""
    scores = metadata["eval_metrics"]
    return Performance(scores["cases"], tuple(scores["folds"]), tuple(scores["mean_dice"].items())) if scores else None


def _best_readme(
    template: str,
    plan: Plan,
    trained: Sequence[Trained],
    metadata: Mapping[str, Any],
    performance: Performance | None,
    config: Mapping[str, Any],
    shared: Shared | None = None,
) -> str:
    names = {t.configuration.name for t in trained}
    rows = [
        _row(d.configuration or "all", d.name, d.value, d.source, d.because)
        for d in plan.decisions
        if d.configuration in ("", *names)
    ]
    networks = [
        f"- `{t.configuration.name}`: patches of {' x '.join(map(str, t.configuration.patch_size))} voxels, "
        f"{len(t.folds)} network{'s' if len(t.folds) > 1 else ''} ({told_folds(t.folds)})"
        f"{_told_without(t.folds, performance)}"
        for t in trained
    ]
    more = _NEXT if shared is None else (templates_folder() / "docs" / "shared.md").read_text(encoding="utf-8").strip()
    return string.Template(template).substitute(
        name=metadata["name"],
        authors=metadata["authors"] + ". Planned and put together by autoplan" + _TO_DO * (shared is None) + ".",
        terms="" if shared is None else f"\n\nSource: {shared.data_source}. License: `docs/data_license.txt`.",
        figures="" if shared is None else "".join(f"\n![{text}]({file})\n" for file, text in shared.figures.items()),
        faster="" if shared is None else "".join(_faster(*key, *found) for key, found in shared.faster.items()),
        more=string.Template(more).substitute(dataset=plan.name),
        intended_use=metadata["intended_use"],
        dataset=plan.name,
        model=_model(trained),
        choice=string.Template(_CHOSEN if _is_chosen(metadata["autoplan"]) else _TRAINED).substitute(dataset=plan.name),
        modalities=_markdown(", ".join(plan.modalities)),
        classes=_markdown(", ".join(n for _, n in plan.labels[1:])),
        cases=plan.num_training,
        networks="\n".join(networks),
        performance=_performance(trained, performance, is_mirrored=config["mirror"]),
        decisions="\n".join(rows),
        keys=_explained(config),
        clients=(templates_folder() / "docs" / "clients.md").read_text(encoding="utf-8"),
    )


def _told_without(folds: Sequence[Fold], performance: Performance | None) -> str:
    """Which folds count in the scores, while their networks are not there."""
    scored = [] if performance is None or ALL in folds else performance.folds
    absent = [str(k) for k in scored if k not in folds]
    return f"; without fold {' and '.join(absent)}, whose scores are far below the others'" if absent else ""


def told_folds(folds: Sequence[Fold]) -> str:
    """Whose networks they are."""
    return "trained on all cases" if ALL in folds else f"fold {', '.join(map(str, folds))}"


def _performance(trained: Sequence[Trained], performance: Performance | None, *, is_mirrored: bool) -> str:
    """The scores, and what they are of."""
    if performance is None:
        return on_all(trained, None)
    cases = f"over {performance.num_cases} cases of cross-validation ({told_folds(performance.folds)})"
    said = (
        f"{on_all(trained, performance)} Mean Dice {cases}, each predicted by networks\nthat did not train on it:"
        if is_on_all(trained)
        else f"Mean Dice {cases}, each predicted by networks that did not train on it,\n"
        f"with sliding window{', mirroring' * is_mirrored} and postprocessing:"
    )
    lines = [f"- {_markdown(n)}: {'-' if v is None else f'{v:.4f}'}" for n, v in performance.mean_dice]
    return "\n".join([said, "", *lines])


def _faster(configuration: str, fold: Fold, num_cases: int, rows: Sequence[Sequence[str]]) -> str:
    """What a faster prediction costs, as a section."""
    header, *lines = ("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"\n### A faster prediction: {configuration}\n\nThe network of fold {fold} on {num_cases} of its validation "
        "cases. Time is that of the network, as a part of the usual one; lost are objects, a class of a case, that are "
        "found as usual and not so. `overlap`, `mirror` and `region_first` are keys of `configs/inference.json`.\n\n"
        + "\n".join([header, "|--" * len(rows[0]) + "|", *lines])
        + "\n"
    )


# What is there, and writing.


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}#{key}" if path else key)
    else:
        yield path, value


def _changes(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """What would change in a bundle that is there, a line each; where none is, only what would be lost by that."""
    is_there, known = (folder / MARKS[0]).is_file(), written.recorded(folder)
    foreign, changes = written.foreign(folder, {**known, **files}), list[str]()
    for name, content in files.items():
        path, by_hand = folder / name, " (changed by hand)" * (name in foreign and name in known)
        old = path.read_bytes() if path.is_file() else b""
        if old != content and (is_there or name in foreign):
            changes.extend(f"{path}: {said}{by_hand}" for said in _differences(old, content))
    left = [name for name in known if name not in files and name.partition("/")[0] in GENERATED]
    gone = [name for name in left if name not in foreign and (folder / name).is_file()]
    return changes + [f"{folder / name}: is not part of the bundle any more" for name in gone]


def _differences(old: bytes, new: bytes) -> list[str]:
    """In what a file differs; of JSON, each key with its values."""
    try:
        before, after = (dict(_leaves(json.loads(text))) for text in (old, new))
    except (ValueError, RecursionError):
        return ["differs" if old else "is missing"]
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {_short(before.get(key))} -> {_short(after.get(key))}" for key in keys] or ["differs"]


def _short(value: Any, length: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else text[: length - 3] + "..."


def write(folder: Path, files: Mapping[str, bytes], *, force: bool = False) -> list[Path]:
    """Write a bundle's files, all or none, and remove those of an earlier time that are not among them; see
    `written.put`, also for the errors and what is returned."""
    with written.anew(folder) as work:
        fill(work / "new", files)
        return written.put(work / "new", folder, last=mark(files), parts=GENERATED, force=force)


def fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a new folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def mark(files: Iterable[str]) -> str:
    """The file of a bundle that goes first and comes last when others take its place."""
    return next(name for name in MARKS if name in files)
