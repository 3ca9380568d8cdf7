"""Random mistakes in a segmentation: exact operators, what becomes of the classes, what is drawn."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scripts import degradation
from scripts.degradation import OPERATORS, RandDegradeSegmentationd, morphology

ALWAYS = {"morphology_prob": 1.0, "removal_prob": 1.0}
MORPHOLOGY = {"morphology_prob": 1.0, "removal_prob": 0.0}
REMOVAL = {"morphology_prob": 0.0, "removal_prob": 1.0}


def ball(radius):
    """The structuring element, by its definition."""
    grid = np.mgrid[tuple(slice(-radius, radius + 1) for _ in range(3))]
    return (grid**2).sum(0) <= radius**2


def by_scipy(mask, operator, radius):
    """An operator as scipy has it: nothing outside for dilation, the outside is object for erosion."""
    for step in OPERATORS[operator]:
        if step == "dilate":
            mask = ndimage.binary_dilation(mask, ball(radius), border_value=0)
        else:
            mask = ndimage.binary_erosion(mask, ball(radius), border_value=1)
    return mask


def blobs(shape=(24, 20, 28), seed=0, levels=(0.4, 1.0)):
    """Label map (1, X, Y, Z) with regions of several voxels, as a tensor."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.5)
    return torch.from_numpy(np.digitize(smooth / smooth.std(), levels).astype(np.uint8)[None])


def boxes(*sizes, shape=(20, 20, 20)):
    """Label map whose class 1 has cubes of these edges, apart from each other along the first axis."""
    label_map = torch.zeros((1, *shape), dtype=torch.uint8)
    start = 0
    for edge in sizes:
        label_map[0, start : start + edge, :edge, :edge] = 1
        start += edge + 1
    return label_map


def transform(seed=0, **kwargs):
    return RandDegradeSegmentationd("lowres", **kwargs).set_random_state(seed=seed)


def degrade(label_map, seed=0, **kwargs):
    return transform(seed, **kwargs)({"lowres": label_map})["lowres"]


def with_changes(label_map, *changes):
    """A label map after these (label, operator, radius) instead of what would be drawn."""
    t = RandDegradeSegmentationd("lowres")
    t.randomize = lambda _: None
    t._changes = [degradation.Change(*c) for c in changes]
    return t({"lowres": label_map})["lowres"]


# The operators


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 70)),
    st.sampled_from(sorted(OPERATORS)),
    st.integers(1, 8),
    st.sampled_from([0.002, 0.05, 0.5, 0.95, 0.998]),
    st.integers(0, 2**32 - 1),
)
def test_operators_equal_scipy_with_the_ball(shape, operator, radius, density, seed):
    mask = np.random.default_rng(seed).random(shape) < density
    before = mask.copy()
    result = morphology(mask, operator, radius)
    assert result.dtype == bool
    np.testing.assert_array_equal(result, by_scipy(mask, operator, radius))
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("radius", [1, 5, 8])
@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_operators_equal_scipy_on_blobs_that_touch_the_border(operator, radius):
    mask = blobs((40, 33, 50))[0].numpy() > 0
    np.testing.assert_array_equal(morphology(mask, operator, radius), by_scipy(mask, operator, radius))


@pytest.mark.parametrize("size_z", [55, 56, 57, 63, 64, 65, 120, 121, 128])
def test_rows_around_the_length_of_a_word_do_not_leak_into_each_other(size_z):
    mask = np.zeros((3, 3, size_z), bool)
    mask[1, 1, [0, size_z - 1]] = True
    np.testing.assert_array_equal(morphology(mask, "dilate", 8), by_scipy(mask, "dilate", 8))


def test_a_single_voxel_becomes_the_ball_and_the_ball_a_single_voxel():
    for radius in (1, 2, 3, 8, 70):
        mask = np.zeros((3, 2 * radius + 1, 2 * radius + 1), bool)
        mask[1, radius, radius] = True
        grown = morphology(mask, "dilate", radius)
        np.testing.assert_array_equal(grown, ball(radius)[radius - 1 : radius + 2])
    point = np.zeros((17, 17, 17), bool)
    point[8, 8, 8] = True
    np.testing.assert_array_equal(morphology(ball(8), "erode", 8), point)


def test_the_border_of_the_patch_is_no_surface():
    half = np.zeros((16, 10, 12), bool)
    half[:8] = True
    for operator, planes in (("erode", 5), ("dilate", 11), ("open", 8), ("close", 8)):
        result = morphology(half, operator, 3)
        assert result[:planes].all(), operator
        assert not result[planes:].any(), operator
    assert morphology(np.ones((5, 6, 7), bool), "erode", 8).all()
    assert not morphology(np.zeros((5, 6, 7), bool), "close", 8).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_closing_takes_nothing_away_and_opening_adds_nothing(radius, density, seed):
    mask = np.random.default_rng(seed).random((13, 12, 14)) < density
    closed, opened = morphology(mask, "close", radius), morphology(mask, "open", radius)
    assert (closed | mask == closed).all()
    assert (opened & mask == opened).all()
    np.testing.assert_array_equal(morphology(closed, "close", radius), closed)
    np.testing.assert_array_equal(morphology(opened, "open", radius), opened)


