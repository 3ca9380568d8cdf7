"""Predicting many images: a bad one is named in the end and stops no other; a file that is there is whole."""

import errno
import gzip
import json
import logging
import os
import shutil
import threading
from functools import partial

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from conftest import TINY_PLAN
from dicoms import PATIENT, absent, series
from monai.data import MetaTensor
from monai.transforms import SaveImage
from scripts.datalists import images_to_predict
from scripts.files import write_noted
from scripts.inversion import LabelInferer
from scripts.prediction import FAULT, ImageDataset, SegmentationWriter


def truncated(path, image):
    """As after a download that stopped half way."""
    path.write_bytes(image.read_bytes()[: image.stat().st_size // 2])


def no_gzip(path, image):
    path.write_bytes(gzip.decompress(image.read_bytes()))


def zeros(path, image):
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 8, 7, 2), np.float32), nibabel.load(image).affine), path)


def three_channels(path, image):
    array = np.random.default_rng(0).normal(50, 9, (9, 8, 7, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, nibabel.load(image).affine), path)


def one_channel(path, image):
    array = np.asarray(nibabel.load(image).dataobj)[..., 0]
    nibabel.save(nibabel.Nifti1Image(array, nibabel.load(image).affine), path)


def one_voxel_nan(path, image):
    source = nibabel.load(image)
    array = np.asarray(source.dataobj).copy()
    array[3, 3, 3, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, source.affine), path)


def one_voxel_infinite(path, image):
    source = nibabel.load(image)
    array = np.asarray(source.dataobj).copy()
    array[3, 3, 3, 1] = -np.inf
    nibabel.save(nibabel.Nifti1Image(array, source.affine), path)


def empty_file(path, image):
    path.write_bytes(b"")


FAULTS = {
    "truncated": truncated,
    "no gzip": no_gzip,
    "all zeros": zeros,
    "one channel too many": three_channels,
    "one channel too few": one_channel,
    "empty file": empty_file,
    "one voxel NaN": one_voxel_nan,
    "one voxel infinite": one_voxel_infinite,
}


@pytest.fixture(params=["3d_fullres", "3d_cascade_fullres"])
def run(request, project, parse, tmp_path):
    """`run(folder, …)`: predict the images of a folder with a bundle whose network knows nothing."""
    bundle = project / "bundles" / TINY_PLAN.name / request.param

    def predict(folder, output_dir, **values):
        settings = {"num_workers": 0, "device": "cpu", "amp": False, "mirror": False, **values}
        model_file = tmp_path / "model.pt"
        parser = parse(
            bundle,
            "inference",
            dataset_dir=str(folder),
            output_dir=str(output_dir),
            model_file=str(model_file),
            **settings,
        )
        torch.manual_seed(0)
        torch.save(parser.get_parsed_content("network_def").state_dict(), model_file)
        evaluator = parser.get_parsed_content("evaluator")
        evaluator.run()
        return evaluator

    return predict


@pytest.fixture
def image(project):
    return project / "data" / TINY_PLAN.name / "imagesTs" / "test_1.nii.gz"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_images_stop_no_other(num_workers, run, image, tmp_path, caplog) -> None:
    images, results = tmp_path / "images", tmp_path / "results"
    images.mkdir()
    # In the order of their names good ones come before, between and after.
    for name in ("a_good", "m_good", "z_good"):
        shutil.copy(image, images / f"{name}.nii.gz")
    for name, spoil in FAULTS.items():
        spoil(images / f"b {name}.nii.gz", image)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as stopped:
        run(images, results, num_workers=num_workers)
    assert stopped.value.code == 1
    assert f"3 segmentations are in {results}" in caplog.messages
    last = caplog.messages[-1]
    assert f"{len(FAULTS)} of {len(FAULTS) + 3} images could not be predicted" in last
    lines = last.splitlines()[1:]
    assert len(lines) == len(FAULTS)
    for name in FAULTS:
        [line] = [line for line in lines if f"b {name}.nii.gz: " in line]
        assert len(line.split(".nii.gz: ", 1)[1]) > 8, "a cause"
        assert any(m.startswith(f"b {name} could not be predicted: ") for m in caplog.messages), "at once as well"
    assert sorted(p.name for p in results.glob("*.nii.gz")) == ["a_good.nii.gz", "m_good.nii.gz", "z_good.nii.gz"]
    expected = nibabel.load(image)
    for path in results.glob("*.nii.gz"):
        found = nibabel.load(path)
        assert found.shape == expected.shape[:3]
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
        assert set(np.unique(found.dataobj)) <= {0, 2, 5}


