"""What a faster prediction costs a network: its time and Dice on validation cases, with other settings than usual."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoplan.base import tables
from autoplan.base.codec import from_dict, to_dict
from autoplan.base.errors import AutoplanError
from autoplan.base.files import file_digest, read_object, write_text_atomically
from autoplan.data.facts import Case
from autoplan.data.images import onto, read_grid, read_volume
from autoplan.evaluation.choice import mean_intervals, means_of
from autoplan.evaluation.metrics import class_masks, dice
from autoplan.planning.values import Fold
from autoplan.prediction import predict
from autoplan.training import results

FASTER = "faster.json"
"""File in a fold's folder."""
USUAL = "as usual"
SETTINGS: dict[str, dict[str, Any]] = {
    USUAL: {},
    "--overlap 0.25": {"overlap": 0.25},
    "--no_mirror": {"mirror": False},
    "--overlap 0.25 --no_mirror": {"overlap": 0.25, "mirror": False},
    "--region_first": {"region_first": True},
}
"""Keys of inference.json with other values, by the flags of `predict` that set them."""


@dataclass(frozen=True)
class Faster:
    """A way to predict, and what it gave: seconds of the network over all cases, and the mean Dice over the foreground
    classes. `difference` is this Dice minus that of the usual way, with the interval that `select` computes; None where
    no case differs. `lost` counts the classes of cases that are found as usual, and not so."""

    flags: str
    seconds: float
    dice: float | None
    difference: float | None
    interval: tuple[float, float] | None
    lost: int


@dataclass(frozen=True)
class Comparison:
    """The ways to predict, the usual one first, by one network on some of its validation cases."""

    model: str
    cases: tuple[str, ...]
    ways: tuple[Faster, ...]


def compare(bundle: Path, fold: Fold, folder: Path, cases: Sequence[Case], settings: Mapping[str, Any]) -> Comparison:
    """Predict cases in each of the ways.

    Args:
        bundle: of a configuration.
        fold: whose network; the cases are some of those that it was validated on.
        folder: that the paths of the cases are relative to.
        cases: with labels.
        settings: further keys of inference.json, of all ways.

    Raises:
        AutoplanError: an image could not be predicted.
    """
    model = results.fold_folder(bundle, fold) / "model.pt"
    values = read_object(bundle / "configs" / "inference.json")["label_values"][1:]
    labels = [class_masks(read_volume(folder / str(case.label)).array, values) for case in cases]
    grids = [read_grid(folder / str(case.label)) for case in cases]
    seconds, scores = [], []
    with tempfile.TemporaryDirectory(prefix="autoplan-") as name:
        for number, way in enumerate(SETTINGS.values()):
            output = Path(name) / str(number)
            given = {"model_file": str(model.absolute()), **settings, **way}
            told = predict.told(bundle, folder, cases, output, given)
            seconds.append(sum(told[case.name]["seconds"]["network"] for case in cases))
            found = (
                onto(read_volume(output / told[case.name]["segmentation"]), grid).array
                for case, grid in zip(cases, grids, strict=True)
            )
            scores.append(np.array([dice(*pair) for pair in zip(labels, found, strict=True)], dtype=float))
    ways = (_way(*each, scores[0]) for each in zip(SETTINGS, seconds, scores, strict=True))
    return Comparison(file_digest(model), tuple(case.name for case in cases), tuple(ways))


def _way(flags: str, seconds: float, scores: Any, usual: Any) -> Faster:
    """One of the ways, from the Dice of each class (column) of each case (row)."""
    differences = scores - usual
    lost = int(((usual > 0) & (scores == 0)).sum())
    mean, difference = (means_of(values.tolist()).foreground for values in (scores, differences))
    if not np.nan_to_num(differences).any():
        return Faster(flags, seconds, mean, None, None, lost)
    return Faster(flags, seconds, mean, difference, mean_intervals(differences.tolist())[1], lost)


def measure(bundle: Path, fold: Fold, folder: Path, cases: Sequence[Case], settings: Mapping[str, Any]) -> Comparison:
    """What is known of a network on these cases, or else `compare`, kept in the fold's folder."""
    known = load(bundle, fold)
    if known is not None and set(known.cases) == {case.name for case in cases}:
        return known
    found = compare(bundle, fold, folder, cases, settings)
    path = results.fold_folder(bundle, fold) / FASTER
    write_text_atomically(path, json.dumps(to_dict(found), indent=1) + "\n")
    return found


def load(bundle: Path, fold: Fold) -> Comparison | None:
    """What was measured of the network that a fold has now; None where nothing was."""
    folder = results.fold_folder(bundle, fold)
    try:
        found: Comparison = from_dict(Comparison, read_object(folder / FASTER))
        return found if found.model == file_digest(folder / "model.pt") else None
    except (AutoplanError, OSError, KeyError, TypeError, ValueError):
        return None


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A table, with a line of names."""
    lines: list[tuple[str, ...]] = [("flags of predict", "time", "mean Dice", "difference", "95 % interval", "lost")]
    usual = comparison.ways[0].seconds
    for way in comparison.ways:
        time = f"{way.seconds / usual:.2f}" if usual else "-"
        interval = "-" if way.interval is None else " to ".join(f"{v:+.4f}" for v in way.interval)
        difference = "-" if way.difference is None else f"{way.difference:+.4f}"
        score = "-" if way.dice is None else f"{way.dice:.4f}"
        lines.append((way.flags, time, score, difference, interval, str(way.lost)))
    return lines


def report(comparison: Comparison) -> str:
    """The table for a terminal."""
    return tables.table(rows(comparison), left=1)