# What becomes of the classes


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_a_class_takes_voxels_from_others_and_leaves_background(operator):
    label_map = blobs()
    before = label_map[0].numpy()
    mask = by_scipy(before == 1, operator, 2)
    expected = np.where((before == 1) & ~mask, 0, before)
    expected[mask] = 1
    np.testing.assert_array_equal(with_changes(label_map, (1, operator, 2))[0], expected)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 24)] * 3),
    st.sampled_from(sorted(OPERATORS)),
    st.integers(1, 5),
    st.tuples(*[st.integers(0, 23)] * 3),
    st.integers(0, 2**32 - 1),
)
def test_a_class_in_a_part_of_the_patch_is_changed_as_in_the_whole(shape, operator, radius, corner, seed):
    """The work is done in a box around the class, which must not be taken for the border of the patch."""
    label_map = np.zeros((1, *shape), np.uint8)
    part = label_map[(0, *(slice(min(c, n - 1), min(c, n - 1) + 6) for c, n in zip(corner, shape, strict=True)))]
    part[...] = np.random.default_rng(seed).random(part.shape) < 0.8
    after = with_changes(torch.from_numpy(label_map), (1, operator, radius))
    np.testing.assert_array_equal(after[0] == 1, by_scipy(label_map[0] == 1, operator, radius))


def test_later_classes_work_on_what_earlier_ones_left():
    label_map = torch.zeros((1, 5, 5, 20), dtype=torch.uint8)
    label_map[..., 4:9], label_map[..., 9:14] = 1, 2
    after = with_changes(label_map, (1, "dilate", 3), (2, "erode", 1))[0, 2, 2].tolist()
    assert after == [0] + [1] * 11 + [0] * 8
    after = with_changes(label_map, (2, "erode", 1), (1, "dilate", 3))[0, 2, 2].tolist()
    assert after == [0] + [1] * 11 + [2] + [0] * 7


def test_one_hot_channels_would_come_to_the_same():
    """One-hot channels, changed class by class: what one gains the others lose."""
    label_map = blobs(levels=(0.2, 0.6, 1.1))
    changes = [(2, "dilate", 3), (1, "close", 2), (3, "erode", 1)]
    channels = {label: label_map[0].numpy() == label for label in (1, 2, 3)}
    for label, operator, radius in changes:
        after = by_scipy(channels[label], operator, radius)
        channels = {k: after if k == label else v & ~(after & ~channels[label]) for k, v in channels.items()}
    result = with_changes(label_map, *changes)[0].numpy()
    for label, mask in channels.items():
        np.testing.assert_array_equal(result == label, mask)


def test_shape_dtype_and_the_rest_of_the_dict_are_kept_and_the_input_is_not_written_to():
    label_map = blobs()
    before = label_map.clone()
    data = {"lowres": label_map, "image": object(), "case": "a"}
    result = transform(**ALWAYS)(data)
    after = result["lowres"]
    assert after.dtype == torch.uint8
    assert after.shape == label_map.shape
    assert after.is_contiguous()
    assert not torch.equal(after, before)
    assert torch.equal(label_map, before)
    assert data["lowres"] is label_map
    assert {k: v for k, v in result.items() if k != "lowres"} == {k: data[k] for k in ("image", "case")}


def test_any_memory_order_and_arrays_give_the_same():
    label_map = blobs()
    turned = torch.from_numpy(np.asfortranarray(label_map.numpy()))
    results = [degrade(x, seed=3, **ALWAYS) for x in (label_map, turned, label_map.numpy())]
    assert all(torch.equal(r, results[0]) for r in results)


