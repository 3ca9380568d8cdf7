"""Weights of networks: flat dictionaries of tensors by name, their files, and those that a configuration has."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoplan.base.codec import to_dict
from autoplan.base.errors import AutoplanError, TemplateError
from autoplan.base.files import granted, regular, write_atomically
from autoplan.base.scripts import templates_folder
from autoplan.base.scripts.memory import as_text, memory_bytes
from autoplan.bundle.overlays import read_template
from autoplan.planning.plan import num_input_channels
from autoplan.planning.values import Configuration, Plan

SEED = 0
"""Of random weights."""


def check(path: Path, remedy: str) -> None:
    """Refuses what cannot be a file of weights at first sight. Nothing is read but the list at its end, so a file that
    somebody else made costs no time and no memory.

    Raises:
        TemplateError: it is none, or holds more than the memory there is; `remedy` ends the message.
    """
    try:
        with granted(path), zipfile.ZipFile(regular(path)) as archive:
            entries = archive.infolist()
    except AutoplanError:
        raise
    except Exception as error:  # a damaged archive fails in too many ways to name
        raise TemplateError(f"{path}: is no file of weights ({type(error).__name__}). {remedy}") from error
    size, memory = sum(entry.file_size for entry in entries), memory_bytes()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or size > path.stat().st_size:
        raise TemplateError(f"{path}: is no file of weights as PyTorch writes it. {remedy}")
    if 0 < memory < size:
        raise TemplateError(f"{path}: needs {as_text(size)} of memory, and there are {as_text(memory)}. {remedy}")


def load(path: Path, remedy: str) -> dict[str, Any]:
    """The tensors in a file, by name.

    Raises:
        TemplateError: the file is damaged, or holds something else; `remedy` ends the message.
    """
    import torch

    check(path, remedy)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in too many ways to name
        raise TemplateError(f"{path}: is no file of weights ({type(error).__name__}). {remedy}") from error
    named = isinstance(found, dict) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()
    )
    if not named:
        raise TemplateError(f"{path}: holds no weights by name. {remedy}")
    return dict(found)


def save(tensors: Mapping[str, Any], path: Path) -> None:
    """Write tensors to a file, all or nothing. The same tensors make the same bytes."""
    import torch

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name instead would become a part of the file
            torch.save(dict(tensors), file)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def fresh(plan: Plan, configuration: Configuration, *, device: str = "cpu") -> dict[str, Any]:
    """Random weights of the network that the bundle of a configuration has; the same at every call. The device "meta"
    has shapes only, and takes no time."""
    import torch
    from monai.bundle import ConfigParser

    channels = num_input_channels(configuration.name, modalities=plan.modalities, labels=plan.labels)
    values = {"patch_size": to_dict(configuration.patch_size), "strides": to_dict(configuration.strides)}
    values |= {"features": list(configuration.features), "normalization": [None] * channels}
    values["class_names"] = [str(value) for value, _ in plan.labels]
    part = read_template(templates_folder() / "configs" / "parts" / "network.json")
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(SEED)
        network = ConfigParser({**values, "network_def": part}).get_parsed_content("network_def")
    return dict(network.state_dict())
