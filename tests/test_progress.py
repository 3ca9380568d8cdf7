"""What a training shows."""

import math

import pytest
from scripts.progress import draw_curve


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


def spy(shown):
    """`Figure.subplots` that keeps what it made."""
    from matplotlib.figure import Figure

    make = Figure.subplots

    def subplots(figure, *args, **kwargs):
        made = make(figure, *args, **kwargs)
        shown.extend(made)
        return made

    return subplots
