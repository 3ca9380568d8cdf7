"""A fold on disk: what makes it finished, and that nothing that lies there ends in a traceback."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_PLAN, write_project
from scripts.cascade import LowresSegmentations

from autoplan.__main__ import main
from autoplan.base.errors import TrainingError
from autoplan.base.files import file_digest
from autoplan.training import jobs, lease, results, standing

TASK = TINY_PLAN.name
CASES = ["case_0"]
DATALIST = json.dumps({"training": [{"name": name, "fold": 0} for name in CASES]})


def finish(folder: Path) -> None:
    """Leaves what a finished fold has."""
    probabilities = results.probabilities(folder, CASES[0])
    probabilities.parent.mkdir(parents=True)
    probabilities.write_text("probabilities")
    (folder / "model.pt").write_text("weights")
    model = file_digest(folder / "model.pt")
    recipe = {"max_epochs": 3, "schedule": False, "settings": {"seed": 1}}
    change(folder / "finished.json", epochs=3, stopped=False, model=model, **recipe)
    settings = dict.fromkeys(results.PREDICTION_SETTINGS, 1)
    scores = {"cases": {CASES[0]: {}}, "mean_foreground_dice": 0.5}
    change(folder / "validation" / "dice.json", model=model, settings=settings, **scores)
    (folder / "curve.csv").write_text("epoch,train_average,val_average,seconds\n1,0.5,0.25,2\n")


def change(path: Path, **entries: Any) -> None:
    """Changes entries of a JSON object; None takes one out."""
    found = {**(json.loads(path.read_text()) if path.is_file() else {}), **entries}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """A bundle's fold 0, finished."""
    folder = results.fold_folder(tmp_path / "3d_lowres", 0)
    finish(folder)
    return folder


def test_a_finished_fold(fold: Path) -> None:
    found = results.read(fold, CASES)
    assert isinstance(found, results.FoldResult)
    assert (found.model, found.mean_dice, found.training) == (file_digest(fold / "model.pt"), 0.5, {"seed": 1})


FINISHED, DICE = "finished.json", "validation/dice.json"
LACKS = [
    pytest.param(lambda f: (f / FINISHED).unlink(), "has not finished training", None, id="not trained"),
    pytest.param(lambda f: (f / "model.pt").unlink(), "has not finished training", None, id="no network"),
    pytest.param(
        lambda f: (f / "model.pt").write_text("other"), "another network in model.pt", None, id="other weights"
    ),
    pytest.param(
        lambda f: change(f / FINISHED, model=None), "has not finished training", None, id="an unnamed network"
    ),
    pytest.param(lambda f: (f / DICE).unlink(), "are not predicted", None, id="no scores"),
    pytest.param(lambda f: change(f / DICE, settings=None), "are not predicted", None, id="scores without settings"),
    pytest.param(lambda f: change(f / DICE, settings={"mirror": True}), "are not predicted", None, id="older scores"),
    pytest.param(
        lambda f: change(f / DICE, model="x"), "predictions of another network", "another network", id="others"
    ),
    pytest.param(lambda f: change(f / DICE, cases={"x": {}}), "predictions of other cases", None, id="other cases"),
    pytest.param(
        lambda f: results.probabilities(f, CASES[0]).unlink(), "lacks the probabilities", "does not exist", id="no file"
    ),
]


PLANNED = {"target_spacing": [1.0, 1.0, 2.5], "normalization": [None], "patch_size": [8, 8, 8]}
CONTENT = ["image", "label"]
UNFIT = [
    pytest.param({}, {}, {}, "", id="an older version has recorded nothing"),
    pytest.param(PLANNED, {"case_1": CONTENT}, {}, "", id="it fits"),
    pytest.param({**PLANNED, "patch_size": [4, 4, 4]}, {}, {}, "", id="another patch"),
    pytest.param({**PLANNED, "target_spacing": [1, 1, 2.5]}, {}, {}, "", id="the same numbers"),
    pytest.param({**PLANNED, "target_spacing": [2, 2, 5]}, {}, {}, r"\[2, 2, 5\], and now", id="spacing"),
    pytest.param({**PLANNED, "normalization": [[0]]}, {}, {}, "with normalization", id="intensities"),
    pytest.param(PLANNED, {"case_0": CONTENT}, {}, "on 1 of its 1 validation cases, such as case_0", id="a seen case"),
    pytest.param(PLANNED, {"x": CONTENT}, {"case_0": CONTENT}, "such as case_0", id="under another name"),
    pytest.param(PLANNED, {"x": CONTENT}, {"case_0": CONTENT, "x": CONTENT}, "", id="an image that is there twice"),
    pytest.param(PLANNED, {"x": CONTENT}, {"case_0": ["other", "label"]}, "", id="another image, the same label"),
    pytest.param(PLANNED, {"x": "damaged", "case_0": 7}, {}, "", id="a damaged record"),
]  # fmt: skip


