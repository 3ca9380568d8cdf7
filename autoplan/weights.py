"""Files of weights: flat dictionaries of tensors by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoplan.errors import TemplateError
from autoplan.files import write_atomically


def load(path: Path, remedy: str) -> dict[str, Any]:
    """The tensors in a file, by name.

    Raises:
        TemplateError: the file is damaged, or holds something else; `remedy` ends the message.
    """
    import torch

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
