"""Configs as text: JSON to be read, parts that several templates share, and templates laid over each other.

Three keys of a template are instructions and do not reach a bundle:

- `{"_part_": "network", …}` stands for configs/parts/network.json; the other keys are set in it; ids such as
  `transforms#2` reach deeper.
- `"_prefix_": "lowres_"` beside it makes the part speak of the planned values of that name: @lowres_patch_size.
- `"_after_": {"amp": {…}}` in an overlay puts new top-level keys behind the key `amp`.

All other keys of an overlay are ids as in MONAI: `#` steps into dictionaries and lists, and a `+` in front adds to what
is there.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from autoplan.errors import TemplateError

LINE_LENGTH = 120
_PACKAGE = Path(__file__).resolve().parent
PLANNED = ("patch_size", "batch_size", "strides", "features")
"""What a part speaks of by a name that may have a prefix."""


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


def read_template(path: Path) -> dict[str, Any]:
    """Content of a template with its parts, which lie in configs/parts."""
    configs = next(folder for folder in path.parents if folder.name == "configs")

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "_part_" not in value:
            return {key: read(item) for key, item in value.items()}
        part = read_template(configs / "parts" / f"{value['_part_']}.json")
        own = {key: read(item) for key, item in value.items() if key not in ("_part_", "_prefix_")}
        ids = {key: item for key, item in own.items() if "#" in key}
        return {**overlaid(_prefixed(part, value.get("_prefix_", "")), ids), **{k: own[k] for k in own if k not in ids}}

    return dict(read(json.loads(path.read_text(encoding="utf-8"))))


def _prefixed(value: Any, prefix: str) -> Any:
    """A config whose references to planned values have a prefix."""
    if isinstance(value, dict):
        return {key: _prefixed(item, prefix) for key, item in value.items()}
    if isinstance(value, list):
        return [_prefixed(item, prefix) for item in value]
    return re.sub(rf"@(?={'|'.join(PLANNED)})", f"@{prefix}", value) if isinstance(value, str) else value


def overlaid(config: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """A config with another laid over it; neither is changed.

    Raises:
        KeyError: the overlay names a place that the config does not have.
    """
    result = dict(config)
    for key, new in overlay.get("_after_", {}).items():
        result = _inserted(result, key, new)
    for key, value in overlay.items():
        if key != "_after_":
            place = key.removeprefix("+")
            path = _path(result, place)
            if path[0] not in result:
                raise KeyError(f"{place}: there is nothing to lay it over; a new key stands in _after_")
            result = _changed(result, path, partial(_added if key != place else _replaced, new=value))
    return result


def _path(config: Mapping[str, Any], place: str) -> list[str]:
    """The steps to a place. Keys of a config that is itself laid over another hold number signs: the longest key is the
    first step."""
    steps = place.split("#")
    length = next((n for n in range(len(steps), 0, -1) if "#".join(steps[:n]) in config), 1)
    return ["#".join(steps[:length]), *steps[length:]]


def _inserted(config: dict[str, Any], after: str, new: Mapping[str, Any]) -> dict[str, Any]:
    """A config with new keys behind one of its keys."""
    if after not in config:
        raise KeyError(f"{after}: there is no such key to put {', '.join(new)} behind")
    keys = list(config)
    first, last = keys[: keys.index(after) + 1], keys[keys.index(after) + 1 :]
    return {**{key: config[key] for key in first}, **new, **{key: config[key] for key in last}}


def _changed(value: Any, path: Sequence[str], change: Callable[[Any], Any]) -> Any:
    """A copy of a nested config with one entry changed."""
    first, *rest = path
    if isinstance(value, list):
        number = int(first)
        return [*value[:number], _entry(value[number], rest, change), *value[number + 1 :]]
    return {**value, first: _entry(value.get(first) if not rest else value[first], rest, change)}


def _entry(value: Any, path: Sequence[str], change: Callable[[Any], Any]) -> Any:
    return _changed(value, path, change) if path else change(value)


def _added(old: Any, new: Any) -> Any:
    return {**old, **new} if isinstance(new, dict) else [*old, *new]


def _replaced(_: Any, new: Any) -> Any:
    return new


def format_json(value: Any) -> str:
    """JSON to be read: what fits on a line stands on one, lists of numbers always; a blank line before every block. It
    is ASCII: MONAI reads configs in the encoding of the machine that it runs on."""
    if not isinstance(value, dict):
        return _format(value, 0) + "\n"
    lines = []
    for number, (key, item) in enumerate(value.items()):
        name = json.dumps(key)
        entry = f" {name}: {_format(item, 1, len(name) + 3)}"
        block = "\n" in entry and number > 0
        lines.append("\n" + entry if block else entry)
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _format(value: Any, depth: int, used: int = 0) -> str:
    line = json.dumps(value)
    if not isinstance(value, (dict, list)) or _numbers(value) or (depth and depth + used + len(line) < LINE_LENGTH):
        return line
    space = " " * (depth + 1)
    if isinstance(value, list):
        items = [space + _format(item, depth + 1) for item in value]
        return "[\n" + ",\n".join(items) + "\n" + " " * depth + "]"
    items = []
    for key, item in value.items():
        name = json.dumps(key)
        items.append(f"{space}{name}: {_format(item, depth + 1, len(name) + 2)}")
    return "{\n" + ",\n".join(items) + "\n" + " " * depth + "}"


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, (int, float)) or _numbers(v) for v in value)
