"""The network that a bundle builds is the one that was planned."""

import dataclasses
import math

import pytest
import torch
from conftest import TINY_PLAN, dataset_of

from autoplan.bundle.render import render_all
from autoplan.planning import plan as plans
from autoplan.planning import topology
from autoplan.planning.values import Configuration

PLANES = {
    "square": ((32, 32), ((1, 1), (2, 2), (2, 2)), (4, 8, 16)),
    "anisotropic": ((40, 12), ((1, 1), (2, 1), (2, 2), (2, 2)), (4, 8, 16, 32)),
}
VOLUMES = {
    "cube": ((16, 16, 16), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), (4, 8, 16)),
    "anisotropic": ((32, 16, 8), ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2)), (4, 6, 8, 10)),
    "one axis never pooled": ((16, 16, 5), ((1, 1, 1), (2, 2, 1), (2, 2, 1)), (4, 8, 16)),
    "hippocampus, thin": ((40, 56, 40), ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)), (2, 4, 8, 16)),
}
TOPOLOGIES = {**{f"2d, {k}": v for k, v in PLANES.items()}, **{f"3d, {k}": v for k, v in VOLUMES.items()}}


def configuration(patch_size, strides, features) -> Configuration:
    planned = TINY_PLAN.configurations[len(patch_size) - 2]
    return dataclasses.replace(
        planned, patch_size=patch_size, median_shape=patch_size, strides=strides, features=features
    )


@pytest.fixture
def network_of(tmp_path, parse):
    """`network_of(configuration)`: what train.json of its bundle builds."""

    def built(configuration, file="train"):
        both = {c.name: c for c in (*TINY_PLAN.configurations[:2], configuration)}
        plan = dataclasses.replace(TINY_PLAN, configurations=tuple(both.values()))
        render_all(plan, dataset_of(plan, tmp_path / "data"), tmp_path / "bundles", force=True)
        bundle = tmp_path / "bundles" / plan.name / configuration.name
        return parse(bundle, file).get_parsed_content("network_def").eval()

    return built


def shape_parameters(configuration, in_channels, out_channels):
    """Shapes of all parameters of a U-Net, written down level by level: an independent count."""
    ones = (1,) * len(configuration.patch_size)
    kernel, f, shapes = (3,) * len(ones), configuration.features, []

    def block(inputs, outputs):
        for channels in (inputs, outputs):
            shapes.extend([(outputs, channels, *kernel), (outputs,), (outputs,)])

    for inputs, outputs in zip((in_channels, *f[:-1]), f, strict=True):
        block(inputs, outputs)
    for high, low, stride in zip(f[:-1], f[1:], configuration.strides[1:], strict=True):
        shapes.append((low, high, *stride))
        block(2 * high, high)
    return [*shapes, (out_channels, f[0], *ones), (out_channels,)]


@pytest.mark.parametrize("topology_", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_parameters(topology_, network_of) -> None:
    planned = configuration(*topology_)
    network = network_of(planned)
    expected = shape_parameters(planned, 2, 3)
    assert sorted(tuple(p.shape) for p in network.parameters()) == sorted(expected)
    count = sum(p.numel() for p in network.parameters())
    assert count == topology.num_parameters(planned, 2, 3) == sum(math.prod(s) for s in expected)
    # DynUNet registers its blocks under two names each; the tensors behind them are the parameters, and nothing else.
    stored = {t.data_ptr(): t.numel() for t in network.state_dict().values()}
    assert sum(stored.values()) == count


@pytest.mark.parametrize("topology_", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_feature_maps(topology_, network_of) -> None:
    """Stage s holds patch / (product of the strides up to s) voxels, downwards and upwards; one output a class."""
    planned = configuration(*topology_)
    network, seen = network_of(planned), {}
    stages = [network.input_block, *network.downsamples, network.bottleneck, *network.upsamples]
    for number, stage in enumerate(stages):
        stage.register_forward_hook(lambda _, __, out, number=number: seen.update({number: tuple(out.shape)}))
    with torch.no_grad():
        out = network(torch.rand(2, 2, *planned.patch_size))
    sizes, expected = planned.patch_size, []
    for stride, features in zip(planned.strides, planned.features, strict=True):
        sizes = tuple(n // s for n, s in zip(sizes, stride, strict=True))
        expected.append((2, features, *sizes))
    expected += expected[-2::-1]
    assert [seen[number] for number in range(len(stages))] == expected
    assert tuple(out.shape) == (2, 3, *planned.patch_size)


@pytest.mark.parametrize("topology_", [PLANES["anisotropic"], VOLUMES["anisotropic"]], ids=["2d", "3d"])
def test_training_and_inference_have_the_same_network(topology_, network_of) -> None:
    planned = configuration(*topology_)
    train, inference = (network_of(planned, file) for file in ("train", "inference"))
    inference.load_state_dict(train.state_dict())
    x = torch.rand(1, 2, *planned.patch_size)
    with torch.no_grad():
        assert torch.equal(train(x), inference(x))


def test_blocks_are_as_in_the_paper(network_of) -> None:
    """Instance norm with an affine part and leaky ReLU; no dropout, no deep supervision."""
    network = network_of(configuration(*VOLUMES["cube"]))
    kinds = {type(m).__name__ for m in network.modules() if not list(m.children())}
    assert kinds == {"Conv3d", "ConvTranspose3d", "InstanceNorm3d", "LeakyReLU"}
    assert all(m.affine for m in network.modules() if isinstance(m, torch.nn.InstanceNorm3d))
    slopes = {m.negative_slope for m in network.modules() if isinstance(m, torch.nn.LeakyReLU)}
    assert slopes == {0.01}


@pytest.mark.parametrize(
    "median_shape",
    [(1, 1, 1), (7, 7, 7), (8, 5, 3), (15, 15, 1), (1, 400, 3), (3, 9, 100)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_tiny_images_have_a_network_that_runs(median_shape, network_of) -> None:
    """The guard: DynUNet needs two poolings, and instance norm more than one voxel at the bottom."""
    for planned in plans.configurations(median_shape, (1.0, 1.0, 1.0), num_cases=5):
        thin = dataclasses.replace(planned, features=tuple(2 + s for s in range(len(planned.features))))
        network = network_of(thin).train()
        out = network(torch.rand(2, 2, *planned.patch_size))
        assert tuple(out.shape) == (2, 3, *planned.patch_size)
        out.sum().backward()
