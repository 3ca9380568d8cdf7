"""The sliding window: true to its input, symmetric, along any slice axis."""

import itertools

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY_PLAN, nearest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from scripts import inferers
from scripts.blocks import cut
from scripts.inferers import CascadeInferer, MeanInferer, MirroredWindowInferer
from scripts.networks import window_size
from scripts.resampling import resampled_shape

HALF = {"rtol": 0, "atol": 1e-3}
"""Tolerance of probabilities that are kept as float16."""


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


class Recorder(torch.nn.Module):
    """Calls a function, and counts how often."""

    def __init__(self, function):
        super().__init__()
        self.function, self.shapes = function, []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return self.function(x)


def log_softmax_of_channels(x):
    """The identity: the probabilities of this network are those that the input holds."""
    return x.clamp_min(1e-30).log()


SIZES = {
    "many windows": ((1, 3, 37, 30, 25), (16, 16, 8)),
    "one window": ((1, 3, 16, 16, 8), (16, 16, 8)),
    "smaller than the window": ((1, 3, 9, 30, 5), (16, 16, 8)),
    "one voxel": ((1, 3, 1, 1, 1), (8, 8, 8)),
    "two images": ((2, 3, 20, 9, 11), (8, 8, 8)),
    "slices": ((1, 3, 37, 30, 5), (16, 8)),
    "slices smaller than the window": ((1, 3, 11, 30, 5), (16, 16)),
    "slices of two images": ((2, 3, 11, 12, 5), (8, 8)),
}


