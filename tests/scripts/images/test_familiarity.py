"""Images that are unlike those of the training: what is compared, what is said and what is written down."""

import json
import logging
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY_PLAN
from monai.data import MetaTensor
from scripts import familiarity
from scripts.record import NAME

from autoplan.base.codec import to_dict
from autoplan.data import fingerprint
from autoplan.data.facts import Case, CaseFacts
from autoplan.data.images import read_volume
from autoplan.planning import rules
from autoplan.planning.values import TrainingRange
from autoplan.prediction import predict as prediction

RANGE = {
    "orientations": ["RAS"],
    "spacing": [[1.0, 1.0], [1.0, 1.0], [2.0, 3.0]],
    "size": [[30.0, 60.0], [30.0, 60.0], [20.0, 40.0]],
    "intensities": [[[-1000.0, -900.0], [0.0, 60.0], [300.0, 900.0]], [[-2.0, -1.0], [-0.5, 0.5], [1.0, 2.0]]],
}
CHANNELS = [{"lower": 0, "upper": 1, "mean": 0, "std": 1}, None]


def usual(shape=(40, 40, 12)) -> np.ndarray:
    """Two channels with intensities as in `RANGE`."""
    steps = np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
    return np.stack([np.interp(steps, [0, 0.5, 1], [-950, 30, 600]), 100 + 10 * steps]).astype(np.float32)


def affine(*spacing: float) -> np.ndarray:
    return np.diag([*spacing, 1.0])


@pytest.mark.parametrize(
    ("change", "world", "said"),
    [
        pytest.param(lambda a: a, affine(1, 1, 2.5), "", id="as in the training"),
        pytest.param(lambda a: a, affine(1.2, 1.2, 1.7), "", id="a little beyond it"),
        pytest.param(lambda a: a, affine(-1, 1, 2), "orientation LAS, a mirror image of the training's (RAS)",
                     id="left and right exchanged"),
        pytest.param(lambda a: a, affine(1, 1, 4), "spacing 4 mm along z (training: 2 to 3)", id="spacing"),
        pytest.param(lambda a: a[:, :15], affine(1, 1, 2), "size 15 mm along x (training: 30 to 60)", id="size"),
        pytest.param(lambda a: a[:, :, :, ::-1] + np.array([1024, 0]).reshape(2, 1, 1, 1), affine(1, 1, 2),
                     "0.5 % of the voxels of channel 0 lie below 83.8 (training: -1000 to -900)", id="shifted CT"),
        pytest.param(lambda a: a * np.array([1, 7]).reshape(2, 1, 1, 1), affine(1, 1, 2), "", id="another scale of MR"),
        pytest.param(lambda a: np.stack([a[0], np.exp((a[1] - 100) * 2)]), affine(1, 1, 2),
                     "of channel 1 lie below 5.696 standard deviations from the mean (training: 1 to 2)", id="odd MR"),
    ],
)  # fmt: skip
def test_differences(change, world, said) -> None:
    image = MetaTensor(torch.from_numpy(np.ascontiguousarray(change(usual()))).float(), affine=torch.from_numpy(world))
    compare = familiarity.CompareWithTrainingd("image", RANGE, CHANNELS)
    found = compare({"image": image})["image"].meta[familiarity.UNLIKE]
    assert said in found
    assert bool(said) == bool(found)
    if said:
        with pytest.raises(ValueError, match="it is unlike the images of the training: "):
            familiarity.CompareWithTrainingd("image", RANGE, CHANNELS, strict=True)({"image": image})


