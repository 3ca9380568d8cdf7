"""Section "Training" of the report: what folds on disk tell."""

import csv
import json
from pathlib import Path

import pytest
from conftest import TINY_PLAN, write_project

from autoplan.data import decathlon as datasets
from autoplan.report import charts
from autoplan.report.build import build
from autoplan.report.sections import training

LOG = """autoplan: started training, 2026-01-02 03:04:05: python -m monai.bundle run --max_epochs 40
2026-01-02 03:05:00 INFO epoch 1/40
autoplan: ended with status 143
autoplan: started training, 2026-01-03 10:00:00: python -m monai.bundle run --max_epochs 40
2026-01-03 10:00:09 INFO Going on from last.pt, after epoch 17.
"""


def write_curve(folder: Path, losses: list[float], **columns: float) -> None:
    """Writes curve.csv of a fold."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"epoch": i, "train_loss": v, "val_loss": v, "train_average": v, "val_average": v, "lr": 1e-3, "seconds": 10,
         "waiting_seconds": 1, "dice_ball": 0.5, "dice_box": 0.7, **columns}
        for i, v in enumerate(losses, 1)
    ]  # fmt: skip
    with (folder / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        pytest.param([1 - 0.1 * i for i in range(9)], None, id="still falling"),
        pytest.param([1.0, 0.8, 0.6, *[0.598] * 30], 3, id="flat"),
        pytest.param([1.0, 0.6, 0.9, 0.9, 0.5, *[0.9] * 20], 5, id="a late best counts"),
        pytest.param([1.0], None, id="one epoch"),
        pytest.param([], None, id="none"),
    ],
)
def test_flat_since(values, epoch) -> None:
    assert training.flat_since([{"epoch": i, "val_average": v} for i, v in enumerate(values, 1)]) == epoch


def test_what_a_fold_tells(tmp_path) -> None:
    task = write_project(tmp_path) / "bundles" / TINY_PLAN.name
    folder = task / "2d" / "models" / "fold_1"
    write_curve(folder, [1.0, 0.8, *[0.7] * 28], waiting_seconds=4)
    (folder / "train.log").write_text(LOG)
    (folder / "last.pt").touch()
    (folder / "emissions.csv").write_text("energy_consumed,x\n0.25,1\n0.5,2\n")
    (found,) = training.read(task)
    assert (found.name, found.row.state, found.row.max_epochs, found.seconds) == ("2d fold 1", "stopped", 40, 300)
    assert [(s.when, s.after) for s in found.resumes] == [("2026-01-03 10:00:00", 17)]
    assert (found.energy_kwh, found.waiting) == (0.75, 0.4)
    section = training.section(TINY_PLAN, [found])
    said = json.dumps(section.data, default=str)
    assert '"flat_since_epoch": 3' in said
    text = repr(section.blocks)
    for words in ("waited for data in 40%", "after epoch 17", "epoch 3", "kWh"):
        assert words in text


@pytest.mark.parametrize(
    ("features", "said"),
    [
        pytest.param([3, 6, 12], "2d: trained with 3 to 12 feature maps; planned are", id="narrow"),
        pytest.param(list(TINY_PLAN.configuration("2d").features), "", id="as planned"),
        pytest.param(["wide"], "", id="damaged"),
    ],
)
def test_a_network_that_is_not_the_planned_one_is_named_so(tmp_path, features, said) -> None:
    task = write_project(tmp_path) / "bundles" / TINY_PLAN.name
    folder = task / "2d" / "models" / "fold_0"
    write_curve(folder, [1.0, 0.5])
    (folder / "model.pt").touch()
    (folder / "finished.json").write_text(json.dumps({"model": "abc", "settings": {"features": features}}))
    text = repr(training.section(TINY_PLAN, training.read(task)).blocks)
    assert said in text
    assert ("planned are" in text) == bool(said)


@pytest.mark.parametrize("others", [(), (0, 1)], ids=["alone", "beside folds"])
def test_a_training_on_all_cases_is_named_so(tmp_path, others) -> None:
    task = write_project(tmp_path) / "bundles" / TINY_PLAN.name
    for fold in (*others, "all"):
        write_curve(
            task / "2d" / "models" / f"fold_{fold}", [1.0, 0.5, *[0.5] * 20], dice_ball=0.9 if fold == "all" else 0
        )
    found = training.read(task)
    assert [t.name for t in found] == [*(f"2d fold {k}" for k in others), "2d fold all (all cases, not validated)"]
    assert (found[-1].flat_since, found[-1].row.val_average) == (None, None)
    section = training.section(TINY_PLAN, found)
    text = repr(section.blocks)
    assert "Of the network that is trained on all cases" in text
    assert "all cases, not validated from 1 to 0.5" in text
    assert ("each class, mean of the folds" in text) == bool(others)
    ball = training._of_class("ball", 0, [t for t in found if not t.is_on_all] or found)
    assert {dice for _, dice in ball.points} == ({0.0} if others else {0.9})


@pytest.mark.parametrize("content", ["", "energy_consumed\nx\n", "other\n1\n", "energy_consumed\ninf\n"])
def test_energy_that_cannot_be_read_is_none(tmp_path, content) -> None:
    task = write_project(tmp_path) / "bundles" / TINY_PLAN.name
    folder = task / "2d" / "models" / "fold_0"
    write_curve(folder, [1.0])
    (folder / "emissions.csv").write_text(content)
    assert training.read(task)[0].energy_kwh is None


def test_nothing_is_trained(tmp_path) -> None:
    assert training.read(tmp_path) == []
    (block,) = training.section(TINY_PLAN, []).blocks
    assert "Nothing is trained yet" in block.text


def test_a_failed_fold_says_why(tmp_path) -> None:
    task = write_project(tmp_path) / "bundles" / TINY_PLAN.name
    folder = task / "2d" / "models" / "fold_0"
    write_curve(folder, [1.0, 0.9])
    (folder / "train.log").write_text(
        "autoplan: started training, 2026-01-02 03:04:05: x\nRuntimeError: CUDA out of memory. Tried\n"
        "autoplan: ended with status 1\n"
    )
    section = training.section(TINY_PLAN, training.read(task))
    assert "out of memory on the GPU" in section.blocks[0].text


def test_a_rate_that_ends_at_zero_makes_no_drop(tmp_path) -> None:
    """The line ends before, for a logarithm has no zero."""
    task = write_project(tmp_path) / "bundles" / TINY_PLAN.name
    write_curve(task / "2d" / "models" / "fold_0", [1.0, 0.9, 0.8])
    path = task / "2d" / "models" / "fold_0" / "curve.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].replace("0.001", "0")]) + "\n")
    (rate,) = training._lines(training.read(task), lambda e: e.get("lr") or None)
    assert [x for x, _ in rate.points] == [1, 2]


def test_long_curves_are_thinned() -> None:
    points = training._thinned([(float(i), float(i)) for i in range(2000)])
    assert len(points) <= training.MOST_POINTS
    assert points[0][0] < points[-1][0]


def test_the_page_has_the_curves(tmp_path) -> None:
    project = write_project(tmp_path)
    for fold in (0, 1):
        write_curve(project / "bundles" / TINY_PLAN.name / "2d" / "models" / f"fold_{fold}", [1.0, 0.9, 0.8])
    dataset = datasets.load(project / "data" / TINY_PLAN.name)
    html = build(dataset, project / "bundles", num_processes=1).read_text()
    assert "2d: losses" in html
    assert ">fold 1<" in html


def test_curves_without_points_are_drawn() -> None:
    assert "<svg" in charts.curves([charts.Line("a", [], 0, mark=3.0)], "loss", log=True)