@pytest.mark.parametrize(("shape", "patch_size"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("mirror", [True, False], ids=["mirrored", "plain"])
def test_the_identity_gives_its_input(shape, patch_size, slice_axis, mirror) -> None:
    probabilities = noise(*shape).softmax(1)
    pred = MirroredWindowInferer(patch_size, slice_axis, mirror)(probabilities, log_softmax_of_channels)
    assert pred.dtype == torch.float16
    torch.testing.assert_close(pred.float(), probabilities, **HALF)


@pytest.mark.parametrize(("shape", "patch_size"), SIZES.values(), ids=SIZES)
def test_probabilities_add_up_to_1(shape, patch_size) -> None:
    weights = noise(4, shape[1], seed=1)

    def network(x):
        return torch.einsum("oc,bc...->bo...", weights, x) + x.cumsum(2).sum(1, keepdim=True) * 0.1

    pred = MirroredWindowInferer(patch_size)(noise(*shape), network)
    assert pred.shape == (shape[0], 4, *shape[2:])
    torch.testing.assert_close(pred.float().sum(1), torch.ones(shape[0], *shape[2:]), **HALF)
    assert float(pred.min()) >= 0


def depends_on_place(x):
    """Logits of two classes that depend on the place in the window, and on the neighbour along every axis."""
    place = sum(torch.arange(n).reshape(-1, *[1] * (x.ndim - 3 - i)) * 0.1 * (i + 1) for i, n in enumerate(x.shape[2:]))
    neighbours = sum(x.roll(1, axis) for axis in range(2, x.ndim))
    return torch.cat([x[:, :1] + place, neighbours[:, :1]], 1)


@pytest.mark.parametrize("patch_size", [(8, 8), (8, 8, 8)], ids=["2D", "3D"])
def test_mirroring_averages_the_probabilities_of_all_mirrorings(patch_size) -> None:
    x = noise(1, 1, *patch_size)
    window = x if len(patch_size) == 3 else x[..., None]
    pred = MirroredWindowInferer(patch_size)(window, depends_on_place).reshape(1, 2, *patch_size).float()
    axes = range(2, x.ndim)
    flips = [f for n in range(len(patch_size) + 1) for f in itertools.combinations(axes, n)]
    expected = torch.stack([depends_on_place(x.flip(f)).softmax(1).flip(f) for f in flips]).mean(0)
    torch.testing.assert_close(pred, expected, **HALF)
    assert not torch.allclose(pred, depends_on_place(x).softmax(1), atol=1e-3)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_mirrored_image_has_a_mirrored_prediction(axis) -> None:
    """Also with many windows: 24 voxels are covered by windows of 8 that lie symmetrically."""
    infer, x = MirroredWindowInferer((8, 8, 8)), noise(1, 1, 24, 16, 8)
    torch.testing.assert_close(infer(x.flip(axis), depends_on_place), infer(x, depends_on_place).flip(axis))
    plain = MirroredWindowInferer((8, 8, 8), mirror=False)
    assert not torch.allclose(plain(x.flip(axis), depends_on_place), plain(x, depends_on_place).flip(axis), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "patch_size", "mirror", "calls"),
    [
        ((1, 1, 8, 8, 8), (8, 8, 8), True, 8),
        ((1, 1, 8, 8, 8), (8, 8, 8), False, 1),
        ((1, 1, 12, 8, 8), (8, 8, 8), True, 16),
        ((1, 1, 16, 8, 8), (8, 8, 8), False, 3),
        ((1, 1, 16, 16, 16), (8, 8, 8), False, 27),
        ((1, 1, 8, 8, 5), (8, 8), True, 20),
        ((1, 1, 12, 8, 5), (8, 8), False, 10),
        ((1, 1, 3, 4, 5), (8, 8, 8), False, 1),
    ],
    ids=["3D", "3D plain", "a window and a half", "two windows", "a cube of two", "2D", "2D plain", "small"],
)
def test_neighbours_overlap_by_half(shape, patch_size, mirror, calls) -> None:
    """Along an axis of w windows' length there are 2 w - 1 of them, each seen once for every mirroring."""
    network = Recorder(log_softmax_of_channels)
    MirroredWindowInferer(patch_size, mirror=mirror)(noise(*shape).sigmoid(), network)
    assert network.shapes == [(1, 1, *patch_size)] * calls


def test_windows_are_weighted_by_a_gaussian() -> None:
    """Two windows, 0 to 7 and 4 to 11, that say A and B: in the overlap B's part rises from centre to centre."""
    answers = iter([torch.tensor([0.0, -99.0]), torch.tensor([-99.0, 0.0])])

    def network(x):
        return next(answers).reshape(1, 2, 1, 1, 1).expand(1, 2, *x.shape[2:])

    pred = MirroredWindowInferer((8, 8, 8), mirror=False)(noise(1, 1, 12, 8, 8), network)[0, 1, :, 4, 4].float()
    assert pred[:4].max() < 1e-6
    assert pred[8:].min() > 1 - 1e-3
    assert (pred[4:8].diff() > 0.05).all()
    distance_squared = [(torch.arange(4.0) + offset) ** 2 for offset in (0.5, -3.5)]
    a, b = (torch.exp(-d / (2 * (8 * 0.125) ** 2)).clamp_min(1e-3) for d in distance_squared)
    torch.testing.assert_close(pred[4:8], b / (a + b), atol=0.02, rtol=0)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_are_predicted_one_by_one(slice_axis) -> None:
    x, infer = noise(2, 1, 12, 11, 10), MirroredWindowInferer((8, 8), slice_axis)
    pred = infer(x, depends_on_place)
    plane = MirroredWindowInferer((8, 8), 2)
    for number in range(x.shape[slice_axis + 2]):
        alone = plane(x.select(slice_axis + 2, number)[..., None], depends_on_place)[..., 0]
        torch.testing.assert_close(pred.select(slice_axis + 2, number), alone)


def test_each_batch_item_is_its_own() -> None:
    x = noise(2, 1, 12, 11, 10)
    for infer in (MirroredWindowInferer((8, 8, 8)), MirroredWindowInferer((8, 8))):
        both = infer(x, depends_on_place)
        for number in range(2):
            torch.testing.assert_close(both[number : number + 1], infer(x[number : number + 1], depends_on_place))


@pytest.mark.parametrize("patch_size", [(8, 8), (8, 8, 8)], ids=["2D", "3D"])
def test_a_meta_tensor_stays_one(patch_size) -> None:
    """The inversion of the preprocessing passes over a prediction without geometry."""
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    x = MetaTensor(noise(1, 1, 10, 9, 8), affine=affine)
    pred = MirroredWindowInferer(patch_size)(x, depends_on_place)
    assert isinstance(pred, MetaTensor)
    assert pred.shape == (1, 2, 10, 9, 8)
    torch.testing.assert_close(pred.affine.reshape(4, 4), affine)


def test_the_input_is_not_written_to() -> None:
    x = noise(1, 1, 10, 9, 8)
    before = x.clone()
    MirroredWindowInferer((8, 8, 8))(x, depends_on_place)
    assert torch.equal(x, before)


# The same windows, weights and padding as MONAI's own sliding window, which keeps everything in float32.


def probabilities_of_place(x):
    return depends_on_place(x).softmax(1)


AXES = st.lists(st.tuples(st.integers(1, 30), st.sampled_from([4, 7, 8, 12])), min_size=3, max_size=3)


@given(AXES, st.sampled_from([0.5, 0.25, 0.0]), st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_equals_the_stock_sliding_window(axes, overlap, sw_batch_size) -> None:
    shape, patch = zip(*axes, strict=True)
    x = noise(2, 1, *shape)
    stock = SlidingWindowInferer(window_size(shape, patch), 3, overlap, mode="gaussian")
    lean = MirroredWindowInferer(patch, mirror=False, overlap=overlap, sw_batch_size=sw_batch_size)
    torch.testing.assert_close(lean(x, depends_on_place).float(), stock(x, probabilities_of_place), **HALF)


@given(AXES, st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_equals_the_stock_sliding_window_on_slices(axes, slice_axis) -> None:
    shape, patch = zip(*axes, strict=True)
    plane_shape = [n for axis, n in enumerate(shape) if axis != slice_axis]
    stock = SlidingWindowInferer(window_size(plane_shape, patch[:2]), 4, 0.5, mode="gaussian")
    x = noise(1, 1, *shape)
    found = MirroredWindowInferer(patch[:2], slice_axis, mirror=False, sw_batch_size=5)(x, depends_on_place).float()
    for number in range(shape[slice_axis]):
        plane = stock(x.select(slice_axis + 2, number), probabilities_of_place)
        torch.testing.assert_close(found.select(slice_axis + 2, number), plane, **HALF)


WINDOWS = {
    "as large as the patch": ((40, 56, 40), (40, 56, 40), (40, 56, 40)),
    "larger": ((90, 57, 41), (40, 56, 40), (40, 56, 40)),
    "smaller, up to the next multiple": ((33, 41, 24), (40, 56, 40), (40, 48, 24)),
    "never less than two voxels of the deepest level": ((1, 7, 15), (40, 56, 40), (16, 16, 16)),
    "a patch that is a power of two": ((30, 70, 128), (128, 128, 128), (128, 128, 128)),
    "a plane": ((35, 49), (40, 56), (40, 56)),
    "poolings that differ": ((100, 100, 20), (160, 192, 56), (128, 128, 24)),
}


@pytest.mark.parametrize(("size", "patch", "window"), WINDOWS.values(), ids=WINDOWS)
def test_windows_of_small_images(size, patch, window) -> None:
    assert tuple(window_size(list(size), list(patch))) == window


class Members(torch.nn.Module):
    """What the inferers see of a module with networks in lists."""

    def __init__(self, **lists):
        super().__init__()
        for name, functions in lists.items():
            setattr(self, name, torch.nn.ModuleList([Recorder(f) for f in functions]))


@pytest.mark.parametrize("patch_size", [(8, 8), (8, 8, 8)], ids=["2D", "3D"])
def test_several_networks_are_averaged(patch_size) -> None:
    functions = [depends_on_place, lambda x: -depends_on_place(x), lambda x: 3 * depends_on_place(x)]
    x, infer = noise(1, 1, 12, 11, 10), MirroredWindowInferer(patch_size, member="folds")
    expected = torch.stack([infer(x, Members(folds=[f])).float() for f in functions]).mean(0)
    torch.testing.assert_close(infer(x, Members(folds=functions)).float(), expected, **HALF)


def test_several_inferers_are_averaged() -> None:
    x, functions = noise(1, 1, 12, 11, 10), (depends_on_place, lambda x: -2 * depends_on_place(x))
    module = Members(planes=[functions[0]], volumes=[functions[1]])
    parts = [MirroredWindowInferer((8, 8), member="planes"), MirroredWindowInferer((8, 8, 8), member="volumes")]
    each = [infer(x, module) for infer in parts]
    found = MeanInferer(parts)(x, module)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), torch.stack(each).float().mean(0), **HALF)
    assert torch.equal(MeanInferer(parts[:1])(x, module), each[0])


def test_sums_are_kept_for_open_rows_only(monkeypatch) -> None:
    """Of an image of 400 rows and 5 classes, 8 rows of float32; finished rows are given away, 4 at a time."""
    made = []

    class Sums(inferers._Sums):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(inferers, "_Sums", Sums)
    probabilities = noise(5, 9, 400, 7).softmax(0)
    infer = MirroredWindowInferer((8, 8, 8), mirror=False)
    assert infer.best_axis((9, 400, 7)) == 1
    parts = list(infer.rows(probabilities, log_softmax_of_channels, 1))
    assert [tuple(part.shape) for part in parts] == [(5, 4, 9, 7)] * 98 + [(5, 8, 9, 7)]
    torch.testing.assert_close(torch.cat(parts, 1).movedim(1, 2).float(), probabilities, **HALF)
    [sums] = made
    assert (sums.sums.shape, sums.sums.dtype) == ((1, 5, 8, 9, 7), torch.float32)
    assert (sums.weights.shape, sums.weights.dtype) == ((8, 9, 7), torch.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(37, 30, 25), (9, 30, 5), (1, 1, 1)], ids=str)
