"""Predicting only the windows in which a first look sees anything."""

import itertools

import pytest
import torch
from monai.data import MetaTensor
from scripts.blocks import cut
from scripts.inferers import CascadeInferer, MeanInferer, MirroredWindowInferer
from scripts.inversion import LabelInferer


class Threshold(torch.nn.Module):
    """Class 1 where the first channel is above 0.5; counts windows."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return torch.cat([0 * x[:, :1], 9 * (x[:, :1] - 0.5)], 1)


class Networks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("lowres", "cascade", "fullres", "slices"):
            setattr(self, name, torch.nn.ModuleList([Threshold()]))

    @property
    def seen(self):
        return sum(module.seen for module in self.modules() if isinstance(module, Threshold))


def window(patch, member, **options):
    return MirroredWindowInferer(patch, 2, member=member, sw_batch_size=2, **options)


INFERERS = {
    "volume": lambda: window((8, 8, 8), "fullres"),
    "slices": lambda: window((8, 8), "slices"),
    "pair": lambda: MeanInferer([window((8, 8, 8), "fullres"), window((8, 8), "slices")]),
    "cascade": lambda: CascadeInferer(
        window((8, 8, 8), "lowres"), window((8, 8, 8), "cascade", num_classes=2), (1, 1, 1), (2, 2, 2)
    ),
}


def image(*objects):
    """Dim noise with bright objects."""
    found = 0.3 * torch.rand(1, 1, 40, 32, 24, generator=torch.Generator().manual_seed(0))
    for place in objects:
        found[(0, 0, *place)] = 1
    batch = MetaTensor(found, meta={"filename_or_obj": ["case.nii.gz"]})
    batch.is_batch = True
    return batch


ONE, OTHER = (slice(3, 8), slice(4, 9), slice(5, 10)), (slice(30, 38), slice(22, 30), slice(14, 22))


@pytest.mark.parametrize("num_blocks", [1, 3], ids=["whole", "in blocks"])
@pytest.mark.parametrize("objects", [(ONE,), (ONE, OTHER)], ids=["one object", "two objects"])
@pytest.mark.parametrize("make", INFERERS.values(), ids=INFERERS)
def test_the_labels_are_the_same_and_most_windows_are_not_predicted(make, objects, num_blocks, monkeypatch) -> None:
    monkeypatch.setattr(LabelInferer, "_blocks", lambda self, image, shapes, _, axis: cut(shapes, axis, num_blocks))
    labels, seen = [], []
    for region_first in (False, True):
        networks = Networks()
        segmenter = LabelInferer(make(), num_classes=2, region_first=region_first)
        labels.append(segmenter(image(*objects), networks).as_tensor())
        seen.append(networks.seen)
    assert labels[0].sum() > 100
    assert torch.equal(*labels)
    assert seen[1] < 0.6 * seen[0]


@pytest.mark.parametrize("make", INFERERS.values(), ids=INFERERS)
def test_where_nothing_is_seen_all_is_background(make) -> None:
    labels = LabelInferer(make(), num_classes=2, region_first=True)(image(), Networks())
    assert labels.shape == (1, 1, 40, 32, 24)
    assert not labels.any()


def test_the_first_look_has_little_overlap_and_no_mirroring() -> None:
    networks = Networks()
    LabelInferer(INFERERS["volume"](), num_classes=2, region_first=True)(image(), networks)
    assert networks.seen == 7 * 5 * 4, "in steps of 6 voxels"


@pytest.mark.parametrize(("kind", "voxels", "found"), [("volume", 26, 0), ("volume", 27, 27), ("slices", 8, 0)])
def test_specks_do_not_count(kind, voxels, found) -> None:
    batch = image()
    for n, (z, x, y) in enumerate(itertools.product(range(3), repeat=3)):
        if n < voxels:
            batch[0, 0, 12 + x, 12 + y, 11 + z] = 1
    labels = LabelInferer(INFERERS[kind](), num_classes=2, region_first=True)(batch, Networks())
    assert int(labels.sum()) == found


def test_it_is_a_switch() -> None:
    with pytest.raises(ValueError, match="region_first is True or False"):
        LabelInferer(INFERERS["volume"](), 2, region_first="yes")
