"""A picture of each prediction."""

import json
import os

import nibabel
import numpy as np
import pytest
from PIL import Image

from autoplan.__main__ import main
from autoplan.base.errors import AutoplanError
from autoplan.data import pictures
from autoplan.data.facts import Case
from autoplan.prediction import predict as prediction
from autoplan.prediction import preview

AFFINE = np.diag([-1.0, 1.0, 3.0, 1.0])


@pytest.fixture
def predicted(tmp_path):
    """A bundle with the classes 2 and 5, two images of two channels, and the segmentation of one."""
    bundle, images, output = tmp_path / "b" / "T" / "best", tmp_path / "images", tmp_path / "out"
    for folder in (bundle / "configs", images, output):
        folder.mkdir(parents=True)
    (bundle / "configs" / "inference.json").write_text(
        json.dumps({"label_values": [0, 2, 5], "normalization": [None, None]})
    )
    label = np.zeros((20, 16, 8), np.uint8)
    label[12:18, 4:12, 2:6], label[2:5, 3:6, 3:5] = 5, 2
    for name in ("a", "b"):
        image = np.stack([np.linspace(0, 100, label.size).reshape(label.shape), np.zeros(label.shape)], 3)
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), AFFINE), images / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, AFFINE), output / "a.nii.gz")
    return bundle, images, output


CASES = [Case(name, (f"{name}.nii.gz",)) for name in ("a", "b")]


def colors(path) -> set[tuple[int, ...]]:
    """Those of a picture that are not grey."""
    found = np.asarray(Image.open(path)).reshape(-1, 3)
    return {tuple(map(int, c)) for c in np.unique(found, axis=0) if len(set(c.tolist())) > 1}


def test_outlines_of_all_classes_through_the_largest(predicted) -> None:
    """Class 2 is in the planes of class 5, too; colours are those of the bundle's classes."""
    written, stay, faults = preview.write(predicted[0], predicted[1], CASES, predicted[2])
    assert written == [predicted[2] / "previews" / "a.png"]
    assert (stay, faults) == ([], [])
    assert colors(written[0]) == set(pictures.COLORS[:2])
    width, height = Image.open(written[0]).size
    assert width <= preview.WIDTH
    assert height <= preview.HEIGHT


def test_drawn_again_only_for_a_newer_segmentation(predicted) -> None:
    [path], *_ = preview.write(*predicted[:2], CASES, predicted[2])
    first = path.stat().st_mtime_ns
    assert preview.write(*predicted[:2], CASES, predicted[2])[0] == [path]
    assert path.stat().st_mtime_ns == first
    os.utime(predicted[2] / "a.nii.gz", ns=(first + 10**9, first + 10**9))
    preview.write(*predicted[:2], CASES, predicted[2])
    assert path.stat().st_mtime_ns != first


def test_one_that_somebody_drew_in_stays(predicted) -> None:
    [path], *_ = preview.write(*predicted[:2], CASES, predicted[2])
    drawn = path.read_bytes()
    path.write_bytes(b"an arrow")
    os.utime(path, ns=(0, 0))
    _, [fault], _ = preview.write(*predicted[:2], CASES, predicted[2])
    assert (path.read_bytes(), fault.startswith(f"{path}: ")) == (b"an arrow", True)
    assert preview.write(*predicted[:2], CASES, predicted[2], force=True) == ([path], [], [])
    assert path.read_bytes() == drawn


def test_an_empty_segmentation_has_a_picture(predicted) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 16, 8), np.uint8), AFFINE), predicted[2] / "a.nii.gz")
    [path], *_ = preview.write(*predicted[:2], CASES, predicted[2])
    assert colors(path) == set()


def test_a_damaged_file_is_one_line(predicted) -> None:
    (predicted[2] / "a.nii.gz").write_bytes(b"x")
    written, _, [fault] = preview.write(*predicted[:2], CASES, predicted[2])
    assert written == []
    assert fault.startswith("a: no preview: ")


@pytest.mark.parametrize("fails", [False, True])
def test_the_command(predicted, capsys, monkeypatch, fails) -> None:
    """What could be predicted is drawn, although others failed."""

    def predict(*_, **__):
        if fails:
            raise AutoplanError("1 of 2 images have no segmentation")
        return 1

    monkeypatch.setattr(prediction, "predict", predict)
    bundle, images, output = predicted
    words = ["predict", "T", "--bundles", str(bundle.parent.parent), "--images", str(images), "--output", str(output)]
    assert main([*words, "--preview"]) == int(fails)
    assert f"{output / 'previews'}: 1 preview" in capsys.readouterr().out
    assert (output / "previews" / "a.png").is_file()


def test_a_preview_that_fails_is_told_as_such(predicted, capsys, monkeypatch) -> None:
    """The segmentations count, and the exit status says that something failed."""
    monkeypatch.setattr(prediction, "predict", lambda *_, **__: 1)
    monkeypatch.setattr(pictures, "sheet", lambda *_, **__: (_ for _ in ()).throw(ValueError("too thin to draw")))
    bundle, images, output = predicted
    (images / "b.nii.gz").unlink()
    words = ["predict", "T", "--bundles", str(bundle.parent.parent), "--images", str(images), "--output", str(output)]
    assert main([*words, "--preview"]) == 1
    printed = capsys.readouterr()
    assert f"{output}: 1 segmentations, 1 of them new" in printed.out
    assert "Warning: a: no preview: too thin to draw" in printed.out
    assert "1 of 1 segmentations have no preview; the reasons are above." in printed.err