def test_empty_patches_stay_empty():
    for shape in ((1, 8, 9, 10), (1, 1, 1, 1)):
        empty = torch.zeros(shape, dtype=torch.uint8)
        assert torch.equal(degrade(empty, **ALWAYS), empty)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.lists(st.integers(1, 255), max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_no_label_appears_that_was_not_there(shape, labels, seed):
    label_map = np.random.default_rng(seed).choice(np.array([0, *labels], np.uint8), (1, *shape))
    result = degrade(torch.from_numpy(label_map), seed=seed, **ALWAYS)
    assert result.shape == label_map.shape
    assert set(np.unique(result)) <= {0, *np.unique(label_map)}


# Removal of components


def test_each_class_loses_one_component_and_nothing_else():
    label_map = boxes(2, 3, 4)
    label_map[0, :, 10:12, 10:12] = 3  # a single component of another class
    seen = set()
    for seed in range(30):
        after = degrade(label_map, seed, **REMOVAL)
        assert not (after == 3).any()
        lost = (label_map == 1) & (after != 1)
        seen.add(int(lost.sum()))
        assert (after[lost] == 0).all()
        assert ((after == 1) <= (label_map == 1)).all()
    assert seen == {8, 27, 64}, "each of the components, whole"


def test_only_components_below_the_fraction_are_removed():
    label_map = boxes(2, 6)  # 8 and 216 of 8000 voxels
    for fraction, sizes in ((216.5 / 8000, {8, 216}), (216 / 8000, {8}), (8 / 8000, {0})):
        seen = {
            int((label_map != degrade(label_map, seed, removal_fraction=fraction, **REMOVAL)).sum())
            for seed in range(20)
        }
        assert seen == sizes


def test_components_that_touch_at_a_corner_are_one():
    label_map = torch.zeros((1, 9, 9, 9), dtype=torch.uint8)
    label_map[0, 1:3, 1:3, 1:3] = 1
    label_map[0, 3:5, 3:5, 3:5] = 1
    assert not degrade(label_map, **REMOVAL).any()


def test_every_component_is_as_likely():
    label_map = boxes(1, 2, 3, 4)
    t = transform(**REMOVAL)
    sizes = [int((label_map != t({"lowres": label_map})["lowres"]).sum()) for _ in range(800)]
    counts = np.array([sizes.count(n) for n in (1, 8, 27, 64)])
    assert counts.sum() == 800
    assert (np.abs(counts - 200) < 4 * np.sqrt(800 * 0.25 * 0.75)).all()


def test_removal_comes_after_the_operators():
    """A bridge that opening cuts leaves two components of which one goes."""
    label_map = torch.zeros((1, 21, 9, 9), dtype=torch.uint8)
    label_map[0, 0:9], label_map[0, 12:21], label_map[0, :, 4, 4] = 1, 1, 1
    t = RandDegradeSegmentationd("lowres", removal_fraction=0.6)
    t.randomize = lambda _: None
    t._changes, t._removals = [degradation.Change(1, "open", 2)], [degradation.Removal(1, 0.7)]
    after = t({"lowres": label_map})["lowres"][0]
    assert after[:9].all()
    assert not after[10:].any()


def test_a_class_that_the_operators_wiped_out_has_nothing_to_remove():
    t = RandDegradeSegmentationd("lowres")
    t.randomize = lambda _: None
    t._changes, t._removals = [degradation.Change(1, "erode", 3)], [degradation.Removal(1, 0.5)]
    assert not t({"lowres": boxes(3, shape=(30, 9, 9))})["lowres"][0, 4:].any()


# What is drawn


def test_with_probability_0_nothing_is_changed_or_copied():
    label_map = blobs()
    for seed in range(10):
        assert degrade(label_map, seed, morphology_prob=0.0, removal_prob=0.0) is label_map


def test_kinds_are_drawn_as_often_as_their_own_probability_says():
    t, num = transform(), 4000
    both = np.zeros((2, 2), int)
    for _ in range(num):
        t.randomize([1, 2])
        both[int(bool(t._changes)), int(bool(t._removals))] += 1
    expected = np.outer([0.6, 0.4], [0.8, 0.2]) * num
    assert (np.abs(both - expected) < 4 * np.sqrt(num / 4)).all()


def test_every_class_present_is_changed_in_any_order_by_any_operator_and_radius():
    t, num = transform(**MORPHOLOGY), 2000
    orders, operators, radii = [], [], []
    for _ in range(num):
        t.randomize([1, 4, 7])
        orders.append(tuple(c.label for c in t._changes))
        operators += [c.operator for c in t._changes]
        radii += [c.radius for c in t._changes]
    for drawn, values in ((orders, 6), (operators, 4), (radii, 8)):
        names, counts = np.unique(np.array(drawn), axis=0, return_counts=True)
        assert len(names) == values
        assert (np.abs(counts - len(drawn) / values) < 5 * np.sqrt(len(drawn) / values)).all()
    assert set(radii) == set(range(1, 9)), "both ends included"
    assert all(sorted(order) == [1, 4, 7] for order in orders)


def test_a_fixed_radius_is_allowed_and_wrong_ones_are_named():
    t = transform(radius=(3, 3), **MORPHOLOGY)
    t.randomize([1, 2])
    assert {c.radius for c in t._changes} == {3}
    for wrong in ((0, 3), (4, 3), (1.5, 3), (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match="radius must be"):
            transform(radius=wrong)


def test_what_is_no_label_map_is_refused():
    with pytest.raises(TypeError, match=r"lowres: .* uint8, got float32"):
        degrade(torch.zeros(1, 4, 4, 4))
    for shape in ((4, 4, 4), (2, 4, 4, 4)):
        with pytest.raises(ValueError, match=r"lowres: .*\(1, X, Y, Z\)"):
            degrade(torch.zeros(shape, dtype=torch.uint8))


def test_a_missing_key_is_allowed_where_said():
    assert transform(allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError):
        transform()({"image": 1})


def test_a_seed_repeats_the_patches_and_another_gives_others():
    label_map = blobs()

    def run(seed):
        t = transform(seed, **ALWAYS)
        return torch.stack([t({"lowres": label_map})["lowres"] for _ in range(5)])

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_it_can_be_pickled_for_worker_processes():
    label_map, t = blobs(), transform(5, **ALWAYS)
    copy = pickle.loads(pickle.dumps(t))
    assert torch.equal(t({"lowres": label_map})["lowres"], copy({"lowres": label_map})["lowres"])
