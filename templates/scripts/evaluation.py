"""Scores of predicted cases."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from scripts.checkpoint import holds
from scripts.files import file_digest, write_atomically, write_text_atomically
from scripts.formats import axes_onto, case_name


class DiceReport:
    """Handler for an evaluator: Dice of every case and foreground class, as dice.csv, dice.json and a table in the log.

    It compares the "pred" of `engine.state.output` with the "reference" of `engine.state.batch`, one item a case. A
    class that is absent from both label and prediction has no Dice (null) and is left out of the means; absent from the
    label alone it counts 0. The mean foreground Dice is the mean over the classes of the mean over the cases. The
    means are also metrics of the engine: "val_mean_dice", and "val_dice_<class>" of each class that has one.

    Args:
        output_dir: folder of the two files; made when it does not exist.
        class_names: names of all classes, background first.
        label_values: value of each class in the references; predictions hold class numbers.
        network: that predicts.
        model_file: its file; dice.json tells which one it was, or null where another program gave the network weights.
        settings: of the prediction; dice.json repeats them.
        ignore_value: voxels of this value in the references are not known, and do not count; None: all are known.
        contents: digests of the image and the label of each case, by name; dice.json repeats them.
    """

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Sequence[str],
        label_values: Sequence[int],
        network: torch.nn.Module,
        model_file: str | Path,
        settings: Mapping[str, Any],
        ignore_value: int | None = None,
        contents: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.output_dir, self.contents = Path(output_dir), dict(contents or {})
        self.classes = list(class_names)[1:]
        self.values = list(label_values)[1:]
        self.ignore_value = ignore_value
        self.network, self.model_file, self.settings = network, Path(model_file), dict(settings)
        self.rows: dict[str, list[float | None]] = {}

    def attach(self, engine: Engine) -> None:
        """Score after every case, write when all are done."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, _: Engine) -> None:
        self.rows.clear()
        self.model = file_digest(self.model_file) if holds(self.network, self.model_file) else None
        if self.model is None:
            # The files of its cases are about to be replaced.
            (self.output_dir / "dice.json").unlink(missing_ok=True)

    @staticmethod
    def _fail(engine: Engine, error: BaseException) -> None:
        """Name the case that cannot be predicted."""
        image = engine.state.batch["image"] if isinstance(engine.state.batch, dict) else None
        names = getattr(image, "meta", {}).get("filename_or_obj")
        if names is None or not isinstance(error, Exception):
            raise error
        name = case_name(names if isinstance(names, str) else names[0])
        raise RuntimeError(f"{name} cannot be predicted: {error}") from error

    def __call__(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            name = case_name(output["pred"].meta["filename_or_obj"])
            label = _onto(item["reference"], output["pred"])
            self.rows[name] = dice(output["pred"], label, self.values, self.ignore_value)

    def write(self, engine: Engine) -> None:
        """Write dice.csv and dice.json, log the table, and set the engine's metrics."""
        scores = np.array(list(self.rows.values()), dtype=float).reshape(len(self.rows), len(self.classes))
        counted = ~np.isnan(scores)
        means = [float(s[c].mean()) if c.any() else None for s, c in zip(scores.T, counted.T, strict=True)]
        present = [m for m in means if m is not None]
        foreground = sum(present) / len(present) if present else None
        summary = {
            "mean_foreground_dice": foreground,
            "mean_dice": dict(zip(self.classes, means, strict=True)),
            "cases": {name: dict(zip(self.classes, row, strict=True)) for name, row in self.rows.items()},
            "model": self.model,
            "settings": self.settings,
            "contents": {name: self.contents[name] for name in self.rows if name in self.contents},
        }
        engine.state.metrics["val_mean_dice"] = math.nan if foreground is None else foreground
        engine.state.metrics.update(class_metrics("val_dice", self.classes, means))
        rows: list[list[object]] = [[name, *row] for name, row in self.rows.items()]
        lines: list[list[object]] = [["case", *self.classes], *rows, ["mean", *means]]

        def write_csv(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([["" if v is None else v for v in line] for line in lines])

        write_atomically(self.output_dir / "dice.csv", write_csv)
        # The last file: where it is, all others are.
        write_text_atomically(self.output_dir / "dice.json", json.dumps(summary, indent=1) + "\n")
        logging.getLogger(__name__).info("Dice\n%s", table(lines))
        logging.getLogger(__name__).info("mean foreground Dice: %s", _cell(foreground))


def _onto(label: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
    """A label (1, X, Y, Z) with its axes as those of a prediction, where its file has them in another order."""
    grids = [(each.shape[1:], np.asarray(each.affine, dtype=np.float64)) for each in (label, pred)
             if isinstance(each, MetaTensor) and each.ndim == 4]  # fmt: skip
    found = axes_onto(*grids[0], *grids[1]) if len(grids) == 2 else None
    if found is None:
        return label
    order, reverse = found
    return label.permute(0, *(axis + 1 for axis in order)).flip([axis + 1 for axis in reverse])


def class_metrics(what: str, classes: Sequence[str], values: Sequence[float | None]) -> dict[str, float]:
    """Metrics of an engine, `<what>_<class>` of each foreground class that has a value. A class goes by its number
    where its name has signs that MLflow does not take."""
    names = [name if re.fullmatch(r"[\w -]+", name) else str(number) for number, name in enumerate(classes, 1)]
    return {f"{what}_{name}": value for name, value in zip(names, values, strict=True) if value is not None}


def dice(
    pred: torch.Tensor, label: torch.Tensor, values: Sequence[int], ignore_value: int | None = None
) -> list[float | None]:
    """Dice of each foreground class; None for a class that neither the prediction nor the label holds.

    Args:
        pred: class numbers.
        label: label values, of the same shape.
        values: label value of each foreground class.
        ignore_value: label value of the voxels that do not count.
    """
    if pred.shape != label.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and label {tuple(label.shape)} differ in shape")
    if ignore_value is not None:
        pred = pred * (label != ignore_value)
    scores: list[float | None] = []
    for number, value in enumerate(values, 1):
        p, t = pred == number, label == value
        size = int(p.sum()) + int(t.sum())
        scores.append(2 * int((p & t).sum()) / size if size else None)
    return scores


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def table(lines: Sequence[Sequence[object]]) -> str:
    """Lines of cells as text with aligned columns: the first to the left, the others to the right."""
    cells = [[_cell(value) for value in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    first, *others = widths
    rows = [[name.ljust(first), *map(str.rjust, rest, others)] for name, *rest in cells]
    return "\n".join(map("  ".join, rows))
