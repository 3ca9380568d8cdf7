"""The rules that lower the learning rate and end a training."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events

from scripts.budget import TimeBudget


class OtherRecipeError(ValueError):
    """A training cannot go on with the learning rates of another recipe than it was begun with."""


class Plateau:
    """Counts the epochs since a falling value last improved by `delta` on the best one.

    Args:
        delta: how much lower a value must be to count as an improvement.
        strict: by more than `delta`, instead of by at least `delta`.
    """

    def __init__(self, delta: float, *, strict: bool) -> None:
        self.delta, self.strict = delta, strict
        self.best, self.epochs = math.inf, 0

    def update(self, value: float) -> int:
        """Take in the value of an epoch; epochs since the last improvement, 0 when this is one."""
        # The difference is taken of the values, not of a sum: 1.0 - 0.995 is not more than 0.005.
        gain = self.best - value
        improved = gain > self.delta if self.strict else gain >= self.delta
        self.best, self.epochs = (value, 0) if improved else (self.best, self.epochs + 1)
        return self.epochs


class LossRules:
    """Handler for a trainer: moving averages of the losses, learning rate divided on a plateau, automatic stop.

    It must come after the handler that validates. The training loss of an epoch is the mean over its iterations and, in
    distributed training, over the ranks, so the ranks decide alike.

    Args:
        optimizer: its learning rate is divided.
        validator: engine whose `state.metrics["val_loss"]` is the validation loss of the epoch.
        schedule: a learning-rate schedule of torch's, stepped every epoch, that takes the place of the rule for the
            learning rate, or a :class:`scripts.budget.TimeBudget`; None for the rule.
        warm_up: another, stepped every iteration, on top of either, but for a TimeBudget, which sets every rate and has
            a warm-up of its own; None for no warm-up.
        train_average_weight, val_average_weight: weight of the old average against the epoch's loss.
        lr_patience, lr_delta: no improvement of the training average by at least `lr_delta` in `lr_patience` epochs ...
        lr_divisor: ... divides the learning rate by this, and counting starts again.
        stop_patience, stop_delta: no improvement of the validation average by more than `stop_delta` in `stop_patience`
            epochs ends the training ...
        stop_lr: ... but not before the learning rate is below this.

    Source: arXiv:1809.10486, section 2.3; the weights of the averages are known defaults of nnU-Net.
    """

    def __init__(  # noqa: PLR0913 (every number stands in train.json)
        self,
        optimizer: torch.optim.Optimizer,
        validator: Engine,
        *,
        schedule: torch.optim.lr_scheduler.LRScheduler | TimeBudget | None = None,
        warm_up: torch.optim.lr_scheduler.LRScheduler | None = None,
        train_average_weight: float = 0.93,
        val_average_weight: float = 0.9,
        lr_patience: int = 30,
        lr_delta: float = 5e-3,
        lr_divisor: float = 5.0,
        stop_patience: int = 60,
        stop_delta: float = 5e-3,
        stop_lr: float = 1e-6,
    ) -> None:
        self.optimizer, self.validator, self.schedule, self.warm_up = optimizer, validator, schedule, warm_up
        self.train_average_weight, self.val_average_weight = train_average_weight, val_average_weight
        self.lr_patience, self.lr_divisor = lr_patience, lr_divisor
        self.stop_patience, self.stop_lr = stop_patience, stop_lr
        self.train_plateau = Plateau(lr_delta, strict=False)
        self.val_plateau = Plateau(stop_delta, strict=True)
        self.train_average: float | None = None
        self.val_average: float | None = None
        self.stopped = False
        self.loss_sum, self.num_losses = 0.0, 0

    @property
    def lr(self) -> float:
        """The learning rate now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def attach(self, engine: Engine) -> None:
        """Collect the loss of every iteration, decide at the end of every epoch."""
        if isinstance(self.schedule, TimeBudget):
            self.schedule.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def collect(self, engine: Engine) -> None:
        """Take in the loss of one iteration, and leave it as the output, in the form that MONAI's tracking by MLflow
        reads. The images and logits of the batch are of no more use.

        Raises:
            FloatingPointError: it is not finite.
        """
        loss = float(engine.state.output["loss"].detach())
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} in epoch {engine.state.epoch}, iteration {engine.state.iteration}, cases "
                f"{', '.join(engine.state.batch.get('case', ['unknown']))}. Try a lower learning rate, or --amp False."
            )
        engine.state.output = [{"loss": loss}]
        self.loss_sum += loss
        self.num_losses += 1
        if self.warm_up is not None:
            self.warm_up.step()

    def __call__(self, engine: Engine) -> None:
        total, count = (idist.all_reduce(v) for v in (self.loss_sum, float(self.num_losses)))
        self.loss_sum, self.num_losses = 0.0, 0
        self.step(total / count, float(self.validator.state.metrics["val_loss"]))
        metrics = engine.state.metrics
        metrics.update(train_loss=total / count, val_loss=float(self.validator.state.metrics["val_loss"]))
        metrics.update(train_average=self.train_average, val_average=self.val_average, lr=self.lr)
        if self.stopped:
            logging.getLogger(__name__).info(
                "epoch %d: the validation average has not improved within %d epochs and the learning rate is %.2g: the "
                "training ends.", engine.state.epoch, self.stop_patience, self.lr,
            )  # fmt: skip
            engine.terminate()

    def step(self, train_loss: float, val_loss: float) -> None:
        """Apply the rules to the losses of one epoch."""
        self.train_average = _average(self.train_average, train_loss, self.train_average_weight)
        self.val_average = _average(self.val_average, val_loss, self.val_average_weight)
        waited = self.train_plateau.update(self.train_average)
        if self.schedule is not None:
            self.schedule.step()
        elif waited >= self.lr_patience:
            self.train_plateau.epochs = 0
            for group in self.optimizer.param_groups:
                group["lr"] /= self.lr_divisor
        self.stopped = self.val_plateau.update(self.val_average) >= self.stop_patience and self.lr < self.stop_lr

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; the learning rate is in the optimizer's state."""
        return {
            "train_average": self.train_average,
            "val_average": self.val_average,
            "train_best": self.train_plateau.best,
            "train_epochs": self.train_plateau.epochs,
            "val_best": self.val_plateau.best,
            "val_epochs": self.val_plateau.epochs,
            "stopped": self.stopped,
            "loss_sum": self.loss_sum,
            "num_losses": self.num_losses,
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "warm_up": None if self.warm_up is None else self.warm_up.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the numbers that `state_dict` gave.

        Raises:
            OtherRecipeError: they are of a training with a schedule, and this one has none or one of another length or
                time, or the other way round. The learning rate would stay where the one recipe had left it, such as
                at 0.
        """
        saved, mine = state["schedule"], None if self.schedule is None else self.schedule.state_dict()
        if _length(saved) != _length(mine):
            raise OtherRecipeError(
                "this fold was started with another recipe (quick.json or budget.json, or with one of them another "
                "--max_epochs or --budget_seconds)."
            )
        self.train_average, self.val_average = state["train_average"], state["val_average"]
        self.train_plateau.best, self.train_plateau.epochs = state["train_best"], state["train_epochs"]
        self.val_plateau.best, self.val_plateau.epochs = state["val_best"], state["val_epochs"]
        self.stopped = state["stopped"]
        self.loss_sum, self.num_losses = state["loss_sum"], state["num_losses"]
        if self.schedule is not None:
            self.schedule.load_state_dict(saved)
        if self.warm_up is not None and state.get("warm_up") is not None:
            self.warm_up.load_state_dict(state["warm_up"])


def _length(schedule: dict[str, Any] | None) -> tuple[Any, ...]:
    """Whether there is a schedule, by its state, and after how many epochs or seconds it ends, where it says so."""
    return () if schedule is None else (schedule.get("total_iters"), schedule.get("budget_seconds"))


def _average(old: float | None, value: float, weight: float) -> float:
    return value if old is None else weight * old + (1 - weight) * value
