"""A training that takes a given time: how many iterations fit into it, and the learning rate of each."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events

from scripts.files import write_text_atomically

logger = logging.getLogger(__name__)
NAME = "budget.json"
"""File in a fold's folder that tells how its time was used."""
SKIPPED = 3
"""Iterations at the start of a training that are not measured: they take longer than all others."""
MEASURED, FEWEST, MEASURED_PART = 20, 3, 0.03
"""The length is fixed after so many measured iterations; of slow ones after this part of the time, but the fewest."""
LATE, EARLY = 0.03, 0.05
"""Parts of the budget by which an expected end may miss it, after and before, until the length is changed. Within an
epoch it may be before by twice as much."""
SETTLED = 0.05
"""Part of the budget that passes before a decision is reviewed, unless time is lost: speeds go up and down."""
ROUNDED = 0.02
"""Part of the iterations by which the length may be rounded, for whole epochs."""
_starts = [time.monotonic()]
"""When the config imported this module, at the start of a process that trains; taken by the first training in it."""


class Course:
    """Factor of the learning rate in each iteration of a training whose length may change.

    Until the length is fixed it is `warm_up_start`, then it rises to 1 in a straight line, stays there, and falls to 0
    at the end. Where the length changes after the fall has begun, the rest of the fall is stretched or squeezed: the
    factor never jumps and never rises again.

    Args:
        warm_up_fraction: part of all iterations in which it rises; 0: it is 1 from the start.
        warm_up_start: what it rises from.
        decay_fraction: part of all iterations, the last ones, in which it falls.
        decay_power: of the fall: 1 is a straight line.
    """

    def __init__(
        self, warm_up_fraction: float, warm_up_start: float, decay_fraction: float, decay_power: float
    ) -> None:
        self.warm_up_fraction, self.warm_up_start = warm_up_fraction, warm_up_start
        self.decay_fraction, self.decay_power = decay_fraction, decay_power
        self.first, self.warm_up = math.inf, 0.0
        self.begin, self.height, self.end = math.inf, 1.0, math.inf

    def extend(self, iteration: int, length: int) -> None:
        """Let the training have `length` iterations in all, from `iteration` on."""
        if self.end == math.inf:
            self.first, self.warm_up = iteration, self.warm_up_fraction * length
        begin = max(length - self.decay_fraction * length, self.first + self.warm_up)
        if iteration <= self.begin and iteration < begin <= length:
            self.begin, self.height, self.end = begin, 1.0, length
        else:
            self.begin, self.height, self.end = iteration, self.factor(iteration), length

    def factor(self, iteration: int) -> float:
        """In an iteration, counted from 0."""
        if iteration > self.begin:
            return self.height * max(0.0, (self.end - iteration) / (self.end - self.begin)) ** self.decay_power
        if not self.warm_up_fraction:
            return self.height
        risen = (iteration - self.first) / self.warm_up if self.warm_up and iteration > self.first else 0.0
        return min(self.height, self.warm_up_start + (1 - self.warm_up_start) * risen)


