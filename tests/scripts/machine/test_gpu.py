"""Tensors of a GPU, on a machine without one: see `fake_gpu`."""

import json
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY_PLAN
from fake_gpu import Gpu, fake_gpu
from monai.data import MetaTensor
from monai.transforms import SaveImage
from scripts.beside import Beside
from scripts.prediction import SegmentationWriter

from autoplan.bundle.ensemble import render_shared
from autoplan.bundle.metadata import Trained
from autoplan.bundle.writing import write

TASK = TINY_PLAN.name
DEVICES = ("cpu", "cuda:0")
MEMBERS = tuple(Trained(TINY_PLAN.configuration(n), (0, 1)) for n in ("2d", "3d_fullres"))


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    # A thread of its own would not meet the fake.
    monkeypatch.setattr(Beside, "do", lambda self, name, work: work())
    with fake_gpu(monkeypatch) as found:
        yield found


def opened(parse, bundle: Path, *names: str, **values):
    """A config of a bundle for the GPU, with random weights where it looks for them."""
    parser = parse(bundle, *names, amp=False, mirror=False, num_workers=0, **values)
    torch.manual_seed(0)
    path = Path(values.get("model_file") or Path(values["ckpt_dir"]) / "model.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    parser["handlers#0#map_location" if "inference" in names else "validate#handlers#0#map_location"] = "cpu"
    return parser


@pytest.fixture(scope="module")
def shared(project, tmp_path_factory) -> Path:
    """A bundle to share, with two networks of each of two configurations."""
    folder = tmp_path_factory.mktemp("shared")
    options = {"name": "shared", "mirror": False, "overlap": 0.5, "performance": None, "provenance": {}}
    write(folder, render_shared(TINY_PLAN, MEMBERS, "../data", **options))
    return folder


@pytest.mark.parametrize(
    ("name", "region_first"),
    [
        pytest.param("2d", False, id="slices"),
        pytest.param("3d_cascade_fullres", True, id="cascade, region first"),
        pytest.param("shared", False, id="ensemble"),
        pytest.param("shared", True, id="ensemble, region first"),
    ],
)
def test_predict(name, region_first, project, shared, parse, tmp_path, gpu) -> None:
    bundle = shared if name == "shared" else project / "bundles" / TASK / name
    image, files, told = project / "data" / TASK / "imagesTs" / "test_1.nii.gz", [], []
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / image.name).symlink_to(image)
    for device in DEVICES:
        out, calls = tmp_path / device[:3], gpu.calls
        values = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(out), "region_first": region_first}
        parser = opened(parse, bundle, "inference", device=device, model_file=str(tmp_path / "model.pt"), **values)
        parser.get_parsed_content("evaluator").run()
        files.append(np.asarray(nibabel.load(out / image.name).dataobj))
        told.append(json.loads((out / "predictions.json").read_text())["test_1"])
    assert gpu.calls > calls
    np.testing.assert_array_equal(*files)
    assert told[0].get("agreement") == told[1].get("agreement")
    assert ("agreement" in told[0]) == (name == "shared")
    assert told[0]["voxels"] == told[1]["voxels"]


def test_evaluate(project, parse, tmp_path, gpu) -> None:
    bundle, scores, stored = project / "bundles" / TASK / "3d_cascade_fullres", [], []
    for device in DEVICES:
        folder, calls = tmp_path / device[:3], gpu.calls
        parser = opened(parse, bundle, "train", "evaluate", device=device, ckpt_dir=str(folder))
        parser.get_parsed_content("validate#evaluator").run()
        scores.append(json.loads((folder / "validation" / "dice.json").read_text())["cases"])
        with np.load(folder / "validation" / "probabilities" / "case_0.npz") as arrays:
            stored.append({name: arrays[name] for name in arrays.files if name != "geometry"})
    assert gpu.calls > calls
    assert scores[0] == scores[1]
    np.testing.assert_equal(*stored)


def test_train(project, parse, tmp_path, gpu) -> None:
    values = {"epoch_length": 1, "max_epochs": 1, "val_batches": 1, "cache_dir": str(tmp_path / "cache")}
    values |= {"ckpt_dir": str(tmp_path / "fold_0"), "device": "cuda:0", "num_workers": 0, "amp": False}
    parse(project / "bundles" / TASK / "3d_fullres", "train", **values).get_parsed_content("train#trainer").run()
    assert gpu.calls
    found = torch.load(tmp_path / "fold_0" / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in found.values())


def test_the_fake_is_like_a_gpu(gpu) -> None:
    there, host = torch.ones(2, 3, device="cuda:0"), torch.ones(2, 3)
    assert (there.device.type, (2 * there).device.type, there.cpu().device.type) == ("cuda", "cuda", "cpu")
    for mixed in (lambda: there + host, lambda: torch.cat([host, there]), lambda: host[there.long()]):
        with pytest.raises(RuntimeError, match="on the same device"):
            mixed()
    for array in (np.asarray, torch.Tensor.numpy):
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            array(there)
    with pytest.raises(TypeError, match="can't convert"):
        np.asarray(MetaTensor(there))


def test_a_writer_takes_the_tensors_of_a_gpu(gpu, tmp_path) -> None:
    """Those of other programs, which invert in their own way."""
    label = MetaTensor(torch.ones(1, 3, 2, 2, dtype=torch.uint8, device="cuda:0"), meta={"filename_or_obj": "a.nii.gz"})
    SaveImage(
        tmp_path, "", resample=False, separate_folder=False, writer=partial(SegmentationWriter, label_values=(0, 5))
    )(label)
    assert set(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj).flat) == {5}
