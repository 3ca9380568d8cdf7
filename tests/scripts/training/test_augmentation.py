"""Augmentation of a bundle: what a patch is made of, and what it costs to read."""

import pathlib
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "templates"))

from scripts import augmentation
from scripts.augmentation import RandCropWarpd, RandGammad, RandMirrord

OFF = {"rotation_prob": 0.0, "scaling_prob": 0.0, "elastic_prob": 0.0}
"""No spatial kind is drawn: the crop for validation."""

ALL = {"rotation_prob": 1.0, "scaling_prob": 1.0, "elastic_prob": 1.0}
"""Every spatial kind is drawn for every patch."""


def smooth_image(shape, channels=1, seed=0):
    """Noise with features of some voxels, one unit of standard deviation."""
    noise = np.random.default_rng(seed).standard_normal((channels, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, *(2.5,) * len(shape)), mode="wrap")
    return (smooth / smooth.std()).astype(np.float32)


def blobs(shape, labels=(0, 1, 2), seed=0):
    """Label map with regions of several voxels."""
    index = np.digitize(smooth_image(shape, seed=seed), np.linspace(-0.7, 0.7, len(labels) - 1))
    return np.asarray(labels, np.uint8)[index]


def case(shape, channels=1, labels=(0, 1, 2), seed=0):
    """Image, label map and the centre of the image."""
    return {
        "image": smooth_image(shape, channels, seed),
        "label": blobs(shape, labels, seed + 1),
        "center": tuple(n // 2 for n in shape),
    }


def crop(patch_size, seed=0, keys=("image", "label"), **kwargs):
    transform = RandCropWarpd(keys, patch_size, **kwargs)
    transform.set_random_state(seed=seed)
    return transform


def fixed(patch_size, matrix, keys=("image", "label")):
    """Transform that always warps by this matrix about the centre of the patch."""
    transform = crop(patch_size, keys=keys)
    transform._warp = augmentation.affine_warp(patch_size, np.asarray(matrix))
    transform.randomize = lambda: None
    return transform


class CountingArray:
    """Array that remembers what was read from it."""

    def __init__(self, array):
        self.array, self.shape, self.reads = array, array.shape, []

    def __getitem__(self, key):
        self.reads.append(key)
        return self.array[key]


# The crop without a warp


@pytest.mark.parametrize("center", [(20, 25, 15), (10, 12, 8), (29, 30, 21)])
def test_without_a_warp_the_patch_is_a_slice_of_the_array(center):
    data = case((40, 45, 30)) | {"center": center}
    patch = crop((16, 24, 16), **OFF)(data)
    where = (slice(None), *(slice(c - n // 2, c - n // 2 + n) for c, n in zip(center, (16, 24, 16), strict=True)))
    np.testing.assert_array_equal(patch["image"], data["image"][where])
    np.testing.assert_array_equal(patch["label"], data["label"][where])


@pytest.mark.parametrize("center", [(0, 0, 0), (39, 44, 29)])
def test_patch_at_a_border_is_moved_inside_the_image(center):
    data = case((40, 45, 30)) | {"center": center}
    patch = crop((16, 24, 16), **OFF)(data)
    expected = data["image"][:, :16, :24, :16] if center == (0, 0, 0) else data["image"][:, -16:, -24:, -16:]
    np.testing.assert_array_equal(patch["image"], expected)


def test_image_smaller_than_the_patch_is_padded_evenly_with_zeros():
    data = case((10, 30, 7))
    patch = crop((16, 24, 16), **OFF)(data)
    middle = (slice(None), slice(None), slice(3, 27), slice(None))
    for key in ("image", "label"):
        expected = np.pad(data[key][middle], ((0, 0), (3, 3), (0, 0), (4, 5)))
        np.testing.assert_array_equal(patch[key], expected)


def test_output_is_contiguous_float32_and_uint8_and_the_rest_of_the_dict_is_kept():
    data = case((20, 30, 40), channels=2) | {"case": "hippocampus_001"}
    data["image"] = data["image"].transpose(0, 3, 2, 1).astype(np.float64)
    data["label"] = data["label"].transpose(0, 3, 2, 1)
    data["center"] = (20, 15, 10)
    for kinds in (OFF, ALL):
        patch = crop((16, 24, 8), **kinds)(data)
        assert patch["image"].dtype == torch.float32
        assert patch["label"].dtype == torch.uint8
        assert patch["image"].shape == (2, 16, 24, 8)
        assert patch["label"].shape == (1, 16, 24, 8)
        assert all(patch[key].is_contiguous() and type(patch[key]) is torch.Tensor for key in ("image", "label"))
        assert patch["case"] == "hippocampus_001"


def test_the_input_is_not_written_to():
    data = case((30, 30, 30))
    before = {key: data[key].copy() for key in ("image", "label")}
    patch = crop((16, 16, 16), **OFF)(data)
    patch["image"] += 1
    RandGammad("image", prob=1.0)(patch)
    crop((16, 16, 16), **ALL)(data)
    for key, array in before.items():
        np.testing.assert_array_equal(data[key], array)


def test_memory_mapped_arrays_give_the_same_patch_as_arrays_in_memory(tmp_path):
    data = case((30, 32, 34))
    mapped = dict(data)
    for key in ("image", "label"):
        np.save(tmp_path / f"{key}.npy", data[key])
        mapped[key] = np.load(tmp_path / f"{key}.npy", mmap_mode="r")
    a, b = crop((16, 24, 16), **ALL)(data), crop((16, 24, 16), **ALL)(mapped)
    assert torch.equal(a["image"], b["image"])
    assert torch.equal(a["label"], b["label"])


def test_a_missing_key_is_allowed_where_said():
    data = case((30, 30, 30))
    del data["label"]
    keys = ("image", "label")
    for transform in (crop((16, 16, 16), allow_missing_keys=True, **ALL), RandMirrord(keys, allow_missing_keys=True)):
        data = transform(data)
        assert data["image"].shape == (1, 16, 16, 16)
    with pytest.raises(KeyError):
        crop((16, 16, 16), **OFF)(data)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"patch_size": (8,)}, "patch_size"),
        ({"patch_size": (8, 8), "slice_axis": 0}, "slice_axis"),
        ({"patch_size": (8, 8, 8), "rotation_degrees": (15, 15)}, "rotation_degrees"),
        ({"patch_size": (8, 8, 8), "scaling_range": (0, 1.25)}, "scaling_range"),
        ({"patch_size": (8, 8, 8), "elastic_sigma": (13, 9)}, "elastic_sigma"),
    ],
)
def test_impossible_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RandCropWarpd("image", **kwargs)


