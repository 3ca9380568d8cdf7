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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

PLANNED = ("patch_size", "batch_size", "strides", "features")
"""What a part speaks of by a name that may have a prefix."""


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
