"""Writes a plan down as MONAI bundles. Chooses nothing: it sets named values in the templates and copies the rest.

MONAI's own words (`roi_size`, `filters`, `pixdim`) appear in the templates only.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoplan.base import written
from autoplan.base.codec import format_json, to_dict
from autoplan.base.errors import TemplateError
from autoplan.base.scripts import templates_folder
from autoplan.bundle.metadata import bundle_name, metadata
from autoplan.bundle.overlays import read_template
from autoplan.bundle.readme import readme_of
from autoplan.bundle.templates import BATCHES, CONFIGS, copied, template
from autoplan.bundle.writing import GENERATED, MARKS, relative_path, write
from autoplan.data.facts import Case, Dataset
from autoplan.planning import recipes, rules
from autoplan.planning.values import Configuration, Plan


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
                f"existing bundles differ from the new plan:\n{lines}\n"
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
            config["learning_rate"] = recipes.fine_tuning_rate(config["learning_rate"])
        files[f"configs/{name}"] = format_json(config).encode()
    described = metadata(read_template(templates / "configs" / "metadata.json"), plan, configuration)
    files["configs/metadata.json"] = format_json(inert(described)).encode()
    files["configs/datalist.json"] = format_json(datalist(plan, dataset)).encode()
    files["docs/README.md"] = readme_of(templates / "docs", plan, configuration, list(configs.values())).encode()
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


def inert(value: Any) -> Any:
    """Metadata in which MONAI's config parser finds nothing to run or to look up: it takes what starts with $ for code,
    with @ or % for a reference, @# or %# (or :: for #) for a place, wherever they stand, and a dictionary with the key
    _target_ for a call. Programs that read the metadata expect text and no expression, so a space keeps these marks
    apart."""
    if isinstance(value, dict):
        return {" _target_" if key == "_target_" else key: inert(item) for key, item in value.items()}
    if isinstance(value, list):
        return [inert(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"([@%])(?=#|::)", r"\1 ", " " + value if value.startswith(("$", "@", "%")) else value)


# The bundle to share.


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
