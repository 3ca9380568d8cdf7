"""Labels, predictions and channels whose files have the voxels of their image in another order of axes, as NIfTI and
DICOM have them: read onto the grid of the image. What has other voxels is refused as ever."""

import json

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scripts import evaluation as bundle_evaluation
from scripts import formats
from scripts.readers import FormatReader

from autoplan.__main__ import main
from autoplan.data import cases, geometry, images
from autoplan.data import decathlon as datasets

C, S = np.cos(0.2), np.sin(0.2)
OBLIQUE = np.array([[0.9 * C, -1.1 * S, 0, 4], [0.9 * S, 1.1 * C, 0, -30], [0, 0, 3, 12], [0, 0, 0, 1]])
SHAPE = (7, 6, 5)
ORDERS = ["RAS", "LPS", "ASR", "SPL", "PIR", "LAI"]


def stored(array: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """An image with its axes in another order."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape)


def save(path, array: np.ndarray, affine: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def numbers() -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


@pytest.mark.parametrize("codes", ORDERS)
def test_a_volume_comes_onto_the_grid(codes, tmp_path) -> None:
    save(tmp_path / "image.nii", numbers(), OBLIQUE)
    save(tmp_path / "label.nii", *stored(numbers(), OBLIQUE, codes))
    image, label = (images.read_volume(tmp_path / name) for name in ("image.nii", "label.nii"))
    found = images.onto(label, image.grid)
    np.testing.assert_array_equal(found.array, image.array)
    assert geometry.apart(image.grid, found.grid) == ""
    assert images.grid_onto(label.grid, image.grid).shape == SHAPE


@pytest.mark.parametrize("shift", [(2, 0, 0), (0, 0, 0.2)])
def test_other_voxels_stay_where_they_are(shift, tmp_path) -> None:
    array, affine = stored(numbers(), OBLIQUE, "SPL")
    affine[:3, 3] += shift
    assert formats.axes_onto(array.shape, affine, SHAPE, OBLIQUE) is None
    assert formats.axes_onto((5, 6, 8), stored(numbers(), OBLIQUE, "SPL")[1], SHAPE, OBLIQUE) is None
    assert formats.axes_onto(SHAPE, OBLIQUE, SHAPE, OBLIQUE) is None, "nothing is to be done"


@pytest.mark.parametrize("codes", ["LPS", "SPL"])
def test_planning_and_bundles_take_them(codes, make_tiny) -> None:
    """A label, and a channel that is a file of its own."""
    tiny = make_tiny()
    image, label = tiny.image("case_1"), tiny.image("case_1", "labelsTr")
    values, affine = tiny.read(label), nibabel.load(label).affine
    tiny.write(label, *stored(values, affine, codes))
    loaded = datasets.load(tiny.folder)
    volumes, faults = cases.read_case(loaded, loaded.training[1])
    assert not faults
    np.testing.assert_array_equal(volumes.label, values)
    channel, other = (FormatReader().get_data([str(path)])[0] for path in (image, label))
    other = label.with_name("channel.nii.gz")
    save(other, *stored(channel, affine, codes))
    both, meta = FormatReader().get_data([str(image), str(other)])
    np.testing.assert_array_equal(both[..., 0], both[..., 1])
    np.testing.assert_allclose(meta["affine"], affine)


@pytest.mark.parametrize("codes", ["LPS", "SPL"])
def test_scores_do_not_depend_on_it(codes, tmp_path) -> None:
    """Of the command, and of a bundle's evaluation."""
    label, prediction = np.zeros((2, *SHAPE), np.uint8)
    label[1:5, 2:5, 1:4], prediction[2:6, 2:5, 1:3] = 1, 1
    scores = []
    for name, (array, affine) in {"as it is": (prediction, OBLIQUE), codes: stored(prediction, OBLIQUE, codes)}.items():
        for part, file in (("labels", (label, OBLIQUE)), ("predictions", (array, affine))):
            (tmp_path / name / part).mkdir(parents=True)
            save(tmp_path / name / part / "a.nii.gz", *file)
        words = ["--labels", str(tmp_path / name / "labels"), "--predictions", str(tmp_path / name / "predictions")]
        assert main(["evaluate", *words, "--output", str(tmp_path / name / "out"), "--num_processes", "1"]) == 0
        scores.append(json.loads((tmp_path / name / "out" / "scores.json").read_text())["cases"])
    assert scores[0] == scores[1]
    pred = MetaTensor(torch.from_numpy(prediction)[None], affine=OBLIQUE)
    turned, affine = stored(label, OBLIQUE, codes)
    reference = MetaTensor(torch.from_numpy(turned.copy())[None], affine=affine)
    onto = bundle_evaluation._onto(reference, pred)
    np.testing.assert_array_equal(onto[0], label)
    assert bundle_evaluation.dice(pred, onto, [1]) == bundle_evaluation.dice(pred, torch.from_numpy(label)[None], [1])
