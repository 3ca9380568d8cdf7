"""A bundle that somebody got: what is checked, and that each fault is named in one line."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY_PLAN

from autoplan.__main__ import main
from autoplan.base.errors import AutoplanError, TemplateError
from autoplan.bundle import weights
from autoplan.sharing import probe, verification
from autoplan.sharing.verification import Check

NAME = "ball_mri_segmentation"


@pytest.fixture(scope="module")
def sound(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with weights and what it predicts for a small image; not to be changed."""
    bundle = tmp_path_factory.mktemp("sound") / NAME
    shutil.copytree(project / "bundles" / TINY_PLAN.name / "3d_fullres", bundle)
    network = weights.fresh(TINY_PLAN, TINY_PLAN.configuration("3d_fullres"))
    weights.save(network, bundle / "models" / "model.pt")
    image = np.random.default_rng(0).normal(40, 30, (20, 18, 9, 2)).astype(np.float32)
    (bundle / "docs" / "verification").mkdir()
    nibabel.save(nibabel.Nifti1Image(image, np.diag([1.5, 1.25, 2.0, 1])), bundle / probe.IMAGE)
    (bundle / probe.SEGMENTATION).write_bytes(b"to be replaced")
    folder = tmp_path_factory.mktemp("predicted")
    results = probe.examine(bundle, folder)
    assert not [result for result in results if result["state"] == "fails"]
    shutil.copyfile(folder / probe.PREDICTED, bundle / probe.SEGMENTATION)
    return bundle


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(sound, tmp_path / NAME)


def failed(bundle: Path, **options: Any) -> dict[str, str]:
    """The checks that fail, and why."""
    return {c.name: c.why for c in verification.verify(bundle, **options) if c.state == "FAILS"}


def test_a_sound_bundle_passes_anywhere(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on the command line, in a process without autoplan's modules; nothing is left in the bundle."""
    before = sorted(p for p in bundle.rglob("*"))
    assert main(["verify", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ok +predicts the stored segmentation +0.000% of the voxels differ", said, re.MULTILINE)
    assert "FAILS" not in said
    assert sorted(p for p in bundle.rglob("*")) == before


def flipped(bundle: Path) -> None:
    found = torch.load(bundle / "models" / "model.pt", weights_only=True)
    weights.save({name: -value for name, value in found.items()}, bundle / "models" / "model.pt")


def other_topology(bundle: Path) -> None:
    network = weights.fresh(TINY_PLAN, TINY_PLAN.configuration("3d_lowres"))
    weights.save(network, bundle / "models" / "model.pt")


def not_finite(bundle: Path) -> None:
    found = torch.load(bundle / "models" / "model.pt", weights_only=True)
    next(iter(found.values())).view(-1)[0] = float("nan")
    weights.save(found, bundle / "models" / "model.pt")


def nested(bundle: Path) -> None:
    found = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({"model": found}, bundle / "models" / "model.pt")


def other_export(bundle: Path) -> None:
    class Other(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x[:, :1]], 1)

    torch.jit.script(Other()).save(str(bundle / "models" / "model.ts"))


def edited(name: str, **values: Any) -> Callable[[Path], None]:
    """Sets keys of a config; None takes one out."""

    def edit(bundle: Path) -> None:
        path = bundle / "configs" / name
        changed = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))

    return edit


RUNNING = {
    "flipped weights": (flipped, probe.PREDICTS, r"[1-9].*% of the voxels differ, 1.000% may"),
    "no weights": (lambda b: (b / "models/model.pt").unlink(), "the weights fit the network", "Get the weights"),
    "weights not downloaded": (
        lambda b: ((b / "models/model.pt").unlink(), (b / "large_files.yml").write_text("large_files: []\n")),
        "the weights fit the network", "Download what large_files.yml lists",
    ),
    "damaged weights": (
        lambda b: os.truncate(b / "models/model.pt", 5000), "the weights fit the network", "is damaged .* Get it anew",
    ),
    "another topology": (other_topology, "the weights fit the network", "is of another network: [0-9]+ weights differ"),
    "nested weights": (nested, "the weights fit the network", "no flat dictionary of weights"),
    "NaN in the weights": (not_finite, "the weights fit the network", "NaN or infinite"),
    "another export": (other_export, "model.ts equals the network", "their outputs differ by"),
    "no network": (edited("inference.json", network_def=3), "the network is built", "is a int"),
    "an id is missing": (
        edited("inference.json", evaluator=None), "inference.json has the properties of MONAI", "evaluator",
    ),
    "training another network": (
        edited("train.json", features=[4, 8, 12]), "train.json has the same network", "weights differ",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "check", "why"), RUNNING.values(), ids=RUNNING)
@pytest.mark.usefixtures("in_process")
def test_what_a_bundle_does_is_checked(damage: Callable[[Path], Any], check: str, why: str, bundle: Path) -> None:
    damage(bundle)
    found = failed(bundle)
    assert check in found, found
    assert re.search(why, found[check]), found[check]
    assert "\n" not in found[check]


