"""Several networks in one module: what they give for a patch is what the inferers give for an image that is one."""

import io
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from monai.networks.nets import DynUNet
from scripts.inferers import CascadeInferer, MeanInferer, MirroredWindowInferer
from scripts.networks import Composite, Folds, append_one_hot, check_patch_size, cropped_to, padded_to

CHANNELS, CLASSES = 2, 3
PATCH, LOW_PATCH = (16, 16, 8), (8, 8, 8)
SPACING, LOW_SPACING = (1.5, 1.25, 2.0), (3.0, 2.5, 2.0)


def unet(patch_size, in_channels=CHANNELS):
    ones, twos = [1] * len(patch_size), [2] * len(patch_size)
    strides = [ones, twos, twos]
    return DynUNet(
        len(patch_size), in_channels, CLASSES, [3] * 3, strides, strides[1:], filters=[4, 6, 8],
        norm_name=("INSTANCE", {"affine": True}), act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    )  # fmt: skip


def composite(kinds, num=1, slice_axis=2, slices_patch=(16, 16), lowres_patch=LOW_PATCH, factor=(2.0, 2.0, 1.0)):
    """Networks with weights of their own, decided enough for a segmentation of more than one class."""
    torch.manual_seed(0)
    nums = num if isinstance(num, dict) else dict.fromkeys(kinds, num)
    patches = {"slices": slices_patch, "fullres": PATCH, "lowres": lowres_patch, "cascade": PATCH}
    channels = {"cascade": CHANNELS + CLASSES - 1}
    lists = {k: Folds(unet(patches[k], channels.get(k, CHANNELS)), patches[k], nums[k]) for k in kinds}
    module = Composite(**lists, slice_axis=slice_axis, spacing=(1.0, 1.0, 1.0), lowres_spacing=factor).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.4 if parameter.ndim > 1 else 1.0)
    return module


def inferer(kinds, slice_axis=2, slices_patch=(16, 16), lowres_patch=LOW_PATCH, low_spacing=LOW_SPACING):
    """The inferers of the same members, without mirroring."""

    def window(patch_size, member, **options):
        return MirroredWindowInferer(patch_size, slice_axis, mirror=False, member=member, **options)

    members = []
    if "slices" in kinds:
        members.append(window(slices_patch, "slices", sw_batch_size=3))
    if "fullres" in kinds:
        members.append(window(PATCH, "fullres"))
    if "cascade" in kinds:
        stages = window(lowres_patch, "lowres"), window(PATCH, "cascade", num_classes=CLASSES)
        members.append(CascadeInferer(*stages, SPACING, low_spacing))
    elif "lowres" in kinds:
        members.append(window(PATCH, "lowres"))
    return MeanInferer(members)


def assert_close(found, expected, kinds):
    """To the precision of float16. A first stage whose two best classes differ by less may choose either, which changes
    the second stage's probabilities around such a voxel."""
    difference = (found.float() - expected.float()).abs()
    few = 0.2 if "cascade" in kinds else 0.0
    assert float((difference > 1e-3).float().mean()) <= few
    assert float(difference.max()) < (0.05 if few else 1e-3)


def image(seed=0, num=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(num, CHANNELS, *PATCH)).astype(np.float32))


