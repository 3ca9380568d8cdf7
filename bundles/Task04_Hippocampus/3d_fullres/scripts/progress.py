"""What a training shows: a progress bar on a terminal, a line an epoch, curve.csv and progress.png."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from tqdm import tqdm

from scripts.agreement import best_class
from scripts.datalists import ALL
from scripts.evaluation import class_metrics
from scripts.files import write_atomically
from scripts.formats import case_name

logger = logging.getLogger(__name__)
INK, SOFT, LINE = "#1b2130", "#5b6475", "#d9dde4"
COLORS = ("#2f6fb7", "#d1495b", "#2a9d74", "#b07aa1", "#c98a12", "#6b7280", "#17a2b8", "#8c564b")
"""Of losses and classes, as in the report of autoplan; the ninth is the first again."""
NOT_VALIDATED = "trained on all cases, validated on none: what is called val is of these cases, too"
DRAWING_PART = 0.01
"""Part of the time that drawing the curve may take; short epochs are drawn some at a time."""
MAX_LEGEND = 12
"""Classes that a legend names; more would hide what is drawn."""
FEW_DECADES = 100
"""Largest learning rate over the smallest, below which its axis has labels between the powers of ten."""
STYLE: dict[Any, Any] = {
    "text.parse_math": False, "font.size": 9, "axes.edgecolor": LINE, "axes.labelcolor": SOFT, "text.color": INK,
    "xtick.color": SOFT, "ytick.color": SOFT, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.6, "lines.linewidth": 1.4, "legend.frameon": False,
    "legend.fontsize": 8,
}  # fmt: skip
"""A name of a class may hold dollar signs, which are no formula."""


class PatchDice(Metric):
    """Dice of every foreground class over all voxels of the validation patches of an epoch: an estimate of the Dice of
    whole cases. Updated with (logits (B, classes, ...), label (B, 1, ...)); a class that never occurs gives NaN.

    Args:
        class_names: names of all classes, background first.
    """

    def __init__(self, class_names: Sequence[str], **options: Any) -> None:
        self.classes = list(class_names)[1:]
        super().__init__(**options)

    def reset(self) -> None:
        """Forget all patches."""
        self._counts: Any = None

    def update(self, output: Sequence[torch.Tensor]) -> None:
        """Take in a batch."""
        logits, label = output
        num_classes = logits.shape[1]
        pairs = label.flatten().long() * num_classes + best_class(logits, 1).flatten()
        counts = torch.bincount(pairs, minlength=num_classes**2)[: num_classes**2]  # behind: voxels that are not known
        counts = counts.reshape(num_classes, num_classes).double().cpu()
        self._counts = counts if self._counts is None else self._counts + counts

    def compute(self) -> dict[str, float]:
        """Dice of each foreground class, over all ranks: "val_patch_dice_<class>"."""
        counts = idist.all_reduce(self._counts.to(idist.device())).cpu() if idist.get_world_size() > 1 else self._counts
        dice = 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))
        return class_metrics("val_patch_dice", self.classes, dice[1:].tolist())


class EpochLog:
    """Handler for a trainer: shows and writes down every epoch.

    It must come after :class:`scripts.stopping.LossRules`, whose averages it shows, and before the checkpoint, which
    saves its history, so that curve.csv and progress.png are whole after a restart. Only rank 0 shows and writes.
    While a training runs, progress.png may lack its last epochs.

    Args:
        output_dir: folder of curve.csv and progress.png.
        class_names: names of all classes, background first.
        validator: engine with the metric "patch_dice".
        fold: that is trained; "all" is validated on nothing, which the log and the figure then say.
    """

    def __init__(
        self, output_dir: str | Path, class_names: Sequence[str], validator: Engine, fold: int | str = 0
    ) -> None:
        self.output_dir = Path(output_dir)
        self.classes = list(class_names)[1:]
        self.validator = validator
        self.note = NOT_VALIDATED if fold == ALL else ""
        self.history: list[dict[str, float]] = []
        self._bar: Any = None
        self._epoch_start = self._wait_start = self._waited = 0.0
        self._draw_next = 0.0

    def attach(self, engine: Engine) -> None:
        """Take the time of epochs and of waiting for data; report at the end of every epoch."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_waiting)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._end_waiting)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _fail(self, _: Engine, error: BaseException) -> None:
        self._close()
        raise error

    def _start(self, _: Engine) -> None:
        if self.note and idist.get_rank() == 0:
            logger.info("Fold all: %s.", self.note)

    def _start_epoch(self, engine: Engine) -> None:
        self._epoch_start, self._waited = time.monotonic(), 0.0
        self._close()
        if idist.get_rank() == 0:
            done = engine.state.iteration % engine.state.epoch_length
            title = f"epoch {engine.state.epoch}"
            self._bar = tqdm(total=engine.state.epoch_length, initial=done, desc=title, leave=False, disable=None)

    def _start_waiting(self, _: Engine) -> None:
        self._wait_start = time.monotonic()

    def _end_waiting(self, _: Engine) -> None:
        self._waited += time.monotonic() - self._wait_start

    def _advance(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(f"loss {engine.state.output[0]['loss']:.3f}", refresh=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _end(self, _: Engine) -> None:
        self._close()
        if idist.get_rank() != 0:
            return
        curve, picture = self.output_dir / "curve.csv", self.output_dir / "progress.png"
        drawn = picture.stat().st_mtime_ns if picture.is_file() else 0
        if self.history and curve.is_file() and drawn < curve.stat().st_mtime_ns:
            self._draw()

    def __call__(self, engine: Engine) -> None:
        self._close()
        if idist.get_rank() != 0:
            return
        metrics, seconds = engine.state.metrics, time.monotonic() - self._epoch_start
        names = ("train_loss", "val_loss", "train_average", "val_average", "lr")
        row = {"epoch": engine.state.epoch, **{name: metrics[name] for name in names}}
        row |= {"seconds": seconds, "waiting_seconds": self._waited}
        dice = self.validator.state.metrics["patch_dice"].values()
        row |= {f"dice_{name}": value for name, value in zip(self.classes, dice, strict=True)}
        self.history.append(row)
        left = (engine.state.max_epochs - engine.state.epoch) * seconds
        logger.info(
            "epoch %d/%d  train %.4f (avg %.4f)  val %.4f (avg %.4f)  lr %.2g  %.1f s, %.1f s waiting for data  "
            "at most %s left  estimated Dice (patches): %s",
            row["epoch"], engine.state.max_epochs, row["train_loss"], row["train_average"], row["val_loss"],
            row["val_average"], row["lr"], seconds, self._waited, _duration(left),
            ", ".join(f"{name} {value:.3f}" for name, value in zip(self.classes, dice, strict=True)),
        )  # fmt: skip
        self._write_curve()
        if time.monotonic() >= self._draw_next:
            self._draw()

    def _draw(self) -> None:
        """Draw the curve, and not again until this takes a small part of the time."""
        start = time.monotonic()
        draw_curve(self.history, self.classes, self.output_dir / "progress.png", self.note)
        self._draw_next = time.monotonic() + (time.monotonic() - start) / DRAWING_PART

    def _write_curve(self) -> None:
        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(self.history[0]))
                writer.writeheader()
                writer.writerows(self.history)

        write_atomically(self.output_dir / "curve.csv", write)

    def state_dict(self) -> dict[str, Any]:
        """The rows of curve.csv."""
        return {"history": [dict(row) for row in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the rows that `state_dict` gave."""
        self.history = [dict(row) for row in state["history"]]


class CaseProgress:
    """Handler for an evaluator of whole cases: a progress bar on a terminal, a line a case in a log.

    Args:
        output_dir: named at the end as the place of the segmentations.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self._bar: Any = None
        self._predicted = 0

    def attach(self, engine: Engine) -> None:
        """Count the cases of a run."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _start(self, engine: Engine) -> None:
        self._predicted = 0
        self._bar = tqdm(total=engine.state.epoch_length, desc="predicting", unit="case", leave=False, disable=None)

    def __call__(self, engine: Engine) -> None:
        self._bar.update()
        self._predicted += len(engine.state.output)
        if self._bar.disable and engine.state.output:
            names = ", ".join(case_name(item["pred"].meta["filename_or_obj"]) for item in engine.state.output)
            logger.info("%d/%d %s", engine.state.iteration, engine.state.epoch_length, names)

    def _end(self, engine: Engine) -> None:
        self._bar.close()
        logger.info("%d segmentations are in %s", self._predicted, self.output_dir.absolute())


def draw_curve(history: Sequence[dict[str, float]], classes: Sequence[str], path: Path, note: str = "") -> None:
    """Draw losses and their averages, the estimated Dice and the learning rate over the epochs, as a PNG; above them a
    note."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7, 7.5), layout="constrained")
        losses, dice, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
        for name, color in (("train", COLORS[0]), ("val", COLORS[1])):
            _line(losses, history, f"{name}_loss", color, f"{name} loss", linewidth=0.7, alpha=0.4)
            _line(losses, history, f"{name}_average", color, f"{name} average")
        for number, name in enumerate(classes):
            # matplotlib leaves out names that start with an underscore.
            shown = f" {name}" if name[0] == "_" else name
            _line(dice, history, f"dice_{name}", COLORS[number % len(COLORS)], shown)
        _line(rate, history, "lr", INK, "")
        rate.set(yscale="log", ylabel="learning rate", xlabel="epoch")
        rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        rates = [row["lr"] for row in history if row["lr"]] or [1.0]
        between = "25" if max(rates) < FEW_DECADES * min(rates) else ""
        rate.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in between else "")
        rate.xaxis.get_major_locator().set_params(integer=True)
        losses.set_title(note, fontsize="medium")
        losses.set_ylabel("loss")
        dice.set(ylabel="Dice, estimated on patches", ylim=(0, 1))
        losses.legend()
        if len(classes) <= MAX_LEGEND:
            dice.legend(ncols=1 if len(classes) < 4 else 2)
        write_atomically(path, lambda temporary: FigureCanvasAgg(figure).print_png(str(temporary)))


def _line(axes: Any, history: Sequence[dict[str, float]], name: str, color: str, label: str, **style: float) -> None:
    """A column of the curve over the epochs, a dot where there is one epoch only. A rate of 0, at which a schedule may
    end, is left out: a logarithm does not have it."""
    epochs = [row["epoch"] for row in history]
    values = [row[name] or math.nan if name == "lr" else row[name] for row in history]
    axes.plot(epochs, values, color=color, label=label, marker="." if len(history) == 1 else "", **style)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
