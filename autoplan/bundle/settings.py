"""The keys of a bundle's configs that a user may read or set, from one list: templates/docs/settings.json."""

import ast
import json
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from autoplan.base.numbers import MAX_DIGITS, number
from autoplan.base.scripts import templates_folder
from autoplan.base.scripts.memory import as_bytes

Kind = Literal["path", "job", "dataset", "planned", "training", "evaluation", "prediction", "machine"]


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    try:
        return as_bytes(value) > 0
    except ValueError:
        return False


TAKES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "count": (f"a whole number, 1 or more, of at most {MAX_DIGITS} digits", lambda v: type(v) is int and v >= 1),
    "count or 0": (f"a whole number, 0 or more, of at most {MAX_DIGITS} digits", lambda v: type(v) is int and v >= 0),
    "positive": ("a number above 0", lambda v: _number(v) and v > 0),
    "positive or 0": ("a number, 0 or more", lambda v: _number(v) and v >= 0),
    "part": ("a number from 0 to 1", lambda v: _number(v) and 0 <= v <= 1),
    "part below 1": ("a number from 0 to below 1", lambda v: _number(v) and 0 <= v < 1),
    "switch": ("True or False", lambda v: type(v) is bool),
    "spacing": (
        'three lengths in mm, such as "[1,1,3]"',
        lambda v: type(v) in (list, tuple) and len(v) == 3 and all(_number(x) and x > 0 for x in v),
    ),
    "size": ("a size such as 4GB or 3.5GiB", _is_size),
    "device": ("cpu or cuda:0", lambda v: re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", str(v)) is not None),
}
"""What a setting may take: in words, and as a test of the value that MONAI's command line reads from the text."""


@dataclass(frozen=True)
class Setting:
    """A top-level key of a config.

    `kind` is "planned" for what the plan decides, and "dataset" where that holds for all networks of a dataset, so that
    no training may have another; "path" for a folder that a training reads or writes; "job" for what
    every job has for itself; "training", "evaluation" and "prediction" by what it is about; "machine" for what changes
    no result. `meaning` is the end of a sentence. `takes` is a key of TAKES; empty where any value will do.
    """

    name: str
    kind: Kind
    meaning: str
    takes: str = ""


@lru_cache(maxsize=1)
def load() -> tuple[Setting, ...]:
    """All settings, in the order in which they are explained."""
    found = json.loads((templates_folder() / "docs" / "settings.json").read_text(encoding="utf-8"))
    return tuple(Setting(name, **entry) for name, entry in found.items())


def flags_of_training(keys: Collection[str]) -> list[str]:
    """The keys of a train.json that are flags of `train`, and the settings of the evaluation that follows."""
    known = {s.name for s in load() if s.kind not in ("job", "dataset", "evaluation")}
    return [*(key for key in keys if key in known or _bare(key) in known), *evaluation_only()]


def refusal(name: str, text: str) -> str:
    """What a setting takes, in words, where a text that was typed for it is nothing of the kind; else empty. An
    expression of MONAI's is not looked at."""
    by_name = {s.name: s.takes for s in load()}
    takes = by_name.get(name) or by_name.get(_bare(name))
    if not takes or text.startswith(("$", "@")):
        return ""
    words, holds = TAKES[takes]
    return "" if holds(text if takes == "size" else _value(text)) else words


def _value(text: str) -> Any:
    """What a text stands for: a number as `flags.number` has it, or a list, tuple or switch in Python's notation; else
    the text."""
    found = number(text)
    if found is not None:
        return found
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return text if _number(value) else value


def paths() -> tuple[str, ...]:
    """Settings that are paths: relative to where a command is typed, not to where a job runs."""
    return tuple(s.name for s in load() if s.kind == "path")


def evaluation_only() -> tuple[str, ...]:
    """Flags of `train` that are about the evaluation alone."""
    return tuple(s.name for s in load() if s.kind == "evaluation")


def explained(keys: Collection[str]) -> list[Setting]:
    """The settings among the keys of a config, by the names that they have there."""
    by_name = {s.name: s for s in load()}
    found = [(key, by_name.get(key) or by_name.get(_bare(key))) for key in keys]
    return [
        Setting(key, s.kind, s.meaning + ("" if key == s.name else f" (networks `{key.partition('_')[0]}`)"), s.takes)
        for key, s in found
        if s is not None
    ]


MEMBERS = {"2d": "slices", "3d_fullres": "fullres", "3d_lowres": "lowres", "3d_cascade_fullres": "cascade"}
"""What the networks of a configuration are called where a bundle holds those of several."""


def _bare(key: str) -> str:
    """A key without the name of the networks that it is about: patch_size for lowres_patch_size."""
    prefix, _, rest = key.partition("_")
    return rest if prefix in MEMBERS.values() else key