KINDS = {
    "slices": ("slices",),
    "volumes": ("fullres",),
    "slices and volumes": ("slices", "fullres"),
    "the first stage alone": ("lowres",),
    "both stages": ("lowres", "cascade"),
    "volumes and both stages": ("fullres", "lowres", "cascade"),
    "all": ("slices", "fullres", "lowres", "cascade"),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def members(request):
    """Names of the lists, the module with two networks in each, and its script after saving and loading."""
    module, file = composite(request.param, num=2), io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    return request.param, module, torch.jit.load(file).eval()


@torch.inference_mode()
def test_the_script_is_the_module(members) -> None:
    _, module, script = members
    x = image(num=2)
    torch.testing.assert_close(script(x), module(x))


@torch.inference_mode()
def test_a_patch_gets_what_the_inferers_give(members) -> None:
    kinds, module, _ = members
    x = image(num=2)
    assert_close(module(x), inferer(kinds)(x, module), kinds)


@torch.inference_mode()
def test_the_inferers_take_the_script(members) -> None:
    kinds, module, script = members
    x = image()
    assert_close(inferer(kinds)(x, script), inferer(kinds)(x, module), kinds)


@torch.inference_mode()
def test_it_gives_probabilities(members) -> None:
    _, module, _ = members
    y = module(image())
    assert y.shape == (1, CLASSES, *PATCH)
    assert float(y.min()) >= 0
    torch.testing.assert_close(y.sum(1), torch.ones(1, *PATCH))
    assert len(y.argmax(1).unique()) > 1, "something to tell apart"


def test_the_state_holds_weights_and_nothing_else(members) -> None:
    """Flat, an entry for each tensor of each network under <list>.<fold>; no resampling matrices."""
    kinds, module, script = members
    state = module.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert {tuple(key.split(".")[:2]) for key in state} == {(kind, fold) for kind in kinds for fold in "01"}
    assert {key.split(".", 2)[2] for key in state} == set().union(*(getattr(module, k)[0].state_dict() for k in kinds))
    assert {t.data_ptr() for t in state.values()} == {p.data_ptr() for p in module.parameters()}
    fresh = composite(kinds, num=2)
    fresh.load_state_dict({key: value.clone() for key, value in state.items()})
    with torch.inference_mode():
        assert torch.equal(fresh(image()), module(image()))
    assert set(state) <= set(script.state_dict())


GEOMETRIES = {
    "slices larger than the plane": (("slices",), {"slices_patch": (24, 20)}),
    "slices larger along one axis": (("slices",), {"slices_patch": (16, 32)}),
    "slices along x": (("slices",), {"slice_axis": 0, "slices_patch": (16, 8)}),
    "slices along y, larger": (("slices",), {"slice_axis": 1, "slices_patch": (20, 12)}),
    "low patch larger than the low image": (("lowres", "cascade"), {"lowres_patch": (16, 12, 8)}),
    "low patch larger by odd numbers": (("lowres", "cascade"), {"lowres_patch": (12, 12, 12), "factor": (2.4, 1.5, 1)}),
    "low resolution of no whole factor": (("lowres", "cascade"), {"lowres_patch": (12, 8, 8), "factor": (1.5, 2.3, 1)}),
}


@pytest.mark.parametrize(("kinds", "options"), GEOMETRIES.values(), ids=GEOMETRIES)
@torch.inference_mode()
def test_padding_and_resampling_are_those_of_the_inferers(kinds, options) -> None:
    module, seen = composite(kinds, **options), {k: v for k, v in options.items() if k != "factor"}
    low_spacing = [s * f for s, f in zip(SPACING, options.get("factor", (2.0, 2.0, 1.0)), strict=True)]
    x = image(3)
    expected = inferer(kinds, low_spacing=low_spacing, **seen)(x, module)
    assert_close(module(x), expected, kinds)
    assert_close(torch.jit.script(module)(x), expected, kinds)


@torch.inference_mode()
def test_probabilities_are_averaged_and_not_logits() -> None:
    module = composite(("fullres",), num=3)
    logits = [network(image()) for network in module.fullres]
    expected = torch.stack([y.softmax(1) for y in logits]).mean(0)
    torch.testing.assert_close(module(image()), expected)
    assert not torch.allclose(torch.stack(logits).mean(0).softmax(1), expected, atol=1e-2)


@torch.inference_mode()
def test_members_count_alike_however_many_folds_they_have() -> None:
    kinds = ("slices", "fullres", "lowres")
    module = composite(kinds, num={"slices": 1, "fullres": 3, "lowres": 2})
    assert_close(module(image()), inferer(kinds)(image(), module), kinds)


@torch.inference_mode()
def test_all_folds_of_the_first_stage_make_one_segmentation() -> None:
    """The segmentation that the second stage sees is that of the mean of the first stage's probabilities."""
    module, seen = composite(("lowres", "cascade"), num={"lowres": 3, "cascade": 1}), []
    module.cascade[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(image())
    low = inferer(("lowres", "cascade")).inferers[0].first_stage(image(), module)
    expected = append_one_hot(image(), low, CLASSES)
    assert torch.equal(seen[0][:, :CHANNELS], image())
    assert set(seen[0][:, CHANNELS:].unique().tolist()) == {0.0, 1.0}
    assert float((seen[0] != expected).float().mean()) < 0.005, "but for ties in float16"


@pytest.mark.parametrize("shape", [(16, 16, 16), (8, 16, 8), (32, 16, 8)], ids=str)
def test_a_cascade_refuses_other_patches(shape) -> None:
    """Its matrices belong to the planned patch."""
    module, x = composite(("lowres", "cascade")), torch.zeros(1, CHANNELS, *shape)
    with pytest.raises(ValueError, match="planned size only"):
        module(x)
    with pytest.raises(torch.jit.Error, match="planned size only"):
        torch.jit.script(module)(x)


def test_networks_of_a_list_are_copies() -> None:
    module = composite(("fullres",), num=2)
    first, second = (next(network.parameters()) for network in module.fullres)
    assert first.data_ptr() != second.data_ptr()


# The parts.


@given(st_numpy.arrays(np.uint8, (2, 1, 3, 2, 2), elements=st.integers(0, 3)), st.sampled_from(["float32", "float16"]))
@settings(max_examples=50, deadline=None)
def test_append_one_hot(segmentation, dtype) -> None:
    """A channel for each class but the background, after those of the image."""
    x = torch.rand(2, 2, 3, 2, 2).to(getattr(torch, dtype))
    found = append_one_hot(x, torch.from_numpy(segmentation), 4)
    assert (found.shape, found.dtype) == ((2, 5, 3, 2, 2), x.dtype)
    assert torch.equal(found[:, :2], x)
    for label in (1, 2, 3):
        np.testing.assert_array_equal(found[:, 1 + label].numpy(), segmentation[:, 0] == label)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)), min_size=2, max_size=3))
