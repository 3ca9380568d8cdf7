"""What a network has seen: the cases that it was trained on, and what was made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.cache import CaseCache
from scripts.stopping import OtherRecipeError

OF_THE_DATA = (
    "target_spacing", "lowres_spacing", "slice_axis", "normalization", "nonzero_only", "label_values", "ignore_value",
)  # fmt: skip
"""Settings of a training that decide what a network sees of a case; it cannot go on with others."""
LISTED = 3
"""Cases that a message names."""


class Seen:
    """A part of the state of a training: it goes on with cases that were added, and with no other preprocessing, nor
    where it has seen a case that it would now be validated on.

    Args:
        cache: of the preprocessed cases; it knows them by their content.
        training: cases to train on, {"name", "image", "label"}.
        validation: cases to validate on; the same ones where a network is trained on all.
        settings: of the training.

    Attributes:
        cases: digests of the image and the label of each case that the network was trained on, by name.
    """

    def __init__(
        self,
        cache: CaseCache,
        training: Sequence[Mapping[str, Any]],
        validation: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
    ) -> None:
        self.cases = cache.contents(training)
        held_out = cache.contents(validation)
        self.held_out = {} if held_out == self.cases else held_out
        self.settings = {name: settings[name] for name in OF_THE_DATA if name in settings}

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"cases": self.cases, "settings": self.settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was seen before.

        Raises:
            OtherRecipeError: it does not fit the training as it is now.
        """
        for name, value in self.settings.items():
            if (before := state["settings"].get(name, value)) != value:
                raise OtherRecipeError(f"This training was begun with {name} {before}, not {value}.")
        if known := seen(state["cases"], self.held_out, {**self.cases, **self.held_out}):
            raise OtherRecipeError(
                f"This training has seen {len(known)} of the {len(self.held_out)} cases that it is to be validated on: "
                f"{', '.join(known[:LISTED])}{', ...' * (len(known) > LISTED)}. The folds have changed since it began."
            )
        self.cases = {**state["cases"], **self.cases}


def seen(
    trained: Mapping[str, Sequence[str]], cases: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]
) -> list[str]:
    """Those of the cases that a network was trained on: by their name, or by the content of an image that has another
    name now.

    Args:
        trained: digests of the image and the label of each case that it was trained on, by name.
        cases: likewise.
        now: likewise, of all cases that there are.
    """
    images = {entry[0] for name, entry in trained.items() if name not in now or now[name][0] != entry[0]}
    return [name for name, entry in cases.items() if name in trained or entry[0] in images]