@pytest.mark.parametrize("shape", [(47, 40, 1), (47, 1, 1), (1, 1, 9), (1, 40, 7), (5, 5, 5)], ids=str)
def test_segmentations_have_the_shape_of_their_image(run, image, tmp_path, shape) -> None:
    (tmp_path / "images").mkdir()
    array = np.random.default_rng(0).normal(50, 9, (*shape, 2)).astype(np.float32)
    affine = nibabel.load(image).affine
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "images" / "a.nii.gz")
    run(tmp_path / "images", tmp_path / "results")
    found = nibabel.load(tmp_path / "results" / "a.nii.gz")
    assert found.shape == shape
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)


def test_a_network_that_gives_no_numbers_is_a_fault(run, image, tmp_path, caplog, monkeypatch) -> None:
    """It would be an empty segmentation."""
    (tmp_path / "images").mkdir()
    shutil.copy(image, tmp_path / "images" / "a.nii.gz")
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, path: save({k: v * torch.nan for k, v in state.items()}, path))
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit):
        run(tmp_path / "images", tmp_path / "results")
    assert "a.nii.gz: the network gives values that are NaN" in caplog.messages[-1]
    assert not list((tmp_path / "results").glob("*.nii.gz"))


def test_good_images_alone_end_well(run, image, tmp_path, caplog) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(image, tmp_path / "images")
    with caplog.at_level(logging.ERROR):
        assert run(tmp_path / "images", tmp_path / "results").faults == {}
    assert not caplog.messages


def test_an_output_that_cannot_be_written_is_a_fault_of_that_image(run, image, tmp_path, monkeypatch, caplog) -> None:
    images, results = tmp_path / "images", tmp_path / "results"
    images.mkdir()
    for name in ("a", "b"):
        shutil.copy(image, images / f"{name}.nii.gz")
    save = nibabel.save

    def full_disk(array, path):
        if path.name.endswith(".a.nii.gz"):
            path.write_bytes(b"half of")
            raise OSError("no space left")
        save(array, path)

    monkeypatch.setattr(nibabel, "save", full_disk)
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit):
        run(images, results)
    assert caplog.messages[-1].endswith("a.nii.gz: no space left")
    assert [p.name for p in results.glob("*.nii.gz")] == ["b.nii.gz"]


def test_a_full_disk_is_one_line_with_the_folder(run, image, tmp_path, monkeypatch, caplog) -> None:
    """The images after that are not predicted in vain."""
    images, tried = tmp_path / "images", []
    images.mkdir()
    for name in "ab":
        shutil.copy(image, images / f"{name}.nii.gz")

    def save(array, path):
        tried.append(path)
        path.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nibabel, "save", save)
    with pytest.raises(SystemExit) as stopped:
        run(images, tmp_path / "out")
    assert stopped.value.code == 1
    assert len(tried) in (1, 2), "the second may have been predicted while the first was written"
    assert f"there is no space left on the disk of {tmp_path / 'out'}; free some space" in caplog.messages[-1]
    assert len(caplog.messages[-1].splitlines()) == 1 + len(tried)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_file_is_written_while_the_network_sees_the_next_image(run, image, tmp_path, monkeypatch) -> None:
    images, results, begun = tmp_path / "images", tmp_path / "results", threading.Event()
    images.mkdir()
    for name in "ab":
        shutil.copy(image, images / f"{name}.nii.gz")
    save, infer = nibabel.save, LabelInferer.__call__

    def slow(array, path):
        if path.name.endswith(".a.nii.gz"):
            assert begun.wait(60), "the next image does not begin"
            raise OSError("no more")
        save(array, path)

    def noted(self, inputs, network):
        if "b.nii.gz" in inputs.meta["filename_or_obj"][0]:
            begun.set()
        return infer(self, inputs, network)

    monkeypatch.setattr(nibabel, "save", slow)
    monkeypatch.setattr(LabelInferer, "__call__", noted)
    with pytest.raises(SystemExit):
        run(images, results)
    told = json.loads((results / "predictions.json").read_text())
    assert told["a"]["error"] == "no more"
    assert (results / told["b"]["segmentation"]).is_file()


