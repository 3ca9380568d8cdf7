"""Bundles that somebody else made, to be checked: whatever is in them, there is a verdict soon, and names are data."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attack import DAMAGED_JSON, mutated, no_hang, outcome
from conftest import TINY_PLAN
from kinds import CANARY, KINDS

from autoplan.base.files import read_object
from autoplan.bundle import weights
from autoplan.sharing import verification

NAME = "ball_mri_segmentation"
NUM_MUTATIONS = 200
TRIED = "the bundle's code runs"


@pytest.fixture(scope="module")
def sound(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("sound") / NAME
    shutil.copytree(project / "bundles" / TINY_PLAN.name / "3d_fullres", bundle)
    weights.save(weights.fresh(TINY_PLAN, TINY_PLAN.configuration("3d_fullres")), bundle / "models" / "model.pt")
    return bundle


@pytest.fixture
def bundle(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(sound, tmp_path / NAME)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Bundles whose code would have run; it does not."""
    found: list[Path] = []
    monkeypatch.setattr(verification, "_tried", lambda bundle, _: found.append(bundle) or [])
    return found


def verdict(bundle: Path) -> Any:
    """The checks that fail, and why; or what is said of a folder that is no bundle."""
    with no_hang([str(bundle)]):
        found = outcome(lambda: verification.verify(bundle))
    if isinstance(found, str):
        return found
    assert all("\n" not in check.why for check in found)
    return {check.name: check.why for check in found if check.state == "FAILS"}


def change(bundle: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "configs" / name
    content = read_object(path)
    edit(content)
    path.write_text(json.dumps(content))


def named(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["class_names"].__setitem__(1, value)


def described(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda metadata: metadata["network_data_format"]["outputs"]["pred"]["channel_def"].update({"1": value})


RUN = f"$open({CANARY!r}, 'w')"
CODE = {
    "a class": ("inference.json", named(RUN)),
    "a class of the training": ("train.json", named(RUN)),
    "a class by import": ("inference.json", named("$__import__('os').system('touch canary')")),
    "a class, nested deeply": ("inference.json", named("$" + "(" * 10_000)),
    "all classes": ("inference.json", lambda c: c.update(class_names="$[" + RUN[1:] + "]")),
    "a channel": ("metadata.json", described(RUN)),
    "a channel that is a call": ("metadata.json", described({"_target_": "os.system", "command": f"touch {CANARY}"})),
    "the description": ("metadata.json", lambda m: m.update(description=RUN)),
    "an author in a list": ("metadata.json", lambda m: m.update(references=[["x", RUN]])),
}


@pytest.mark.parametrize(("name", "edit"), CODE.values(), ids=CODE)
def test_names_are_no_code(name, edit, bundle, tmp_path, ran) -> None:
    change(bundle, name, edit)
    assert "names are no code" in verdict(bundle)
    assert not ran
    assert not (tmp_path / CANARY).exists()


def test_a_name_that_is_written_as_a_literal_is_a_name(bundle, ran) -> None:
    change(bundle, "inference.json", named("$'\\x24HOME'"))
    assert not verdict(bundle)
    assert ran == [bundle]


HUGE = [2**20, 2**20, 2**20]
SIZES = {
    "patch": ("inference.json", lambda c: c.update(patch_size=HUGE)),
    "patch of the training": ("train.json", lambda c: c.update(patch_size=HUGE)),
    "an axis": ("inference.json", lambda c: c.update(patch_size=[10**400, 1, 1])),
    "shape": ("metadata.json", lambda m: m["network_data_format"]["inputs"]["image"].update(spatial_shape=HUGE)),
    "channels": ("metadata.json", lambda m: m["network_data_format"]["inputs"]["image"].update(num_channels=2**50)),
}


@pytest.mark.parametrize(("name", "edit"), SIZES.values(), ids=SIZES)
def test_windows_that_need_more_than_there_is(name, edit, bundle, ran) -> None:
    change(bundle, name, edit)
    assert "a window fits into memory" in verdict(bundle)
    assert not ran


@pytest.mark.parametrize("spoil", KINDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [
    "models/model.pt", "configs/inference.json", "configs/train.json", "configs/metadata.json", "docs/README.md",
    "scripts/networks.py",
])  # fmt: skip
def test_files_of_another_kind(name: str, spoil: Callable[[Path], None], bundle, tmp_path, ran) -> None:
    """What is no file, or larger than the memory, speaks against running anything."""
    spoil(bundle / name)
    verdict(bundle)
    unsafe = {"pipe", "device", "loop", "sparse"} | ({"sparse_archive", "bomb"} if name == "models/model.pt" else set())
    assert not (spoil.__name__ in unsafe and ran)
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("content", DAMAGED_JSON)
@pytest.mark.parametrize("name", ["configs/inference.json", "configs/metadata.json", "large_files.yml"])
@pytest.mark.usefixtures("ran")
def test_configs_that_are_none(name: str, content: bytes, bundle: Path) -> None:
    (bundle / name).write_bytes(content)
    verdict(bundle)


@pytest.mark.usefixtures("ran")
def test_a_list_of_large_files_that_multiplies(bundle: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (bundle / "large_files.yml").write_text("\n".join([*lines, "large_files: [{path: *a11, url: *a11}]"]))
    assert "large files are listed" in verdict(bundle)


@pytest.mark.parametrize("name", ["metadata.json", "inference.json"])
@pytest.mark.usefixtures("ran")
def test_changed_configs(name: str, sound: Path, bundle: Path) -> None:
    content = read_object(sound / "configs" / name)
    for seed in range(NUM_MUTATIONS):
        _, changed = mutated(content, seed)
        (bundle / "configs" / name).write_text(json.dumps(changed))
        verdict(bundle)


def test_code_that_does_not_end(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, timeout: float, **__: Any) -> None:
        raise subprocess.TimeoutExpired("probe", timeout)

    monkeypatch.setattr(verification.subprocess, "run", run)
    assert verdict(bundle) == {TRIED: f"it does not end within {verification.MAX_SECONDS} s"}
