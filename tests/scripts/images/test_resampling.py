"""Resampling: equal to scipy's, true to the world, invertible."""

import numpy as np
import pytest
import torch
from conftest import nearest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from scipy import ndimage
from scripts.resampling import MODES, ResampleToSpacing, ResampleToSpacingd, resample, resampled_affine, resampled_shape

from autoplan.planning import rules

SHAPE_PAIRS = {
    "finer": ((10, 12, 9), (20, 31, 14)),
    "coarser": ((40, 33, 21), (17, 12, 20)),
    "finer and coarser": ((15, 40, 8), (30, 13, 8)),
    "same": ((7, 8, 9), (7, 8, 9)),
    "to one voxel": ((6, 5, 9), (1, 5, 3)),
    "from one voxel": ((1, 12, 9), (4, 9, 9)),
    "one voxel stays": ((1, 12, 9), (1, 20, 5)),
    "two voxels": ((2, 2, 2), (5, 3, 4)),
    "plane": ((20, 31), (33, 14)),
    "plane of one row": ((1, 31), (1, 14)),
}
AFFINES = {
    "isotropic": np.diag([1.0, 1.0, 1.0, 1.0]),
    "anisotropic, origin elsewhere": np.array([[0.8, 0, 0, -91], [0, 0.7, 0, 33], [0, 0, 5.0, 12], [0, 0, 0, 1]]),
    "mirrored, axes swapped": np.array([[0, -1.5, 0, 8], [2.0, 0, 0, 0], [0, 0, -3.0, 1], [0, 0, 0, 1]]),
    "oblique": np.array([[0.9, -0.5, 0.1, 5], [0.4, 1.1, -0.3, -7], [-0.05, 0.35, 2.9, 60], [0, 0, 0, 1]]),
}


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(100, 50, shape).astype(np.float32))


def zoomed(channel, shape, order):
    """What scipy makes of one channel."""
    factors = [m / n for m, n in zip(shape, channel.shape, strict=True)]
    return ndimage.zoom(np.asarray(channel, np.float64), factors, order=order, mode="nearest", grid_mode=True)


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / max(np.ptp(theirs), 1e-6)


@pytest.mark.parametrize(("before", "after"), SHAPE_PAIRS.values(), ids=SHAPE_PAIRS)
@pytest.mark.parametrize(("mode", "order"), [("spline", 3), ("linear", 1)])
def test_equals_scipy(mode, order, before, after) -> None:
    image = noise(2, *before)
    out = resample(image, after, mode)
    assert tuple(out.shape) == (2, *after)
    for ours, channel in zip(out, image, strict=True):
        assert relative_error(ours, zoomed(channel, after, order)) < 1e-5


@pytest.mark.parametrize(("before", "after"), SHAPE_PAIRS.values(), ids=SHAPE_PAIRS)
def test_labels_equal_those_made_voxel_by_voxel(before, after) -> None:
    label = np.random.default_rng(0).integers(0, 4, before).astype(np.uint8)
    np.testing.assert_array_equal(resample(torch.from_numpy(label)[None], after, "nearest")[0], nearest(label, after))


SIZES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=2, max_size=3)


@given(SIZES, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_spline_equals_scipy_for_any_shape(sizes, seed) -> None:
    before, after = zip(*sizes, strict=True)
    image = noise(1, *before, seed=seed)
    expected = zoomed(image[0], after, 3)
    assert np.abs(resample(image, after)[0].numpy() - expected).max() < 1e-5 * max(float(np.ptp(image.numpy())), 100)


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_nearest_invents_no_value_and_keeps_the_type(sizes) -> None:
    before, after = zip(*sizes, strict=True)
    label = torch.from_numpy(np.random.default_rng(1).choice([0, 3, 7], (1, *before)).astype(np.uint8))
    out = resample(label, after, "nearest")
    assert out.dtype == torch.uint8
    assert set(out.unique().tolist()) <= set(label.unique().tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int16, torch.uint8, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["spline", "linear"])
def test_any_number_type_becomes_float32(dtype, mode) -> None:
    image = torch.arange(2 * 6 * 5 * 4).reshape(2, 6, 5, 4).to(dtype)
    out = resample(image, (9, 5, 3), mode)
    assert out.dtype == torch.float32
    assert torch.equal(out, resample(image.float(), (9, 5, 3), mode))
    assert resample(image, (6, 5, 4), mode).dtype == torch.float32


def test_the_input_is_not_written_to() -> None:
    image = noise(1, 8, 9, 10)
    before = image.clone()
    for mode in MODES:
        resample(image, (5, 12, 10), mode)
    assert torch.equal(image, before)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="spline, linear, nearest"):
        resample(noise(1, 4, 4), (5, 5), "cubic")


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", [(1.0, 1.0, 1.0), (1.9, 0.6, 4.2)], ids=str)
def test_a_voxel_stays_where_it_is_in_the_world(affine, mode, target) -> None:
    """The image has three channels: the world coordinates of each voxel."""
    shape = (24, 26, 22)
    image = MetaTensor(world_coordinates(shape, affine), affine=torch.from_numpy(affine))
    out = ResampleToSpacing(target, mode)(image)
    expected = world_coordinates(out.shape[1:], out.affine.numpy())
    # Off a border, where every method must invent: in the middle of each axis.
    inner = tuple(slice(round(0.3 * n), max(round(0.3 * n) + 1, round(0.7 * n))) for n in out.shape[1:])
    error = (out.as_tensor() - expected)[(slice(None), *inner)].abs().amax()
    voxel = float(np.linalg.norm(affine[:3, :3], axis=0).max())
    assert error < (0.87 * voxel if mode == "nearest" else 2e-3 * voxel)


