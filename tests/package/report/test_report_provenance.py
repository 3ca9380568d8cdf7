"""Section "Provenance" of the report: digests, commands, and the text for a paper."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY_PLAN, write_project

from autoplan.data import decathlon as datasets
from autoplan.data import layouts
from autoplan.data.layouts import Layout
from autoplan.planning.values import Origin
from autoplan.report.blocks import Code, Table
from autoplan.report.sections import provenance, result
from autoplan.report.sections.training import Training
from autoplan.report.summaries import Summary
from autoplan.report.validation import Result, Scored
from autoplan.training import results
from autoplan.training.standing import Row

RECIPE = results.Training("abc", 3, False, 9, True, {
    "mirror_prob": 0.5, "batch_size": 2, "learning_rate": 3e-4, "weight_decay": 3e-5, "epoch_length": 7,
    "patch_size": [16, 16],
}, {})  # fmt: skip
FOR_A_TIME = replace(RECIPE, max_epochs=100_000, settings={
    **RECIPE.settings, "mirror_prob": 0.0, "budget_seconds": 300, "learning_rate": 0.01, "features": [16, 32, 64],
})  # fmt: skip
NOTHING = provenance.Provenance((), (), (), (), {})


@pytest.fixture
def found(tmp_path, monkeypatch) -> provenance.Provenance:
    """Of a task with one finished training."""
    project = write_project(tmp_path)
    monkeypatch.chdir(project)
    folder = (project / "bundles" / TINY_PLAN.name).relative_to(project)
    fold = folder / "2d" / "models" / "fold_1"
    fold.mkdir(parents=True)
    (fold / "model.pt").write_text("network")
    (fold / "finished.json").write_text('{"model": "abc", "epochs": 3, "max_epochs": 9, "schedule": true, '
                                        '"settings": {"batch_size": 4, "mirror_prob": 0.5}}')  # fmt: skip
    (folder / "best" / "models").mkdir(parents=True)
    (folder / "best" / "models" / "model.pt").write_text("shared")
    trainings = [Training(Row("2d", 1, "trained", 3, 9), [], (), None, results.training(fold))]
    dataset = datasets.load(project / "data" / TINY_PLAN.name)
    summaries = [Summary("case_0", False, content="x")]
    return provenance.read(dataset, TINY_PLAN, folder, "k" * 64, summaries, trainings)


def test_what_it_comes_from(found) -> None:
    hashes = dict(found.hashes)
    assert hashes["2d fold 1, model.pt"] == "abc"
    assert {"dataset.json", "voxels of all images", "plan.json", "best, model.pt"} < set(hashes)
    assert dict(found.versions)["monai"].startswith("1.")
    assert dict(found.machine)["memory"].endswith("GiB")
    assert found.recipes["2d"].settings == {"batch_size": 4, "mirror_prob": 0.5}
    first, train, *others = found.commands
    assert first == f"python -m autoplan {TINY_PLAN.name}"
    assert train.startswith(f"python -m autoplan train {TINY_PLAN.name} --configurations 2d --folds 1 --quick")
    assert [words.split()[3] for words in others] == ["select", "predict", "report"]
    blocks = provenance.section(TINY_PLAN, found, None).blocks
    assert next(b.text for b in blocks if isinstance(b, Code)).splitlines() == list(found.commands)
    assert any(isinstance(b, Table) for b in blocks)


def test_the_command_that_plans_has_what_was_given(tmp_path, monkeypatch) -> None:
    project = write_project(tmp_path)
    monkeypatch.chdir(project)
    given = replace(TINY_PLAN, gpu_memory=15 * 2**29, own_spacing=(3.0, 1.488281, 10.0))
    dataset, folder = datasets.load(project / "data" / TINY_PLAN.name), Path("bundles") / TINY_PLAN.name
    layouts.save(Layout(channels="CT", group_by=r"(patient\d+)", found=((0, "background"),)), folder)
    found = provenance.read(dataset, given, folder, "k" * 64, [], [])
    given = r"--channels CT --group_by '(patient\d+)' --gpu_memory 7.5GiB --spacing 3,1.488281,10"
    assert found.commands[0] == f"python -m autoplan {TINY_PLAN.name} {given}"


def test_a_network_of_all_cases(tmp_path) -> None:
    project = write_project(tmp_path)
    folder = project / "bundles" / TINY_PLAN.name
    results.fold_folder(folder / "2d", "all").mkdir(parents=True)
    for name, text in {"model.pt": "network", "finished.json": '{"model": "abc", "epochs": 3}'}.items():
        (folder / "2d" / "models" / "fold_all" / name).write_text(text)
    (folder / "best" / "configs").mkdir(parents=True)
    about = {"choice": "by hand", "networks": {"2d": {"fold_all": "abc"}}}
    (folder / "best" / "configs" / "metadata.json").write_text(json.dumps({"autoplan": about}))
    ended = results.training(results.fold_folder(folder / "2d", "all"))
    trainings = [Training(Row("2d", "all", "done", 3, 9), [], (), None, ended)]
    dataset = datasets.load(project / "data" / TINY_PLAN.name)
    found = provenance.read(dataset, TINY_PLAN, folder, "k" * 64, [], trainings)
    assert dict(found.hashes)["2d fold all (all cases, not validated), model.pt"] == "abc"
    assert "--configurations 2d --folds all" in found.commands[1]
    assert found.commands[2].startswith(f"python -m autoplan select {TINY_PLAN.name} --folds all --configurations 2d")
    assert found.on_all == ("2d",)
    assert "One network was trained on all cases and not validated." in provenance.methods_text(TINY_PLAN, found, None)
    assert "no score on this page is its own" in repr(result.section(TINY_PLAN, None, found.on_all).blocks)


def test_the_digest_of_voxels_tells_images_apart() -> None:
    images = [Summary("a", False, content="1"), Summary("b", True, content="2")]
    first = provenance._voxels(images)
    assert provenance._voxels(images[::-1]) == first
    assert provenance._voxels([images[0], replace(images[1], content="3")]) != first


def scored(*dice: float | None) -> Result:
    """The result of three cases with these Dice."""
    cases = tuple(Scored(f"c{i}", dice=dice) for i in range(3))
    return Result(("2d", "3d_fullres"), {c.name: 0 for c in cases}, cases, {}, None)


@pytest.mark.parametrize(
    ("plan", "recipes", "result", "words"),
    [
        pytest.param(TINY_PLAN, {}, None, ["5-fold cross-validation", "not trained yet", "component of ball"],
                     id="planned"),
        pytest.param(
            TINY_PLAN, {"2d": RECIPE}, scored(0.8, 0.9),
            ["2d + 3d_fullres was evaluated", "0.8500 (95 % bootstrap", "up to 9 epochs of 7 batches", "mirroring"],
            id="evaluated",
        ),
        pytest.param(
            TINY_PLAN, {"2d": FOR_A_TIME}, None,
            ["3 levels with 16 to 64 feature maps", "rose to 0.01 and fell to 0", "5 min, that is 3 epochs of up to 7"],
            id="for a given time",
        ),
        pytest.param(replace(TINY_PLAN, nonzero_only=True), {}, scored(None, None), ["not defined", "nonzero voxels"],
                     id="no class"),
        pytest.param(replace(TINY_PLAN, origin=Origin("b", "1.0", "m", "Task")), {}, None, ["went on from b 1.0"],
                     id="fine-tuned"),
    ],
)  # fmt: skip
def test_methods(plan, recipes, result, words) -> None:
    text = provenance.methods_text(plan, replace(NOTHING, recipes=recipes), result)
    for expected in (*words, "arXiv:1809.10486", "clipped to [-50, 150]", "1.5 x 1.25 x 2 mm"):
        assert expected in text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("NVIDIA H100, 81559 MiB\nNVIDIA H100, 81559 MiB\n", "NVIDIA H100, 81559 MiB; NVIDIA H100, 81559 MiB"),
        (None, ""),
    ],
)
def test_gpus(monkeypatch, answer, said) -> None:
    def run(*_, **__):
        if answer is None:
            raise subprocess.CalledProcessError(9, "nvidia-smi")
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(provenance.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(provenance.subprocess, "run", run)
    assert provenance._gpus() == said


def test_packages_and_processors_that_are_not_known(monkeypatch) -> None:
    def missing(_):
        raise OSError

    monkeypatch.setattr(provenance.Path, "read_text", missing)
    assert provenance._processor()
    assert provenance._version("no-such-package-at-all") == "not installed"
