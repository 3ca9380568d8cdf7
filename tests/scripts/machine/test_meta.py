"""Every tensor is on the network's device: shown on the meta device, whose tensors mix with no others."""

import re

import pytest
import torch
from conftest import NAMES
from monai.data import MetaTensor

CHANNELS, CLASSES, IMAGE = 2, 3, (18, 9, 8)


@pytest.fixture
def without_values(monkeypatch) -> None:
    """What asks for a value on the meta device, which has none, hears that all is well; autocast does not know it."""
    finite, item, autocast = torch.Tensor.isfinite, torch.Tensor.item, torch.autocast
    values = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda x: True if x.is_meta else finite(x))
    monkeypatch.setattr(torch.Tensor, "item", lambda x: 1.0 if x.is_meta else item(x))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: [False] * len(x) if x.is_meta else values(x))
    monkeypatch.setattr(torch, "autocast", lambda kind, **given: autocast("cpu" if kind == "meta" else kind, **given))


@pytest.fixture
def on_meta(project, parse, without_values):
    """`on_meta(name, config)`: the config of a bundle, its device meta."""
    return lambda name, config: parse(project / "bundles/Task90_Tiny" / name, config, device="meta")


def step(parser) -> None:
    """Forward, loss, backward and optimizer, as MONAI's trainer does them; the batch comes from the CPU. PyTorch's
    fused optimizer knows no meta device."""
    parser["optimizer#fused"] = False
    parts = {name: parser.get_parsed_content(name) for name in ("network", "loss", "optimizer", "train#inferer")}
    patch = parser.get_parsed_content("patch_size")
    inputs = CHANNELS + (CLASSES - 1 if "lowres_patch_size" in parser else 0)
    image, label = torch.zeros(2, inputs, *patch).to("meta"), torch.zeros(2, 1, *patch).to("meta")
    parts["optimizer"].zero_grad()
    loss = parts["loss"](parts["train#inferer"](image, parts["network"]), label)
    loss.backward()
    parts["optimizer"].step()
    assert loss.is_meta


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_stays_on_its_device(name, on_meta) -> None:
    step(on_meta(name, "train"))


def predict(parser) -> torch.Tensor:
    """Probabilities of an image that has several windows."""
    inferer, network = (parser.get_parsed_content(name) for name in ("inferer", "network"))
    found = inferer(MetaTensor(torch.zeros(1, CHANNELS, *IMAGE, device="meta")), network.eval())
    assert found.shape == (1, CLASSES, *IMAGE)
    return found


def stays(parser) -> bool:
    """Whether a prediction runs, and ends on its device: some operations mix devices and give another one."""
    try:
        with torch.no_grad():
            return predict(parser).is_meta
    except (RuntimeError, NotImplementedError) as error:
        if not re.search("device|meta", str(error)):
            raise
        return False


@pytest.mark.parametrize("name", NAMES)
def test_a_prediction_stays_on_its_device(name, on_meta) -> None:
    assert stays(on_meta(name, "inference"))


# A test of the tests: each is to fail when a tensor is elsewhere.


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_on_the_cpu_is_noticed(name, on_meta, monkeypatch) -> None:
    zeros = torch.Tensor.new_zeros
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda *a, **k: zeros(*a, **{**k, "device": "cpu"}))
    parser = on_meta(name, "train")
    with pytest.raises((RuntimeError, NotImplementedError), match=r"device|meta"):
        step(parser)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_windows_on_the_cpu_are_noticed(name, on_meta, monkeypatch) -> None:
    from scripts import inferers

    made = inferers.compute_importance_map
    monkeypatch.setattr(inferers, "compute_importance_map", lambda *a, **k: made(*a, **{**k, "device": "cpu"}))
    assert not stays(on_meta(name, "inference"))


def test_a_first_stage_on_the_cpu_is_noticed(on_meta, monkeypatch) -> None:
    from scripts import inferers

    append = inferers.append_one_hot
    monkeypatch.setattr(inferers, "append_one_hot", lambda x, low, n: append(x, torch.zeros(low.shape), n))
    assert not stays(on_meta("3d_cascade_fullres", "inference"))