@pytest.mark.parametrize("record", ["finished.json", "model.json"])
@pytest.mark.parametrize(("settings", "cases", "now", "reason"), UNFIT)
def test_what_fits_no_more(fold: Path, record: str, settings: dict, cases: dict, now: dict, reason: str) -> None:
    """Of a training that has ended, and of one that goes on."""
    bundle = fold.parents[1]
    (bundle / "configs").mkdir()
    (bundle / "configs" / "train.json").write_text(json.dumps(PLANNED))
    facts = {"cases": [{"name": name} for name in now], "contents": [*now.values()]}
    (bundle.parent / "fingerprint.json").write_text(json.dumps(facts))
    if record != "finished.json":
        (fold / "finished.json").unlink()
    change(fold / record, settings=settings, cases=cases)
    assert (results.unfit(fold, CASES) == "") == (reason == "")
    assert re.search(reason, results.unfit(fold, CASES))
    if record == "finished.json":
        assert isinstance(results.read(fold, CASES), str) == (reason != "")


def test_a_case_that_has_changed_is_predicted_again(fold: Path) -> None:
    facts = {"cases": [{"name": "case_0"}], "contents": [CONTENT]}
    (fold.parents[2] / "fingerprint.json").write_text(json.dumps(facts))
    change(fold / DICE, contents={"case_0": CONTENT})
    assert isinstance(results.read(fold, CASES), results.FoldResult)
    change(fold / DICE, contents={"case_0": ["image", "corrected"]})
    assert "1 of 1 cases that have changed since, such as case_0" in str(results.read(fold, CASES))


def test_what_a_network_has_not_seen(fold: Path) -> None:
    facts = {"cases": [{"name": n} for n in "abcd"], "contents": [[n, n] for n in "abcd"]}
    (fold.parents[2] / "fingerprint.json").write_text(json.dumps(facts))
    assert results.unseen(fold, [["a"], ["b", "c"], ["d"]], 0) == ([], []), "an older version has not recorded it"
    change(fold / FINISHED, cases={"b": ["b", "b"], "c": ["c", "earlier"]})
    assert results.unseen(fold, [["a"], ["b", "c"], ["d"]], 0) == (["d"], ["c"])
    assert results.unseen(fold, [["a"], ["b", "c"], ["d"]], "all") == (["a", "d"], ["c"])


@pytest.mark.parametrize(("damage", "lacks", "in_a_bundle"), LACKS)
def test_what_a_fold_lacks(
    fold: Path, tmp_path: Path, damage: Callable[[Path], Any], lacks: str, in_a_bundle: str | None
) -> None:
    """By autoplan, and by the second stage of a cascade, which asks less: it takes predictions unless something says
    that they are of another network than the fold's."""
    damage(fold)
    found = results.read(fold, CASES)
    assert isinstance(found, str)
    assert lacks in found
    (tmp_path / "datalist.json").write_text(DATALIST)
    stage = LowresSegmentations(fold.parents[1], tmp_path / "datalist.json", None)
    if in_a_bundle is None:
        assert stage.source(CASES[0]) == results.probabilities(fold, CASES[0]).resolve()
    else:
        with pytest.raises(FileNotFoundError, match=in_a_bundle):
            stage.source(CASES[0])