@pytest.mark.parametrize(
    ("codes", "known", "is_odd"),
    [
        ("LPS", ["RAS"], False), ("RAS", ["LPS"], False), ("ASR", ["RAS"], False), ("PIR", ["LPS"], False),
        ("LAS", ["RAS"], True), ("RAS", ["LAS"], True), ("LAS", ["LAS", "RAS"], False), ("RAS", ["LAS", "RAS"], False),
        ("RSA", ["RAS"], True), ("RSP", ["RAS"], False),
    ],
)  # fmt: skip
def test_orientation_is_told_where_it_is_evidence(codes, known, is_odd) -> None:
    """A series of DICOM is LPS, and the training was RAS: both are right-handed, and preprocessing makes them equal."""
    turned = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(codes), (1, 1, 1))
    world = np.linalg.inv(turned)
    assert "".join(nibabel.aff2axcodes(world)) == codes
    assert (np.linalg.det(world[:3, :3]) > 0) == (familiarity._handedness(codes) == 1)
    image = MetaTensor(torch.from_numpy(usual((30, 30, 30))), affine=torch.from_numpy(world))
    ranges = {**RANGE, "orientations": known, "spacing": [[1, 1]] * 3, "size": [[30, 30]] * 3}
    found = familiarity.CompareWithTrainingd("image", ranges, CHANNELS)({"image": image})["image"].meta
    assert found[familiarity.UNLIKE].startswith(f"orientation {codes}") == is_odd
    assert bool(found[familiarity.UNLIKE]) == is_odd


def test_axes_are_compared_in_the_order_of_the_world() -> None:
    """A file whose first axis runs from foot to head."""
    world = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
    image = MetaTensor(torch.from_numpy(usual((12, 40, 40))), affine=torch.from_numpy(world))
    ranges = {**RANGE, "orientations": []}
    found = familiarity.CompareWithTrainingd("image", ranges, CHANNELS)({"image": image})["image"].meta
    assert found[familiarity.UNLIKE] == ""


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("shape", [(9, 8, 7), (120, 100, 90), (30, 20, 1)], ids=str)
def test_planning_and_bundles_see_the_same(shape, absolute, tmp_path) -> None:
    channel = np.random.default_rng(0).normal(0, 100, shape).astype(np.float32) * (np.indices(shape)[0] > 2)
    nibabel.save(nibabel.Nifti1Image(channel, np.eye(4)), tmp_path / "a.nii")
    volume, modality = read_volume(tmp_path / "a.nii"), "CT" if absolute else "MRI"
    labels = ((0, "background"), (1, "a"))
    facts = fingerprint.case_facts("a", volume, np.ones(shape, np.uint8), labels=labels, modalities=(modality,))
    assert facts.intensities == (pytest.approx(familiarity.profile(channel, absolute=absolute), abs=1e-4),)


def test_the_padding_of_scanners_is_air() -> None:
    channel = np.full((9, 9, 9), 40.0)
    channel[0] = -3024
    assert familiarity.profile(channel, absolute=True)[0] == -1024


def case(**facts) -> CaseFacts:
    return CaseFacts("a", (40, 50, 60), (1.0, 1.0, 2.0), (40, 50, 60), (9,), (1,), **facts)


def test_the_range_of_a_training() -> None:
    cases = [case(orientation="LPS", intensities=((k, 2.0, 3.0),)) for k in range(4)]
    cases.append(replace(cases[0], orientation="RAS", shape=(80, 50, 60), spacing=(0.5, 1.0, 2.123456)))
    assert rules.training_range(cases) == TrainingRange(
        ("LPS", "RAS"),
        ((0.5, 1.0), (1.0, 1.0), (2.0, 2.123)),
        ((40.0, 40.0), (50.0, 50.0), (120.0, 127.4)),
        (((0.0, 3.0), (2.0, 2.0), (3.0, 3.0)),),
    )
    assert rules.training_range(cases[:4]).intensities == (), "four cases do not say what is usual"


@pytest.fixture
def images(project, tmp_path):
    """Two images, one with slices that are too thick."""
    folder = tmp_path / "images"
    folder.mkdir()
    source = nibabel.load(project / "data" / TINY_PLAN.name / "imagesTs" / "test_1.nii.gz")
    shutil.copy(source.get_filename(), folder / "a.nii.gz")
    thick = source.affine @ affine(1, 1, 5)
    nibabel.save(nibabel.Nifti1Image(np.asarray(source.dataobj), thick), folder / "b.nii.gz")
    return folder