STATIC: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no license": (lambda b: (b / "LICENSE").unlink(), "files of a bundle", "LICENSE is missing"),
    "a link": (lambda b: (b / "link").symlink_to("LICENSE"), "files of a bundle", "link is a symbolic link"),
    "left files": (lambda b: (b / "eval").mkdir(), "files of a bundle", "eval is left by a program"),
    "a large file": (
        lambda b: os.truncate(_touched(b / "models/model.onnx"), 26 * 2**20), "large files are listed",
        "model.onnx has more than 25 MiB",
    ),
    "an address to fill in": (
        lambda b: (b / "large_files.yml").write_text("large_files:\n- {path: a, url: https://fill.in.the.address/a}\n"),
        "large files are listed", "the address of a is to be filled in",
    ),
    "no address": (
        lambda b: (b / "large_files.json").write_text('{"large_files": [{"path": "a", "url": "here"}]}'),
        "large files are listed", "a has no address",
    ),
    "a damaged list": (
        lambda b: (b / "large_files.yml").write_text("large_files: [{"), "large files are listed", "cannot be read",
    ),
    "a missing field": (edited("metadata.json", authors=None), "metadata.json has the fields", "no authors"),
    "a field of another type": (edited("metadata.json", references="x"), "metadata.json", "references is no list"),
    "a version of words": (edited("metadata.json", version="new"), "metadata.json", "'new' is not like 1.0.0"),
    "a version without entry": (edited("metadata.json", version="9.0.0"), "metadata.json", "not in the changelog"),
    "a range of versions": (edited("metadata.json", monai_version=">=1"), "metadata.json", "no exact version"),
    "no metadata": (lambda b: (b / "configs/metadata.json").write_text("{"), "metadata.json", "cannot be read"),
    "no format": (edited("metadata.json", network_data_format={"inputs": {}}), "network_data", "no inputs.image"),
    "channels without names": (
        edited("metadata.json", network_data_format={"outputs": {"pred": {"num_channels": 3, "channel_def": {}}}}),
        "network_data", "names 0 of 3 channels",
    ),
    "a name with a hyphen": (lambda b: b.rename(b.with_name("a-b")), "the name", "a-b is not of letters"),
}  # fmt: skip


def _touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(("damage", "check", "why"), STATIC.values(), ids=STATIC)
def test_what_a_bundle_says_is_checked(
    damage: Callable[[Path], Any], check: str, why: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_tried", lambda *_: [])
    before = bundle.parent
    damage(bundle)
    [there] = [path for path in before.iterdir() if path.is_dir()]
    found = failed(there)
    assert any(name.startswith(check) and why in said for name, said in found.items()), found


@pytest.mark.usefixtures("in_process")
def test_a_bundle_of_others_is_checked_as_far_as_that_goes(tmp_path: Path) -> None:
    """No scripts, no train.json, nothing stored: the checks say what they left out."""
    bundle = tmp_path / "plain_bundle"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "models").mkdir()
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": network, "device": "cpu"}))
    tensor = {"num_channels": 1, "spatial_shape": [4, 4, 4], "dtype": "float32"}
    formats = {"inputs": {"image": tensor}, "outputs": {"pred": {**tensor, "num_channels": 2}}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}))
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), bundle / "models" / "model.pt")
    states = {check.name: check.state for check in verification.verify(bundle)}
    assert states["the weights fit the network"] == states["verify_net_in_out"] == "ok"
    assert states["train.json has the same network"] == states[probe.PREDICTS] == "skipped"
    assert states["train.json has the properties of MONAI"] == "skipped"
    assert states["inference.json has the properties of MONAI"] == "FAILS"


@pytest.mark.usefixtures("in_process")
def test_a_prediction_of_another_shape_fails(bundle: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), bundle / probe.SEGMENTATION)
    assert "has the shape (20, 18, 9" in failed(bundle)[probe.PREDICTS]


@pytest.mark.usefixtures("in_process")
def test_more_difference_may_be_allowed(bundle: Path) -> None:
    flipped(bundle)
    assert not failed(bundle, max_difference=0.999)


def test_a_process_that_dies_is_a_failed_check(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification.sys, "executable", "/bin/false")
    assert failed(bundle) == {"the bundle's code runs": "exit status 1: it says nothing"}


def test_what_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TemplateError, match="is no bundle"):
        verification.verify(tmp_path)
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["verify", str(tmp_path), "--max_difference", "2"]) == 1
    assert "--max_difference takes a share of the voxels" in capsys.readouterr().err


def test_failed_checks_end_in_one_line() -> None:
    checks = [Check("one", "ok"), Check("two", "FAILS", "why"), Check("three", "skipped")]
    with pytest.raises(AutoplanError, match=r"b: 1 of 3 checks failed: two \(why\)"):
        verification.check_passed(Path("b"), checks)
    assert verification.report(checks).splitlines()[1].split() == ["FAILS", "two", "why"]


def test_packages_of_other_versions_are_named(bundle: Path) -> None:
    edited("metadata.json", monai_version="0.1.0", required_packages_version={"nosuchpackage": "1.0"})(bundle)
    check = verification.versions(bundle)
    assert check.state == "note"
    assert "(tested with 0.1.0)" in check.why
    assert "nosuchpackage missing" in check.why
