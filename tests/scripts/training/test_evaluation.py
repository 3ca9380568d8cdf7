"""Scores: Dice against a plain count, and the files that hold it."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from ignite.engine import Engine
from monai.data import MetaTensor
from scripts import evaluation
from scripts.evaluation import DiceReport, dice, table
from scripts.files import file_digest

LABELS = st_numpy.arrays(np.uint8, (1, 3, 3, 2), elements=st.sampled_from([0, 2, 5]))


def plain_dice(pred, label, value):
    """2 |P and T| / (|P| + |T|), voxel by voxel."""
    pairs = list(zip(pred.flatten().tolist(), label.flatten().tolist(), strict=True))
    both = sum(p == value and t == value for p, t in pairs)
    size = sum(p == value for p, _ in pairs) + sum(t == value for _, t in pairs)
    return 2 * both / size if size else None


@given(LABELS, LABELS)
@settings(max_examples=100, deadline=None)
def test_equals_a_plain_count(pred, label) -> None:
    classes = np.searchsorted([0, 2, 5], pred)
    found = dice(torch.from_numpy(classes), torch.from_numpy(label), [2, 5])
    assert found == [pytest.approx(plain_dice(pred, label, v)) for v in (2, 5)]


@pytest.mark.parametrize(
    ("pred", "label", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
        ([1, 1, 0, 0], [1, 0, 0, 0], 2 / 3),
        ([0, 0, 0, 0], [0, 0, 0, 0], None),
        ([1, 0, 0, 0], [0, 0, 0, 0], 0.0),
        ([0, 0, 0, 0], [1, 0, 0, 0], 0.0),
    ],
    ids=["equal", "apart", "half found", "both empty", "label empty", "prediction empty"],
)
def test_dice(pred, label, expected) -> None:
    assert dice(torch.tensor([pred]), torch.tensor([label]).float(), [1]) == [pytest.approx(expected)]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4\) and label \(1, 5\)"):
        dice(torch.zeros(1, 4), torch.zeros(1, 5), [1])


CLASSES, VALUES = ["background", "ball", "box"], [0, 2, 5]
NETWORK = torch.nn.Linear(1, 1)
SETTINGS = {"patch_size": [8, 8, 8], "mirror": False, "overlap": 0.5}


def report(folder, *runs):
    """Files that are written when an evaluator brings (prediction, label) pairs, one by one, in one run or more."""
    model = folder / "model.pt"
    if not model.is_file():
        torch.save(NETWORK.state_dict(), model)
    handler = DiceReport(folder / "new" / "folder", CLASSES, VALUES, NETWORK, model, SETTINGS)

    def step(engine, case):
        name, (pred, label) = case
        meta = {"filename_or_obj": f"/data/imagesTr/{name}.nii.gz"}
        engine.state.batch = [{"reference": MetaTensor(torch.tensor([label]).float())}]
        return [{"pred": MetaTensor(torch.tensor([[VALUES.index(v) for v in pred]], dtype=torch.uint8), meta=meta)}]

    engine = Engine(step)
    handler.attach(engine)
    for cases in runs:
        engine.run(list(cases.items()))
    folder = folder / "new" / "folder"
    with (folder / "dice.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert sorted(p.name for p in folder.iterdir()) == ["dice.csv", "dice.json"]
    return json.loads((folder / "dice.json").read_text()), rows


CASES = {
    "case_a": ([2, 2, 5, 0], [2, 2, 5, 5]),  # 1 and 2/3
    "case_b": ([2, 0, 0, 0], [2, 2, 0, 0]),  # 2/3 and none
    "case_c": ([5, 0, 0, 0], [0, 0, 0, 0]),  # none and 0
}


def test_files_hold_every_case_and_class(tmp_path) -> None:
    summary, rows = report(tmp_path, CASES)
    third = pytest.approx(2 / 3)
    assert summary["cases"] == {
        "case_a": {"ball": 1.0, "box": third},
        "case_b": {"ball": third, "box": None},
        "case_c": {"ball": None, "box": 0.0},
    }
    # A class that is absent from both is left out of the mean; absent from the label alone it counts 0.
    assert summary["mean_dice"] == {"ball": pytest.approx(5 / 6), "box": pytest.approx(1 / 3)}
    assert summary["mean_foreground_dice"] == pytest.approx((5 / 6 + 1 / 3) / 2)
    assert rows[0] == ["case", "ball", "box"]
    assert [row[0] for row in rows[1:]] == ["case_a", "case_b", "case_c", "mean"]
    assert (rows[1][1], rows[2][2], rows[3][1]) == ("1.0", "", "")
    assert float(rows[4][1]) == pytest.approx(5 / 6)


def test_a_class_that_never_occurs_has_no_mean(tmp_path) -> None:
    summary, rows = report(tmp_path, {"case_a": ([2, 0], [2, 0])})
    assert summary["mean_dice"] == {"ball": 1.0, "box": None}
    assert summary["mean_foreground_dice"] == 1.0
    assert rows[-1] == ["mean", "1.0", ""]


def test_nothing_at_all(tmp_path) -> None:
    summary, _ = report(tmp_path, {"case_a": ([0, 0], [0, 0])})
    assert summary["mean_foreground_dice"] is None
    assert "NaN" not in (tmp_path / "new/folder/dice.json").read_text()


def test_a_second_run_starts_anew(tmp_path) -> None:
    summary, _ = report(tmp_path, CASES, {"case_d": ([2, 0], [2, 0])})
    assert list(summary["cases"]) == ["case_d"]


def test_the_file_tells_the_network_and_the_settings(tmp_path) -> None:
    """By them a later step sees whether the scores are those of the network that lies there now."""
    summary, _ = report(tmp_path, CASES)
    assert summary["settings"] == SETTINGS
    assert summary["model"] == file_digest(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"another network")
    assert summary["model"] != file_digest(tmp_path / "model.pt")


def test_the_network_is_that_of_the_start(tmp_path) -> None:
    """A training that goes on while its cases are scored replaces the file."""
    model = tmp_path / "model.pt"
    torch.save(NETWORK.state_dict(), model)
    before = file_digest(model)

    def step(engine, _):
        model.write_bytes(b"another network")
        engine.state.batch = []
        return []

    engine = Engine(step)
    DiceReport(tmp_path, ["background", "a"], [0, 1], NETWORK, model, {}).attach(engine)
    engine.run([0])
    assert json.loads((tmp_path / "dice.json").read_text())["model"] == before


def test_weights_that_another_program_gave_are_not_called_those_of_the_file(tmp_path) -> None:
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "model.pt")
    assert report(tmp_path, CASES)[0]["model"] is None


def test_the_means_are_metrics_of_the_engine(tmp_path) -> None:
    """Where a federation and MLflow look; MLflow takes neither null nor all signs in a name."""
    engine = Engine(lambda *_: None)
    handler = DiceReport(tmp_path, [*CLASSES, "left/right"], [0, 2, 5, 7], NETWORK, tmp_path / "none.pt", {})
    handler.model, handler.rows = None, {"case_a": [1.0, None, 0.5], "case_b": [0.5, None, 0.5]}
    handler.write(engine)
    assert engine.state.metrics == {"val_mean_dice": 0.625, "val_dice_ball": 0.75, "val_dice_3": 0.5}
    handler.rows = {}
    handler.write(engine)
    assert np.isnan(engine.state.metrics["val_mean_dice"])


def test_dice_json_is_the_last_file(tmp_path, monkeypatch) -> None:
    """Where it is, all others are; when it cannot be written, there is none."""
    monkeypatch.setattr(evaluation, "write_text_atomically", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        report(tmp_path, CASES)
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["dice.csv"]


def test_the_table_is_aligned() -> None:
    lines = table([["case", "ball"], ["a", 0.5], ["a_long_name", None], ["mean", 1.0]]).splitlines()
    assert lines == [
        "case           ball",
        "a            0.5000",
        "a_long_name       -",
        "mean         1.0000",
    ]


def test_a_case_that_cannot_be_predicted_is_named() -> None:
    """In `evaluating`, where a network that gives no numbers would otherwise end in an error without a name."""
    engine = Engine(lambda *_: None)
    engine.state.batch = {
        "image": MetaTensor(torch.zeros(1, 1, 2, 2, 2), meta={"filename_or_obj": ["x/case_7.nii.gz"]})
    }
    with pytest.raises(RuntimeError, match=r"case_7 cannot be predicted: NaN"):
        evaluation.DiceReport._fail(engine, ValueError("NaN"))
    with pytest.raises(KeyboardInterrupt):
        evaluation.DiceReport._fail(engine, KeyboardInterrupt())