def test_a_second_run_predicts_what_is_missing(run, image, tmp_path) -> None:
    images, results = tmp_path / "images", tmp_path / "results"
    images.mkdir()
    for name in ("a", "b"):
        shutil.copy(image, images / f"{name}.nii.gz")
    run(images, results)
    before = (results / "b.nii.gz").stat().st_mtime_ns
    (results / "a.nii.gz").unlink()
    assert run(images, results, skip_existing=True).state.iteration == 1
    assert (results / "a.nii.gz").is_file()
    assert (results / "b.nii.gz").stat().st_mtime_ns == before


def test_a_run_that_has_nothing_left_to_do_ends_well(run, image, tmp_path, caplog) -> None:
    images, results = tmp_path / "images", tmp_path / "results"
    images.mkdir()
    shutil.copy(image, images / "a.nii.gz")
    run(images, results)
    before = (results / "a.nii.gz").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        run(images, results, skip_existing=True)
    assert any("nothing is left to predict" in message for message in caplog.messages)
    assert (results / "a.nii.gz").stat().st_mtime_ns == before


def test_a_dicom_segmentation_that_fails_is_no_failed_prediction(run, tmp_path, caplog) -> None:
    """Of an anonymized series it is written; of one that names no study the segmentation is; one that cannot be read is
    named apart."""
    anonymized = {**PATIENT, **dict.fromkeys(("PatientBirthDate", "AccessionNumber", "StudyID"), absent)}
    kinds = {"a": anonymized, "b": {**PATIENT, "StudyInstanceUID": absent}, "c": {**PATIENT, "leave_out": [3]}}
    cases, random = [], np.random.default_rng(0)
    for name, fields in kinds.items():
        channels = [tmp_path / f"{name}{channel}" for channel in range(2)]
        for channel in channels:
            series(channel, number=8, **fields)
            for path in channel.iterdir():
                slice_ = pydicom.dcmread(path)
                slice_.PixelData = random.integers(0, 900, (6, 9)).astype(np.uint16).tobytes()
                slice_.save_as(path)
        cases.append({"name": name, "image": [str(channel) for channel in channels]})
    (tmp_path / "images.json").write_text(json.dumps(cases))
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as stopped:
        run(tmp_path, tmp_path / "out", images=str(tmp_path / "images.json"), dicom_seg=True)
    assert stopped.value.code == 1
    [beside, failed] = caplog.messages[-2:]
    assert beside.splitlines()[0] == "1 of 3 segmentations were written without their DICOM Segmentation:"
    assert beside.endswith("b0: its files have no StudyInstanceUID, which a DICOM Segmentation refers to")
    assert failed.splitlines()[0] == "1 of 3 images could not be predicted:"
    assert "c0: a slice is missing between" in failed, "the file"
    assert any(message.startswith("c could not be predicted: ") for message in caplog.messages), "the case"
    assert not any("b could not be predicted" in message for message in caplog.messages)
    there = sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".gz", ".dcm"))
    assert there == ["a.dcm", "a.nii.gz", "b.nii.gz"]
    told = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert told["b"]["incomplete"] == "its files have no StudyInstanceUID, which a DICOM Segmentation refers to"
    assert ("error" in told["c"], "incomplete" in told["a"], "error" in told["b"]) == (True, False, False)


# The parts.


def segmentation():
    meta = {"filename_or_obj": "case.nii.gz", "spatial_shape": np.array([3, 2, 2])}
    return MetaTensor(torch.ones(1, 3, 2, 2, dtype=torch.uint8), affine=torch.eye(4, dtype=torch.float64), meta=meta)


def saver(folder, values=range(256), output_dtype=np.uint8):
    return SaveImage(
        folder,
        "",
        output_dtype=output_dtype,
        resample=False,
        separate_folder=False,
        writer=partial(SegmentationWriter, label_values=values),
        print_log=False,
    )


def test_a_file_is_written_whole(tmp_path) -> None:
    saver(tmp_path)(segmentation())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".written.json", "case.nii.gz"]
    np.testing.assert_array_equal(nibabel.load(tmp_path / "case.nii.gz").dataobj, np.ones((3, 2, 2)))


