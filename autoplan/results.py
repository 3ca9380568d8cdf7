"""A fold on disk: bundles/TASK/CONFIGURATION/models/fold_K, what is there and whether it belongs together.

finished.json says that the training has ended, with which network and by which settings; model.pt is that network;
budget.json tells how one used the time that it was given;
curve.csv has a line for each epoch; validation/dice.json has the scores of the validation cases and names the network
that predicted them; validation/probabilities/CASE.npz holds the probabilities of a case. Nothing else keeps a record.
Fold "all", which is trained on all cases, has no validation/.
What is there may have been damaged: a value of a wrong type counts as absent.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from autoplan.errors import TrainingError, one_line
from autoplan.facts import ALL, Fold
from autoplan.files import LARGEST, file_digest, number, read_json, read_object, regular

FINISHED, BUDGET = "finished.json", "budget.json"
Recipe = Literal["paper", "quick", "budget"]
"""How a training goes: the paper's, or by a config of that name that is laid over train.json."""
OF_NETWORKS = {"target_spacing", "patch_size", "strides", "features"}
"""Settings of a training that a prediction has, too."""
PREDICTION_SETTINGS = {*OF_NETWORKS, "mirror", "overlap"}
"""What dice.json says of the prediction. One of an older bundle says less, and its fold has to be predicted again."""


@dataclass(frozen=True)
class Training:
    """A training that has ended.

    Attributes:
        model: digest of its network.
        epochs: how many were trained.
        stopped: whether the stop rule ended it.
        max_epochs: how many were allowed; None where an older version has not recorded the recipe.
        schedule: whether the learning rate followed a schedule that ends with the last epoch; None likewise.
        settings: keys of train.json with the values that it ran with; empty likewise.
    """

    model: str
    epochs: int
    stopped: bool
    max_epochs: int | None
    schedule: bool | None
    settings: Mapping[str, Any]

    @property
    def budget_seconds(self) -> float | None:
        """The time that it was given; None where it was given none."""
        return number(self.settings.get("budget_seconds"))

    @property
    def features(self) -> tuple[int, ...]:
        """Feature maps of the network's levels; none where they are not recorded."""
        found = self.settings.get("features")
        return tuple(found) if isinstance(found, list) and found and all(map(_is_count, found)) else ()

    @property
    def recipe(self) -> Recipe:
        """How it went."""
        return "budget" if self.budget_seconds is not None else "quick" if self.schedule else "paper"


@dataclass(frozen=True)
class FoldResult:
    """A finished fold: its network is trained, and its validation cases are predicted and scored by this network.

    Attributes:
        model: digest of the network.
        settings: that the cases were predicted with; of fold "all", those that its network is to predict with.
        training: settings of the training; empty where an older version has not recorded them.
        mean_dice: mean foreground Dice; None where no case has a class, and of fold "all".
    """

    model: str
    settings: Mapping[str, Any]
    training: Mapping[str, Any]
    mean_dice: float | None


def fold_folder(bundle: Path, fold: Fold) -> Path:
    """Where the results of a fold lie."""
    return bundle / "models" / f"fold_{fold}"


def probabilities(folder: Path, case: str) -> Path:
    """File with the probabilities of a validation case of the fold in `folder`."""
    return folder / "validation" / "probabilities" / f"{case}.npz"


def folds(bundle: Path) -> list[list[str]]:
    """Validation cases of each fold of a bundle.

    Raises:
        TrainingError: configs/datalist.json cannot be read, or is no datalist with folds.
    """
    path = bundle / "configs" / "datalist.json"
    try:
        found = [(entry["name"], entry["fold"]) for entry in read_json(path)["training"]]
        if not all(isinstance(name, str) and _is_count(fold) for name, fold in found):
            raise ValueError("a case has no name or no fold")
        count = 1 + max(fold for _, fold in found)
        if count > len(found):
            raise ValueError("a fold has no case")
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path} cannot be read as a datalist ({one_line(error)}). Plan again with --force."
        ) from None
    return [[name for name, k in found if k == fold] for fold in range(count)]


def training(folder: Path) -> Training | None:
    """The training of the fold in `folder`, where it has ended."""
    found = read_object(folder / FINISHED)
    model, settings = found.get("model"), found.get("settings")
    if not isinstance(model, str) or not model or not (folder / "model.pt").is_file():
        return None
    recorded = isinstance(found.get("schedule"), bool) and _is_count(found.get("max_epochs"))
    return Training(
        model=model,
        epochs=found["epochs"] if _is_count(found.get("epochs")) else 0,
        stopped=found.get("stopped") is True,
        max_epochs=found["max_epochs"] if recorded else None,
        schedule=found["schedule"] if recorded else None,
        settings=settings if isinstance(settings, dict) else {},
    )


