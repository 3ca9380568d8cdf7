"""The rules of section 2.3 that lower the learning rate and end a training, on made-up loss curves."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from ignite.engine import Engine, Events
from scripts.stopping import LossRules, OtherRecipeError

Curve = Callable[[int], float]
LR = 3e-4
FLAT: Curve = lambda epoch: 0.5  # noqa: E731
SLOW: Curve = lambda epoch: 2.0 - 0.001 * epoch  # noqa: E731
FALLING: Curve = lambda epoch: -0.1 * epoch  # noqa: E731


def rules(**settings: float) -> LossRules:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    return LossRules(optimizer, Engine(lambda *_: None), **settings)


def run(rule: LossRules, train: Curve, val: Curve, epochs: int) -> tuple[list[int], int | None]:
    """Epochs after which the learning rate fell, and the epoch that ended the training."""
    drops = []
    for epoch in range(1, epochs + 1):
        before = rule.lr
        rule.step(train(epoch), val(epoch))
        if rule.lr < before:
            drops.append(epoch)
        if rule.stopped:
            return drops, epoch
    return drops, None


# The first epoch is the best of a flat curve; 30 epochs without improvement end with epoch 31, then every 30.
@pytest.mark.parametrize(
    ("train", "val", "drops", "stop"),
    [
        pytest.param(FLAT, FLAT, [31, 61, 91, 121], 121, id="flat: stops once the fourth drop brings it below 1e-6"),
        pytest.param(FALLING, FLAT, [], None, id="training still improves: flat validation alone never stops it"),
        pytest.param(FLAT, FALLING, [31 + 30 * k for k in range(10)], None, id="validation improves: goes on"),
        pytest.param(SLOW, SLOW, [], None, id="0.001 an epoch adds up to an improvement and stops nothing"),
    ],
)
def test_drops_and_stop(train: Curve, val: Curve, drops: list[int], stop: int | None) -> None:
    assert run(rules(), train, val, 310) == (drops, stop)


def test_each_drop_divides_by_five() -> None:
    rule = rules()
    run(rule, FLAT, FALLING, 61)
    assert rule.lr == pytest.approx(LR / 25)


def test_no_stop_before_the_learning_rate_is_below_its_gate() -> None:
    """Validation is flat from the start, so its 60 epochs pass at 61; the gate opens with the fourth drop."""
    rule = rules()
    assert run(rule, FLAT, FLAT, 120)[1] is None
    assert rule.val_plateau.epochs == 119
    assert rule.lr == pytest.approx(LR / 125)
    assert rule.lr > 1e-6
    rule.step(0.5, 0.5)
    assert rule.lr < 1e-6
    assert rule.stopped


def test_a_plain_learning_rate_schedule_does_not_pass_the_gate_early() -> None:
    rule = rules(lr_patience=10**6)
    assert run(rule, FLAT, FLAT, 200)[1] is None


@pytest.mark.parametrize(
    ("drop", "resets"),
    [pytest.param(5e-3, True, id="exactly 5e-3: at least"), pytest.param(4.9e-3, False, id="just less")],
)
def test_training_improves_by_at_least_delta(drop: float, resets: bool) -> None:
    rule = rules(train_average_weight=0.0)
    rule.step(0.5, 0.0)
    for _ in range(28):
        rule.step(0.5, 0.0)
    rule.step(0.5 - drop, 0.0)
    assert (rule.train_plateau.epochs == 0) == resets


def test_validation_improves_by_more_than_delta() -> None:
    rule = rules(val_average_weight=0.0, stop_delta=0.25)
    for value, epochs in ((1.0, 0), (0.75, 1), (0.5, 0)):
        rule.step(0.0, value)
        assert rule.val_plateau.epochs == epochs


def test_moving_averages_have_the_known_default_weights() -> None:
    rule = rules()
    rule.step(1.0, 2.0)
    rule.step(0.0, 0.0)
    assert rule.train_average == pytest.approx(0.93)
    assert rule.val_average == pytest.approx(1.8)


@pytest.mark.parametrize("patience", [1, 3, 30])
def test_learning_rate_agrees_with_torch(patience: int) -> None:
    """ReduceLROnPlateau drops when more than its patience is exceeded, so its patience is one less."""
    rule = rules(lr_patience=patience, train_average_weight=0.0)
    other = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        other, factor=0.2, patience=patience - 1, threshold=5e-3, threshold_mode="abs", eps=0.0
    )
    generator = torch.Generator().manual_seed(0)
    for epoch in range(200):
        loss = math.exp(-epoch / 30) + 0.02 * float(torch.rand(1, generator=generator))
        rule.step(loss, 0.0)
        plateau.step(loss)
        assert rule.lr == pytest.approx(other.param_groups[0]["lr"], rel=1e-9), epoch


@pytest.mark.parametrize("restart", range(1, 121, 7))
def test_state_survives_a_restart_at_any_epoch(restart: int) -> None:
    whole, first = rules(), rules()
    noisy = lambda epoch: 1 / epoch + 0.01 * math.sin(epoch)  # noqa: E731
    for epoch in range(1, restart + 1):
        first.step(noisy(epoch), noisy(epoch + 1))
    second = rules()
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for epoch in range(1, 131):
        whole.step(noisy(epoch), noisy(epoch + 1))
        if epoch > restart:
            second.step(noisy(epoch), noisy(epoch + 1))
            if epoch == 130:
                assert second.state_dict() == whole.state_dict()
                assert second.lr == whole.lr


def test_a_schedule_takes_the_place_of_the_rule_and_is_resumed() -> None:
    def with_schedule() -> LossRules:
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=LR)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=10, power=0.9)
        return LossRules(optimizer, Engine(lambda *_: None), schedule=schedule, lr_patience=1)

    first, second = with_schedule(), with_schedule()
    for _ in range(4):
        first.step(0.5, 0.5)
    assert first.lr == pytest.approx(LR * 0.6**0.9)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.step(0.5, 0.5)
    assert second.lr == pytest.approx(LR * 0.5**0.9)


def test_another_schedule_is_refused() -> None:
    def with_schedule(epochs: int) -> LossRules:
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=LR)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=epochs)
        return LossRules(optimizer, Engine(lambda *_: None), schedule=schedule)

    for first, second in itertools.permutations((rules(), with_schedule(3), with_schedule(4)), 2):
        with pytest.raises(OtherRecipeError):
            second.load_state_dict(first.state_dict())


def engine_with(losses: list[float], rule: LossRules, val_losses: list[float]) -> Engine:
    values = iter(losses)
    engine = Engine(lambda *_: {"loss": torch.tensor(next(values))})
    vals = iter(val_losses)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: rule.validator.state.metrics.update(val_loss=next(vals)))
    rule.attach(engine)
    return engine


def test_the_training_loss_of_an_epoch_is_the_mean_of_its_iterations() -> None:
    rule = rules()
    engine = engine_with([1.0, 2.0, 3.0, 5.0], rule, [0.5, 0.25])
    engine.run(range(2), max_epochs=2)
    assert engine.state.metrics["train_loss"] == 4.0
    assert rule.train_average == pytest.approx(0.93 * 1.5 + 0.07 * 4.0)
    assert engine.state.metrics["val_average"] == pytest.approx(0.9 * 0.5 + 0.1 * 0.25)


def test_the_engine_ends_when_the_rules_say_so() -> None:
    rule = rules(lr_patience=1, stop_patience=2)
    engine = engine_with([0.5] * 50, rule, [0.5] * 50)
    engine.run(range(1), max_epochs=50)
    assert engine.state.epoch == 5  # four drops, after epochs 2 to 5


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_with_epoch_and_cases(loss: float) -> None:
    rule = rules()
    engine = Engine(lambda *_: {"loss": torch.tensor(loss)})
    rule.attach(engine)
    with pytest.raises(FloatingPointError, match=r"epoch 1, iteration 1, cases one, two"):
        engine.run([{"case": ["one", "two"]}], max_epochs=1)
