"""What a training shows."""

import math
from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events
from scripts import progress
from scripts.progress import EpochLog, draw_curve


def history(names, rates=(1e-3, 1e-4)):
    """Rows of curve.csv."""
    losses = dict.fromkeys(("train_loss", "val_loss", "train_average", "val_average"), 0.5)
    dice = {f"dice_{name}": 0.5 for name in names}
    return [{"epoch": i, "lr": rate, **losses, **dice} for i, rate in enumerate(rates, start=1)]


@pytest.mark.parametrize("name", [r"$\frac$", "$x", "_hidden", "a_b", r"\frac{", "%", "<b>"])
def test_any_name_of_a_class_is_drawn(name, tmp_path, monkeypatch) -> None:
    """As it is written: no formula, and not left out of the legend."""
    shown = []
    monkeypatch.setattr("matplotlib.figure.Figure.subplots", spy(shown))
    draw_curve(history([name]), [name], tmp_path / "progress.png")
    assert (tmp_path / "progress.png").stat().st_size > 1000
    [text] = shown[1].get_legend().get_texts()
    assert (text.get_text().strip(), text.get_parse_math()) == (name, False)


def test_a_rate_of_zero_is_left_out(tmp_path, monkeypatch) -> None:
    """The line of a schedule that ends at 0 ends with the last rate above 0, without a drop."""
    shown = []
    monkeypatch.setattr("matplotlib.figure.Figure.subplots", spy(shown))
    draw_curve(history(["a"], rates=(1e-3, 1e-4, 0.0)), ["a"], tmp_path / "progress.png")
    [line] = shown[2].get_lines()
    assert list(line.get_ydata()[:2]) == [1e-3, 1e-4]
    assert math.isnan(line.get_ydata()[2])


@pytest.mark.parametrize(("last", "labels"), [(1e-3, {"", "0.002", "0.005"}), (1e-5, {""})])
def test_labels_of_the_learning_rate_do_not_lie_over_each_other(last, labels, tmp_path, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr("matplotlib.figure.Figure.subplots", spy(shown))
    draw_curve(history(["a"], rates=(1e-2, last)), ["a"], tmp_path / "progress.png")
    between = shown[2].yaxis.get_minor_formatter()
    assert {between(value) for value in (2e-3, 4e-3, 5e-3)} == labels


@pytest.mark.parametrize(
    ("seconds", "drawn"),
    [pytest.param(1.0, [1, 51, 101, 110], id="short epochs"), pytest.param(100.0, [*range(1, 111)], id="long epochs")],
)
def test_the_curve_takes_a_small_part_of_the_time(tmp_path, monkeypatch, seconds, drawn) -> None:
    """A hundredth; the last epoch is drawn in any case, also by a training that goes on and is over at once."""
    now, seen = [0.0], []

    def draw(history, _, path, *__):
        seen.append(len(history))
        path.touch()
        now[0] += 0.5

    monkeypatch.setattr(progress, "draw_curve", draw)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    validator = SimpleNamespace(state=SimpleNamespace(metrics={"patch_dice": {"ball": 0.5}}))
    values = dict.fromkeys(("train_loss", "val_loss", "train_average", "val_average", "lr"), 0.5)

    def step(engine, _):
        now[0] += seconds
        engine.state.metrics = values
        return [{"loss": 0.5}]

    log, trainer = EpochLog(tmp_path, ["background", "ball"], validator), Engine(step)
    log.attach(trainer)
    trainer.run([0], max_epochs=110)
    assert seen == drawn
    trainer.fire_event(Events.COMPLETED)
    assert seen == drawn
    (tmp_path / "progress.png").unlink()
    trainer.fire_event(Events.COMPLETED)
    assert seen == [*drawn, 110]


def spy(shown):
    """`Figure.subplots` that keeps what it made."""
    from matplotlib.figure import Figure

    make = Figure.subplots

    def subplots(figure, *args, **kwargs):
        made = make(figure, *args, **kwargs)
        shown.extend(made)
        return made

    return subplots
