"""metadata.json of a bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoplan import __version__
from autoplan.base.codec import to_dict
from autoplan.base.scripts.formats import unneeded_packages
from autoplan.bundle.overlays import read_template
from autoplan.planning.values import ALL, Configuration, Fold, Plan


def bundle_name(plan: Plan, configuration: Configuration) -> str:
    """The bundle's name in its metadata, by which its configs recognize their own `scripts`."""
    return f"{plan.name}_{configuration.name}"


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


@dataclass(frozen=True)
class Trained:
    """Networks of one configuration, as they were trained, in the bundle to share: those of `folds`."""

    configuration: Configuration
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class Performance:
    """Scores of the chosen model in cross-validation, to be told in its bundle. `mean_dice` pairs classes with their
    mean Dice, the mean over the foreground first; None for a class that occurs in no case."""

    num_cases: int
    folds: tuple[Fold, ...]
    mean_dice: tuple[tuple[str, float | None], ...]


def is_chosen(provenance: Mapping[str, Any]) -> bool:
    """Whether cross-validation chose a model, or somebody named it."""
    return bool(provenance.get("choice", "cross-validation") == "cross-validation")


_BY_CHOICE = "chosen by cross-validation and "


def best_metadata(
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
        f"{model_of(trained)}, {_BY_CHOICE * is_chosen(provenance)}configured by the rules of nnU-Net (2018)."
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


def configurations(trained: Sequence[Trained]) -> list[str]:
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
    number = len(configurations(trained)) * len(performance.folds)
    counted = dict(enumerate(("one", "two", "three", "four", "five"), 1)).get(number, number)
    return f"{said}the scores are those of the {counted} network{'s' * (number > 1)} of the cross-validation."


def model_of(trained: Sequence[Trained]) -> str:
    """The chosen model in words."""
    stages = configurations(trained)
    return f"the U-Net {stages[0]}" if len(stages) == 1 else f"the ensemble of the U-Nets {' and '.join(stages)}"
