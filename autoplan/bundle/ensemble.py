"""The bundle of several networks, the one to share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoplan.base.codec import format_json, to_dict
from autoplan.base.scripts import templates_folder
from autoplan.bundle.metadata import Performance, Trained, best_metadata
from autoplan.bundle.overlays import overlaid, read_template
from autoplan.bundle.readme import Shared, best_readme, scored
from autoplan.bundle.render import inert, planned_values
from autoplan.bundle.settings import MEMBERS
from autoplan.bundle.templates import copied, template
from autoplan.planning import recipes
from autoplan.planning.values import Configuration, Plan


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
            f"{member}_batch_size": recipes.shared_batch_size(t.configuration),
            f"{member}_strides": to_dict(t.configuration.strides),
            f"{member}_features": list(t.configuration.features),
        }
    config.update((key, value) for key, value in values.items() if key in config)
    described = best_metadata(templates, plan, trained, name, performance, provenance)
    text = (templates / "docs" / "best.md").read_text(encoding="utf-8")
    readme = best_readme(text, plan, trained, described, performance, config)
    files = {
        "configs/inference.json": format_json(config).encode(),
        "configs/metadata.json": format_json(inert(described)).encode(),
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
    train["learning_rate"] = recipes.fine_tuning_rate(train["learning_rate"])
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
    return best_readme(template, plan, trained, metadata, performance, config, shared)