@pytest.mark.parametrize(("values", "dtype"), [((0, 5), np.uint8), ((0, 700), np.uint16)])
def test_a_file_has_the_values_of_the_dataset(values, dtype, tmp_path) -> None:
    saver(tmp_path, values, dtype)(segmentation())
    voxels = np.asanyarray(nibabel.load(tmp_path / "case.nii.gz").dataobj)
    assert voxels.dtype == dtype
    assert set(voxels.flat) == {values[1]}


@pytest.mark.parametrize("there", [True, False], ids=["over an old file", "a new file"])
def test_a_writing_that_fails_leaves_no_part_of_a_file(there, tmp_path, monkeypatch) -> None:
    if there:
        (tmp_path / "case.nii.gz").write_bytes(b"the old one")

    def full_disk(_, path):
        path.write_bytes(b"half of")
        raise OSError("no space left")

    monkeypatch.setattr(nibabel, "save", full_disk)
    with pytest.raises(RuntimeError, match="no space left"):
        saver(tmp_path)(segmentation())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"case.nii.gz": b"the old one"} if there else {})


def test_an_image_that_cannot_be_preprocessed_becomes_an_item_that_says_why() -> None:
    def transform(item):
        if "bad" in item["image"]:
            try:
                raise ValueError("it has 3 channels\nand more lines")
            except ValueError as error:
                raise RuntimeError("applying transform") from error
        return item

    dataset = ImageDataset([{"image": "good.nii.gz"}, {"image": "bad.nii.gz"}], transform)
    assert dataset[0]["image"] == "good.nii.gz"
    assert FAULT not in dataset[0]
    assert dataset[1] == {FAULT: "it has 3 channels", "image": "bad.nii.gz", "file": "bad.nii.gz"}


SKIP = {
    "nothing is there": ((), ["a", "b", "c"]),
    "one is there": (("b.nii.gz",), ["a", "c"]),
    "all are there": (("a.nii.gz", "b.nii.gz", "c.nii.gz"), []),
    "files of another name": (("a.nii", ".b.nii.gz", "ab.nii.gz", "c.json"), ["a", "b", "c"]),
}


@pytest.mark.parametrize(("there", "expected"), SKIP.values(), ids=SKIP)
def test_images_that_have_a_segmentation_may_be_left_out(there, expected, tmp_path) -> None:
    images, results = tmp_path / "images", tmp_path / "results"
    for folder, names in ((images, ("a.nii.gz", "b.nii", "c.nii.gz", "notes.txt")), (results, there)):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    found = images_to_predict(images, results, skip_existing=True)
    assert [item["image"].rpartition("/")[2].partition(".")[0] for item in found] == expected
    assert len(images_to_predict(images, results)) == 3
    assert len(images_to_predict(images, tmp_path / "nowhere", skip_existing=True)) == 3


def test_a_bundle_alone_leaves_what_a_person_corrected(tmp_path, caplog) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        (tmp_path / name).touch()
        write_noted(tmp_path / "out" / name, lambda path: path.write_text("predicted"))
    (tmp_path / "out" / "b.nii.gz").write_text("corrected")
    (tmp_path / "out" / "c.nii.gz").unlink()
    assert [item["name"] for item in images_to_predict(tmp_path, tmp_path / "out")] == ["a", "c"]
    assert "b.nii.gz was changed by hand, so it stays" in caplog.text


def test_no_image_at_all_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="no images"):
        images_to_predict(tmp_path, tmp_path, skip_existing=True)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA", "ASR", "PIR", "IPL"])
def test_axes_in_any_order_are_written(axes, tmp_path) -> None:
    turned = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(axes), (4, 5, 6))
    affine = np.linalg.inv(turned) @ np.diag([1.5, 2.0, 3.0, 1.0])
    label = torch.arange(120, dtype=torch.uint8).reshape(1, 4, 5, 6)
    saver(tmp_path)(MetaTensor(label, affine=affine, meta={"filename_or_obj": "case.nii.gz"}))
    found = nibabel.load(tmp_path / "case.nii.gz")
    np.testing.assert_array_equal(found.dataobj, label[0])
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
