"""plan.json and fingerprint.json: what is written comes back, and what is damaged is one line with a remedy."""

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_PLAN, write_project

from autoplan.__main__ import main
from autoplan.base.errors import AutoplanError, DatasetError, PlanError
from autoplan.base.files import file_digest, read_object
from autoplan.bundle import saved, weights
from autoplan.cli import commands
from autoplan.data import layouts, stored
from autoplan.data.images import read_volume
from autoplan.training import results

TASK = TINY_PLAN.name


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task's folder with its plan."""
    saved.save_plan(TINY_PLAN, tmp_path / TASK, fingerprint_key="key")
    return tmp_path / TASK


def test_a_plan_comes_back(task: Path) -> None:
    assert saved.load_plan(task) == TINY_PLAN
    assert saved.load_plan(task, fingerprint_key="key") == TINY_PLAN
    assert [p.name for p in task.iterdir()] == [saved.PLAN]


def test_a_plan_is_text_to_be_read(task: Path) -> None:
    lines = (task / saved.PLAN).read_text().splitlines()
    assert sum(line.startswith('  {"name": ') for line in lines) == len(TINY_PLAN.configurations)
    assert sum(line.startswith('  ["case_') for line in lines) == len(TINY_PLAN.folds)


def _set(*path: Any, value: Any) -> Callable[[Any], Any]:
    """A change of one entry."""

    def change(content: Any) -> Any:
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return content

    return change


def _without(key: str) -> Callable[[Any], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


DAMAGES = {
    "a list": lambda content: [content],
    "a number": lambda content: 5,
    "null": lambda content: None,
    "no fingerprint": _without("fingerprint"),
    "an older version": _without("single_component"),
    "a newer version": lambda content: {**content, "more": 1},
    "text for a number": _set("slice_axis", value="2"),
    "a number for text": _set("modalities", 0, value=1),
    "text for a switch": _set("nonzero_only", value="no"),
    "infinite": _set("slice_axis", value=float("inf")),
    "no configuration of that name": _set("configurations", 0, "name", value="4d"),
    "a list for a name": _set("configurations", 0, "name", value=[]),
    "patch too small": _set("configurations", 0, "patch_size", value=[1, 1]),
    "too few strides": _set("configurations", 0, "strides", value=[[1, 1]]),
    "short strides": _set("configurations", 1, "strides", 1, value=[2]),
    "configurations null": _set("configurations", value=None),
    "a fold too few": lambda content: {**content, "folds": content["folds"][1:]},
    "a case twice": _set("folds", 0, value=["case_1"]),
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_plan_is_one_line(change: Callable[[Any], Any], task: Path) -> None:
    path = task / saved.PLAN
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(PlanError) as raised:
        saved.load_plan(task)
    said = str(raised.value)
    assert said.startswith(f"{path} is damaged, or of another version of autoplan (")
    assert said.endswith(f"Plan again: python -m autoplan {TASK} --bundles {task.parent}")
    assert "\n" not in said
    assert len(said) < 400 + 2 * len(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"\\ud800"'], ids=["empty", "cut", "bytes", "deep", "half"]
)
def test_a_plan_that_is_no_json_is_one_line(content: bytes, task: Path) -> None:
    (task / saved.PLAN).write_bytes(content)
    with pytest.raises(PlanError, match="Plan again: python -m autoplan Task90_Tiny") as raised:
        saved.load_plan(task)
    assert "\n" not in str(raised.value)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "plan": (saved.PLAN, saved.load_plan),
    "fingerprint": (stored.FINGERPRINT, lambda task: stored.load_fingerprint(task / stored.FINGERPRINT)),
    "flags of planning": ("layout.json", layouts.read),
    "folds": ("2d/configs/datalist.json", lambda task: results.folds(task / "2d")),
    "a config": ("2d/configs/inference.json", lambda task: read_object(task / "2d/configs/inference.json")),
    "weights": ("2d/models/model.pt", lambda task: weights.load(task / "2d/models/model.pt", "Train again.")),
    "a digest": ("2d/models/model.pt", lambda task: file_digest(task / "2d/models/model.pt")),
}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO], ids=["permission", "disk"])
@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS)
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    name: str, read: Callable[[Path], object], number: int, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither planning again nor another copy would help."""
    path, really = task / name, io.open
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()

    def refuse(file: Any, *given: Any, **options: Any) -> Any:
        if str(file) == str(path):
            raise OSError(number, os.strerror(number), str(path))
        return really(file, *given, **options)

    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AutoplanError) as raised:
        read(task)
    said = str(raised.value)
    assert said.startswith(f"{path}")
    assert "cannot be read" in said
    assert ("permissions" in said) == (number == errno.EACCES)
    assert not re.search("damaged|Plan again|Train|Remove|Errno|no file of weights", said)


def test_an_image_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii.gz"
    path.touch()

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(DatasetError, match=r"may not be read\. Change its permissions"):
        read_volume(path)


def test_a_plan_belongs_to_its_dataset_and_its_task(task: Path) -> None:
    with pytest.raises(PlanError, match=r"the dataset has changed since it was planned\. Plan again"):
        saved.load_plan(task, fingerprint_key="another")
    task.rename(task.with_name("Task91_Other"))
    with pytest.raises(PlanError, match="the plan of another task, Task90_Tiny"):
        saved.load_plan(task.with_name("Task91_Other"))


@pytest.mark.parametrize("command", ["train", "status", "select"])
def test_without_a_plan_a_command_says_to_plan_again(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bundles = write_project(tmp_path) / "bundles"
    (bundles / TASK / saved.PLAN).unlink()
    assert main([command, str(tmp_path / "data" / TASK), "--bundles", str(bundles)]) == 1
    error = capsys.readouterr().err
    assert f"there is no plan.json. Plan again: python -m autoplan {TASK}" in error
    assert len(error.splitlines()) == 1


def test_bundles_of_an_earlier_plan_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bundles = write_project(tmp_path) / "bundles"
    without = replace(TINY_PLAN, configurations=TINY_PLAN.configurations[:2])
    saved.save_plan(without, bundles / TASK, fingerprint_key="key")
    assert main(["status", TASK, "--bundles", str(bundles)]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]} == {"2d", "3d_fullres"}


def test_planning_writes_the_plan_after_the_bundles(tiny, tmp_path, monkeypatch) -> None:
    bundles, seen = tmp_path / "bundles", []
    render, path = commands._render, bundles / tiny.folder.name / saved.PLAN
    monkeypatch.setattr(commands, "_render", lambda *a, **k: seen.append(path.exists()) or render(*a, **k))
    assert main([str(tiny.folder), "--bundles", str(bundles)]) == 0
    assert seen == [False]
    assert saved.load_plan(bundles / tiny.folder.name).num_training == 5


def test_a_bundle_that_was_removed_is_not_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bundles = write_project(tmp_path) / "bundles"
    shutil.rmtree(bundles / TASK / "2d")
    assert main(["status", TASK, "--bundles", str(bundles)]) == 0
    assert "2d" not in {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}


def test_a_full_disk_leaves_nothing_half_written(tiny, tmp_path, monkeypatch, capsys) -> None:
    def full(path: Path, text: str, **_: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main([str(tiny.folder), "--bundles", str(tmp_path / "bundles")]) == 1
    assert "the disk is full" in capsys.readouterr().err
    there = [p.name for p in (tmp_path / "bundles").rglob("*") if p.is_file()]
    assert there == ["readings.jsonl"], "the next planning reads nothing again"
