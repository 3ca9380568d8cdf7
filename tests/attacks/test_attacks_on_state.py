"""What the commands keep on disk, damaged in every way: each is one line, or done again."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from attack import DAMAGED_JSON, check_message, check_nothing_half_written, check_unchanged, command, refuse, tree
from conftest import TINY_PLAN, Stub, write_project, write_tiny
from scripts import blocks, cache, probabilities

from autoplan.base.errors import TrainingError
from autoplan.base.files import file_digest
from autoplan.bundle.saved import save_plan
from autoplan.data import decathlon as datasets
from autoplan.data import fingerprint as fingerprints
from autoplan.training import results
from autoplan.training.lease import acquire, holder

TASK = TINY_PLAN.name
CASES = [list(fold) for fold in TINY_PLAN.folds]
SETTINGS = dict.fromkeys(results.PREDICTION_SETTINGS)
PARTS = {"image": "imagesTr", "label": "labelsTr"}
FOLD = "models/fold_0"
WRONG_INSIDE = {
    "finished.json": [
        {"model": 7},
        {"model": None},
        {"model": "other", "epochs": -1, "max_epochs": "x", "schedule": 7, "settings": []},
        {"epochs": 1e300, "max_epochs": [], "schedule": {}},
        {"settings": {"patch_size": {"a": [None]}, "optimizer": "$import this"}},
        {"epochs": True, "stopped": "yes", "max_epochs": 10**400},
    ],
    "validation/dice.json": [
        {"model": 7},
        {"cases": 7},
        {"cases": {"case_1": {}}},
        {"cases": {"case_0": 7}, "mean_foreground_dice": "good"},
        {"mean_foreground_dice": float("nan")},
        {"mean_foreground_dice": 10**400},
        {"settings": []},
        {"settings": {**SETTINGS, "mirror": "x", "patch_size": 7}},
        {"settings": {**SETTINGS, "target_spacing": {"a": None}, "overlap": []}},
    ],
}
"""Fields of the files of a finished fold that are replaced."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, parse) -> Path:
    """A project in which fold 0 of 2d is trained and predicted."""
    project = write_project(tmp_path_factory.mktemp("finished"))
    key = fingerprints.key(datasets.load(project / "data" / TASK))
    save_plan(TINY_PLAN, project / "bundles" / TASK, fingerprint_key=key)
    bundle = project / "bundles" / TASK / "2d"
    folder = bundle / FOLD
    (folder / "validation").mkdir(parents=True)
    parser = parse(bundle, "train", "evaluate", mirror=False)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    model = file_digest(folder / "model.pt")
    write(folder / "finished.json", {"epochs": 2, "stopped": False, "model": model})
    settings = parser.get_parsed_content("prediction_settings")
    write(folder / "validation" / "dice.json", {"model": model, "settings": settings, "cases": {"case_0": {}}})
    (folder / "curve.csv").write_text("epoch,train_average,val_average,seconds\n1,0.5,0.4,1.5\n2,0.4,0.3,1.5\n")
    (folder / "validation" / "probabilities").mkdir()
    item = {key: str(project / "data" / TASK / part / "case_0.nii.gz") for key, part in PARTS.items()}
    item["reference"] = item["label"]
    image = parser.get_parsed_content("validate#preprocessing")(item)["image"]
    path = results.probabilities(folder, "case_0")
    rows = (iter([torch.rand(3, *image.shape[1:])]) for _ in range(1))
    probabilities.keeping(path, rows, image, 0, blocks.cut([image.shape[1:]], 0), lambda all_: list(map(list, all_)))
    return project


