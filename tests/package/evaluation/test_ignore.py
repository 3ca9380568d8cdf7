"""Voxels of which nobody knows the class, nnU-Net's "ignore": no class, no gradient, no patch around them, no score."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import Tiny, write_tiny
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from scripts.cache import CaseCache
from scripts.evaluation import dice
from scripts.losses import SparseDiceCELoss
from scripts.patches import PatchDataset, Request
from scripts.progress import PatchDice

from autoplan.__main__ import main
from autoplan.bundle import templates
from autoplan.data import fingerprint, layouts
from autoplan.data.cases import read_case
from autoplan.data.layouts import Layout
from autoplan.evaluation import choice, crossvalidation, evaluate
from autoplan.planning import plan

NOT_KNOWN = 7
OPTIONS = {"smooth_nr": 0.0, "smooth_dr": 1e-8}


# The loss.


@pytest.fixture
def patch() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of three classes and labels in which a part is 3: not known."""
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 1, 6, 5, 4)).float()
    labels[:, :, :3] = 3
    return torch.randn(2, 3, 6, 5, 4), labels


@pytest.mark.parametrize("batch", [False, True], ids=["each sample", "whole batch"])
def test_the_loss_is_that_of_the_known_voxels(batch, patch) -> None:
    logits, labels = patch
    monais = DiceCELoss(to_onehot_y=True, softmax=True, **OPTIONS, batch=batch)
    expected = monais(logits[:, :, 3:], labels[:, :, 3:])
    found = SparseDiceCELoss(**OPTIONS, batch=batch, unknown=True)(logits, labels)
    assert found == pytest.approx(expected.item(), abs=1e-6)


def test_gradients_are_equal_whatever_the_logits_there(patch) -> None:
    logits, labels = patch
    gradients = []
    for change in (0.0, 50.0):
        changed = torch.where(labels == 3, logits + change * torch.randn_like(logits), logits).requires_grad_()
        SparseDiceCELoss(**OPTIONS, unknown=True)(changed, labels).backward()
        gradients.append(changed.grad)
    assert torch.equal(*gradients)
    assert not gradients[0][:, :, :3].any()


def test_a_patch_of_which_nothing_is_known(patch) -> None:
    logits = patch[0].requires_grad_()
    loss = SparseDiceCELoss(**OPTIONS, unknown=True)(logits, torch.full_like(patch[1], 3))
    loss.backward()
    assert torch.isfinite(loss)
    assert not logits.grad.any()


# Sampling, and scores of patches.


def half_known(item: dict) -> dict:
    """A volume of which the left half, but for a plane, is not known."""
    label = torch.zeros(1, 12, 8, 8)
    label[:, :11] = 2
    return {"image": torch.zeros(1, 12, 8, 8), "label": label}


def test_no_patch_is_centred_there(tmp_path) -> None:
    item = {"name": "a", "image": str(tmp_path / "a.nii"), "label": str(tmp_path / "b.nii")}
    for key in ("image", "label"):
        Path(item[key]).touch()
    dataset = PatchDataset([item], CaseCache(tmp_path, half_known, 2, num_classes=2), (4, 4, 4), lambda data: data)
    assert {dataset[Request(0, False, seed)]["center"][0] for seed in range(20)} == {11}
    assert dataset.with_foreground() == []


def test_the_dice_of_patches(patch) -> None:
    logits, labels = patch
    known, every = PatchDice(["background", "a", "b"]), PatchDice(["background", "a", "b"])
    known.update((logits[:, :, 3:], labels[:, :, 3:]))
    every.update((logits, labels))
    assert known.compute() == every.compute()


# Scores of cases.


def test_the_dice_of_a_validation_case() -> None:
    label = torch.tensor([[1, 1, 7, 7]])
    assert dice(torch.tensor([[1, 1, 1, 1]]), label, [1], NOT_KNOWN) == [1.0]
    assert dice(torch.tensor([[0, 0, 1, 1]]), label, [1], NOT_KNOWN) == [0.0]


