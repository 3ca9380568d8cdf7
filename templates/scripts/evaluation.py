"""Scores of predicted cases."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from scripts.datalists import case_name
from scripts.files import file_digest, write_atomically, write_text_atomically


class DiceReport:
    """Handler for an evaluator: Dice of every case and foreground class, as dice.csv, dice.json and a table in the log.

    It compares the "pred" of `engine.state.output` with the "reference" of `engine.state.batch`, one item a case. A
    class that is absent from both label and prediction has no Dice (null) and is left out of the means; absent from the
    label alone it counts 0. The mean foreground Dice is the mean over the classes of the mean over the cases.

    Args:
        output_dir: folder of the two files; made when it does not exist.
        class_names: names of all classes, background first.
        label_values: value of each class in predictions and labels.
        model_file: the network that predicts; dice.json tells which one it was.
        settings: of the prediction; dice.json repeats them.
    """

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Sequence[str],
        label_values: Sequence[int],
        model_file: str | Path,
        settings: Mapping[str, Any],
    ) -> None:
        self.output_dir = Path(output_dir)
        self.classes = list(class_names)[1:]
        self.values = list(label_values)[1:]
        self.model_file, self.settings = Path(model_file), dict(settings)
        self.rows: dict[str, list[float | None]] = {}

    def attach(self, engine: Engine) -> None:
        """Score after every case, write when all are done."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.write)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, _: Engine) -> None:
        self.rows.clear()
        self.model = file_digest(self.model_file)

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
            self.rows[name] = dice(output["pred"], item["reference"], self.values)

    def write(self, _: Engine) -> None:
        """Write dice.csv and dice.json, and log the table."""
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
        }
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


def dice(pred: torch.Tensor, label: torch.Tensor, values: Sequence[int]) -> list[float | None]:
    """Dice of each class; None for a class that neither the prediction nor the label holds.

    Args:
        pred, label: label values, of equal shape.
        values: of the classes to score.
    """
    if pred.shape != label.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and label {tuple(label.shape)} differ in shape")
    scores: list[float | None] = []
    for value in values:
        p, t = pred == value, label == value
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
