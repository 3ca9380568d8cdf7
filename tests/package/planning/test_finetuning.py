"""Going on from a bundle: its plan, its weights class by class, a training that starts from them and resumes, and what
is refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_PLAN, dataset_of, write_project, write_task
from ignite.engine import Events

from autoplan.__main__ import main
from autoplan.base.errors import AutoplanError
from autoplan.base.files import read_object
from autoplan.bundle import ensemble, pretrained, saved, templates, weights, writing
from autoplan.bundle.metadata import Performance, Trained
from autoplan.cli import commands
from autoplan.planning import finetuning
from autoplan.planning.values import ChannelNormalization, Plan

CONFIGURATION = "3d_fullres"
TARGET = replace(
    TINY_PLAN,
    name="Task95_Target",
    labels=((0, "background"), (2, "tube"), (5, "Box")),
    configurations=tuple(
        replace(c, spacing=(1.0, 1.0, 2.0), features=(6, 12, 24))
        for c in TINY_PLAN.configurations
        if c.name in ("2d", CONFIGURATION)
    ),
)
"""Another dataset: one class less (ball), one new (tube), one of the bundle's under another number."""


@pytest.fixture
def bundle(tmp_path: Path, project: Path) -> Path:
    """A bundle of TINY_PLAN with weights."""
    found = tmp_path / "given"
    shutil.copytree(project / "bundles" / TINY_PLAN.name / CONFIGURATION, found)
    network = weights.fresh(TINY_PLAN, TINY_PLAN.configuration(CONFIGURATION))
    # A weight stands there under two names.
    weights.save({name: 1.5 * value + 0.01 for name, value in network.items()}, found / "models" / "model.pt")
    return found


def installed(bundle: Path, folder: Path, own: Plan = TARGET) -> Path:
    """The bundle of TARGET that goes on."""
    source = pretrained.read(bundle)
    plan = finetuning.adapted(own, source)
    dataset = dataset_of(plan, folder / "data" / own.name)
    pretrained.install(bundle, source, plan, dataset=dataset, bundles=folder / "bundles", key="key")
    return folder / "bundles" / own.name / CONFIGURATION


def test_the_plan_is_that_of_the_bundle_where_weights_depend_on_it(bundle: Path) -> None:
    source = pretrained.read(bundle)
    plan = finetuning.adapted(TARGET, source)
    there, own = TINY_PLAN.configuration(CONFIGURATION), TARGET.configuration(CONFIGURATION)
    [c] = plan.configurations
    assert (c.patch_size, c.strides, c.features, c.spacing) == (
        there.patch_size, there.strides, there.features, there.spacing,
    )  # fmt: skip
    assert (plan.normalization, plan.slice_axis, plan.nonzero_only) == (TINY_PLAN.normalization, 2, False)
    assert (plan.labels, plan.folds, plan.single_component) == (TARGET.labels, TARGET.folds, TARGET.single_component)
    assert c.batch_dice == own.batch_dice
    assert plan.origin == source.origin
    assert saved.from_dict(Plan, json.loads(json.dumps(saved.to_dict(plan)))) == plan


def test_what_differs_is_shown(bundle: Path) -> None:
    source = pretrained.read(bundle)
    own = replace(TARGET, normalization=(None, ChannelNormalization(lower=0.0, upper=1.0, mean=0.5, std=0.1)))
    text = finetuning.report(own, finetuning.adapted(own, source), source)
    assert re.search(r"^tube +new: its weights start at random$", text, re.MULTILINE)
    assert re.search(r"^Box +box$", text, re.MULTILINE)
    assert re.search(r"^spacing \(mm\) +1 x 1 x 2 +1.5 x 1.25 x 2$", text, re.MULTILINE)
    assert re.search(
        r"^normalization of CT +\[0, 1\], mean 0.5, std 0.1 +\[-50, 150\], mean 40.5, std 30.25$", text, re.M
    )
    assert re.search(r"^3d_fullres: features +6-24 +4-16$", text, re.MULTILINE)
    assert "patch" not in text, "it is the same"
    assert "does not have are dropped: ball." in text


def test_weights_are_taken_over_class_by_class(bundle: Path, tmp_path: Path) -> None:
    found = installed(bundle, tmp_path)
    old, new = (
        torch.load(path, weights_only=True) for path in (bundle / "models/model.pt", found / pretrained.WEIGHTS)
    )
    fresh = weights.fresh(TARGET, TINY_PLAN.configuration(CONFIGURATION))
    assert old.keys() == new.keys()
    outputs = [name for name in old if name.startswith(pretrained.OUTPUT)]
    assert len(outputs) == 2
    for name, tensor in new.items():
        if name in outputs:
            for number, expected in enumerate((old[name][0], fresh[name][1], old[name][2])):
                assert torch.equal(tensor[number], expected), (name, number)
        else:
            assert torch.equal(tensor, old[name])


