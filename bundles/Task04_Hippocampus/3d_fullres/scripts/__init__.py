"""The run-time parts of this bundle that MONAI does not have: one concept a file, no import from outside the bundle but
MONAI, torch, ignite, numpy, scipy and tqdm."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from scripts.files import validation_dir
from scripts.normalization import nonzero

__all__ = ["has_tensorboard", "is_counting", "label_dtype", "nonzero", "root", "use", "validation_dir"]

Handler = TypeVar("Handler")


def root(name: str) -> str:
    """The folder of this bundle, which holds `scripts`, after a check that it is the one that the config belongs to.

    `monai.bundle run` puts a bundle's folder on the search path, but behind the working directory. Started inside the
    folder of another bundle it would import that one's `scripts` and go on with that one's weights.

    Args:
        name: the bundle's name, as in its configs/metadata.json.

    Raises:
        RuntimeError: the imported `scripts` belongs to another bundle; both folders are named.
    """
    here = Path(__file__).resolve().parent.parent
    candidates = [Path(entry).resolve() for entry in sys.path if (Path(entry) / "scripts" / "__init__.py").is_file()]
    others = sorted({str(c) for c in candidates if c != here and (c / "configs" / "metadata.json").is_file()})
    found = json.loads((here / "configs" / "metadata.json").read_text(encoding="utf-8"))["name"]
    if others or found != name:
        wanted = f"the bundle in {', '.join(others)}" if others else f"the bundle named {name!r}"
        raise RuntimeError(
            f"The config belongs to {wanted}, but Python imported `scripts` from the bundle {found!r} in {here}. "
            "Start from another working directory: the folder of the bundle itself, or one that holds no `scripts`."
        )
    return str(here)


def is_counting(label_values: Sequence[int]) -> bool:
    """Whether label values are class numbers: 0, 1, 2, …"""
    return list(label_values) == list(range(len(label_values)))


def label_dtype(label_values: Sequence[int]) -> str:
    """Type that holds all label values."""
    return "uint8" if max(label_values) < 256 else "uint16"


def use(handler: Handler) -> Handler:
    """A handler that stands elsewhere in the config, as an entry of a list of handlers: programs that take bundles read
    the `_target_` of every entry, so that none may be a bare reference."""
    return handler


def has_tensorboard() -> bool:
    """Whether TensorBoard is installed."""
    return importlib.util.find_spec("tensorboard") is not None
