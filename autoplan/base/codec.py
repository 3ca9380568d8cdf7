"""Values as JSON and back: dataclasses as dictionaries, and a text that is a pleasure to read."""

import contextlib
import dataclasses
import functools
import json
import reprlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from autoplan.base.errors import one_line
from autoplan.base.files import write_text_atomically

LINE_LENGTH = 120


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


LARGEST_NUMBER = 1e100
"""Of a file's numbers, far above any that is meant, and far below what overflows."""


def to_dict(value: Any) -> Any:
    """Plain JSON types (dict, list, str, int, float, bool, None) for a dataclass, a tuple, a path, or a plain value."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_dict(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(kind: Any, data: Any) -> Any:
    """The value of type `kind`, a dataclass or the type of a field of one, that `to_dict` wrote as `data`.

    Raises:
        KeyError, TypeError, ValueError: `data` does not describe such a value.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        fields = _types(kind)
        needed = {f.name for f in dataclasses.fields(kind) if f.default is not None}
        if not needed <= set(data) <= set(fields):
            raise ValueError(f"{kind.__name__} has the fields {sorted(fields)}, not {sorted(data)}")
        return kind(**{name: from_dict(field, data[name]) for name, field in fields.items() if name in data})
    if origin is tuple:
        inner = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(from_dict(i, v) for i, v in zip(inner, data, strict=True))
    if origin in (types.UnionType, typing.Union):
        return None if data is None else _one_of([a for a in arguments if a is not type(None)], data)
    if origin is Literal:
        if data not in arguments:
            raise ValueError(f"{data!r} is none of {', '.join(map(repr, arguments))}")
        return data
    if kind is float and type(data) in (int, float) and not abs(data) < LARGEST_NUMBER:
        raise ValueError(f"{str(data)[:20]} is no number to compute with")
    if type(data) not in {float: (int, float), Path: (str,)}.get(kind, (kind,)):
        raise TypeError(f"{reprlib.repr(data)} is no {kind.__name__}")
    return kind(data)


def _one_of(kinds: Sequence[Any], data: Any) -> Any:
    """The value of the first of some types that `data` fits."""
    *others, last = kinds
    for kind in others:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return from_dict(kind, data)
    return from_dict(last, data)


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    """Types of the fields of a dataclass."""
    return typing.get_type_hints(kind)


DAMAGED = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)


def said(error: BaseException) -> str:
    """What an error says, in few words."""
    text = one_line(error)
    return text if len(text) <= 100 else f"{text[:100]}..."


def write_json(path: Path, data: dict[str, Any]) -> None:
    """JSON, first under a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = (f" {_json(name)}: {_lines(value)}" for name, value in data.items())
    write_text_atomically(path, "{\n" + ",\n".join(fields) + "\n}\n")


def _lines(value: Any) -> str:
    """A field: a list of objects or lists has a line for each."""
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return "[\n" + ",\n".join(f"  {_json(v)}" for v in value) + "\n ]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