def world_coordinates(shape, affine):
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    return torch.from_numpy((np.tensordot(affine[:3, :3], grid, 1) + affine[:3, 3].reshape(3, 1, 1, 1)).astype("f4"))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_the_outer_edges_of_the_image_stay(affine) -> None:
    before, after = (10, 21, 7), (23, 8, 7)
    new = resampled_affine(torch.from_numpy(affine), before, after).numpy()
    for corner in np.ndindex(2, 2, 2):
        edges = [np.array([c * n - 0.5 for c, n in zip(corner, shape, strict=True)]) for shape in (before, after)]
        worlds = [a[:3, :3] @ e + a[:3, 3] for a, e in zip((affine, new), edges, strict=True)]
        np.testing.assert_allclose(*worlds, atol=1e-9)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("mode", MODES)
def test_inversion_returns_shape_and_affine_exactly(affine, mode) -> None:
    image = MetaTensor(noise(2, 11, 17, 6), affine=torch.from_numpy(affine), meta={"filename_or_obj": "a.nii.gz"})
    pipeline = Compose([ResampleToSpacingd("image", (1.3, 0.9, 2.0), mode)])
    forward = pipeline({"image": image})
    back = pipeline.inverse(forward)["image"]
    assert back.shape == image.shape
    assert torch.equal(back.affine, image.affine)
    assert back.meta["filename_or_obj"] == "a.nii.gz"
    assert back.applied_operations == []


def test_monai_inverts_a_prediction_linearly() -> None:
    """Probabilities stay between 0 and 1, and add up to 1, although the image went forward by a spline."""
    image = MetaTensor(noise(1, 13, 12, 9), affine=torch.from_numpy(AFFINES["oblique"]))
    resampling = ResampleToSpacingd(["image", "label"], (1.7, 0.8, 1.7), ["spline", "nearest"], allow_missing_keys=True)
    pipeline = Compose([resampling])
    data = pipeline({"image": image})
    data["pred"] = MetaTensor(noise(3, *data["image"].shape[1:]).softmax(0))
    invert = Invertd("pred", pipeline, orig_keys="image", nearest_interp=False)
    pred = invert(data)["pred"]
    assert pred.shape == (3, 13, 12, 9)
    assert torch.equal(pred.affine, image.affine)
    assert float(pred.min()) >= 0
    assert float(pred.max()) <= 1
    torch.testing.assert_close(pred.sum(0).as_tensor(), torch.ones(13, 12, 9))
    np.testing.assert_allclose(pred[1], zoomed(data["pred"][1], (13, 12, 9), 1), atol=1e-5)