@pytest.fixture
def copy(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the project, in the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def change(path: Path, fields: dict) -> None:
    write(path, {**json.loads(path.read_text()), **fields})


def look(capsys: pytest.CaptureFixture, folder: Path) -> None:
    """`status` ends well, `select` in one message, and neither changes anything else."""
    before = tree(folder)
    assert command(["status", TASK], capsys).status == 0
    assert command(["status", TASK, "--json"], capsys).status == 0
    chosen = command(["select", TASK, "--num_processes", "1"], capsys)
    if chosen.status:
        check_message(chosen.err, names=TASK)
    check_unchanged(before, tree(folder), may_write=rf"bundles/{TASK}/(\.choice\.partial\.json|choice\.json|best)")
    check_nothing_half_written(folder)


def test_what_is_whole_is_selected(copy, capsys) -> None:
    assert command(["select", TASK, "--num_processes", "1"], capsys).status == 0


NO_FILES = {
    "folder": Path.mkdir,
    "broken link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}
STATE = ["finished.json", "validation/dice.json", "curve.csv", "lease.json"]


@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize("content", DAMAGED_JSON)
def test_damaged_results(copy, capsys, name, content) -> None:
    (copy / "bundles" / TASK / "2d" / FOLD / name).write_bytes(content)
    look(capsys, copy)


@pytest.mark.parametrize(
    ("name", "fields"), [(name, fields) for name, changes in WRONG_INSIDE.items() for fields in changes]
)
def test_wrong_results(copy, capsys, name, fields) -> None:
    change(copy / "bundles" / TASK / "2d" / FOLD / name, fields)
    look(capsys, copy)


@pytest.mark.parametrize("name", [*STATE, "model.pt"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_results_that_are_no_files(copy, capsys, name, kind) -> None:
    path = copy / "bundles" / TASK / "2d" / FOLD / name
    path.unlink(missing_ok=True)
    NO_FILES[kind](path)
    look(capsys, copy)


@pytest.mark.parametrize("name", ["plan.json", "2d/configs/datalist.json", "2d/configs/train.json"])
def test_plans_that_are_pipes(copy, capsys, name) -> None:
    path = copy / "bundles" / TASK / name
    path.unlink()
    os.mkfifo(path)
    assert command(["select", TASK, "--num_processes", "1"], capsys).status == 1
    assert command(["train", TASK, "--configurations", "2d"], capsys).status == 1


HEADER = "epoch,train_average,val_average,seconds\n"
CURVES = ["epoch\n" * 99, '"' * 99, "a,b\n1,2,3\n", "epoch,seconds\n1\n", "epoch,seconds\nnan,inf\n"]
CURVES += ["epoch,seconds\n1e300,-5\n", f"{HEADER}nan,nan,nan,nan\n", f"{HEADER}1,nan,nan,1\n", f"{HEADER}1,1,1,inf\n"]


@pytest.mark.parametrize("text", CURVES)
def test_wrong_curves(copy, capsys, text) -> None:
    folder = copy / "bundles" / TASK / "2d" / FOLD
    (folder / "curve.csv").write_text(text)
    (folder / "finished.json").unlink()
    look(capsys, copy)


WEIGHTS = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x80garbage" * 99),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-99]),
    "a list": lambda path: torch.save([1, 2], path),
    "a number": lambda path: torch.save(7, path),
    "names without tensors": lambda path: torch.save({"a": 1}, path),
    "numbers as names": lambda path: torch.save({1: torch.zeros(1)}, path),
    "code": lambda path: torch.save({"a": Code()}, path),
}


class Code:
    """What runs where it is unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("it ran"),))


@pytest.mark.parametrize("known", [True, False], ids=["with its digest", "with another's digest"])
@pytest.mark.parametrize("damage", WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_weights(copy, capsys, damage, known) -> None:
    """`select` refuses them where their record does not; what they hold never runs."""
    folder = copy / "bundles" / TASK / "2d" / FOLD
    damage(folder / "model.pt")
    if known:
        for name in ("finished.json", "validation/dice.json"):
            change(folder / name, {"model": file_digest(folder / "model.pt")})
    look(capsys, copy)
    assert not (copy / "it ran").exists()
    assert command(["select", TASK, "--num_processes", "1"], capsys).status == 1


PROBABILITIES = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"garbage" * 99),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-99]),
    "no arrays": lambda path: np.savez(path),
    "a pickle": lambda path: np.savez(path, foreground=np.array([Code()], dtype=object), geometry=np.zeros(3)),
    "another shape": lambda path: np.savez(path, foreground=np.zeros((2, 3)), geometry=np.zeros(3, np.uint8)),
    "bytes flipped": lambda path: path.write_bytes(path.read_bytes()[:200] + b"\0" * 50 + path.read_bytes()[250:]),
    "no archive": lambda path: zipfile.ZipFile(path, "w").close(),
}


@pytest.mark.parametrize("damage", PROBABILITIES.values(), ids=PROBABILITIES)
def test_damaged_probabilities(copy, capsys, damage) -> None:
    damage(results.probabilities(copy / "bundles" / TASK / "2d" / FOLD, "case_0"))
    look(capsys, copy)
    said = command(["select", TASK, "--num_processes", "1"], capsys)
    assert said.status == 1
    assert "case_0" in said.err


# What planning leaves.


def inside(path: Path) -> list[dict]:
    """The object in a file with each of its values replaced by each of a few of other types."""
    content = json.loads(path.read_text())
    wrong = (None, 7, -1, "text", [], {}, [[None]], {"a": {}}, 1e308)
    return [{**content, name: value} for name in content for value in wrong if value != content[name]]


@pytest.mark.parametrize("content", DAMAGED_JSON)
@pytest.mark.parametrize("words", [["status"], ["select"], ["train", "--configurations", "2d"]], ids=lambda w: w[0])
def test_damaged_plan(copy, capsys, words, content) -> None:
    (copy / "bundles" / TASK / "plan.json").write_bytes(content)
    refuse([words[0], TASK, *words[1:]], capsys, names="plan.json", folder=copy)


def test_wrong_plans(copy, capsys) -> None:
    """Each field by itself, some hundred plans."""
    path = copy / "bundles" / TASK / "plan.json"
    for content in inside(path):
        write(path, content)
        said = command(["status", TASK], capsys)
        if said.status:
            check_message(said.err, names="plan.json|no bundle")


@pytest.mark.parametrize(
    "content", [*DAMAGED_JSON, b"[[1]]", b'{"training": []}', b'{"training": [{"name": "case_4", "fold": 0}]}']
)
def test_damaged_folds(copy, capsys, content) -> None:
    path = copy / "bundles" / TASK / "2d" / "configs" / "datalist.json"
    path.write_bytes(content)
    said = command(["status", TASK], capsys)
    if said.status:
        check_message(said.err, names="datalist.json")
    refuse(["select", TASK, "--num_processes", "1"], capsys, names="datalist.json|plan.json", folder=copy)


@pytest.mark.parametrize("content", DAMAGED_JSON)
@pytest.mark.parametrize("name", ["choice.json", ".choice.partial.json", "fingerprint.json"])
def test_damaged_records_are_written_again(tmp_path, capsys, monkeypatch, name, content) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = write_tiny(tmp_path / "Task90_Tiny", num_cases=2)
    (tmp_path / "bundles" / "Task90_Tiny").mkdir(parents=True)
    (tmp_path / "bundles" / "Task90_Tiny" / name).write_bytes(content)
    assert command([str(tiny.folder), "--num_processes", "1"], capsys).status == 0
    assert command(["status", "Task90_Tiny"], capsys).status == 0


def test_wrong_fingerprints_are_made_again(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = write_tiny(tmp_path / "Task90_Tiny", num_cases=2)
    assert command([str(tiny.folder), "--num_processes", "1"], capsys).status == 0
    path = tmp_path / "bundles" / "Task90_Tiny" / "fingerprint.json"
    good = path.read_text()
    for content in inside(path)[::4]:
        write(path, content)
        assert command([str(tiny.folder), "--num_processes", "1"], capsys).status == 0
        assert json.loads(path.read_text())["key"] == json.loads(good)["key"]


# Training, with trainings that take no time.


@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b'{"model": [], "epochs": "x", "cases": 7, "pid": "x"}', b"[" * 100_000]
)
def test_training_goes_on_with_damaged_state(stub: Stub, capsys, name, content) -> None:
    folder = stub.task / "2d" / FOLD
    (folder / "validation").mkdir(parents=True)
    (folder / name).write_bytes(content)
    said = command(["train", TASK, "--configurations", "2d", "--folds", "0", "--jobs", "1"], capsys)
    assert said.status == 0, said.err
    assert json.loads((folder / "finished.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("content", DAMAGED_JSON)
@pytest.mark.parametrize("heartbeat", [0, 1e308, float("nan"), -1])
def test_a_damaged_lease_is_taken_over(tmp_path, content, heartbeat) -> None:
    (tmp_path / "lease.json").write_bytes(content)
    assert holder(tmp_path) is None
    found = {"host": "h", "machine": "m", "pid": 10**30, "heartbeat": heartbeat, "id": "i", "max_epochs": -1}
    write(tmp_path / "lease.json", found)
    assert holder(tmp_path) is None
    lease = acquire(tmp_path)
    assert lease is not None
    lease.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", DAMAGED_JSON)
def test_a_datalist_names_cases_and_folds(tmp_path, content) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "datalist.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"datalist\.json"):
        results.folds(tmp_path)


# The cache of training.


def test_a_damaged_cache_is_never_read_as_other_voxels(tmp_path) -> None:
    """Each of 150 damages is noticed: a byte changed, bytes taken away, bytes added."""
    rng, path = np.random.default_rng(0), tmp_path / "case.npys"
    cache.write_arrays(path, [rng.normal(size=(2, 9, 8, 7)).astype(np.float32), np.ones((1, 9, 8, 7), np.uint8)])
    content = path.read_bytes()
    assert cache.is_whole(path)
    for i in range(150):
        data, at = bytearray(content), int(rng.integers(len(content)))
        if i % 3 == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif i % 3 == 1:
            del data[at:]
        else:
            data[at:at] = rng.bytes(3)
        path.write_bytes(bytes(data))
        assert not cache.is_whole(path)
        cache.remove_damaged([path])
        assert not path.exists()