def test_a_shared_bundle_gives_its_first_networks(bundle: Path, project: Path) -> None:
    plan = TINY_PLAN
    trained = [Trained(plan.configuration(name), (0, 1)) for name in ("2d", "3d_lowres", "3d_cascade_fullres")]
    performance = Performance(1, (0,), (("mean foreground", 0.5),))
    about = {"dataset": {"name": plan.name, "cases": 5, "fingerprint": "abc"}}
    files = ensemble.render_shared(
        plan, trained, "../data", name="tiny_mri_segmentation", mirror=False, overlap=0.5, performance=performance,
        provenance=about,
    )  # fmt: skip
    writing.write(bundle, files)
    source = pretrained.read(bundle)
    assert [(n.configuration, n.prefix) for n in source.networks] == [("2d", "slices.0.")]
    assert source.others == ("3d_lowres", "3d_cascade_fullres")
    assert source.origin.title == "tiny_mri_segmentation 1.0.0"
    same = replace(TARGET, name=plan.name)
    text = finetuning.report(same, finetuning.adapted(same, source), source)
    assert "Left out of the bundle: 3d_lowres, 3d_cascade_fullres" in text
    assert "were trained on Task90_Tiny, too" in text


def test_its_recipe_is_slower_and_recorded(bundle: Path, tmp_path: Path) -> None:
    found = installed(bundle, tmp_path)
    plain = templates.template("train.json", CONFIGURATION)
    config, quick = (read_object(found / "configs" / f"{name}.json") for name in ("train", "quick"))
    assert config["learning_rate"] == pytest.approx(plain["learning_rate"] / 3)
    assert quick["learning_rate"] == pytest.approx(1e-3 / 3, rel=1e-3)
    assert config["warm_up_iterations"] == "@epoch_length"
    readme = (found / "docs" / "README.md").read_text()
    assert "| weights |" in readme
    assert "`warm_up_start`" in readme


@pytest.fixture
def train(bundle: Path, tmp_path: Path, parse: Callable[..., Any]) -> Callable[..., Any]:
    """`train(ckpt_dir, at=7, do=f)`: run the training that goes on; `do()` is called in iteration 7."""
    write_task(tmp_path / "data" / TARGET.name, TARGET)
    found = installed(bundle, tmp_path)

    def run(ckpt_dir: Path, at: int | None = None, do: Callable[[], None] | None = None) -> tuple[Any, list[float]]:
        parser = parse(
            found, "train", max_epochs=3, epoch_length=4, val_batches=1, num_workers=0, device="cpu", amp=False,
            warm_up_iterations=6, ckpt_dir=str(ckpt_dir), cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        torch.manual_seed(0)
        trainer, rates = parser.get_parsed_content("train#trainer"), []
        network = parser.get_parsed_content("network_def")
        rates.append({name: value.clone() for name, value in network.state_dict().items()})
        trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda _: rates.append(trainer.optimizer.param_groups[0]["lr"])
        )
        if do is not None:
            trainer.add_event_handler(Events.ITERATION_STARTED(once=at), lambda _: do())
        trainer.run()
        return trainer, rates

    return run


class KilledError(Exception):
    """Stands for a kill."""


def kill() -> None:
    raise KilledError


def test_a_training_starts_from_the_weights_warms_up_and_resumes(
    train: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    _, (start, *rates) = train(tmp_path / "a")
    given = torch.load(tmp_path / "bundles" / TARGET.name / CONFIGURATION / pretrained.WEIGHTS, weights_only=True)
    assert all(torch.equal(start[name], given[name]) for name in given)
    lr = 1e-4
    assert rates[:7] == pytest.approx([lr * (0.1 + 0.9 * i / 6) for i in range(7)])
    assert rates[7:] == pytest.approx([lr] * 5)
    with pytest.raises(KilledError):
        train(tmp_path / "b", 6, kill)
    _, (_, *again) = train(tmp_path / "b")
    assert again == pytest.approx(rates[4:]), "in the second epoch the warm-up goes on where it was"
    one, other = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], given[name]) for name in one)
    recorded = read_object(tmp_path / "a" / "finished.json")["settings"]
    assert {"pretrained", "warm_up_start", "warm_up_iterations"} <= recorded.keys()
    assert recorded["learning_rate"] == lr