def test_rows_along_any_axis_are_the_same(shape, axis) -> None:
    """But for the order of sums, which float16 may show."""
    image, infer = noise(2, *shape), MirroredWindowInferer((16, 8, 8))
    found = torch.cat(list(infer.rows(image, depends_on_place, axis)), 1).movedim(1, axis + 1)
    torch.testing.assert_close(found.float(), infer(image[None], depends_on_place)[0].float(), **HALF)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("patch_size", "calls"), [((8, 8, 8), 8 * 5), ((8, 8), 4 * 5 * 8)], ids=["3D", "2D"])
def test_windows_of_one_value_are_predicted_once(patch_size, calls, batch) -> None:
    """Zeros at one end of an image, ones at the other, noise between: the same as where each window is predicted."""
    image = torch.cat([torch.zeros(1, 24, 8, 8), noise(1, 8, 8, 8), torch.ones(1, 24, 8, 8)], 1)
    network = Recorder(depends_on_place)
    infer = MirroredWindowInferer(patch_size, 2, sw_batch_size=batch)
    found = infer(image[None], network)
    assert sum(shape[0] for shape in network.shapes) <= calls, "3 of 13 windows are mixed, 2 are of one value"
    distinct = image[None] + 1e-7 * noise(*image.shape)
    expected = infer(distinct, Recorder(depends_on_place))
    torch.testing.assert_close(found.float(), expected.float(), **HALF)


