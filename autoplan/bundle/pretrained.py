"""A bundle to go on from, on disk: what it says of itself, and its weights in the shape that a new dataset needs."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from autoplan.base.codec import from_dict
from autoplan.base.errors import PlanError, TemplateError, one_line
from autoplan.base.files import file_digest, read_object
from autoplan.bundle import render, saved, weights, writing
from autoplan.bundle.settings import MEMBERS
from autoplan.data.facts import Dataset
from autoplan.planning import finetuning
from autoplan.planning.finetuning import Network, Source
from autoplan.planning.values import ChannelNormalization, Configuration, ConfigurationName, Origin, Plan

WEIGHTS = "models/pretrained.pt"
"""Where a bundle that goes on has the weights that its trainings start from."""
OUTPUT = "output_block.conv.conv."
"""How the names of the weights begin that have a channel for each class."""
_DAMAGED = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError
)  # fmt: skip


def read(bundle: Path) -> Source:
    """What a bundle of autoplan's says of its networks.

    Args:
        bundle: its folder: a configuration's, or one to share.

    Raises:
        TemplateError: it is no such bundle, or its weights are not there.
    """
    config, metadata = (read_object(bundle / "configs" / name) for name in ("inference.json", "metadata.json"))
    if not config or not metadata:
        raise TemplateError(f"{bundle}: is no bundle: there is no configs/inference.json and metadata.json to read.")
    model = bundle / "models" / "model.pt"
    if not model.is_file():
        listed = (bundle / "large_files.yml").is_file()
        how = "Download what large_files.yml lists first" if listed else "Train it, or name a bundle that is trained"
        raise TemplateError(f"{bundle}: has no weights, models/model.pt. {how}.")
    weights.check(model, f"Get {bundle} anew.")
    try:
        return _source(config, metadata, file_digest(model))
    except _DAMAGED as error:
        raise TemplateError(
            f"{bundle}: is no bundle that autoplan can go on from: its configs lack what planning writes there "
            f"({one_line(error)[:100]})."
        ) from error


def _source(config: Mapping[str, Any], metadata: Mapping[str, Any], model: str) -> Source:
    """Raises LookupError, TypeError or ValueError for what is not there."""
    channels = metadata["network_data_format"]["inputs"]["image"]["channel_def"]
    about = metadata["autoplan"]
    dataset = about["dataset"]["name"] if "dataset" in about else metadata["data_source"]
    members = [n for n in get_args(ConfigurationName) if f"{MEMBERS[n]}_folds" in config]
    names = members or [from_dict(str, about["configuration"])]
    networks = [_network(config, name) for name in names if name in finetuning.SUPPORTED]
    return Source(
        origin=Origin(*(from_dict(str, said) for said in (metadata["name"], metadata["version"], model, dataset))),
        channels=tuple(from_dict(str, channels[str(i)]) for i in range(len(channels))),
        classes=tuple(map(_text, config["class_names"])),
        spacing=from_dict(tuple[float, float, float], config["target_spacing"]),
        slice_axis=from_dict(int, config["slice_axis"]),
        normalization=from_dict(tuple[ChannelNormalization | None, ...], config["normalization"]),
        nonzero_only=from_dict(bool, config["nonzero_only"]),
        networks=tuple(networks),
        others=tuple(name for name in names if name not in finetuning.SUPPORTED),
    )


def _network(config: Mapping[str, Any], name: ConfigurationName) -> Network:
    """A network of a bundle, by the keys of its inference.json."""
    member = f"{MEMBERS[name]}_" if f"{MEMBERS[name]}_folds" in config else ""
    return Network(
        name,
        from_dict(tuple[int, ...], config[f"{member}patch_size"]),
        from_dict(tuple[tuple[int, ...], ...], config[f"{member}strides"]),
        from_dict(tuple[int, ...], config[f"{member}features"]),
        prefix=f"{MEMBERS[name]}.0." if member else "",
    )


def _text(name: str) -> str:
    """A name as it is, where the config has an expression for it."""
    return str(ast.literal_eval(name[1:])) if name.startswith("$") else name


def install(bundle: Path, source: Source, plan: Plan, *, dataset: Dataset, bundles: Path, key: str) -> list[Path]:
    """Write bundles that go on from another, and their plan. Where that is done already, nothing changes.

    Args:
        bundle: the one to go on from.
        source: what it says.
        plan: of the dataset, with the networks of `source`.
        dataset: where its files are.
        bundles: folder of the bundles of all datasets.
        key: of the dataset, for plan.json.

    Returns:
        The folders that were written, as `render_all` has them.

    Raises:
        TemplateError: its weights do not fit its configs, or the folder has trainings of another plan; nothing is
            written then.
    """
    folder = bundles / plan.name
    if _is_installed(plan, folder, key):
        return []
    begun = sorted(path.parent for path in folder.glob("*/models/fold_*/last.pt"))
    if begun:
        raise TemplateError(
            f"{begun[0]} was begun with another plan than that of {source.origin.title}. Go on in another folder, "
            "--bundles DIR, or remove the trainings."
        )
    remedy = f"Get {bundle} anew."
    there = weights.load(bundle / "models" / "model.pt", remedy)
    tensors = {
        configuration.name: inherited(there, source, plan, network, configuration)
        for network, configuration in zip(source.networks, plan.configurations, strict=True)
    }
    for name, found in tensors.items():
        weights.save(found, folder / name / WEIGHTS)
    done = render.render_all(plan, dataset, bundles, force=True)
    saved.save_plan(plan, folder, fingerprint_key=key)
    return done


def _is_installed(plan: Plan, folder: Path, key: str) -> bool:
    """Whether the bundles of a plan are there with their weights."""
    try:
        if saved.load_plan(folder, fingerprint_key=key) != plan:
            return False
    except PlanError:
        return False
    needed = [folder / c.name / path for c in plan.configurations for path in (writing.MARKS[0], WEIGHTS)]
    return all(path.is_file() for path in needed)


def inherited(
    there: Mapping[str, Any], source: Source, plan: Plan, network: Network, configuration: Configuration
) -> dict[str, Any]:
    """Weights for a network of a plan: those of the bundle, and for new classes random ones, always the same.

    Args:
        there: all weights of the bundle.
        source: what the bundle says.
        plan: that the new network belongs to.
        network: whose weights to take.
        configuration: of the new network.

    Raises:
        TemplateError: a weight is missing, or has another shape than the bundle's configs say.
    """
    for name, tensor in weights.fresh(plan, configuration, device="meta").items():
        old = there.get(f"{network.prefix}{name}")
        shape = (len(source.classes), *tensor.shape[1:]) if name.startswith(OUTPUT) else tensor.shape
        if old is None or tuple(old.shape) != tuple(shape):
            raise TemplateError(
                f"{source.origin.title}: its weights are of another network than its configs describe: {network.prefix}"
                f"{name} {'is not there' if old is None else f'has the shape {tuple(old.shape)}'}, not {tuple(shape)}."
            )
    classes = finetuning.inherited_classes(plan, source)
    found = dict(weights.fresh(plan, configuration))
    for name, tensor in found.items():
        old = there[f"{network.prefix}{name}"]
        if name.startswith(OUTPUT):
            found[name] = tensor.clone()
            for number, inherits in enumerate(classes):
                if inherits is not None:
                    found[name][number] = old[inherits]
        else:
            found[name] = old
    return found
