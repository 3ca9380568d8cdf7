"""The keys of a bundle's configs that a user may read or set, from one list: templates/docs/settings.json."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from autoplan.overlays import templates_folder

Kind = Literal["path", "job", "planned", "training", "evaluation", "prediction", "machine"]


@dataclass(frozen=True)
class Setting:
    """A top-level key of a config.

    `kind` is "planned" for what the plan decides; "path" for a folder that a training reads or writes; "job" for what
    every job has for itself; "training", "evaluation" and "prediction" by what it is about; "machine" for what changes
    no result. `meaning` is the end of a sentence.
    """

    name: str
    kind: Kind
    meaning: str


@lru_cache(maxsize=1)
def load() -> tuple[Setting, ...]:
    """All settings, in the order in which they are explained."""
    found = json.loads((templates_folder() / "docs" / "settings.json").read_text(encoding="utf-8"))
    return tuple(Setting(name, entry["kind"], entry["meaning"]) for name, entry in found.items())


def flags_of_training(keys: Collection[str]) -> list[str]:
    """The keys of a train.json that are flags of `train`, and the settings of the evaluation that follows."""
    known = {s.name for s in load() if s.kind not in ("job", "evaluation")}
    return [*(key for key in keys if key in known or _bare(key) in known), *evaluation_only()]


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
        Setting(key, s.kind, s.meaning if key == s.name else f"{s.meaning} (networks `{key.partition('_')[0]}`)")
        for key, s in found
        if s is not None
    ]


MEMBERS = {"2d": "slices", "3d_fullres": "fullres", "3d_lowres": "lowres", "3d_cascade_fullres": "cascade"}
"""What the networks of a configuration are called where a bundle holds those of several."""


def _bare(key: str) -> str:
    """A key without the name of the networks that it is about: patch_size for lowres_patch_size."""
    prefix, _, rest = key.partition("_")
    return rest if prefix in MEMBERS.values() else key
