"""A network that is far worse than the others of its configuration: when it is, what is said, and that no ensemble
averages it."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.evaluation import weak
from autoplan.sharing import ensemble
from autoplan.training import results


def cases(mean: float, num: int = 42, spread: float = 0.05) -> list[float]:
    """Scores of the cases of a fold, always the same."""
    draw = random.Random(num)
    return [min(1.0, max(0.0, draw.gauss(mean, spread))) for _ in range(num)]


@pytest.mark.parametrize(
    ("scores", "below", "out"),
    [
        pytest.param([cases(0.446), cases(0.865), cases(0.889), cases(0.864)], (0,), (0,), id="stopped early"),
        pytest.param([cases(0.88), cases(0.865), cases(0.889), cases(0.864)], (), (), id="all sound"),
        pytest.param([cases(0.80), cases(0.865), cases(0.889), cases(0.864)], (), (), id="somewhat worse"),
        pytest.param([cases(0.1), cases(0.2), cases(0.88), cases(0.87), cases(0.89)], (0, 1), (0, 1), id="two of five"),
        pytest.param([cases(0.1), cases(0.88), cases(0.87)], (0,), (0,), id="one of three"),
        pytest.param([cases(0.1), cases(0.88)], (), (), id="two alone: nothing tells which is right"),
        pytest.param([[0.5], [0.9], [0.8], [0.85], [0.95]], (), (), id="folds of one case each"),
        pytest.param([[0.2, 0.9], [0.9, 0.4], [0.9, 0.9], [0.5, 0.95]], (), (), id="few cases that differ much"),
        pytest.param([[0.0, 0.0], [0.9, 0.91], [0.9, 0.92], [0.88, 0.9]], (0,), (0,), id="few cases that agree"),
        pytest.param([[], cases(0.88), cases(0.87), cases(0.1)], (3,), (3,), id="a fold without scores"),
        pytest.param([cases(0.99), cases(0.5), cases(0.5), cases(0.5)], (), (), id="one far better"),
    ],
)
def test_folds_that_are_far_below_the_others(scores, below, out) -> None:
    assert weak.far_below(dict(enumerate(scores))) == below
    assert weak.left_out(dict(enumerate(scores))) == out


def test_two_networks_stay() -> None:
    assert weak.left_out({0: cases(0.1), 1: cases(0.88), 2: cases(0.87)}) == (0,)
    spread = {0: cases(0.05, spread=0.001), 1: cases(0.4, spread=0.001), 2: cases(0.9, spread=0.001)}
    assert len(spread) - len(weak.left_out(spread)) >= weak.LEAST_NETWORKS


@given(st.dictionaries(st.integers(0, 9), st.lists(st.floats(0, 1), max_size=6), max_size=6))
def test_whatever_the_scores_are(scores) -> None:
    """Nobody is far below who is above the middle, and an ensemble keeps its networks."""
    out = weak.left_out(scores)
    assert len(scores) - len(out) >= min(len(scores), weak.LEAST_NETWORKS)
    means = {k: sum(values) / len(values) for k, values in scores.items() if values}
    assert all(means[k] < max(means.values()) - weak.GAP + 1e-9 for k in out)


def finished(folder: Path, scores: list[list[float]], epochs: list[int]) -> Path:
    """A bundle whose folds are trained and scored, as far as is looked at here."""
    for k, values in enumerate(scores):
        fold = results.fold_folder(folder, k)
        (fold / "validation").mkdir(parents=True)
        (fold / "model.pt").touch()
        said = {"model": "abc", "epochs": epochs[k], "stopped": False, "settings": {"epoch_length": 10}}
        (fold / "finished.json").write_text(json.dumps(said))
        dice = {f"case_{k}_{i}": {"ball": value, "box": None} for i, value in enumerate(values)}
        (fold / "validation" / "dice.json").write_text(json.dumps({"cases": dice}))
    return folder


def test_what_is_said(tmp_path) -> None:
    bundle = finished(
        tmp_path / "3d_fullres", [cases(0.446), cases(0.865), cases(0.889), cases(0.864)], [9, 27, 133, 91]
    )
    far, short, shorter = weak.told(bundle, [0, 1, 2, 3])
    assert far.startswith("Warning: fold 0 of 3d_fullres has a mean Dice of 0.44")
    assert "the others 0.859 to 0.884" in far
    assert f"left out of the bundle to share; remove {bundle}/models/fold_0 and train it again" in far
    assert short == "Warning: fold 0 of 3d_fullres was trained for 90 iterations, the others for 270 to 1,330."
    assert "fold 1 of 3d_fullres was trained for 270 iterations" in shorter
    assert not weak.told(bundle, [2, 3]), "the two agree"
    alike = finished(tmp_path / "2d", [cases(0.9), cases(0.9), cases(0.9)], [3, 150, 150])
    assert weak.told(alike, [0, 1, 2])[0].endswith("was trained for 30 iterations, the others for 1,500.")


def test_an_ensemble_leaves_it_out(tmp_path) -> None:
    bundle = finished(tmp_path / "2d", [cases(0.446), cases(0.865), cases(0.889)], [9, 9, 9])
    found = {k: results.FoldResult("abc", {}, {}, None) for k in range(3)}
    assert list(ensemble._without_weak(bundle, found)) == [1, 2]
    assert list(ensemble._without_weak(bundle, {k: found[k] for k in (0, 1)})) == [0, 1]
