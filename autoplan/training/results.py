"""A fold on disk: bundles/TASK/CONFIGURATION/models/fold_K, what is there and whether it belongs together.

finished.json says that the training has ended, with which network, by which settings, and which cases it has seen;
model.pt is that network, and model.json beside it says the same of a training that goes on;
budget.json tells how one used the time that it was given;
curve.csv has a line for each epoch; validation/dice.json has the scores of the validation cases and names the network
that predicted them; validation/probabilities/CASE.npz holds the probabilities of a case. Nothing else keeps a record.
Fold "all", which is trained on all cases, has no validation/.
What is there may have been damaged: a value of a wrong type counts as absent.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from autoplan.base.errors import TrainingError, one_line, shortened
from autoplan.base.files import LARGEST, file_digest, number, read_json, read_object, regular
from autoplan.data.stored import FINGERPRINT
from autoplan.planning.values import ALL, Fold

FINISHED, BUDGET, RECORD = "finished.json", "budget.json", "model.json"
Recipe = Literal["paper", "quick", "budget"]
"""How a training goes: the paper's, or by a config of that name that is laid over train.json."""
OF_NETWORKS = {"target_spacing", "patch_size", "strides", "features"}
"""Settings of a training that a prediction has, too."""
OF_THE_DATA = (
    "target_spacing", "lowres_spacing", "slice_axis", "normalization", "nonzero_only", "label_values", "ignore_value",
)  # fmt: skip
"""Settings that decide what a network has seen of a case: of another network nothing is scored, predicted or shared."""
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
        cases: digests of the image and the label of each case that it has seen, by name; empty likewise.
    """

    model: str
    epochs: int
    stopped: bool
    max_epochs: int | None
    schedule: bool | None
    settings: Mapping[str, Any]
    cases: Mapping[str, Sequence[str]]

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
        cases=_cases(found.get("cases")),
    )


def _cases(found: object) -> dict[str, list[str]]:
    """Digests of an image and a label for each name, as they were recorded."""
    entries = found.items() if isinstance(found, dict) else ()
    return {name: e for name, e in entries if isinstance(e, list) and len(e) == 2 and all(map(_is_text, e))}


def contents(task: Path) -> dict[str, list[str]]:
    """Digests of the image and the label of each case of a task, as it was last planned; empty where they are not
    known."""
    path = task / FINGERPRINT
    try:
        stat = path.stat()
    except OSError:
        return {}
    return _contents_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=8)
def _contents_of(path: Path, *_state: int) -> dict[str, list[str]]:
    found = read_object(path)
    cases, entries = found.get("cases"), found.get("contents")
    if not isinstance(cases, list) or not isinstance(entries, list) or len(cases) != len(entries):
        return {}
    names = [case.get("name") if isinstance(case, dict) else None for case in cases]
    return _cases(dict(zip(map(str, names), entries, strict=True)))


def unfit(folder: Path, cases: Sequence[str], asked: Mapping[str, Any] | None = None) -> str:
    """Why what was trained in `folder`, to its end or not, cannot be used for a fold: the end of a sentence that starts
    with "the fold"; nothing where it can.

    Args:
        folder: models/fold_K of a bundle.
        cases: names of the cases that the fold is validated on; none of fold "all".
        asked: settings of the training; those of the bundle's train.json if not given.
    """
    found = read_object(folder / FINISHED) or read_object(folder / RECORD)
    settings, trained = found.get("settings"), _cases(found.get("cases"))
    recorded = settings if isinstance(settings, dict) else {}
    wanted = read_object(folder.parents[1] / "configs" / "train.json") if asked is None else asked
    for name in OF_THE_DATA:
        if name in recorded and name in wanted and recorded[name] != wanted[name]:
            return f"was trained with {name} {_told(recorded[name])}, and now it is {_told(wanted[name])}"
    if known := _seen(trained, cases, contents(folder.parents[2])):
        return f"was trained on {len(known)} of its {len(cases)} validation cases, such as {known[0]}"
    return ""


def _seen(trained: Mapping[str, Sequence[str]], cases: Sequence[str], now: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of the cases that a network was trained on: by their name, or by the content of an image that has another
    name now. Images that are in a dataset twice are for planning to tell."""
    images = {entry[0] for name, entry in trained.items() if name not in now or now[name][0] != entry[0]}
    return [name for name in cases if name in trained or (name in now and now[name][0] in images)]


def _told(value: Any) -> str:
    return shortened(json.dumps(value))


def unseen(folder: Path, folds: Sequence[Sequence[str]], fold: Fold) -> tuple[list[str], list[str]]:
    """Of the cases that a fold is to be trained on: those that were added since it was, and those whose image or label
    has changed since. Nothing where it is not trained, or an older version has not recorded its cases.

    Args:
        folder: models/fold_K of a bundle.
        folds: validation cases of each fold.
        fold: which one it is.
    """
    trained, now = training(folder), contents(folder.parents[2])
    known = {} if trained is None else trained.cases
    cases = [case for number, others in enumerate(folds) if number != fold for case in others] if known else []
    changed = [case for case in cases if case in known and case in now and known[case] != now[case]]
    return [case for case in cases if case not in known], changed


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


def read(folder: Path, cases: Sequence[str], asked: Mapping[str, Any] | None = None) -> FoldResult | str:
    """The result of the fold in `folder`, or what it lacks: the end of a sentence that starts with "the fold".

    Args:
        folder: models/fold_K of a bundle.
        cases: names of its validation cases.
        asked: settings of the training; those of the bundle's train.json if not given.
    """
    trained, scores = training(folder), read_object(folder / "validation" / "dice.json")
    if trained is None:
        return "has not finished training"
    if not has_network(folder, trained):
        return f"has another network in model.pt than the one that {FINISHED} names"
    if reason := unfit(folder, cases, asked):
        return reason
    settings, scored = prediction_settings(folder), scores.get("cases")
    if not set(settings) >= PREDICTION_SETTINGS or not isinstance(scored, dict):
        return "is trained, but its cases are not predicted"
    if scores.get("model") != trained.model:
        return "has predictions of another network than its own"
    if set(scored) != set(cases):
        return "has predictions of other cases than its own"
    then, now = _cases(scores.get("contents")), contents(folder.parents[2])
    if changed := [case for case in cases if case in then and case in now and then[case] != now[case]]:
        return f"has predictions of {len(changed)} of {len(cases)} cases that have changed since, such as {changed[0]}"
    absent = [case for case in cases if not probabilities(folder, case).is_file()]
    if absent:
        return f"lacks the probabilities of {len(absent)} of {len(cases)} cases, such as {absent[0]}"
    return FoldResult(trained.model, settings, trained.settings, number(scores.get("mean_foreground_dice")))


def read_all(bundle: Path, asked: Mapping[str, Any] | None = None) -> FoldResult | str:
    """The result of fold "all" of a bundle, or what it lacks, as `read` says it. Its predictions are averaged over
    mirrorings where it was trained on mirrored patches, and their windows overlap as those of an evaluation."""
    folder = fold_folder(bundle, ALL)
    trained = training(folder)
    if trained is None:
        return "has not finished training"
    if not has_network(folder, trained):
        return f"has another network in model.pt than the one that {FINISHED} names"
    if reason := unfit(folder, (), asked):
        return reason
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


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST
