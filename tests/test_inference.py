"""The sliding window: true to its input, symmetric, along any slice axis."""

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.inference import MirroredWindowInferer

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
