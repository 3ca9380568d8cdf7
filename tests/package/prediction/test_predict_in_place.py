"""The command `predict` with a real bundle, started where much could mislead it."""

import json
import shutil
from pathlib import Path

import nibabel
import pytest
import torch
from conftest import TINY_PLAN

from autoplan.__main__ import main

ODD = "a #1, 50% of $HOME @me 'import os'"
"""A folder's name of which MONAI's command line would make something else."""


@pytest.fixture
def best(project: Path, tmp_path: Path, parse) -> Path:
    """A copy of a bundle, called best, whose network knows nothing."""
    bundle = tmp_path / ODD / "bundles" / TINY_PLAN.name / "best"
    shutil.copytree(project / "bundles" / TINY_PLAN.name / "3d_fullres", bundle)
    config = bundle / "configs" / "inference.json"
    quick = {"mirror": False, "num_workers": 0, "overlap": 0.0}
    config.write_text(json.dumps({**json.loads(config.read_text()), **quick}))
    (bundle / "models").mkdir()
    network = parse(bundle, "inference").get_parsed_content("network_def")
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return bundle


def _images(project: Path, folder: Path) -> Path:
    """A folder with one image and a dataset.json that lists another."""
    folder.mkdir(parents=True)
    shutil.copy(project / "data" / TINY_PLAN.name / "imagesTs" / "test_1.nii.gz", folder / "x.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"test": ["./elsewhere.nii.gz"]}))
    return folder


def test_the_images_of_a_folder_are_predicted_whatever_lies_around(best, project, tmp_path, monkeypatch) -> None:
    images, work = _images(project, tmp_path / ODD / "images"), tmp_path / "work"
    (work / "scripts").mkdir(parents=True)
    (work / "scripts" / "__init__.py").write_text("raise RuntimeError('these scripts are not of the bundle')")
    monkeypatch.chdir(work)
    output = tmp_path / ODD / "out"
    words = ["--bundles", str(best.parents[1]), "--images", str(images), "--output", str(output), "--device", "cpu"]
    assert main(["predict", TINY_PLAN.name, *words]) == 0
    assert [p.name for p in output.glob("*.nii.gz")] == ["x.nii.gz"]
    assert nibabel.load(output / "x.nii.gz").shape == nibabel.load(images / "x.nii.gz").shape[:3]


def test_an_old_bundle_says_what_to_do_where_it_would_predict_other_images(best, project, tmp_path, capsys) -> None:
    config = best / "configs" / "inference.json"
    content = json.loads(config.read_text())
    del content["images"]
    config.write_text(json.dumps(content))
    images = _images(project, tmp_path / "images")
    words = ["--bundles", str(best.parents[1]), "--images", str(images), "--output", str(tmp_path / "out")]
    assert main(["predict", TINY_PLAN.name, *words]) == 1
    said = capsys.readouterr().err
    assert "was written by an older autoplan" in said
    assert f"python -m autoplan select {TINY_PLAN.name}" in said
    assert not (tmp_path / "out").exists()
