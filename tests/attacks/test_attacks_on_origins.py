"""Bundles that somebody else made, to go on from: damaged and hostile ones are refused in a sentence, soon, and nothing
of theirs runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attack import DAMAGED_JSON, mutated, no_hang, outcome
from conftest import TINY_PLAN, dataset_of
from kinds import CANARY, KINDS

from autoplan.base.files import read_object
from autoplan.bundle import pretrained, weights
from autoplan.planning import finetuning

CONFIGURATION = "3d_fullres"
NUM_MUTATIONS = 300
"""Of each file."""


@pytest.fixture(scope="module")
def sound(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with weights."""
    found = tmp_path_factory.mktemp("sound") / "given"
    shutil.copytree(project / "bundles" / TINY_PLAN.name / CONFIGURATION, found)
    weights.save(weights.fresh(TINY_PLAN, TINY_PLAN.configuration(CONFIGURATION)), found / "models" / "model.pt")
    return found


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "given")
    return tmp_path / "given"


def going_on(bundle: Path, folder: Path, *, install: bool = True) -> Any:
    """The bundles that go on, or what is said."""

    def attempt() -> list[Path]:
        source = pretrained.read(bundle)
        plan = finetuning.adapted(TINY_PLAN, source)
        if not install:
            return []
        dataset = dataset_of(plan, folder / "data" / plan.name)
        return pretrained.install(bundle, source, plan, dataset=dataset, bundles=folder / "bundles", key="key")

    with no_hang([str(bundle)]):
        found = outcome(attempt)
    assert isinstance(found, list) or not (folder / "bundles").exists(), "nothing is half written"
    return found


def change(bundle: Path, name: str, **values: Any) -> None:
    path = bundle / "configs" / name
    path.write_text(json.dumps({**read_object(path), **values}))


CHANGES: dict[str, dict[str, Any]] = {
    "slice axis 5": {"slice_axis": 5},
    "slice axis -1": {"slice_axis": -1},
    "a channel without normalization": {"normalization": [None]},
    "normalization by 0": {"normalization": [{"lower": 0, "upper": 1, "mean": 0, "std": 0}, None]},
    "spacing 0": {"target_spacing": [0, 1, 1]},
    "spacing NaN": {"target_spacing": [float("nan"), 1, 1]},
    "spacing of two axes": {"target_spacing": [1, 1]},
    "patch 0": {"patch_size": [0, 16, 16]},
    "odd patch": {"patch_size": [15, 16, 16]},
    "huge patch": {"patch_size": [2**20, 2**20, 2**20]},
    "features negative": {"features": [-4, 8, 16]},
    "features huge": {"features": [2**30, 2**30, 2**30]},
    "features of another depth": {"features": [4, 8]},
    "10,000 stages": {"strides": [[1, 1, 1]] * 10**4, "features": [4] * 10**4},
    "a stride of 3": {"strides": [[1, 1, 1], [3, 3, 3], [1, 1, 1]]},
    "a class that is an expression": {"class_names": ["background", f"$open('{CANARY}', 'w')", "tube"]},
    "a class that is a nested expression": {"class_names": ["background", "$" + "[" * 100_000, "tube"]},
    "a class that is a number": {"class_names": ["background", 7, "tube"]},
    "no classes": {"class_names": []},
}
"""Values of inference.json."""


@pytest.mark.parametrize("name", CHANGES)
def test_values_that_cannot_be(name, bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    change(bundle, "inference.json", **CHANGES[name])
    said = going_on(bundle, tmp_path)
    assert isinstance(said, str), said
    assert str(bundle) in said
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("spoil", KINDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["models/model.pt", "configs/inference.json", "configs/metadata.json"])
def test_files_of_another_kind(name: str, spoil: Callable[[Path], None], bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(bundle / name)
    assert isinstance(said := going_on(bundle, tmp_path), str), said
    assert str(bundle) in said
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("content", DAMAGED_JSON)
@pytest.mark.parametrize("name", ["inference.json", "metadata.json"])
def test_configs_that_are_none(name: str, content: bytes, bundle: Path, tmp_path: Path) -> None:
    (bundle / "configs" / name).write_bytes(content)
    assert isinstance(going_on(bundle, tmp_path), str)


@pytest.mark.parametrize("name", ["inference.json", "metadata.json"])
def test_changed_configs(name: str, sound: Path, bundle: Path, tmp_path: Path) -> None:
    """With any value another, it is refused, or what goes on is sound: its trainings could start."""
    content, installed = read_object(sound / "configs" / name), 0
    for seed in range(NUM_MUTATIONS):
        said, changed = mutated(content, seed)
        (bundle / "configs" / name).write_text(json.dumps(changed))
        found = going_on(bundle, tmp_path, install=seed % 10 == 0)
        if isinstance(found, list):
            installed += 1
            shutil.rmtree(tmp_path / "bundles", ignore_errors=True)
        else:
            assert len(found) < 600, said
    assert installed > 20, "most values do not matter to what goes on"
