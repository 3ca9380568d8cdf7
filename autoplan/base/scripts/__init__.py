"""Scripts of a bundle that planning shares with it, loaded as modules of this package: one text, one reading."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from autoplan.base.errors import TemplateError

_PACKAGE = Path(__file__).resolve().parents[2]


def templates_folder() -> Path:
    """Where the templates lie: beside the package in a checkout, inside it when installed."""
    for folder in (_PACKAGE.parent / "templates", _PACKAGE / "templates"):
        if (folder / "configs" / "train.json").is_file():
            return folder
    raise TemplateError(f"no templates beside {_PACKAGE}. Install autoplan again.")


def load_script(name: str, module: str) -> ModuleType:
    """A file of the bundles' `scripts` as a module of another name."""
    spec: Any = spec_from_file_location(module, templates_folder() / "scripts" / f"{name}.py")
    found = sys.modules[module] = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
