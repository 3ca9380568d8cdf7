"""A training that takes a given time: how many iterations it has, and the learning rate of each; by a fake clock."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from scripts.budget import NAME, Course, TimeBudget
from scripts.stopping import LossRules, OtherRecipeError

RATE = 0.01
Pace = Callable[[float], float]
"""Seconds of an iteration that starts at some time."""


@dataclass
class Run:
    """A training that computes nothing, on a clock that moves by what an iteration and a validation take."""

    folder: Path
    seconds: float
    pace: Pace = lambda _: 1.0
    epoch_length: int = 10
    overhead: float = 0.0
    shape: dict[str, float] = field(default_factory=dict)
    max_epochs: int = 10**5
    now: float = 0.0
    left: float | None = None
    rates: list[float] = field(default_factory=list)
    saved: dict[int, Any] = field(default_factory=dict)

    def start(self, state: dict[str, Any] | None = None, *, until: float = math.inf) -> "Run":
        """Train from a state on, to the end or until an iteration."""
        self.optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
        self.budget = TimeBudget(self.optimizer, self.seconds, self.folder, left=self.left, **self.shape)
        self.budget.clock = lambda: self.now
        self.budget.start = self.now
        self.engine = Engine(self._iterate)
        self.engine.state.max_epochs, self.engine.state.epoch_length = self.max_epochs, self.epoch_length
        rules = LossRules(self.optimizer, Engine(lambda *_: None), schedule=self.budget)
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self._validate(rules))
        rules.attach(self.engine)
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: self._save(e, rules))
        self.engine.add_event_handler(Events.STARTED, lambda e: self._load(e, rules, state))
        self.engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e: e.terminate() if e.state.iteration >= until else None
        )
        self.engine.run(range(10**9), max_epochs=self.max_epochs, epoch_length=self.epoch_length)
        return self

    def _load(self, engine: Engine, rules: LossRules, state: dict[str, Any] | None) -> None:
        if state is not None:
            engine.state.iteration = state["iteration"]
            engine.state.epoch = state["iteration"] // self.epoch_length
            rules.load_state_dict(json.loads(json.dumps(state["rules"])))

    def _iterate(self, *_: Any) -> dict[str, torch.Tensor]:
        self.now += self.pace(self.now)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return {"loss": torch.tensor(1.0)}

    def _validate(self, rules: LossRules) -> None:
        self.now += self.overhead * 0.75
        rules.validator.state.metrics["val_loss"] = 1.0

    def _save(self, engine: Engine, rules: LossRules) -> None:
        self.saved[engine.state.iteration] = {"iteration": engine.state.iteration, "rules": rules.state_dict()}
        self.now += self.overhead * 0.25

    @property
    def decisions(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / NAME).read_text())["decisions"]


# The learning rate.


def factors(shape: Sequence[float], changes: Sequence[tuple[int, int]], until: int) -> list[float]:
    course, lengths, found = Course(*shape), dict(changes), []
    for iteration in range(until):
        if iteration in lengths:
            course.extend(iteration, lengths[iteration])
        found.append(round(course.factor(iteration), 3))
    return found


@pytest.mark.parametrize(
    ("shape", "changes", "expected"),
    [
        pytest.param((0, 0.1, 0, 1), [(2, 5)], [1, 1, 1, 1, 1], id="constant"),
        pytest.param((0, 0.1, 1, 1), [(0, 5)], [1, 0.8, 0.6, 0.4, 0.2, 0], id="a straight line"),
        pytest.param((0, 0.1, 1, 1), [(1, 5)], [1, 1, 0.75, 0.5, 0.25, 0], id="from where it was fixed"),
        pytest.param((0, 0.1, 1, 2), [(0, 4)], [1, 0.562, 0.25, 0.062, 0], id="a power"),
        pytest.param((0, 0.1, 0.5, 1), [(1, 8)], [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0], id="constant, then a line"),
        pytest.param((0.4, 0.2, 0.4, 1), [(1, 10)], [0.2, 0.2, 0.4, 0.6, 0.8, 1, 1, 0.75, 0.5, 0.25, 0], id="warm-up"),
        pytest.param((0, 0.1, 0.5, 1), [(0, 8), (2, 6)], [1, 1, 1, 1, 0.667, 0.333, 0], id="shorter before the fall"),
        pytest.param((0, 0.1, 0.5, 1), [(0, 8), (6, 7)], [1, 1, 1, 1, 1, 0.75, 0.5, 0], id="shorter in the fall"),
        pytest.param((0, 0.1, 0.5, 1), [(0, 4), (3, 9)], [1, 1, 1, 0.5, 0.417, 0.333], id="longer: it never rises"),
        pytest.param((0, 0.1, 0.5, 1), [(0, 4), (1, 8)], [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0], id="longer before it"),
        pytest.param((0.5, 0.0, 0, 1), [(0, 8), (2, 3)], [0, 0.25, 0.5, 0], id="it ends in the warm-up"),
    ],
)
def test_learning_rates(shape: Sequence[float], changes: list[tuple[int, int]], expected: list[float]) -> None:
    assert factors(shape, changes, len(expected)) == pytest.approx(expected, abs=1e-3)


def test_the_rate_is_set_in_every_iteration(tmp_path: Path) -> None:
    run = Run(tmp_path, 100, shape={"decay_power": 1.0}).start()
    assert len(run.rates) == run.decisions[0]["iterations"] == 100
    assert run.rates[:7] == [RATE] * 7, "the length is fixed after 6 iterations"
    assert run.rates[7] < RATE
    assert run.rates[-1] == pytest.approx(RATE / (100 - run.decisions[0]["iteration"]))


# The length.


@pytest.mark.parametrize(
    ("seconds", "pace", "overhead", "length"),
    [
        pytest.param(100, 1.0, 0, 100, id="as many as fit"),
        pytest.param(101, 1.0, 0, 100, id="whole epochs"),
        pytest.param(106, 1.0, 0, 106, id="a short last epoch"),
        pytest.param(1000, 0.1, 0, 10_000, id="fast"),
        pytest.param(20, 1.0, 0, 20, id="few iterations"),
        pytest.param(1.0, 5.0, 0, 6, id="less than the iterations that are measured"),
    ],
)
def test_how_many_iterations(seconds: float, pace: float, overhead: float, length: int, tmp_path: Path) -> None:
    run = Run(tmp_path, seconds, lambda _: pace, overhead=overhead).start()
    assert len(run.rates) == run.decisions[-1]["iterations"] == length
    assert len(run.decisions) == 1
    assert run.engine.state.epoch == run.decisions[-1]["epochs"] == math.ceil(length / 10)


def test_what_epochs_need_besides_is_learnt(tmp_path: Path) -> None:
    """Where it is known only after the length was fixed: a decision more."""
    run = Run(tmp_path, 1000, overhead=20.0, epoch_length=50).start()
    assert 950 <= run.now <= 1030
    assert [d["iterations"] for d in run.decisions] == [1000, 700]


def test_no_more_epochs_than_the_most(tmp_path: Path) -> None:
    run = Run(tmp_path, 1000, max_epochs=7).start()
    assert (run.engine.state.epoch, len(run.rates)) == (7, 70)


MACHINES: dict[str, Pace] = {
    "2 times slower halfway": lambda t: 1.0 if t < 500 else 2.0,
    "5 times slower halfway": lambda t: 1.0 if t < 500 else 5.0,
    "5 times slower soon": lambda t: 1.0 if t < 50 else 5.0,
    "5 times slower at the end": lambda t: 1.0 if t < 950 else 5.0,
    "2 times faster halfway": lambda t: 1.0 if t < 500 else 0.5,
    "5 times faster soon": lambda t: 1.0 if t < 100 else 0.2,
    "20 times faster after the first steps": lambda t: 20.0 if t < 150 else 1.0,
    "up and down": lambda t: 1.0 + 0.5 * math.sin(t / 30),
    "a pause": lambda t: 60.0 if 400 < t < 450 else 1.0,
    "two pauses": lambda t: 80.0 if 400 < t < 450 or 800 < t < 850 else 1.0,
    "slower and slower": lambda t: 0.5 + t / 300,
}


@pytest.mark.parametrize("overhead", [0.0, 1.0])
@pytest.mark.parametrize("epoch_length", [10, 50])
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("shape", [{}, {"warm_up_fraction": 0.05, "decay_fraction": 0.3}], ids=["line", "trapezoid"])
def test_it_keeps_its_word(
    name: str, epoch_length: int, overhead: float, shape: dict[str, float], tmp_path: Path
) -> None:
    run = Run(tmp_path, 1000, MACHINES[name], epoch_length, overhead, shape).start()
    assert 900 <= run.now <= 1100
    assert len(run.decisions) <= 16
    warm = round(0.05 * run.decisions[0]["iterations"]) + 25 if shape else 0
    assert all(a >= b for a, b in zip(run.rates[warm:], run.rates[warm + 1 :], strict=False)), "it never rises"
    assert run.rates[-1] < 0.15 * RATE
    assert all(d["because"] for d in run.decisions)


@pytest.mark.parametrize("name", ["5 times slower soon", "5 times faster soon", "up and down"])
@pytest.mark.parametrize("number", [0, 1, 5, 7, -2])
def test_it_goes_on_with_the_same_decisions(name: str, number: int, tmp_path: Path) -> None:
    """From any checkpoint; what was done after it is done again, and takes no time of the budget."""
    whole = Run(tmp_path / "whole", 200, MACHINES[name]).start()
    at = sorted(whole.saved)[number]
    begun = Run(tmp_path / "again", 200, MACHINES[name]).start(until=at + 3)
    state = begun.saved[at]
    again = Run(tmp_path / "again", 200, MACHINES[name], now=state["rules"]["schedule"]["seconds"]).start(state)
    assert again.decisions == whole.decisions
    assert begun.rates[:at] + again.rates == whole.rates


def test_dead_time_does_not_count_but_the_start_does(tmp_path: Path) -> None:
    state = Run(tmp_path, 1000).start(until=503).saved[500]
    again = Run(tmp_path, 1000, now=5000.0).start(state)
    assert len(again.rates) == 500
    slow = Run(tmp_path, 1000, lambda t: 101.0 if t == 5000 else 1.0, now=5000.0).start(state)
    assert len(slow.rates) == 400


@pytest.mark.parametrize("left", [500, 300, 50, 3])
@pytest.mark.parametrize("at", [10, 30, 500])
def test_less_is_left_than_the_budget_says(left: float, at: int, tmp_path: Path) -> None:
    """It is shorter at once, by a decision, and the rate falls to the end."""
    saved = Run(tmp_path, 1000).start(until=503).saved
    again = Run(tmp_path, 1000, now=5000.0, left=left).start(saved[at])
    rest = min(left, 1000 - at)
    assert 0.98 * rest - 1 <= again.now - 5000 <= 1.02 * rest + 1
    if at == 10:
        assert len(again.decisions) == 1, "its length was not fixed before"
    elif rest < 1000 - at:
        assert again.decisions[-1]["because"] == f"it has only {left - 1:.0f} s left"
        assert again.rates[-1] <= max(0.15 * RATE, again.rates[0])
    else:
        assert len(again.decisions) == 1


def test_less_is_left_at_the_start(tmp_path: Path) -> None:
    assert len(Run(tmp_path, 1000, left=100).start().rates) == 100


def test_another_budget_is_another_recipe(tmp_path: Path) -> None:
    run = Run(tmp_path, 100).start()
    state = run.saved[50]
    with pytest.raises(OtherRecipeError, match="budget_seconds"):
        Run(tmp_path, 200).start(state)
    rules = LossRules(run.optimizer, Engine(lambda *_: None))
    with pytest.raises(OtherRecipeError):
        rules.load_state_dict(state["rules"])


def test_what_is_written_down(tmp_path: Path) -> None:
    Run(tmp_path, 100).start()
    assert json.loads((tmp_path / NAME).read_text()) == {
        "budget_seconds": 100,
        "seconds": 100,
        "decisions": [
            {
                "iteration": 6,
                "iterations": 100,
                "epochs": 10,
                "seconds_per_iteration": 1.0,
                "because": "the first iterations took 1 s each",
            }
        ],
    }