def predict(parse, project, images, output, **values) -> None:
    source = nibabel.load(images / "a.nii.gz")
    sizes = [[n * mm] * 2 for n, mm in zip(source.shape, nibabel.affines.voxel_sizes(source.affine), strict=False)]
    ranges = TrainingRange((), tuple((mm, mm) for mm in nibabel.affines.voxel_sizes(source.affine)), tuple(sizes), ())
    settings = {"num_workers": 0, "device": "cpu", "amp": False, "mirror": False, "training_range": to_dict(ranges)}
    model_file = images.parent / "model.pt"
    parser = parse(
        project / "bundles" / TINY_PLAN.name / "3d_fullres", "inference", dataset_dir=str(images),
        output_dir=str(output), model_file=str(model_file), **settings, **values,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), model_file)
    parser.get_parsed_content("evaluator").run()


def test_a_prediction_says_what_it_did(parse, project, images, tmp_path, caplog) -> None:
    output = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        predict(parse, project, images, output)
    [warning] = [m for m in caplog.messages if "unlike" in m]
    assert warning.startswith("b is unlike the images of the training: spacing ")
    found = json.loads((output / NAME).read_text())
    assert list(found) == ["a", "b"]
    for name, entry in found.items():
        label = np.asarray(nibabel.load(output / entry["segmentation"]).dataobj)
        volume = np.prod(nibabel.load(output / entry["segmentation"]).header.get_zooms()) / 1000
        counts = {c: int((label == v).sum()) for v, c in TINY_PLAN.labels[1:]}
        assert entry["image"] == str(images / f"{name}.nii.gz")
        assert entry["voxels"] == counts
        assert entry["ml"] == {c: pytest.approx(n * volume, abs=1e-3) for c, n in counts.items()}
        assert list(entry["seconds"]) == ["reading", "waiting", "network", "export"]
        assert all(seconds >= 0 for seconds in entry["seconds"].values())
        assert entry["seconds"]["network"] > 0
        assert entry["peak_memory"] > 10**7
    assert found["a"]["warnings"] == []
    assert found["b"]["warnings"][0].startswith("spacing ")
    said = prediction.warnings(output, [Case(name, (f"{name}.nii.gz",)) for name in ("a", "b", "c")])
    assert said[0] == "1 of 3 images is unlike those of the training. Look at them:"
    assert said[1].startswith("  b: spacing ")


def test_strict_refuses_and_earlier_lines_stay(parse, project, images, tmp_path, caplog) -> None:
    output = tmp_path / "out"
    (images / "b.nii.gz").rename(images.parent / "b.nii.gz")
    predict(parse, project, images, output)
    before = json.loads((output / NAME).read_text())
    shutil.copy(images.parent / "b.nii.gz", images / "b.nii.gz")
    with pytest.raises(SystemExit):
        predict(parse, project, images, output, strict=True, skip_existing=True)
    after = json.loads((output / NAME).read_text())
    assert after["a"] == before["a"]
    assert after["b"]["error"].startswith("it is unlike the images of the training: spacing ")
    assert sorted(p.name for p in output.iterdir()) == [".written.json", "a.nii.gz", NAME]
    (output / "a.nii.gz").unlink()
    (output / NAME).write_text("damaged")
    predict(parse, project, images, output, skip_existing=True)
    assert list(json.loads((output / NAME).read_text())) == ["a", "b"]


def test_a_full_disk_is_a_warning(parse, project, images, tmp_path, caplog, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.record.write_text_atomically", full)
    predict(parse, project, images, tmp_path / "out")
    assert any("predictions.json cannot be written" in message for message in caplog.messages)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