def test_values_are_told_apart() -> None:
    seen = []
    predict = inferers._Predictor(lambda x: (seen.append(len(x)), x.clone())[1])
    values = [0.0, 1.0, 0.0, 0.0, 2.0, 0.0]
    for windows in (torch.tensor(values), torch.tensor([2.0, 0.0, 3.0, 2.0])):
        given = windows.reshape(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2).contiguous()
        outputs = predict(given)
        assert [float(out.mean()) for out in outputs] == windows.tolist()
        for out in outputs:
            out.zero_()
    assert seen == [3, 2], "of 0, 1 and 2 the last one is kept"


BLOCKS = {
    "volume": (MirroredWindowInferer((8, 16, 8), sw_batch_size=2), (23, 17, 30), 0),
    "narrower than the window": (MirroredWindowInferer((16, 16, 16), mirror=False), (20, 7, 11), 0),
    "little overlap": (MirroredWindowInferer((8, 8, 8), mirror=False, overlap=0.25), (9, 30, 19), 2),
    "slices, cut in the plane's first axis": (MirroredWindowInferer((8, 16), 2, sw_batch_size=3), (30, 17, 5), 2),
    "slices, cut in the plane's second axis": (MirroredWindowInferer((8, 16), 1, sw_batch_size=3), (9, 5, 30), 1),
    "mean": (MeanInferer([MirroredWindowInferer((8, 8), 0), MirroredWindowInferer((8, 8, 8))]), (6, 12, 21), 0),
}