@settings(max_examples=60, deadline=None)
def test_padding_and_cropping(axes) -> None:
    """At least the size, a multiple of the divisor, zeros around; cropping takes them off again."""
    shape, size, divisor = (list(a) for a in zip(*axes, strict=True))
    x = torch.rand(1, 2, *shape) + 1
    padded = padded_to(x, size, divisor)
    for n, before, least, step in zip(padded.shape[2:], shape, size, divisor, strict=True):
        assert n == max(least, -(-before // step) * step)
    assert torch.equal(cropped_to(padded, shape), x)
    assert int((padded > 0).sum()) == x.numel()


FIVE = [[1, 1, 1], *[[2, 2, 2]] * 5]


@pytest.mark.parametrize(
    ("patch_size", "strides", "smallest"),
    [
        pytest.param([32, 32, 32], FIVE, [64, 32, 32], id="one voxel at the deepest level"),
        pytest.param([64, 40, 32], FIVE, [64, 32, 32], id="no multiple"),
        pytest.param([0, 64, 64], FIVE, [64, 32, 32], id="nothing"),
        pytest.param([64, 64], FIVE, [64, 32, 32], id="two numbers for a volume"),
        pytest.param([4, 4], [[1, 1], [2, 2], [2, 2]], [8, 4], id="a plane"),
        pytest.param(
            [8, 8, 1], [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 1]], [16, 8, 1], id="an axis without poolings"
        ),
    ],
)
def test_patches_that_the_network_cannot_take_are_refused(patch_size, strides, smallest) -> None:
    with pytest.raises(ValueError, match=re.escape(f"The smallest that works is {smallest}.")):
        check_patch_size(patch_size, strides)
    check_patch_size(smallest, strides)


@pytest.mark.parametrize("kind", ["slices", "lowres", "cascade"])
def test_so_are_those_of_each_network_of_several(kind) -> None:
    network = unet((16, 16) if kind == "slices" else PATCH, CHANNELS)
    with pytest.raises(ValueError, match="The smallest that works is"):
        Composite(**{kind: Folds(network, [3, 3] if kind == "slices" else [3, 3, 3])})
