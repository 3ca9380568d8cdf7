"""How far networks agree, and that counting it changes no probability."""

import itertools

import pytest
import torch
from monai.data import MetaTensor
from scripts.agreement import Agreement
from scripts.inferers import MeanInferer, MirroredWindowInferer
from scripts.inversion import LabelInferer


class Networks(torch.nn.Module):
    """Networks of three classes that differ by a threshold; by configuration."""

    def __init__(self, **thresholds):
        super().__init__()
        for name, some in thresholds.items():
            setattr(self, name, torch.nn.ModuleList([Thresholded(t) for t in some]))


class Thresholded(torch.nn.Module):
    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        return torch.cat([x * 0, 9 * (x - self.threshold), 9 * (-x - 2 * self.threshold)], 1)

    def labels(self, x):
        return self(x[None])[0].argmax(0)


def dice(maps) -> float:
    """Mean over pairs and classes, the long way."""
    pairs = []
    for a, b in itertools.combinations(maps, 2):
        classes = [c for c in (1, 2) if (a == c).any() or (b == c).any()]
        scores = [2 * ((a == c) & (b == c)).sum() / ((a == c).sum() + (b == c).sum()) for c in classes]
        pairs.append(float(sum(scores) / len(scores)))
    return sum(pairs) / len(pairs)


def noise(*shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mirror", [True, False], ids=["mirrored", "plain"])
@pytest.mark.parametrize(("patch", "shape"), [((8, 8, 8), (24, 16, 8)), ((8, 8), (16, 24, 5))], ids=["3D", "2D"])
def test_networks_of_a_configuration(patch, shape, mirror) -> None:
    """These see one voxel only, so their label maps do not depend on windows; which do not overlap here."""
    image, networks = noise(*shape), Networks(fullres=(0.1, 0.4, 0.9))
    infer = MirroredWindowInferer(patch, 2, mirror, overlap=0.0, member="fullres", sw_batch_size=3)
    expected = torch.cat(list(infer.rows(image, networks, 2)), 1)
    infer.agreement = Agreement(3)
    assert torch.equal(torch.cat(list(infer.rows(image, networks, 2)), 1), expected)
    assert infer.agreement.value == pytest.approx(dice([n.labels(image) for n in networks.fullres]), abs=1e-6)


def test_where_windows_overlap_voxels_count_several_times() -> None:
    image, networks = noise(21, 13, 9), Networks(fullres=(0.1, 0.4))
    infer = MirroredWindowInferer((8, 8, 8), member="fullres")
    infer.agreement = Agreement(3)
    list(infer.rows(image, networks, 2))
    assert infer.agreement.value == pytest.approx(dice([n.labels(image) for n in networks.fullres]), abs=0.02)


def labeled(infer, image, networks):
    """The agreement that `LabelInferer` tells of an image."""
    batch = MetaTensor(image[None], meta={"filename_or_obj": ["a.nii.gz"]})
    batch.is_batch = True
    segmenter = LabelInferer(infer, num_classes=3)
    segmenter(batch, networks)
    first = segmenter.agreement
    segmenter(batch, networks)
    assert segmenter.agreement == first, "of one image alone"
    return first


@pytest.mark.parametrize(
    ("thresholds", "pairs"),
    [
        pytest.param({"fullres": (0.1, 0.4)}, [(0.1, 0.4)], id="two networks"),
        pytest.param({"fullres": (0.2,), "slices": (0.8,)}, [(0.2, 0.8)], id="a pair of configurations"),
        pytest.param({"fullres": (0.2,)}, [], id="one network"),
    ],
)
def test_it_is_known_after_an_image(thresholds, pairs) -> None:
    image, networks = noise(12, 13, 14), Networks(**thresholds)
    infer = MeanInferer([MirroredWindowInferer((16,) * 3, member=name) for name in thresholds])
    found = labeled(infer, image, networks)
    expected = [dice([Thresholded(t).labels(image) for t in pair]) for pair in pairs]
    assert found == (pytest.approx(expected[0], abs=1e-3) if expected else None)


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ([[0, 1, 1, 2], [0, 1, 1, 2]], 1.0),
        ([[0, 1, 1, 0], [0, 1, 0, 0]], 2 / 3),
        ([[0, 1, 1, 0], [0, 0, 0, 0]], 0.0),
        ([[0, 1, 1, 2], [0, 1, 1, 0]], 0.5),
        ([[0, 0, 0, 0], [0, 0, 0, 0]], None),
    ],
    ids=["equal", "one less", "one sees nothing", "a class that one misses", "nothing at all"],
)
def test_the_value(maps, expected) -> None:
    agreement = Agreement(3)
    agreement.add("", [torch.tensor(m, dtype=torch.uint8) for m in maps])
    assert agreement.value == (None if expected is None else pytest.approx(expected))