def budgeted_epochs(folder: Path) -> int:
    """Epochs that fit into the time that the training of the fold in `folder` was given, by its last decision; 0 where
    it was given none, has not decided, or the file is damaged."""
    decisions = read_object(folder / BUDGET).get("decisions")
    last = decisions[-1] if isinstance(decisions, list) and decisions else None
    epochs = last.get("epochs") if isinstance(last, dict) else None
    return epochs if isinstance(epochs, int) and _is_count(epochs) else 0


def trained_seconds(folder: Path) -> float | None:
    """What the training of the fold in `folder` took of the time that it was given; None where that is not told."""
    return number(read_object(folder / BUDGET).get("seconds"))


def read(folder: Path, cases: Sequence[str]) -> FoldResult | str:
    """The result of the fold in `folder`, or what it lacks: the end of a sentence that starts with "the fold".

    Args:
        folder: models/fold_K of a bundle.
        cases: names of its validation cases.
    """
    trained, scores = training(folder), read_object(folder / "validation" / "dice.json")
    if trained is None:
        return "is not trained to its end"
    if not has_network(folder, trained):
        return f"has another network in model.pt than the one that {FINISHED} names"
    settings, scored = prediction_settings(folder), scores.get("cases")
    if not set(settings) >= PREDICTION_SETTINGS or not isinstance(scored, dict):
        return "is trained, but its cases are not predicted"
    if scores.get("model") != trained.model:
        return "has predictions of another network than its own"
    if set(scored) != set(cases):
        return "has predictions of other cases than its own"
    absent = [case for case in cases if not probabilities(folder, case).is_file()]
    if absent:
        return f"lacks the probabilities of {len(absent)} of {len(cases)} cases, such as {absent[0]}"
    return FoldResult(trained.model, settings, trained.settings, number(scores.get("mean_foreground_dice")))


def read_all(bundle: Path) -> FoldResult | str:
    """The result of fold "all" of a bundle, or what it lacks, as `read` says it. Its predictions are averaged over
    mirrorings where it was trained on mirrored patches, and their windows overlap as those of an evaluation."""
    folder = fold_folder(bundle, ALL)
    trained = training(folder)
    if trained is None:
        return "is not trained to its end"
    if not has_network(folder, trained):
        return f"has another network in model.pt than the one that {FINISHED} names"
    overlap, prob = (
        read_object(bundle / "configs" / "evaluate.json").get("overlap"),
        trained.settings.get("mirror_prob"),
    )
    known = {name: value for name, value in trained.settings.items() if name.removeprefix("lowres_") in OF_NETWORKS}
    if not set(known) >= OF_NETWORKS or number(overlap) is None or (mirrored := number(prob)) is None:
        return f"lacks settings of its training in {FINISHED}"
    return FoldResult(trained.model, {**known, "mirror": mirrored > 0, "overlap": overlap}, trained.settings, None)


def has_network(folder: Path, trained: Training) -> bool:
    """Whether model.pt in `folder` is the network that the training left, and no other file."""
    return _digest(folder / "model.pt") == trained.model


def prediction_settings(folder: Path) -> Mapping[str, Any]:
    """Settings that the cases of the fold in `folder` were predicted with; empty where dice.json says none."""
    settings = read_object(folder / "validation" / "dice.json").get("settings")
    return settings if isinstance(settings, dict) else {}


def dice(folder: Path) -> dict[str, dict[str, float | None]]:
    """Dice of each class of the validation cases of the fold in `folder`; None for a class that is nowhere, and for
    what is no number."""
    cases = read_object(folder / "validation" / "dice.json").get("cases")
    found = cases.items() if isinstance(cases, dict) else ()
    return {name: {c: number(v) for c, v in scores.items()} for name, scores in found if isinstance(scores, dict)}


def curve(folder: Path) -> list[dict[str, float]]:
    """The epochs of the fold in `folder`, numbers by the names of the columns. A value that is no finite number, as the
    Dice of a class that never occurs, is left out, and so is an epoch without its number; nothing where curve.csv is
    damaged."""
    try:
        with regular(folder / "curve.csv").open(encoding="utf-8", newline="") as file:
            rows = [{name: number(float(text)) for name, text in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error):
        return []
    found = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return [row for row in found if "epoch" in row]


def _digest(path: Path) -> str:
    """Digest of a file, computed again only when the file has changed."""
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest_of(path: Path, _size: int, _time: int) -> str:
    return file_digest(path)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST
