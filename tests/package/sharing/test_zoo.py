"""The folder for the Model Zoo: what it holds, its versions, what is refused, and the way to somebody else."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_PLAN, write_finished

from autoplan.__main__ import main
from autoplan.base.errors import AutoplanError
from autoplan.bundle import weights
from autoplan.data.images import read_volume
from autoplan.evaluation.choice import Candidate, CaseDice, Setting, choose
from autoplan.planning.values import Fold
from autoplan.sharing import ensemble, probe, stored_image, verification, zoo
from autoplan.sharing.verification import Check
from autoplan.sharing.zoo import Request

TASK, NAME = TINY_PLAN.name, "ball_mri_segmentation"
SAID = {"authors": "A. Person", "data_source": "Phantom Hospital, https://example.org", "data_license": "CC BY 4.0"}
FOLDS = {"2d": (0, 1, "all"), "3d_fullres": ("all",), "3d_lowres": (0,), "3d_cascade_fullres": (0,)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, parse: Callable[..., Any]) -> Path:
    """A project with finished folds and select's bundle; not to be changed."""
    project = write_finished(tmp_path_factory.mktemp("published"), parse, FOLDS)
    setting = Setting(TASK, ("ball", "box"), ("ball",), (0,), 5, 5)
    chosen = choose(setting, {Candidate(("2d", "3d_cascade_fullres")): {"case_0": CaseDice((0.75, None), (0.5, None))}})
    ensemble.share(TINY_PLAN, chosen, project / "data" / TASK, project / "bundles", name=None, fingerprint_key="abc")
    for fold in ("fold_1", "fold_all"):
        (project / "bundles" / TASK / "2d" / "models" / fold / "progress.png").write_bytes(b"a curve")
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "project")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is predicted and nothing tried: what is written, and as what version, is the subject."""
    monkeypatch.setattr(zoo, "store_segmentation", lambda built: (built / "docs" / "verification").mkdir())
    monkeypatch.setattr(verification, "verify", lambda _: [Check("all", "ok")])


def publish(
    project: Path,
    bundle: str = "best",
    folds: tuple[Fold, ...] = (),
    output: Path | None = None,
    *,
    force: bool = False,
    **said: Any,
) -> zoo.Published:
    root, request = project / "bundles" / TASK, Request(**{"name": NAME, **SAID, **said})
    return zoo.publish(root, bundle, folds, output or project / "shared", request, force=force)


def metadata(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "configs" / "metadata.json").read_text()))


def retrain(project: Path) -> None:
    """The bundle gets other weights."""
    path = project / "bundles" / TASK / "best" / "models" / "model.pt"
    found = torch.load(path, weights_only=True)
    weights.save({name: value + 0.01 for name, value in found.items()}, path)


@pytest.mark.usefixtures("quick")
def test_what_the_folder_holds(project: Path) -> None:
    done = publish(project)
    assert done.folder == project / "shared" / NAME
    assert (done.version, [c.state for c in done.checks]) == ("0.1.0", ["ok"])
    found = {p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*") if p.is_file()}
    scripts = {name for name in found if name.startswith("scripts/")}
    assert found - scripts == {
        ".written.json", "LICENSE", "configs/inference.json", "configs/train.json", "configs/evaluate.json",
        "configs/metadata.json",
        "configs/logging.conf", "docs/README.md", "docs/data_license.txt", "docs/2d_fold_1.png", "models/model.pt",
    }  # fmt: skip
    assert metadata(done.folder)["authors"] == "A. Person"
    assert metadata(done.folder)["data_source"] == SAID["data_source"]
    assert "License: CC BY 4.0\n" in (done.folder / "docs" / "data_license.txt").read_text()
    readme = (done.folder / "docs" / "README.md").read_text()
    assert "A. Person. Planned and put together by autoplan.\n" in readme
    assert "fold 1](2d_fold_1.png)" in readme
    assert "which cross-validation on the dataset Task90_Tiny chose" in readme
    text = "".join(p.read_text() for p in (done.folder / "configs").glob("*.json"))
    assert str(project) not in text
    assert "case_" not in text, "no data of patients, not even their names"
    assert [p.name for p in (project / "shared").iterdir()] == [NAME], "nothing temporary is left"


@pytest.mark.usefixtures("quick")
def test_the_same_again_is_nothing_to_do(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = publish(project)
    before = {p: p.stat().st_mtime_ns for p in done.folder.rglob("*")}
    assert publish(project) == zoo.Published(done.folder, "0.1.0", [])
    assert {p: p.stat().st_mtime_ns for p in done.folder.rglob("*")} == before
    words = ["share", TASK, "--bundles", str(project / "bundles"), "--output", str(project / "shared"), "--name", NAME]
    assert main([*words, *(word for flag, value in SAID.items() for word in (f"--{flag}", value))]) == 0
    assert "nothing has changed since version 0.1.0" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_a_change_raises_the_version(project: Path) -> None:
    publish(project)
    retrain(project)
    done = publish(project)
    assert done.version == metadata(done.folder)["version"] == "0.2.0"
    assert metadata(done.folder)["changelog"] == {
        "0.2.0": "other networks (fold 0); mean foreground Dice 0.7500 in cross-validation",
        "0.1.0": "first version (fold 0); mean foreground Dice 0.7500 in cross-validation",
    }
    done = publish(project, authors="A. and B. Person")
    assert (done.version, metadata(done.folder)["changelog"][done.version]) == ("0.2.1", "changed: configs, docs")
    (project / "bundles" / TASK / "2d" / "models" / "fold_1" / "progress.png").unlink()
    done = publish(project, authors="A. and B. Person")
    assert metadata(done.folder)["changelog"][done.version] == "changed: docs"
    assert publish(project, version="1.0.0", authors="A. and B. Person").version == "1.0.0"
    with pytest.raises(AutoplanError, match=r"--version 0\.2\.0 exists; the newest is 1\.0\.0"):
        publish(project, version="0.2.0")


@pytest.mark.usefixtures("quick")
def test_a_version_that_is_no_number_has_no_next(project: Path) -> None:
    folder = publish(project).folder
    path = folder / "configs" / "metadata.json"
    path.write_text(json.dumps({**metadata(folder), "version": "new"}))
    with pytest.raises(AutoplanError, match="Say which: --version"):
        publish(project, authors="B", force=True)


@pytest.mark.usefixtures("quick")
def test_a_configuration_and_some_folds(project: Path) -> None:
    done = publish(project, "2d", (1,))
    inference = json.loads((done.folder / "configs" / "inference.json").read_text())
    assert inference["slices_folds"] == [1]
    assert metadata(done.folder)["eval_metrics"] == {
        "mean_dice": {"mean foreground": 0.6, "ball": 0.6, "box": None}, "cases": 1, "folds": [1],
    }  # fmt: skip
    assert "cross-validation on the dataset" not in (done.folder / "docs" / "README.md").read_text()
    assert "chosen" not in metadata(done.folder)["description"]
    assert publish(project, "2d").version == "0.2.0", "all its folds"


ON_ALL = {
    "scored": ("2d", "the two networks of the cross-validation", " of the networks of the cross-validation", [0, 1]),
    "not scored": ("3d_fullres", "it has no cross-validated score.", "; no cross-validated score", None),
}


@pytest.mark.parametrize(("name", "told", "entry", "folds"), ON_ALL.values(), ids=ON_ALL)
@pytest.mark.usefixtures("quick")
def test_the_network_of_all_cases(project: Path, name: str, told: str, entry: str, folds: list[int] | None) -> None:
    done = publish(project, name, ("all",))
    readme, found = (done.folder / "docs" / "README.md").read_text(), metadata(done.folder)
    assert told in readme
    assert told in found["description"]
    assert found["eval_metrics"].get("folds") == folds
    assert found["changelog"]["0.1.0"].startswith("first version (trained on all cases)")
    assert found["changelog"]["0.1.0"].endswith(entry)
    assert name != "2d" or "every epoch: 2d, all cases, not validated](2d_fold_all.png)" in readme
    inference = json.loads((done.folder / "configs" / "inference.json").read_text())
    assert [value for key, value in inference.items() if key.endswith("_folds")] == [["all"]]
    assert not publish(project, name, ("all",)).checks, "the same again is nothing to do"


@pytest.mark.usefixtures("quick")
def test_a_file_with_the_license(project: Path, tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("Share alike.\nName the hospital.\n")
    done = publish(project, data_license=str(tmp_path / "terms.txt"))
    assert (done.folder / "docs" / "data_license.txt").read_text().endswith("Share alike.\nName the hospital.\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("Für alle".encode("latin-1"), "as a text in UTF-8", id="Latin-1"),
        pytest.param("For all".encode("utf-16"), "as a text in UTF-8", id="UTF-16"),
        pytest.param(b"%PDF-1.7\n\0\1", "as a text in UTF-8", id="binary"),
        pytest.param(b"", "as a text in UTF-8", id="empty"),
        pytest.param("\ufeffFür alle\r\n".encode(), "", id="UTF-8 as Windows writes it"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_the_encoding_of_the_license(content: bytes, message: str, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_bytes(content)
    said = partial(publish, finished, output=tmp_path / "shared", data_license=str(tmp_path / "terms.txt"))
    if message:
        with pytest.raises(AutoplanError, match=message):
            said()
        assert not (tmp_path / "shared").exists()
    else:
        assert (said().folder / "docs" / "data_license.txt").read_text(encoding="utf-8").endswith("License: Für alle\n")


@pytest.mark.usefixtures("quick")
def test_a_license_as_long_as_no_file_name(finished: Path, tmp_path: Path) -> None:
    done = publish(finished, output=tmp_path / "shared", data_license="share alike " * 50)
    assert "share alike share alike" in (done.folder / "docs" / "data_license.txt").read_text()


@pytest.mark.usefixtures("quick")
def test_a_shared_folder_that_somebody_changed(project: Path) -> None:
    """What they added stays, and is no change; what they changed is named, and kept with --force."""
    folder = publish(project).folder
    for name in ("docs/notes.md", ".git/config", "models/fold_0/last.pt", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    assert not publish(project).checks
    retrain(project)
    assert publish(project).version == "0.2.0"
    (folder / "docs" / "README.md").write_text("my words")
    retrain(project)
    with pytest.raises(AutoplanError, match=r"docs/README\.md was changed by hand.*--force"):
        publish(project)
    assert ((folder / "docs" / "README.md").read_text(), metadata(folder)["version"]) == ("my words", "0.2.0")
    done = publish(project, force=True)
    assert (done.version, done.kept) == ("0.3.0", [folder.with_name(f"{NAME}.before")])
    assert (done.kept[0] / "docs" / "README.md").read_text() == "my words"
    for name in ("docs/notes.md", ".git/config", "models/fold_0/last.pt", "notes.txt"):
        assert (folder / name).read_text() == "mine"


@pytest.mark.usefixtures("quick")
def test_the_version_before_comes_back_when_the_new_one_cannot_be_put_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the moves fails in turn."""
    folder = publish(project).folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    retrain(project)
    move, moved = Path.replace, list[Path]()

    def fail(path: Path, target: Path) -> Path:
        moved.append(path)
        if len(moved) == number:
            raise KeyboardInterrupt
        return move(path, target)

    for number in range(1, 100):
        moved.clear()
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "replace", fail)
            publish(project)
        if len(moved) < number:
            break
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
        assert [p.name for p in folder.parent.iterdir()] == [NAME]
    assert number > 6
    assert metadata(folder)["version"] == "0.2.0"


LICENSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "it is a pipe or a device"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is a pipe or a device"),
    "4 TB": (lambda path: path.touch() or os.truncate(path, 2**42), "it has more than 64 MiB"),
}


@pytest.mark.parametrize(("make", "said"), LICENSES.values(), ids=LICENSES)
def test_licenses_that_are_no_texts(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / "terms.txt")
    given = {**SAID, "data_license": str(tmp_path / "terms.txt")}
    with pytest.raises(AutoplanError, match=said):
        zoo.check(zoo.Request("ball_mri_segmentation", **given))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing said": ({"authors": "", "data_source": " ", "data_license": "", "name": ""}, "needs --name, --authors, "
                     "--data_license, --data_source"),
    "one thing missing": ({"data_license": ""}, "share needs --data_license: "),
    "a name in capitals": ({"name": "Ball_MRI_segmentation"}, "the Model Zoo takes anatomy, modality and task"),
    "a name of two words": ({"name": "ball_segmentation"}, "the Model Zoo takes"),
    "a name without task": ({"name": "ball_mri_unet"}, "the Model Zoo takes"),
    "a version of two numbers": ({"version": "1.0"}, "give three numbers"),
    "an address that is none": ({"url": "here"}, "begins with https://"),
    "folds of select's bundle": ({"folds": (0,)}, "best holds the folds that select chose"),
    "a fold that is not there": ({"bundle": "2d", "folds": (3,)}, "fold 3 is not finished. Finished are: 0, 1"),
    "all cases and a fold": ({"bundle": "2d", "folds": (0, "all")}, "is shared alone: --folds all"),
    "all cases only": ({"bundle": "3d_fullres"}, "only a network that was trained on all cases is there. Name it: "),
    "all cases, not there": ({"bundle": "3d_lowres", "folds": ("all",)}, "fold all has not finished training. Train"),
    "no such bundle": ({"bundle": "other"}, "is no bundle that select wrote"),
    "a cache": ({"bundle": "cache"}, "is no bundle that select wrote"),
}  # fmt: skip


@pytest.mark.parametrize(("said", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.usefixtures("quick")
def test_refused(said: dict[str, Any], message: str, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(AutoplanError) as raised:
        publish(finished, output=tmp_path / "shared", **said)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("shared/*"))


def no_weights(project: Path) -> None:
    (project / "bundles" / TASK / "best" / "models" / "model.pt").unlink()


def other_scripts(project: Path) -> None:
    (project / "bundles" / TASK / "best" / "scripts" / "cpu.py").write_text("")


def not_ours(project: Path) -> None:
    (project / "shared" / NAME / ".git").mkdir(parents=True)


def a_file(project: Path) -> None:
    (project / "shared").mkdir()
    (project / "shared" / NAME).touch()


def empty(project: Path) -> None:
    (project / "shared" / NAME).mkdir(parents=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_weights, "has no weights. Choose the best model again"),
        (other_scripts, "was written by another version of autoplan"),
        (not_ours, "is no shared bundle"),
        (a_file, "is no shared bundle"),
        (empty, "is no shared bundle"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.usefixtures("quick")
def test_what_lies_there_is_refused(damage: Callable[[Path], None], message: str, project: Path) -> None:
    damage(project)
    with pytest.raises(AutoplanError, match=message):
        publish(project)


@pytest.mark.usefixtures("quick")
def test_a_check_that_fails_leaves_the_version_before(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(project)
    retrain(project)
    monkeypatch.setattr(verification, "verify", lambda _: [Check("one", "FAILS", "so"), Check("two", "ok")])
    with pytest.raises(AutoplanError, match=rf"{NAME}: 1 of 2 checks failed: one \(so\)"):
        publish(project)
    assert metadata(project / "shared" / NAME)["version"] == "0.1.0"
    assert [p.name for p in (project / "shared").iterdir()] == [NAME]


@pytest.mark.usefixtures("quick")
def test_large_files_are_listed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "LARGE_FILE_BYTES", 1000)
    with pytest.raises(AutoplanError, match=r"takes no file above .*model\.pt .* --url https"):
        publish(project)
    folder = publish(project, url="https://example.org/weights/").folder
    listed = (folder / "large_files.yml").read_text()
    assert 'url: "https://example.org/weights/model.pt"' in listed
    monkeypatch.setattr(verification, "LARGE_FILE_BYTES", 1000)
    assert not [problem for problem in verification._large_files(folder) if "model.pt" in problem]


def test_onnx_needs_its_packages(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else there)
    with pytest.raises(AutoplanError, match="--onnx needs onnxscript: python -m pip install onnxscript"):
        publish(finished, onnx=True)


@pytest.mark.usefixtures("quick")
def test_an_export_that_fails_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: no such thing")

    monkeypatch.setattr(zoo.subprocess, "run", fails)
    with pytest.raises(AutoplanError, match=r"models/model\.ts cannot be exported: ValueError: no such thing"):
        publish(project, torchscript=True)


@pytest.mark.usefixtures("quick")
def test_the_image_is_like_those_of_the_dataset(project: Path) -> None:
    folder = publish(project, "3d_fullres", ("all",)).folder
    image = stored_image.synthetic(folder, 1)
    assert image.shape == (16, 16, 8, 2)
    assert np.array_equal(image, stored_image.synthetic(folder, 1))
    assert abs(image[..., 1].mean() - 40.5) < 30
    assert image[..., 1].std() == pytest.approx(30.25, rel=0.05)
    assert stored_image.synthetic(publish(project, "2d").folder, 0).shape == (16, 16, stored_image.SLICES, 2)


@pytest.mark.usefixtures("in_process")
def test_the_way_to_somebody_else(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shared with TorchScript, copied elsewhere: verify passes there, and fails once a weight is another."""
    done = publish(project, torchscript=True)
    assert {c.state for c in done.checks} == {"ok"}
    shutil.rmtree(project / "bundles")
    copy = shutil.copytree(done.folder, tmp_path / "elsewhere" / NAME)
    assert main(["verify", str(copy)]) == 0
    assert len(np.unique(read_volume(copy / probe.SEGMENTATION).array)) > 1
    found = torch.load(copy / "models" / "model.pt", weights_only=True)
    weights.save({name: -value for name, value in found.items()}, copy / "models" / "model.pt")
    capsys.readouterr()
    assert main(["verify", str(copy)]) == 1
    said = capsys.readouterr()
    assert "2 of 19 checks failed: model.ts equals the network" in said.err
    assert f"{probe.PREDICTS} (" in said.err
    assert said.err.count("\n") == 1