@pytest.mark.parametrize("num", [2, 5])
@pytest.mark.parametrize(("infer", "shape", "axis"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_parts_of_the_whole_bit_by_bit(infer, shape, axis, num) -> None:
    """And what is said to be kept and seen is what is kept and seen."""
    network, image = Recorder(depends_on_place), noise(1, *shape)
    whole = torch.cat(list(infer.rows(image, network, axis)), 1).movedim(1, axis + 1)
    assert len(network.shapes) > 0
    blocks = cut([shape], axis, num)
    assert len(blocks) == num
    network.shapes.clear()
    for block, rows in zip(blocks, infer.blocks(image, network, axis, blocks), strict=True):
        found = torch.cat(list(rows), 1).movedim(1, axis + 1)
        assert torch.equal(found, whole.movedim(block.axis + 1, 0)[block.spans[0]].movedim(0, block.axis + 1))
        part = block.spans[0].stop - block.spans[0].start
        assert infer.open_voxels(shape, axis, block) == infer.open_voxels(shape, axis) * part / shape[block.axis]
    passes = {True: 8, False: 1}.get(getattr(infer, "mirror", None), 0)
    if passes and not getattr(infer, "slice_axis", None):
        assert sum(seen[0] for seen in network.shapes) == passes * infer.windows(shape, blocks)


def test_slices_are_windows_too() -> None:
    infer = MirroredWindowInferer((8, 8), 1)
    assert infer.windows((20, 5, 12), cut([(20, 5, 12)], 1)) == 5 * 4 * 2
    assert infer.windows((20, 5, 12), cut([(20, 5, 12)], 1, 2)) == 5 * (3 + 3) * 2, "2 of 4 lie across the cut"
    pair = [MirroredWindowInferer((8, 8), 1, member=name) for name in "ab"]
    assert MeanInferer(pair).windows((20, 5, 12), cut([(20, 5, 12)], 1)) == 2 * 5 * 4 * 2


# The cascade.


SPACING, LOW_SPACING = (1.5, 1.25, 2.0), (3.0, 2.5, 2.0)


def cascade(num_classes=3, lowres_patch=(8, 8, 8), patch=(8, 8, 8)):
    return CascadeInferer(
        MirroredWindowInferer(lowres_patch, mirror=False, member="lowres"),
        MirroredWindowInferer(patch, mirror=False, member="cascade", num_classes=num_classes),
        SPACING,
        LOW_SPACING,
    )


class Witness:
    """An inferer that keeps the images that it is given."""

    def __init__(self, inferer):
        self.inferer, self.seen = inferer, []

    def best_axis(self, shape):
        return self.inferer.best_axis(shape)

    def blocks(self, image, network, axis, blocks):
        self.seen.append(image)
        return self.inferer.blocks(image, network, axis, blocks)


def three_classes(x):
    """Logits of three classes, each of which wins somewhere."""
    return torch.cat([x[:, :1] * 0 + 0.3, x[:, :1], -2 * x[:, :1]], 1)


@pytest.mark.parametrize("shape", [(17, 16, 9), (12, 11, 10), (5, 4, 3), (1, 1, 1), (33, 8, 8)], ids=str)
def test_the_first_stage_is_enlarged_by_nearest_neighbour(shape) -> None:
    infer, module = cascade(), Members(lowres=[three_classes])
    infer.lowres = low = Witness(infer.lowres)
    found = infer.first_stage(noise(2, 1, *shape), module)
    assert (found.shape, found.dtype) == ((2, 1, *shape), torch.uint8)
    for item, image in zip(found, low.seen, strict=True):
        assert tuple(image.shape[1:]) == resampled_shape(shape, SPACING, LOW_SPACING)
        labels = low.inferer(image[None], module)[0].argmax(0)
        np.testing.assert_array_equal(item[0], nearest(labels.numpy(), shape))


def test_the_second_stage_sees_the_foreground_of_the_first() -> None:
    """One patch, so what the network sees is the whole image and, behind it, a channel for each foreground class."""
    module, x = Members(lowres=[three_classes], cascade=[three_classes]), noise(1, 2, 8, 8, 8)
    seen = []
    module.cascade[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    infer = cascade()
    pred = infer(x, module)
    assert pred.shape == (1, 3, 8, 8, 8)
    [both] = seen
    first = infer.first_stage(x, module)
    assert set(first.unique().tolist()) == {0, 1, 2}
    assert torch.equal(both, torch.cat([x, (first == 1).float(), (first == 2).float()], 1))


def test_windows_of_the_second_stage_see_their_part_of_the_first() -> None:
    """A second stage that repeats its channels but the image: where the first one says 1, class 1 beats class 2."""
    module = Members(lowres=[three_classes], cascade=[lambda x: torch.cat([x[:, :1] * 0, 9 * x[:, 1:]], 1)])
    infer, x = cascade(), noise(1, 1, 30, 9, 5)
    pred, first = infer(x, module), infer.first_stage(x, module)
    torch.testing.assert_close(pred.argmax(1, keepdim=True), first.long())


@pytest.mark.parametrize("num", [2, 5, 40])
def test_both_stages_in_blocks_are_the_same(num) -> None:
    """The first stage has fewer voxels than blocks in the last case."""
    module = Members(lowres=[three_classes], cascade=[lambda x: x.roll(1, 2) + x.flip(1)])
    infer, shape = cascade(), (30, 33, 12)
    image, blocks = noise(1, *shape), cut([shape], 0, num)
    whole = torch.cat(list(infer.rows(image, module, 0)), 1).movedim(1, 1)
    for block, rows in zip(blocks, infer.blocks(image, module, 0, blocks), strict=True):
        assert torch.equal(torch.cat(list(rows), 1), whole[:, :, block.spans[0]])
    assert infer.windows(shape, blocks) > infer.windows(shape, cut([shape], 0))


def test_the_cascade_keeps_the_geometry() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    x = MetaTensor(noise(1, 1, 10, 9, 8), affine=affine)
    pred = cascade()(x, Members(lowres=[three_classes], cascade=[three_classes]))
    torch.testing.assert_close(pred.affine.reshape(4, 4), affine)
    assert pred.dtype == torch.float16


IMAGES = {
    "even": ((22, 20, 12), (1.5, 1.25, 2.0)),
    "odd": ((23, 17, 11), (1.25, 1.0, 2.0)),
    "finer than planned": ((31, 29, 21), (0.77, 0.61, 1.3)),
    "coarser than planned": ((9, 7, 13), (2.9, 3.1, 4.4)),
    "between the two": ((19, 21, 15), (2.2, 1.9, 2.0)),
    "half a voxel": ((15, 15, 5), (1.1, 1.7, 3.3)),
    "one slice": ((18, 14, 1), (1.3, 1.3, 5.0)),
}


@pytest.mark.parametrize(("shape", "spacing"), IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("config", ["train", "inference"])
def test_the_first_stage_sees_what_it_was_trained_on(shape, spacing, config, project, parse, tmp_path) -> None:
    """Bit by bit the array that the preprocessing of its own bundle makes of the image, whatever its spacing."""
    path = tmp_path / "image.nii.gz"
    rng = np.random.default_rng(0)
    array = rng.normal(50, 30, (*shape, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-spacing[0], *spacing[1:], 1.0])), path)
    bundles = project / "bundles" / TINY_PLAN.name
    own = parse(bundles / "3d_lowres", config).get_parsed_content("preprocessing")({"image": str(path)})["image"]
    full = parse(bundles / "3d_cascade_fullres", config).get_parsed_content("preprocessing")({"image": str(path)})
    infer = parse(bundles / "3d_cascade_fullres", "inference").get_parsed_content("inferer")
    infer.lowres = low = Witness(infer.lowres)
    segmentation = infer.first_stage(full["image"][None], Members(lowres=[three_classes]))
    assert torch.equal(low.seen[0], own.as_tensor())
    assert segmentation.shape[2:] == full["image"].shape[1:]