@pytest.fixture
def raw(tmp_path) -> Tiny:
    """nnU-Net's folder: class a in three voxels a side, and class "b" not known."""
    tiny = write_tiny(tmp_path / "raw" / "Dataset091_Tiny")
    for path in sorted((tiny.folder / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
        label = tiny.image(path.name.split(".")[0], "labelsTr")
        tiny.write(label, np.where(tiny.read(label) == 2, NOT_KNOWN, tiny.read(label)))
    for path in (tiny.folder / "imagesTs").iterdir():
        path.unlink()
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1, "ignore": NOT_KNOWN},
        "file_ending": ".nii.gz",
    }
    (tiny.folder / "dataset.json").write_text(json.dumps(content))
    return tiny


def predicted(raw: Tiny, folder: Path) -> np.ndarray:
    """Predictions of class a, right where it is known, and wrong all over the voxels that are not."""
    folder.mkdir()
    for path in sorted((raw.folder / "labelsTr").iterdir()):
        found = (raw.read(path) > 0).astype(np.uint8)
        raw.write(folder / path.name, found, nibabel.load(path).affine)
    return found


def test_evaluate(raw, tmp_path) -> None:
    predicted(raw, tmp_path / "found")
    scores = evaluate.evaluate(raw.folder / "labelsTr", tmp_path / "found", num_processes=1, progress=False)
    assert scores.labels == ((1, "a"),)
    assert [case.classes[0].dice for case in scores.cases] == [1.0] * 5
    assert scores.foreground.hausdorff_95_mm == 0


def test_the_choice(raw, tmp_path) -> None:
    found = predicted(raw, tmp_path / "found")
    label = raw.image("case_4", "labelsTr")
    job = crossvalidation.Unscored("case_4", label, label, ((choice.Candidate(("2d",)), (tmp_path,), tmp_path),))
    wrong = np.where(found == 1, 0, found)
    for pair, expected in (((found, found), (1.0, 1.0)), ((found, wrong), (1.0, 0.0))):
        _, [(_, case)] = crossvalidation._score(job, segmenter=lambda *_, p=pair: p, values=[1], ignore=NOT_KNOWN)
        assert (case.postprocessed[0], case.plain[0]) == expected


# Planning, and the bundle.


def test_it_is_no_class_of_the_plan(raw) -> None:
    dataset = layouts.load(raw.folder, Layout())
    volumes, faults = read_case(dataset, dataset.training[0])
    assert faults == []
    assert np.unique(volumes.label).tolist() == [0, 1]
    facts = fingerprint.fingerprint(dataset, num_processes=1, progress=False)
    assert [case.class_voxels for case in facts.cases] == [(27,)] * 5
    assert facts.intensities[0].count == 5 * 27, "statistics of a CT are of the classes alone"
    assert (plan.plan(facts).labels, plan.plan(facts).ignore) == (((0, "background"), (1, "a")), NOT_KNOWN)


def test_the_bundle(raw, tmp_path) -> None:
    assert main([str(raw.folder), "--bundles", str(tmp_path / "bundles"), "--num_processes", "1"]) == 0
    folder = tmp_path / "bundles" / raw.folder.name / "3d_fullres"
    parser = ConfigParser()
    parser.read_config([folder / "configs" / f"{name}.json" for name in ("train", "evaluate")])
    parser["bundle_root"], parser["dataset_dir"] = str(folder), str(raw.folder)
    assert parser.get_parsed_content("ignore_value") == NOT_KNOWN
    assert parser.get_parsed_content("loss").unknown
    made = parser.get_parsed_content("preprocessing")(parser.get_parsed_content("cases")[0][0])
    assert np.unique(made["label"]).tolist() == [0, 1, 2], "what is not known is behind the last class"
    report = parser.get_parsed_content("validate#handlers#2")
    engine = Engine(lambda *_: None)
    label = MetaTensor(torch.tensor([[1.0, NOT_KNOWN]]), meta={"filename_or_obj": "case_0.nii.gz"})
    engine.state.batch = [{"reference": label}]
    engine.state.output = [{"pred": MetaTensor(torch.ones(1, 2), meta=label.meta)}]
    report(engine)
    assert report.rows == {"case_0": [1.0]}
    assert "7 not known" in json.loads((folder / "configs" / "metadata.json").read_text())["label_classes"]
    assert parser.get_parsed_content("network_def").out_channels == 2


def test_a_dataset_without_it_has_no_trace(tmp_path) -> None:
    assert "ignore_value" not in templates.template("train.json", "3d_fullres")
    assert "unknown" not in templates.template("train.json", "3d_fullres")["loss"]