GARBAGE = {
    "empty": "", "no JSON": "{", "a list": "[1, 2]", "null": "null", "a number": "7", "text": '"text"',
    "nested": "[" * 100_000, "nested objects": '{"a":' * 100_000, "half a character": '{"a": "\\ud800"}',
    "bytes": "\x00\x01\x02", "wrong types": json.dumps(
        {"model": 1, "epochs": "x", "stopped": 3, "max_epochs": [], "schedule": {}, "settings": 7, "cases": 5,
         "pid": "x", "heartbeat": {}, "host": 3, "id": None, "mean_foreground_dice": "high"}
    ),
    "not finite": '{"epochs": NaN, "max_epochs": Infinity, "heartbeat": NaN, "pid": 1e9, "mean_foreground_dice": NaN}',
    "huge": json.dumps(
        {"epochs": 10**400, "max_epochs": 10**400, "pid": 10**30, "heartbeat": 10**400, "host": "x", "id": "x"}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("name", [FINISHED, DICE, "curve.csv", "lease.json"])
def test_damaged_state_is_no_traceback(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str, text: str
) -> None:
    """It counts as absent, in `status` and wherever else it is read."""
    shutil.copytree(planned, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    folder = results.fold_folder(tmp_path / "bundles" / TASK / "2d", 0)
    finish(folder)
    (folder / name).write_text(text)
    assert main(["status", TASK, "--configurations", "2d"]) == 0
    assert "2d" in capsys.readouterr().out
    assert isinstance(results.read(folder, CASES), str | results.FoldResult)
    assert lease.holder(folder) is None
    assert all(isinstance(value, float) for row in results.curve(folder) for value in row.values())
    assert main(["select", TASK]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({}, None, id="finished"),
        pytest.param({"model": "another"}, "has another network in model.pt", id="another network"),
        pytest.param({"settings": {}}, "lacks settings of its training", id="no settings"),
        pytest.param({"settings": {"mirror_prob": "x"}}, "lacks settings of its training", id="a text for a number"),
        pytest.param({"model": None}, "has not finished training", id="not finished"),
    ],
)
def test_fold_all_is_finished_with_its_training(
    tmp_path: Path, change: dict[str, object], expected: str | None
) -> None:
    folder = results.fold_folder(tmp_path, "all")
    folder.mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "evaluate.json").write_text('{"overlap": 0.5}')
    (folder / "model.pt").write_text("weights")
    model = hashlib.sha256(b"weights").hexdigest()[:16]
    known = {"target_spacing": [1], "patch_size": [8], "strides": [[1]], "features": [4], "lowres_features": [2]}
    found = {"model": model, "settings": {**known, "mirror_prob": 0.5, "seed": 0}, **change}
    (folder / "finished.json").write_text(json.dumps(found))
    result = results.read_all(tmp_path)
    if expected is not None:
        assert str(result).startswith(expected)
    else:
        assert isinstance(result, results.FoldResult)
        assert result.settings == {**known, "mirror": True, "overlap": 0.5}
        assert (result.model, result.mean_dice) == (model, None)


DATALISTS = {
    "a list": "[1]",
    "no cases": '{"training": []}',
    "no fold": '{"training": [{"name": "a"}]}',
    "a name that is none": '{"training": [{"name": 1, "fold": 0}]}',
    "a fold that is none": '{"training": [{"name": "a", "fold": "0"}]}',
    "a fold without cases": '{"training": [{"name": "a", "fold": 9000000000}]}',
}


@pytest.mark.parametrize("text", [*GARBAGE.values(), *DATALISTS.values()], ids=[*GARBAGE, *DATALISTS])
def test_damaged_folds_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "datalist.json").write_text(text)
    with pytest.raises(
        TrainingError,
        match=r"^" + re.escape(str(tmp_path)) + r".*datalist.json cannot be read as a datalist \([^\n]*\)",
    ) as e:
        results.folds(tmp_path)
    assert "\n" not in str(e.value)


def test_jobs_read_the_same(fold: Path) -> None:
    (fold.parents[1] / "configs").mkdir()
    (fold.parents[1] / "configs" / "datalist.json").write_text(DATALIST)
    job = jobs.Job(str(fold.parents[1]), "3d_lowres", 0)
    assert standing.has_results(job)
    (fold / "model.pt").write_text("another")
    assert not standing.has_results(job)