def test_arrays_of_different_shapes_are_refused():
    data = case((30, 30, 30)) | {"label": blobs((30, 30, 29))}
    with pytest.raises(ValueError, match="share one spatial shape"):
        crop((16, 16, 16))(data)


def test_label_maps_must_be_uint8_and_below_the_mark_of_mixed_cells():
    data = case((30, 30, 30))
    with pytest.raises(TypeError, match="int64"):
        crop((16, 16, 16))(data | {"label": data["label"].astype(np.int64)})
    with pytest.raises(ValueError, match="255"):
        crop((16, 16, 16), **ALL)(data | {"label": data["label"] + np.uint8(253)})


# Rotation and scaling


@pytest.mark.parametrize("turns", [1, 2, -1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quarter_turns_about_an_axis_are_exact(axis, turns):
    data = case((30, 30, 30))
    degrees = [90.0 * turns if a == axis else 0.0 for a in range(3)]
    patch = fixed((16, 16, 16), augmentation.rotation_matrix(degrees))(data)
    plain = crop((16, 16, 16), **OFF)(data)
    plane = tuple(a + 1 for a in range(3) if a != axis)
    # The patch is sampled at turned points: its content turns by the opposite angle.
    np.testing.assert_allclose(patch["image"], np.rot90(plain["image"], -turns, plane), atol=0.01)
    np.testing.assert_array_equal(patch["label"], np.rot90(plain["label"], -turns, plane))


@pytest.mark.parametrize("turns", [1, 2, -1])
def test_quarter_turns_of_a_plane_are_exact(turns):
    data = case((40, 40))
    patch = fixed((20, 20), augmentation.rotation_matrix([90.0 * turns]))(data)
    plain = crop((20, 20), **OFF)(data)
    np.testing.assert_allclose(patch["image"], np.rot90(plain["image"], -turns, (1, 2)), atol=0.01)
    np.testing.assert_array_equal(patch["label"], np.rot90(plain["label"], -turns, (1, 2)))


@pytest.mark.parametrize("factor", [0.85, 1.25])
def test_scaling_stretches_a_ramp_about_the_centre_of_the_patch(factor):
    shape, patch_size = (40, 48, 36), (20, 24, 16)
    ramps = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    data = {"image": ramps, "center": (20, 24, 18)}
    patch = fixed(patch_size, factor * np.eye(3), keys="image")(data)["image"]
    for axis, (n, center) in enumerate(zip(patch_size, data["center"], strict=True)):
        expected = center - n // 2 + (n - 1) / 2 + factor * (np.arange(n) - (n - 1) / 2)
        along = np.moveaxis(patch[axis].numpy(), axis, -1)
        np.testing.assert_allclose(along, np.broadcast_to(expected, along.shape), atol=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_warped_volume_equals_scipy_at_the_same_points(seed):
    """Also where the points lie outside the image, among zeros."""
    shape, patch_size = (50, 34, 24), (24, 32, 30)
    data = case(shape)
    transform = crop(patch_size, seed=seed, **ALL)
    patch = transform(data)
    points, _, _ = augmentation.warp_points(transform._warp)
    middle = [c - n // 2 + (n - 1) / 2 for c, n in zip(data["center"], patch_size, strict=True)]
    points = points.numpy().transpose(1, 0, 2).reshape(3, -1) + np.array(middle)[:, None]
    assert points.min() < -1

    def at_points(volume, outside):
        sampled = ndimage.map_coordinates(volume, points, order=1, mode="grid-constant", cval=outside)
        return sampled.reshape(patch_size)

    np.testing.assert_allclose(patch["image"][0], at_points(data["image"][0], 0.0), atol=0.005)
    codes = [at_points((data["label"][0] == k).astype(float), float(k == 0)) for k in range(3)]
    assert (patch["label"][0].numpy() == np.argmax(codes, 0)).mean() > 0.9999  # the rest are ties


def test_angles_are_about_the_axes_of_the_array_one_after_the_other():
    """What lies on axis i does not move when only entry i turns; three angles turn about axis 2, then 1, then 0."""
    alone = [augmentation.rotation_matrix([30.0 if a == axis else 0.0 for a in range(3)]) for axis in range(3)]
    for axis, matrix in enumerate(alone):
        np.testing.assert_allclose(matrix[axis], np.eye(3)[axis], atol=1e-12)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        assert np.trace(matrix) == pytest.approx(1 + 2 * np.cos(np.radians(30)))
    np.testing.assert_allclose(augmentation.rotation_matrix([30.0] * 3), alone[0] @ alone[1] @ alone[2], atol=1e-12)


def test_rotation_angles_and_scaling_factors_keep_to_their_ranges(monkeypatch):
    seen = []
    real = augmentation.affine_warp
    monkeypatch.setattr(augmentation, "affine_warp", lambda size, matrix: seen.append(matrix) or real(size, matrix))
    transform = crop((8, 8, 8), rotation_prob=1.0, scaling_prob=1.0, elastic_prob=0.0, rotation_degrees=(10, 0, 0))
    for _ in range(2000):
        transform.randomize()
    factors = np.array([np.cbrt(np.linalg.det(m)) for m in seen])
    assert 0.85 <= factors.min() < 0.86
    assert 1.24 < factors.max() <= 1.25
    assert (factors < 1).mean() == pytest.approx(0.5, abs=0.05)
    angles = np.array([np.degrees(np.arctan2(m[2, 1], m[1, 1])) for m in seen])
    assert -10.001 <= angles.min() < -9.9
    assert 9.9 < angles.max() <= 10.001
    assert all(m[0, 1] == m[0, 2] == m[1, 0] == m[2, 0] == 0 for m in seen)


@pytest.mark.parametrize("kind", ["rotation", "scaling", "elastic"])
def test_each_spatial_kind_is_drawn_as_often_as_its_own_probability_says(kind):
    transform = crop((9, 9, 9), **OFF | {f"{kind}_prob": 0.3})
    drawn = []
    for _ in range(1000):
        transform.randomize()
        if transform._warp is not None:
            drawn.append(transform._warp.control)
    assert len(drawn) / 1000 == pytest.approx(0.3, abs=0.05)
    control = drawn[0]
    if kind == "elastic":
        assert control.shape[1] > 2
    else:
        matrix = np.stack([control[:, 1, 0, 0], control[:, 0, 1, 0], control[:, 0, 0, 1]], 1) - control[:, :1, 0, 0]
        matrix /= 8  # columns are the edges of the warped patch
        is_rotation = np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
        is_scaling = np.allclose(matrix, matrix[0, 0] * np.eye(3), atol=1e-6)
        assert (is_rotation, is_scaling) == (kind == "rotation", kind == "scaling")


def test_points_that_rounding_puts_on_the_last_layer_or_before_the_first_take_that_layer():
    volume = torch.from_numpy(smooth_image((4, 5, 6)))
    labels = torch.arange(120, dtype=torch.uint8).view(1, 4, 5, 6)
    points = torch.tensor([[0.0, 0.0, 0.0], [3.0, 4.0, 5.0], [3.0, 1.0, 2.0], [-1e-6, -1e-6, -1e-6]]).t()[None]
    expected = [(0, 0, 0), (3, 4, 5), (3, 1, 2), (0, 0, 0)]
    sampled = augmentation.sample_linear(volume, points.contiguous())[0]
    np.testing.assert_allclose(sampled, [volume[0][e] for e in expected], atol=1e-4)
    sampled = augmentation.sample_labels(labels, points.contiguous())[0]
    assert sampled.tolist() == [labels[0][e].item() for e in expected]


# Elastic deformation


def displacements(size, alpha, sigma, num, seed=0):
    """(num * d, *size) displacements in voxels along each axis, one field at a time."""
    random = np.random.RandomState(seed)
    identity = augmentation.warp_points(augmentation.affine_warp(size, np.eye(len(size))))[0]
    fields = []
    for _ in range(num):
        warp = augmentation.elastic_warp(size, np.eye(len(size)), alpha, sigma, random)
        moved = augmentation.warp_points(warp)[0] - identity
        fields.append(moved.transpose(0, 1).reshape(len(size), *size).numpy())
    return np.concatenate(fields)


def smoothed_noise(size, alpha, sigma, num, seed=0):
    """The same by the definition: white noise in ±alpha on every voxel, smoothed by a Gaussian."""
    random = np.random.default_rng(seed)
    margin = int(4 * sigma)
    fields = []
    for _ in range(num):
        noise = random.uniform(-alpha, alpha, [n + 2 * margin for n in size]).astype(np.float32)
        fields.append(ndimage.gaussian_filter(noise, sigma)[tuple(slice(margin, margin + n) for n in size)])
    return np.stack(fields)


def correlation(fields, lag):
    """Correlation of the fields with themselves `lag` voxels further, mean over the axes."""
    values = []
    for axis in range(1, fields.ndim):
        a = np.take(fields, range(fields.shape[axis] - lag), axis)
        b = np.take(fields, range(lag, fields.shape[axis]), axis)
        values.append((a * b).mean() / (fields**2).mean())
    return np.mean(values)


@pytest.mark.parametrize(("size", "alpha", "sigma"), [((32, 28, 30), 900, 4), ((96, 80), 200, 6)])
def test_elastic_field_has_the_statistics_of_smoothed_noise(size, alpha, sigma):
    """Standard deviation within 5 %, correlation within 0.05 at one and two sigma."""
    coarse = displacements(size, alpha, sigma, num=100)
    dense = smoothed_noise(size, alpha, sigma, num=60)
    expected = augmentation.elastic_std(alpha, sigma, len(size))
    assert dense.std() == pytest.approx(expected, rel=0.05)
    assert coarse.std() == pytest.approx(expected, rel=0.05)
    assert abs(coarse.mean()) < 0.1 * expected
    for lag in (sigma, 2 * sigma):
        assert correlation(coarse, lag) == pytest.approx(np.exp(-((lag / sigma) ** 2) / 4), abs=0.05)
        assert correlation(coarse, lag) == pytest.approx(correlation(dense, lag), abs=0.05)


def test_elastic_field_is_equally_wild_everywhere():
    """No wave of the control points' distance shows in the variance; without their random offset it is 4 %."""
    sigma, size = 6, (52, 30)  # five steps of the control points
    variance = displacements(size, alpha=200, sigma=sigma, num=1000).var((0, 2))
    wave = np.exp(2j * np.pi * np.arange(size[0]) / (np.sqrt(3) * sigma))
    assert 2 * abs((variance / variance.mean() * wave).mean()) < 0.02


def test_elastic_amplitude_of_the_known_default():
    """Two voxels in 3D, three in a plane: what the ranges 0-900 and 0-200 mean at most, sigma 11."""
    assert augmentation.elastic_std(900, 11, 3) == pytest.approx(2.13, abs=0.01)
    assert augmentation.elastic_std(200, 11, 2) == pytest.approx(2.96, abs=0.01)


def test_a_matrix_in_an_elastic_warp_moves_the_points_as_in_an_affine_warp():
    matrix = 1.2 * augmentation.rotation_matrix((10.0, -5.0, 15.0))
    for size, m in (((20, 14, 9), matrix), ((20, 14), matrix[:2, :2])):
        still = augmentation.elastic_warp(size, m, 0.0, 5.0, np.random.RandomState(0))
        a, b = (augmentation.warp_points(w)[0] for w in (still, augmentation.affine_warp(size, m)))
        np.testing.assert_allclose(a, b, atol=1e-4)


# Labels


@pytest.mark.parametrize("slice_axis", [None, 0, 2])
def test_no_label_appears_that_was_not_there(slice_axis):
    data = case((30, 34, 32), labels=(0, 3, 7, 200))
    transform = crop((24, 24, 24), slice_axis=slice_axis, **ALL)
    for _ in range(5):
        assert set(np.unique(transform(data)["label"])) <= {0, 3, 7, 200}


@pytest.mark.parametrize("slice_axis", [None, 0, 1, 2])
def test_labels_stay_on_the_image(slice_axis):
    """An image that is its own label map, thresholded halfway after the warp, gives the warped label map."""
    label = blobs((40, 44, 42), labels=(0, 1))
    data = {"image": label.astype(np.float32), "label": label, "center": (20, 22, 21)}
    transform = crop((24, 24, 28), slice_axis=slice_axis, **ALL)
    for _ in range(5):
        patch = transform(data)
        sure = (patch["image"] - 0.5).abs() > 0.01
        assert sure.float().mean() > 0.95
        assert torch.equal((patch["image"] > 0.5)[sure], (patch["label"] == 1)[sure])


def test_several_label_maps_and_channels_are_warped_alike():
    data = case((30, 34, 32), channels=3)
    data["image"] = np.concatenate([data["image"][:1]] * 3)
    data["lowres"] = np.concatenate([data["label"]] * 2)
    for slice_axis in (None, 1):
        patch = crop((20, 24, 16), keys=("image", "label", "lowres"), slice_axis=slice_axis, **ALL)(data)
        assert all(torch.equal(patch["image"][0], channel) for channel in patch["image"])
        assert all(torch.equal(patch["label"][0], channel) for channel in patch["lowres"])


# Slice by slice, and planes


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slicewise_warp_leaves_slices_unmixed(axis):
    """Each slice holds its own number, so a mixture of two slices would show; the label shows its own slice too."""
    shape = [40, 40, 40]
    numbers = np.arange(40).reshape([-1 if a == axis else 1 for a in range(3)])
    volume = np.broadcast_to(numbers, shape)[None]
    patch_size = [24 if a != axis else 10 for a in range(3)]
    data = {"image": volume.astype(np.float32), "label": volume.astype(np.uint8), "center": (20, 20, 20)}
    patch = crop(patch_size, slice_axis=axis, rotation_degrees=20, **ALL)(data)
    expected = np.broadcast_to(numbers, shape)[tuple(slice(20 - n // 2, 20 + n // 2) for n in patch_size)]
    np.testing.assert_allclose(patch["image"][0], expected, atol=1e-3)
    np.testing.assert_array_equal(patch["label"][0], expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_all_slices_share_one_warp_which_is_that_of_a_plane(axis):
    plane = case((40, 44), channels=2)
    volume = {key: np.stack([plane[key]] * 6, axis + 1) for key in ("image", "label")}
    center = list(plane["center"])
    center.insert(axis, 3)
    size = [24, 20]
    size.insert(axis, 6)
    patch = crop(size, slice_axis=axis, **ALL)(volume | {"center": tuple(center)})
    flat = crop((24, 20), **ALL)(plane)
    for key in ("image", "label"):
        for piece in patch[key].unbind(axis + 1):
            torch.testing.assert_close(piece, flat[key], atol=1e-4, rtol=0)


def test_in_a_plane_and_slicewise_the_numbers_of_the_plane_are_the_default():
    for transform in (RandCropWarpd("image", (8, 8)), RandCropWarpd("image", (8, 8, 8), slice_axis=0)):
        assert transform.rotation_degrees == (180.0,)
        assert transform.elastic_alpha == (0.0, 200.0)
    volume = RandCropWarpd("image", (8, 8, 8))
    assert volume.rotation_degrees == (15.0, 15.0, 15.0)
    assert volume.elastic_alpha == (0.0, 900.0)


# What is read


def test_plain_crop_reads_the_patch_in_one_go():
    array = CountingArray(smooth_image((40, 45, 30)))
    crop((16, 24, 16), keys="image", **OFF)({"image": array, "center": (20, 20, 20)})
    assert array.reads == [(slice(None), slice(12, 28), slice(8, 32), slice(12, 28))]


@pytest.mark.parametrize("slice_axis", [None, 0])
def test_warp_reads_only_the_box_it_needs(slice_axis):
    """Every face of the box that is read is used: the points come within one voxel of it."""
    array = CountingArray(smooth_image((80, 80, 80)))
    transform = crop((16, 24, 20), keys="image", slice_axis=slice_axis, **ALL)
    transform({"image": array, "center": (40, 40, 40)})
    (read,) = array.reads
    _, low, high = augmentation.warp_points(transform._warp)
    for i, axis in enumerate(transform.warped_axes):
        middle = 40 - transform.patch_size[axis] // 2 + (transform.patch_size[axis] - 1) / 2
        assert 0 <= low[i] + middle - read[axis + 1].start < 1
        assert 0 < read[axis + 1].stop - (high[i] + middle) <= 2
    if slice_axis == 0:
        assert read[1] == slice(32, 48)


def test_no_border_shows_in_the_patch_where_the_image_is_large_enough():
    data = {"image": np.ones((1, 90, 90, 90), np.float32), "label": np.ones((1, 90, 90, 90), np.uint8)}
    data["center"] = (45, 45, 45)
    for kinds in ({}, {"slice_axis": 1}):
        transform = crop((32, 32, 32), **kinds, **ALL)
        for _ in range(5):
            patch = transform(data)
            torch.testing.assert_close(patch["image"], torch.ones(1, 32, 32, 32), atol=1e-5, rtol=0)
            assert (patch["label"] == 1).all()


def test_outside_the_image_there_is_zero():
    data = {"image": np.ones((1, 10, 10, 10), np.float32), "label": np.ones((1, 10, 10, 10), np.uint8)}
    data["center"] = (5, 5, 5)
    patch = crop((32, 32, 32), **ALL)(data)
    assert patch["image"][0, 0].abs().max() == 0
    assert patch["image"].max() == 1
    assert 400 < patch["label"].sum() < 2500
    assert patch["label"][0, 0].max() == 0


# Random state


def test_a_seed_repeats_the_patches_and_another_gives_others():
    data = case((30, 34, 32))
    first, again, other = (
        [crop_(data)["image"] for _ in range(5)]
        for crop_ in (
            crop((16, 16, 16), seed=1, **ALL),
            crop((16, 16, 16), seed=1, **ALL),
            crop((16, 16, 16), seed=2, **ALL),
        )
    )
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1])


def test_transforms_can_be_pickled_for_worker_processes():
    data = case((30, 34, 32))
    transform = crop((16, 16, 16), **ALL)
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(transform(data)["image"], copy(data)["image"])


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 20), min_size=2, max_size=3),
    data=st.data(),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_image_gives_a_patch_of_the_planned_size(shape, data, seed):
    size = data.draw(st.lists(st.integers(1, 16), min_size=len(shape), max_size=len(shape)))
    center = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    slice_axis = data.draw(st.sampled_from([None, 0, 1, 2])) if len(shape) == 3 else None
    image = np.random.default_rng(seed).uniform(1, 2, (2, *shape)).astype(np.float32)
    label = np.random.default_rng(seed).integers(0, 3, (1, *shape)).astype(np.uint8)
    patch = crop(size, seed=seed, slice_axis=slice_axis, **ALL)({"image": image, "label": label, "center": center})
    assert patch["image"].shape == (2, *size)
    assert patch["label"].shape == (1, *size)
    assert patch["image"].isfinite().all()
    assert patch["image"].min() >= 0
    assert patch["image"].max() <= 2.001
    assert patch["label"].max() < 3


# Gamma


def gamma(image, seed=0, **kwargs):
    transform = RandGammad("image", **{"prob": 1.0} | kwargs)
    transform.set_random_state(seed=seed)
    return transform({"image": torch.from_numpy(image)})["image"]


def test_gamma_keeps_mean_and_standard_deviation_of_every_channel():
    image = smooth_image((20, 20, 20), channels=3) * np.float32([[[[1]]], [[[50]]], [[[0.01]]]]) + 7
    out = gamma(image)
    assert not torch.allclose(out, torch.from_numpy(image), rtol=1e-3)
    for x, y in zip(torch.from_numpy(image), out, strict=True):
        assert y.mean().item() == pytest.approx(x.mean().item(), rel=1e-5)
        assert y.std().item() == pytest.approx(x.std().item(), rel=1e-2 if x.std() < 1 else 1e-4)


def test_gamma_curve_is_the_power_of_the_scaled_image():
    x = smooth_image((16, 16, 16))[0]
    curve = (x - x.min()) / (x.max() - x.min())
    expected = (curve**1.3 - (curve**1.3).mean()) / (curve**1.3).std() * x.std() + x.mean()
    np.testing.assert_allclose(augmentation.gamma_curve(torch.from_numpy(x), 1.3), expected, atol=1e-4)


def test_gamma_touches_channels_independently():
    """Another channel changes nothing; and each channel has its own gamma."""
    image = smooth_image((16, 16, 16), channels=2)
    other = image.copy()
    other[1] *= 100
    assert torch.equal(gamma(image)[0], gamma(other)[0])
    twins = gamma(np.stack([image[0], image[0]]))
    assert not torch.allclose(twins[0], twins[1], atol=1e-3)


def test_gamma_keeps_the_order_of_values_and_constant_channels():
    image = smooth_image((16, 16, 16), channels=2)
    image[1] = 3
    out = gamma(image)
    order = np.argsort(image[0].ravel())
    assert (np.diff(out[0].numpy().ravel()[order]) >= -1e-5).all()
    np.testing.assert_array_equal(out[1], image[1])


def test_gamma_is_drawn_with_its_probability_from_both_sides_of_one():
    transform = RandGammad("image")
    transform.set_random_state(seed=0)
    drawn = []
    for _ in range(3000):
        transform.randomize(1)
        drawn.append(transform._gammas)
    gammas = np.array([g[0] for g in drawn if g])
    assert len(gammas) / 3000 == pytest.approx(0.3, abs=0.03)
    assert (gammas < 1).mean() == pytest.approx(0.5, abs=0.05)
    assert 0.7 <= gammas.min() < 0.71
    assert 1.49 < gammas.max() <= 1.5


# Mirroring


def test_mirroring_flips_image_and_label_together_half_of_the_time_on_each_axis():
    label = np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2)
    data = {"image": torch.from_numpy(label.astype(np.float32)), "label": torch.from_numpy(label)}
    transform = RandMirrord(["image", "label"])
    transform.set_random_state(seed=0)
    counts = np.zeros(8)
    for _ in range(1600):
        out = transform(data)
        assert torch.equal(out["image"].to(torch.uint8), out["label"])
        assert out["image"].is_contiguous()
        counts[int(out["label"][0, 0, 0, 0])] += 1  # the corner that came to the front says which axes were flipped
    assert counts.min() / 1600 > 1 / 8 - 0.03
    assert counts.max() / 1600 < 1 / 8 + 0.03


def test_mirroring_can_be_limited_to_some_axes():
    data = {"image": torch.arange(8.0).reshape(1, 2, 2, 2)}
    out = RandMirrord("image", prob=1.0, axes=(2,))(data)
    assert torch.equal(out["image"], data["image"].flip(3))
    assert torch.equal(RandMirrord("image", prob=0.0)(data)["image"], data["image"])