class TimeBudget:
    """A schedule of the learning rate, for :class:`scripts.stopping.LossRules`, that ends when a time is over.

    After the first iterations it fixes how many there will be. When the end would miss the budget, because the machine
    became slower or faster, it fixes another number, at the end of an epoch, or at once where much time is lost or won,
    or less is left than the budget says. Each decision is in the log, in the checkpoint and in budget.json, and all
    that follows from it is the same again when the training goes on after an interruption. The last epoch may be
    shorter than the others. The time is that of the processes that train: what lies between them does not count, nor
    what is lost with one that was killed. In distributed training it is that of rank 0.

    Args:
        optimizer: its learning rate is set before every iteration.
        seconds: that the training may take, from the import of this module in its process to its last checkpoint.
        output_dir: folder of budget.json.
        left: seconds that this process has at most, of those that the budget leaves; None: all of them.
        warm_up_fraction, warm_up_start, decay_fraction, decay_power: see :class:`Course`.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        seconds: float,
        output_dir: str | Path,
        *,
        left: float | None = None,
        warm_up_fraction: float = 0.0,
        warm_up_start: float = 0.1,
        decay_fraction: float = 1.0,
        decay_power: float = 0.9,
    ) -> None:
        self.optimizer, self.seconds, self.output_dir = optimizer, float(seconds), Path(output_dir)
        self.left = math.inf if left is None else float(left)
        self.rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self.shape = (warm_up_fraction, warm_up_start, decay_fraction, decay_power)
        self.course = Course(*self.shape)
        self.decisions: list[dict[str, Any]] = []
        self.start, self.before = _starts.pop() if _starts else self.clock(), 0.0
        self.pace, self.overhead = 0.0, 0.0
        self.expected_from = (0, 0.0)
        self.num_measured, self.sum_measured = 0, 0.0
        self._last, self._ended = 0.0, math.nan
        self._is_new = True  # no iteration has ended in this process

    def attach(self, engine: Engine) -> None:
        """Take the time, set the learning rate of every iteration, end the training."""
        self.engine, self.most = engine, engine.state.max_epochs
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._end_if_over)
        engine.add_event_handler(Events.ITERATION_STARTED, self._set_rate)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    @property
    def length(self) -> int | None:
        """Iterations in all; None while that is open."""
        return self.decisions[-1]["iterations"] if self.decisions else None

    @property
    def limit(self) -> float:
        """Seconds at which the training has to end."""
        return min(self.seconds, self.before + self.left)

    def now(self) -> float:
        """Seconds that the training has taken."""
        seconds = self.before + self.clock() - self.start
        return float(idist.broadcast(seconds, src=0)) if idist.get_world_size() > 1 else seconds

    def _epoch_started(self, _: Engine) -> None:
        self._last = self.now()
        if not math.isnan(self._ended):
            self.overhead = self._last - self._ended

    def _end_if_over(self, engine: Engine) -> None:
        if self.length is not None and engine.state.iteration >= self.length:
            engine.terminate_epoch()

    def _set_rate(self, engine: Engine) -> None:
        factor = self.course.factor(engine.state.iteration - 1)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _iteration_completed(self, engine: Engine) -> None:
        now, iteration = self.now(), engine.state.iteration
        if iteration > SKIPPED:
            self.num_measured, self.sum_measured = self.num_measured + 1, self.sum_measured + now - self._last
        self._last = now
        if self.length is None:
            if self.num_measured >= (MEASURED if now < MEASURED_PART * self.limit else FEWEST):
                self._decide(iteration, now, f"the first iterations took {self._measured():.3g} s each")
        elif iteration < self.length and (because := self._surprise(iteration, self.length, now)):
            self._decide(iteration, now, because)
        self._is_new = False

    def _surprise(self, iteration: int, length: int, now: float) -> str:
        """Why the length cannot wait for the end of an epoch; empty where it can."""
        late = now - self._expected(iteration)
        if self._is_new and self.limit < min(self.seconds, self._end(iteration, length, now)):
            return f"it has only {max(0.0, self.limit - now):.0f} s left"
        if late > LATE * self.seconds:
            return "the machine has become slower"
        if -late > 2 * EARLY * self.seconds and self.num_measured >= FEWEST:
            return "the machine has become faster"
        return ""

    def step(self) -> None:
        """Look at the time at the end of an epoch; of the last one, count what was left out as done."""
        state, self._ended, now = self.engine.state, self._last, self.now()
        self.overhead = self.overhead or now - self._ended
        if self.length is not None and state.iteration >= self.length:
            state.iteration = state.epoch * state.epoch_length
        elif self.length is not None:
            self._compare(state.iteration, max(now, self._ended + self.overhead))
        self._write(now)

    def _measured(self) -> float:
        """Seconds of an iteration, the mean since the last decision; the one before where that are too few."""
        return self.sum_measured / self.num_measured if self.num_measured >= FEWEST else self.pace

    def _expected(self, iteration: int) -> float:
        """When an iteration should end by the last decision."""
        begun, then = self.expected_from
        epoch_length = self.engine.state.epoch_length
        epochs = iteration // epoch_length - begun // epoch_length
        return then + (iteration - begun) * self.pace + epochs * self.overhead

    def _compare(self, iteration: int, now: float) -> None:
        """Compare the expected end with the budget, and change the length where it is missed."""
        if now - self.expected_from[1] < SETTLED * self.seconds:
            return
        late = self._end(iteration, self.decisions[-1]["iterations"], now) - self.limit
        if late > LATE * self.seconds or -late > EARLY * self.seconds:
            side = "after" if late > 0 else "before"
            self._decide(iteration, now, f"it would have ended {abs(late):.0f} s {side} its time")

    def _end(self, iteration: int, length: int, now: float) -> float:
        """When a training of some length ends: its iterations, and what each epoch needs besides."""
        epoch_length = self.engine.state.epoch_length
        epochs = math.ceil(length / epoch_length) - iteration // epoch_length
        return now + (length - iteration) * self._measured() + epochs * self.overhead

    def _decide(self, iteration: int, now: float, because: str) -> None:
        """Fix the length."""
        epoch_length, pace = self.engine.state.epoch_length, self._measured()
        left, each = self.limit - now, pace + self.overhead / epoch_length
        length = iteration + max(0, math.floor(left / each)) if each else self.most * epoch_length
        length = min(length, self.most * epoch_length)
        whole = round(length / epoch_length) * epoch_length
        if whole > iteration and abs(whole - length) <= ROUNDED * length:
            length = whole
        latest = self.limit + ROUNDED * min(self.seconds, self.left)
        while length > iteration and self._end(iteration, length, now) > latest:
            length -= 1
        self.pace, self.expected_from = pace, (iteration, now)
        self.num_measured, self.sum_measured = 0, 0.0
        if length == self.length:
            return
        self.course.extend(iteration, length)
        self.decisions.append(
            {
                "iteration": iteration,
                "iterations": length,
                "epochs": math.ceil(length / epoch_length),
                "seconds_per_iteration": round(pace, 6),
                "because": because,
            }
        )
        self.engine.state.max_epochs = self.decisions[-1]["epochs"]
        logger.info(
            "iteration %d: the training has %d iterations, %d epochs: %s.",
            iteration, length, self.decisions[-1]["epochs"], because,
        )  # fmt: skip
        self._write(now)

    def _write(self, now: float) -> None:
        if idist.get_rank() == 0:
            found = {"budget_seconds": self.seconds, "seconds": round(now, 3), "decisions": self.decisions}
            write_text_atomically(self.output_dir / NAME, json.dumps(found, indent=1) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and the decisions."""
        return {
            "budget_seconds": self.seconds,
            "seconds": self.now(),
            "decisions": [dict(decision) for decision in self.decisions],
            "pace": self.pace,
            "overhead": self.overhead,
            "expected_from": list(self.expected_from),
            "num_measured": self.num_measured,
            "sum_measured": self.sum_measured,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what `state_dict` gave."""
        self.before = state["seconds"]
        self.decisions = [dict(decision) for decision in state["decisions"]]
        self.pace, self.overhead = state["pace"], state["overhead"]
        self.expected_from = tuple(state["expected_from"])
        self.num_measured, self.sum_measured = state["num_measured"], state["sum_measured"]
        self.course = Course(*self.shape)
        for decision in self.decisions:
            self.course.extend(decision["iteration"], decision["iterations"])
        if self.decisions:
            self.engine.state.max_epochs = self.decisions[-1]["epochs"]
