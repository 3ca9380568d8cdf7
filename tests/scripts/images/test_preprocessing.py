"""The rendered preprocessing as a whole: load, orient, crop, resample, normalize; and the way back."""

import dataclasses

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY_PLAN, write_project
from monai.transforms import Invertd
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation, ornt_transform

SPACING = TINY_PLAN.configurations[1].spacing
AFFINES = {
    "RAS": np.diag([1.25, 1.0, 2.0, 1.0]),
    "LAS": np.diag([-1.25, 1.0, 2.0, 1.0]),
    "oblique": np.array([[1.2, -0.2, 0.1, 5], [0.3, 0.9, -0.3, -7], [0, 0.35, 1.9, 60], [0, 0, 0, 1]]),
}


@pytest.fixture(scope="module")
def preprocessing(project, parse):
    return parse(project / "bundles/Task90_Tiny/3d_fullres", "train").get_parsed_content("preprocessing")


def write_image(folder, affine, axes=None):
    """An image with a border of zeros, of which a corner of the second channel is brighter, and its label."""
    image = np.zeros((30, 28, 16, 2), np.float32)
    inside = (slice(5, 27), slice(3, 25), slice(2, 15))
    image[inside] = np.random.default_rng(0).normal(50, 20, (22, 22, 13, 2))
    label = np.zeros((30, 28, 16), np.uint8)
    label[8:16, 7:14, 4:9], label[18:25, 15:22, 6:13] = 2, 5
    image[label == 5, 0] += 500
    for name, array in (("image", image), ("label", label)):
        nifti = nibabel.Nifti1Image(array, affine)
        if axes is not None:
            nifti = nifti.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(axes)))
        nibabel.save(nifti, folder / f"{name}.nii.gz")
    return {"image": str(folder / "image.nii.gz"), "label": str(folder / "label.nii.gz")}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_what_comes_out(affine, preprocessing, tmp_path) -> None:
    data = preprocessing(write_image(tmp_path, affine))
    image, label = data["image"], data["label"]
    assert aff2axcodes(image.affine.numpy()) == ("R", "A", "S")
    assert image.shape[1:] == label.shape[1:]
    assert torch.equal(image.affine, label.affine)
    # The box of the nonzero voxels is 22 x 22 x 13; a rounded voxel count stretches the spacing a little.
    extent = np.array([22, 22, 13]) * np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(image.shape[1:], extent / SPACING, atol=0.5)
    np.testing.assert_allclose(image.pixdim.numpy() * image.shape[1:], extent, rtol=1e-5)
    assert image.dtype == torch.float32
    assert float(image[0].mean()) == pytest.approx(0, abs=1e-4)
    assert float(image[0].std(correction=0)) == pytest.approx(1, abs=1e-4)
    statistics = TINY_PLAN.normalization[1]
    assert float(image[1].min()) >= (statistics.lower - statistics.mean) / statistics.std - 1e-5
    # Labels 0, 2, 5 have become classes 0, 1, 2, and class 2 lies where the first channel is bright.
    assert set(np.unique(label)) == {0, 1, 2}
    assert float(image[0][label[0] == 2].mean()) > 2
    assert float(image[0][label[0] == 1].mean()) < 0


@pytest.mark.parametrize("axes", ["LPS", "PIR", "SRA"])
def test_files_in_another_order_of_axes_give_the_same(axes, preprocessing, tmp_path) -> None:
    (tmp_path / "turned").mkdir()
    plain = preprocessing(write_image(tmp_path, AFFINES["oblique"]))
    turned = preprocessing(write_image(tmp_path / "turned", AFFINES["oblique"], axes))
    for key in ("image", "label"):
        torch.testing.assert_close(turned[key].as_tensor(), plain[key].as_tensor(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(turned[key].affine, plain[key].affine, rtol=0, atol=1e-5)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_prediction_returns_to_the_file_s_grid(affine, preprocessing, tmp_path) -> None:
    files = write_image(tmp_path, affine)
    data = preprocessing(files)
    data["pred"] = torch.cat([data["label"] == c for c in range(3)]).float()
    inverted = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)(data)["pred"]
    original = nibabel.load(files["label"])
    assert tuple(inverted.shape[1:]) == original.shape
    np.testing.assert_allclose(inverted.affine, original.affine, atol=1e-5)
    found = inverted.argmax(0).numpy()
    for value, number in ((2, 1), (5, 2)):
        label = np.asarray(original.dataobj) == value
        assert 2 * (label & (found == number)).sum() / (label.sum() + (found == number).sum()) > 0.85


def test_training_and_inference_preprocess_alike(project, parse, preprocessing, tmp_path) -> None:
    files = write_image(tmp_path, AFFINES["oblique"])
    inference = parse(project / "bundles/Task90_Tiny/3d_fullres", "inference").get_parsed_content("preprocessing")
    alone = inference({"image": files["image"]})["image"]
    torch.testing.assert_close(alone.as_tensor(), preprocessing(files)["image"].as_tensor(), rtol=0, atol=0)


def test_within_the_nonzero_region_only(parse, tmp_path) -> None:
    """The planned `nonzero_only`: what was zero before the spline is exactly zero after it."""
    plan = dataclasses.replace(TINY_PLAN, nonzero_only=True)
    bundle = write_project(tmp_path, plan) / "bundles/Task90_Tiny/3d_fullres"
    masked = parse(bundle, "train").get_parsed_content("preprocessing")
    image = np.zeros((30, 28, 16, 2), np.float32)
    x, y, z = np.indices((30, 28, 16))
    ball = ((x - 15) / 13) ** 2 + ((y - 14) / 12) ** 2 + ((z - 8) / 7) ** 2 < 1
    image[ball] = np.random.default_rng(0).normal(300, 20, (ball.sum(), 2))
    nibabel.save(nibabel.Nifti1Image(image, AFFINES["LAS"]), tmp_path / "ball.nii.gz")
    data = masked({"image": str(tmp_path / "ball.nii.gz")})
    assert "mask" not in data
    out = data["image"][0].as_tensor()
    inside = out != 0
    assert 0.4 < float(inside.float().mean()) < 0.6  # a ball in its box: 0.52
    assert float(out[inside].mean()) == pytest.approx(0, abs=1e-3)
    assert float(out[inside].std(correction=0)) == pytest.approx(1, abs=1e-3)
    inference = parse(bundle, "inference").get_parsed_content("preprocessing")
    torch.testing.assert_close(inference({"image": str(tmp_path / "ball.nii.gz")})["image"][0].as_tensor(), out)


def test_an_image_of_zeros_is_refused(preprocessing, tmp_path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 9, 2), np.float32), np.eye(4)), tmp_path / "empty.nii.gz")
    with pytest.raises(RuntimeError) as error:
        preprocessing({"image": str(tmp_path / "empty.nii.gz")})
    assert "empty.nii.gz: every voxel is zero" in str(error.value.__cause__)