def spoil_weights(bundle: Path) -> None:
    (bundle / "models" / "model.pt").unlink()


def spoil_large_weights(bundle: Path) -> None:
    spoil_weights(bundle)
    (bundle / "large_files.yml").write_text("large_files: []")


def damage_weights(bundle: Path) -> None:
    (bundle / "models" / "model.pt").write_text("weights")


def spoil_topology(bundle: Path) -> None:
    path = bundle / "configs" / "inference.json"
    path.write_text(json.dumps({**read_object(path), "features": [4, 8, 24]}))


def spoil_config(bundle: Path) -> None:
    (bundle / "configs" / "inference.json").write_text('{"network_def": {}}')


def remove_config(bundle: Path) -> None:
    (bundle / "configs" / "inference.json").unlink()


def other_channels(bundle: Path, *names: str) -> None:
    path = bundle / "configs" / "metadata.json"
    metadata = read_object(path)
    metadata["network_data_format"]["inputs"]["image"]["channel_def"] = {str(i): n for i, n in enumerate(names)}
    path.write_text(json.dumps(metadata))
    path = bundle / "configs" / "inference.json"
    path.write_text(json.dumps({**read_object(path), "normalization": [None for _ in names]}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(spoil_weights, "has no weights, models/model.pt. Train it", id="no weights"),
        pytest.param(spoil_large_weights, "Download what large_files.yml lists first", id="weights elsewhere"),
        pytest.param(damage_weights, "is no file of weights", id="damaged weights"),
        pytest.param(spoil_topology, "its weights are of another network than its configs describe", id="topology"),
        pytest.param(spoil_config, "is no bundle that autoplan can go on from", id="another's bundle"),
        pytest.param(remove_config, "is no bundle: there is no configs/inference.json", id="no bundle"),
        pytest.param(lambda b: other_channels(b, "MRI"), "takes 1 channel (MRI), the images of", id="channels"),
        pytest.param(lambda b: other_channels(b, "CT", "MRI"), "in this order", id="order of channels"),
    ],
)
def test_bundles_that_are_refused(spoil: Callable[[Path], None], said: str, bundle: Path, tmp_path: Path) -> None:
    spoil(bundle)
    with pytest.raises(AutoplanError, match=re.escape(said)) as refused:
        installed(bundle, tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "bundles").exists(), "nothing is half written"


def test_trainings_of_another_plan_are_kept(bundle: Path, tmp_path: Path) -> None:
    found = installed(bundle, tmp_path)
    before = {path: path.read_bytes() for path in found.rglob("*") if path.is_file()}
    (found / "models" / "fold_0").mkdir()
    (found / "models" / "fold_0" / "last.pt").touch()
    installed(bundle, tmp_path)
    assert all(path.read_bytes() == content for path, content in before.items())
    weights.save({n: t + 1 for n, t in torch.load(bundle / "models/model.pt").items()}, bundle / "models/model.pt")
    with pytest.raises(AutoplanError, match=r"was begun with another plan .* --bundles DIR"):
        installed(bundle, tmp_path)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_command(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It plans around the bundle, then trains; without the flag it goes on; a configuration must be in the bundle."""
    folder = write_project(tmp_path, replace(TINY_PLAN, name="Task96_New"))
    monkeypatch.chdir(folder)
    started: list[Any] = []
    monkeypatch.setattr(commands.backends, "run_all", lambda jobs, *_: started.extend(jobs) or {})
    assert main(["train", "Task96_New", "--from", str(bundle), "--folds", "0"]) == 1  # nothing is trained here
    assert [job.configuration for job in started] == [CONFIGURATION]
    assert "Task96_New goes on from Task90_Tiny_3d_fullres 0.1.0." in capsys.readouterr().out
    assert main(["train", "Task96_New", "--folds", "1", "--warm_up_start", "0.2"]) == 1
    assert started[-1].fold == 1
    assert main(["train", "Task96_New", "--configurations", "2d", "--from", str(bundle)]) == 1
    assert "Task90_Tiny_3d_fullres 0.1.0 has no network of 2d. It has 3d_fullres." in capsys.readouterr().err
    assert main(["train", "Task96_New", "--configurations", "2d"]) == 1
    assert "the plan has no configuration 2d. It has 3d_fullres." in capsys.readouterr().err
    assert main(["train", "Task96_New", "--from", str(bundle), "--from", str(bundle)]) == 1
    assert "--from is given twice" in capsys.readouterr().err
