"""Mixed precision around a bare network."""

import pytest
import torch
from scripts.precision import AutocastInferer, checked_switch, default_amp, has_fast_bfloat16


class Spy(torch.nn.Conv3d):
    """A convolution that remembers the type of what it gave."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out = super().forward(image)
        self.seen = out.dtype
        return out


@pytest.mark.parametrize(("amp", "inside"), [(True, torch.bfloat16), (False, torch.float32)])
def test_logits_are_float32_whatever_the_network_computes_in(amp: bool, inside: torch.dtype) -> None:
    network = Spy(1, 2, 3)
    logits = AutocastInferer(amp)(torch.randn(1, 1, 5, 5, 5), network)
    assert network.seen == inside
    assert logits.dtype == torch.float32
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_gradients_reach_the_float32_weights() -> None:
    network = Spy(1, 2, 3)
    AutocastInferer(True)(torch.randn(1, 1, 5, 5, 5), network).sum().backward()
    assert network.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("value", ["false", "True", 0, None])
def test_a_switch_that_is_neither_true_nor_false_is_refused(value: object) -> None:
    """On the command line `--amp false` is the text "false"."""
    with pytest.raises(ValueError, match="amp is True or False"):
        checked_switch("amp", value)


def test_the_default_follows_the_device() -> None:
    assert default_amp("cpu") == has_fast_bfloat16()
    assert default_amp(torch.device("cuda", 0))
    assert not default_amp("mps")
