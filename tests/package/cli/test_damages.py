"""State files that somebody or something has changed: what is decided by them, in a line and without a traceback."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_PLAN
from made import chosen

from autoplan.__main__ import main
from autoplan.base.errors import TemplateError
from autoplan.base.files import file_digest
from autoplan.bundle.saved import save_plan
from autoplan.data import decathlon as datasets
from autoplan.data import fingerprint as fingerprints
from autoplan.evaluation import crossvalidation as cv
from autoplan.evaluation.choice import Candidate, CaseDice
from autoplan.sharing import ensemble
from autoplan.training import failures, jobs, lease, recipe, results, standing

TASK = TINY_PLAN.name
SETTINGS = {
    "target_spacing": [1.5, 1.25, 2.0], "patch_size": [16, 16], "strides": [[1, 1], [2, 2], [2, 2]],
    "features": [4, 8, 16], "mirror": True, "overlap": 0.5,
}  # fmt: skip


@pytest.fixture
def task(project: Path, tmp_path: Path) -> Path:
    """The bundles of the tiny plan, of which 2d has a finished fold 0."""
    copy = Path(shutil.copytree(project / "bundles" / TASK, tmp_path / "bundles" / TASK))
    folder = fold_of(copy)
    probabilities = results.probabilities(folder, "case_0")
    probabilities.parent.mkdir(parents=True)
    probabilities.write_text("probabilities")
    (folder / "model.pt").write_text("weights")
    (folder / "finished.json").write_text("{}")
    (folder / "validation" / "dice.json").write_text("{}")
    model = file_digest(folder / "model.pt")
    change(folder / "finished.json", epochs=1000, stopped=False, model=model, max_epochs=1000, schedule=False)
    scores = {"mean_foreground_dice": 0.5, "cases": {"case_0": {}}, "settings": SETTINGS}
    change(folder / "validation" / "dice.json", model=model, **scores)
    return copy


def fold_of(task: Path) -> Path:
    return results.fold_folder(task / "2d", 0)


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def status(task: Path, capsys: pytest.CaptureFixture) -> dict[str, Any]:
    """Fold 0 of 2d, as `status --json` shows it: JSON that every program reads."""
    words = ["status", TASK, "--bundles", str(task.parent), "--configurations", "2d", "--folds", "0", "--json"]
    assert main(words) == 0
    [row] = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    return dict(row)


def test_a_finished_fold_with_another_network_gets_its_own_back_before_it_is_scored(task: Path) -> None:
    """The training, started again, writes the network of its checkpoint."""
    [job] = jobs.jobs_of([task / "2d"], [0])
    assert standing.missing_steps(job) == []
    (fold_of(task) / "model.pt").write_text("another")
    assert standing.missing_steps(job) == ["training", "evaluating"]


@pytest.mark.parametrize(
    "value", ["1" + "0" * 400, "NaN", "1e400", "true", '"high"'], ids=["huge", "NaN", "infinite", "switch", "text"]
)
def test_a_mean_dice_that_is_none(task: Path, value: str, capsys: pytest.CaptureFixture) -> None:
    path = fold_of(task) / "validation" / "dice.json"
    path.write_text(path.read_text().replace('"mean_foreground_dice": 0.5', f'"mean_foreground_dice": {value}'))
    row = status(task, capsys)
    assert (row["state"], row["dice"]) == ("done", None)


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("line", ["nan,1,1,1", "inf,1,1,1", "1,nan,inf,inf", "1,1,1,nan", "1e300,1,1,1e300"])
def test_a_curve_with_numbers_that_are_none(
    task: Path, line: str, is_running: bool, capsys: pytest.CaptureFixture
) -> None:
    (fold_of(task) / "finished.json").unlink()
    (fold_of(task) / "curve.csv").write_text(f"epoch,train_average,val_average,seconds\n{line}\n")
    held = lease.acquire(fold_of(task), max_epochs=10) if is_running else None
    row = status(task, capsys)
    assert row["epoch"] in (0, 1)
    assert row["seconds_left"] is None
    if held is not None:
        held.release()


def test_a_class_that_never_occurs_leaves_the_curve_whole(task: Path) -> None:
    rows = "epoch,train_average,val_average,seconds,dice_ball\n1,0.5,0.25,2,nan\n"
    (fold_of(task) / "curve.csv").write_text(rows)
    [row] = results.curve(fold_of(task))
    assert row == {"epoch": 1, "train_average": 0.5, "val_average": 0.25, "seconds": 2}


@pytest.mark.parametrize("epochs", [10**400, -3], ids=["huge", "negative"])
def test_a_lease_with_epochs_that_cannot_be(task: Path, epochs: int, capsys: pytest.CaptureFixture) -> None:
    (fold_of(task) / "finished.json").unlink()
    (fold_of(task) / "curve.csv").write_text("epoch,train_average,val_average,seconds\n1,1,1,1\n")
    held = lease.acquire(fold_of(task), max_epochs=10)
    assert held is not None
    change(fold_of(task) / lease.NAME, max_epochs=epochs)
    assert status(task, capsys)["max_epochs"] == 1000
    held.release()


@pytest.mark.parametrize(
    ("key", "value"),
    [("patch_size", [7, 7]), ("patch_size", [16]), ("strides", [[1, 1], [2]]), ("features", [4])],
    ids=str,
)
def test_settings_of_a_prediction_that_make_no_network(task: Path, project: Path, key: str, value: Any) -> None:
    change(fold_of(task) / "validation" / "dice.json", settings={**SETTINGS, key: value})
    with pytest.raises(TemplateError, match="make no network") as error:
        ensemble.share(TINY_PLAN, chosen("2d"), project / "data" / TASK, task.parent, name=None, fingerprint_key="x")
    assert "\n" not in str(error.value)
    assert not (task / "best").exists()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        pytest.param(
            "RuntimeError: unable to write to file </torch_12_3>: No space left on device (28)",
            "the shared memory of the machine (/dev/shm) is full",
            id="of shared memory",
        ),
        pytest.param(
            "OSError: [Errno 28] No space left on device: '/dev/shm/x'",
            "the shared memory of the machine (/dev/shm) is full",
            id="a file in shared memory",
        ),
        pytest.param(
            "last.pt cannot be read ([enforce fail at inline_container.cc:145] . PytorchStreamReader failed reading "
            "zip archive)\nFloatingPointError: the loss is nan",
            "the loss is nan",
            id="a damaged checkpoint says nothing of the disk",
        ),
        pytest.param(
            "RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598",
            "the disk is full",
            id="torch.save by name",
        ),
        pytest.param("OSError: 1000000 requested and 0 written", "the disk is full", id="numpy's tofile"),
        pytest.param("OSError: [Errno 122] Disk quota exceeded: 'x'", "the disk is full", id="quota"),
    ],
)
def test_which_disk_is_full(said: str, reason: str) -> None:
    """As torch, numpy and Python say it when they write to /dev/full."""
    failure = failures.explain(1, f"{failures.START} training\n{said}\n{failures.END} 1\n")
    assert failure.reason == reason


def test_commands_repeat_what_the_bundle_has_a_flag_for(task: Path) -> None:
    """Settings of a training that another version has recorded are not repeated."""
    change(fold_of(task) / "finished.json", settings={"of_another_version": 3, "patch_size": [16, 32], "seed": 0})
    assert recipe.flags_of_recipe(task / "2d", 3) == " --patch_size '[16,32]'"


@pytest.mark.parametrize(
    ("probability", "mirror", "flag"),
    [
        pytest.param(0.5, True, "", id="as it was trained"),
        pytest.param(0, False, "", id="as it was trained, without"),
        pytest.param(0.5, False, " --mirror False", id="told not to"),
        pytest.param(0, True, " --mirror True", id="told to"),
        pytest.param(0.5, "x", "", id="damaged"),
        pytest.param("x", False, "", id="training damaged"),
    ],
)
def test_commands_repeat_what_was_said_of_mirroring(task: Path, probability: Any, mirror: Any, flag: str) -> None:
    """Folds that are predicted in different ways are not shared."""
    change(fold_of(task) / "finished.json", settings={"mirror_prob": probability})
    change(fold_of(task) / "validation" / "dice.json", settings={**SETTINGS, "mirror": mirror})
    said = recipe.flags_of_recipe(task / "2d", 3)
    assert said.removeprefix(f" --mirror_prob {probability}") == flag


def test_bundles_of_different_versions_are_refused_before_any_case_is_scored(
    task: Path, project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = datasets.load(project / "data" / TASK)
    save_plan(TINY_PLAN, task, fingerprint_key=fingerprints.key(dataset))
    shutil.copytree(fold_of(task), results.fold_folder(task / "3d_fullres", 0))
    monkeypatch.setattr(cv, "_scored", lambda *_, **__: pytest.fail("it scores"))
    (task / "3d_fullres" / "scripts" / "__init__.py").write_text("changed = True")
    assert main(["select", str(dataset.root), "--bundles", str(task.parent)]) == 1
    said = capsys.readouterr().err
    assert f"{task / '3d_fullres' / 'scripts'} and {task / '2d' / 'scripts'} are of different versions" in said
    assert f"by python -m autoplan {TASK} --bundles {task.parent} --force (models/ stays)" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "is_read"),
    [([0.5, None], True), (["high", None], False), ([float("nan"), None], False), ([2, None], False), ("ab", False)],
    ids=str,
)
def test_saved_scores_that_are_none_are_made_again(tmp_path: Path, values: Any, is_read: bool) -> None:
    fold = results.FoldResult("network", SETTINGS, {}, 0.5)
    comparison = cv.Comparison(("2d",), {"case_0": 0}, {"2d": {0: fold}}, {"format": 1})
    cases = {"2d": {"case_0": {"postprocessed": values, "plain": [0.5, None]}}}
    saved = {"key": comparison.key, "networks": cv._networks(comparison), "cases": cases}
    (tmp_path / cv.RESULT).write_text(json.dumps(saved))
    expected = {"case_0": CaseDice((0.5, None), (0.5, None))} if is_read else {}
    assert cv._saved(comparison, tmp_path) == {Candidate(("2d",)): expected}