def test_a_prediction_survives_the_way_there_and_back() -> None:
    """The one-hot code of a smooth object, taken to a finer grid and back, is the object again."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (30, 26, 20)], indexing="ij"))
    label = torch.from_numpy(((grid**2).sum(0) < 0.5).astype(np.uint8))[None]
    affine = torch.from_numpy(AFFINES["anisotropic, origin elsewhere"])
    pipeline = Compose([ResampleToSpacingd(["image", "label"], (0.6, 0.6, 3.0), ["spline", "nearest"])])
    data = pipeline({"image": MetaTensor(label.float(), affine=affine), "label": MetaTensor(label, affine=affine)})
    one_hot = torch.cat([data["label"] == 0, data["label"] == 1]).float().as_tensor()
    data["pred"] = MetaTensor(one_hot)
    pred = Invertd("pred", pipeline, orig_keys="image", nearest_interp=False)(data)["pred"].argmax(0)
    overlap = 2 * int((pred * label[0]).sum()) / int(pred.sum() + label.sum())
    assert overlap > 0.98


def test_missing_keys() -> None:
    image = MetaTensor(noise(1, 5, 5, 5))
    transform = ResampleToSpacingd(["image", "label"], (2.0, 2.0, 2.0), ["spline", "nearest"], allow_missing_keys=True)
    assert transform({"image": image})["image"].shape == (1, 3, 3, 3)
    # The mode belongs to its key also when the one before is not there.
    label = MetaTensor(torch.randint(0, 2, (1, 5, 5, 5), dtype=torch.uint8))
    assert transform({"label": label})["label"].dtype == torch.uint8
    with pytest.raises(KeyError):
        ResampleToSpacingd(["image", "label"], (2.0, 2.0, 2.0))({"image": image})


SHAPE = st.tuples(*[st.integers(1, 600)] * 3)
SPACING = st.tuples(*[st.sampled_from([0.3, 0.5, 0.7, 0.75, 0.79, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.6, 5.0])] * 3)


@given(SHAPE, SPACING, SPACING)
@settings(max_examples=500, deadline=None)
def test_bundle_and_planner_count_voxels_alike(shape, spacing, target) -> None:
    assert resampled_shape(shape, spacing, target) == rules.resampled_shape(shape, spacing, target=target)


@pytest.mark.parametrize(
    ("voxels", "spacing", "target", "expected"),
    [(5, 1.0, 2.0, 3), (7, 1.0, 2.0, 4), (3, 0.5, 1.0, 2), (1, 1.0, 9.0, 1), (10, 1.0, 1.0, 10), (20, 2.0, 1.0, 40)],
    ids=["2.5 goes up", "3.5 goes up", "1.5 goes up", "at least one", "the same", "doubled"],
)
def test_number_of_voxels(voxels, spacing, target, expected) -> None:
    assert resampled_shape([voxels], [spacing], [target]) == (expected,)


def test_the_spacing_that_results_is_in_the_affine() -> None:
    """7 voxels of 1 mm become 4 of 1.75 mm when 2 mm is asked for: the field of view is kept."""
    out = ResampleToSpacing((2.0, 2.0, 2.0))(MetaTensor(noise(1, 7, 8, 9), affine=torch.eye(4)))
    assert tuple(out.shape) == (1, 4, 4, 5)
    assert out.pixdim.tolist() == pytest.approx([1.75, 2.0, 1.8])


def ball(shape, factor=0.35):
    """A label map with an ellipsoid of class 1 in the middle of the volume, (1, X, Y, Z)."""
    axes = [(np.arange(n) - (n - 1) / 2) / (factor * n) for n in shape]
    grid = np.meshgrid(*axes, indexing="ij")
    return torch.from_numpy((sum(g**2 for g in grid) < 1).astype(np.uint8))[None]


@pytest.mark.parametrize("shape", [(24, 24, 24), (24, 36, 48), (12, 30, 18), (25, 37, 49)], ids=str)
@pytest.mark.parametrize("factor", [2, 3, 1.5, 0.5, 2 / 3, 4], ids=lambda f: f"factor {f:.2g}")
def test_labels_are_not_shifted(shape, factor) -> None:
    """The centre of mass of a centred object stays in the middle, along every axis."""
    new_shape = resampled_shape(shape, (1.0,) * 3, (factor,) * 3)
    found = resample(ball(shape), new_shape, "nearest")[0]
    center = torch.nonzero(found).double().mean(0)
    assert center.numpy() == pytest.approx([(n - 1) / 2 for n in new_shape], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3), new_shape=st.tuples(*[st.integers(1, 12)] * 3), seed=st.integers(0, 99)
)
def test_no_side_is_preferred(shape, new_shape, seed) -> None:
    """Labels that are mirrored before are those that are mirrored after, also where neighbours are equally near."""
    label = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (1, *shape)).astype(np.uint8))
    found = resample(label, new_shape, "nearest")
    for axis in (1, 2, 3):
        assert torch.equal(resample(label.flip(axis), new_shape, "nearest"), found.flip(axis))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        pytest.param([1, 1, 1, 0, 0, 0, 0, 0], 0, id="the majority of eight"),
        pytest.param([1, 1, 1, 1, 0, 0, 0, 0], 1, id="foreground in a tie"),
        pytest.param([2, 2, 1, 1, 1, 0, 0, 0], 1, id="of equals the higher"),
        pytest.param([3, 2, 2, 1, 1, 0, 0, 5], 2, id="the higher of the most frequent"),
    ],
)
def test_a_tie_goes_to_the_majority(block, expected) -> None:
    label = torch.tensor(block, dtype=torch.uint8).reshape(1, 2, 2, 2)
    for order in ([0, 1, 2, 3], [0, 3, 2, 1], [0, 2, 3, 1]):
        assert resample(label.permute(order), (1, 1, 1), "nearest").item() == expected
