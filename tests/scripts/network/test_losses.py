"""The loss of trainings is MONAI's, without a copy of the labels for each class."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from scripts.losses import SparseDiceCELoss

SMOOTH = {"smooth_nr": 0.0, "smooth_dr": 1e-8}


class Sample(NamedTuple):
    """Logits and labels, by the number of classes, the shape of a patch, how sure the network is, and the number of
    classes that the labels have."""

    classes: int
    shape: tuple[int, ...]
    scale: float = 1.0
    present: int | None = None

    def made(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        logits = self.scale * torch.randn(2, self.classes, *self.shape, generator=generator, dtype=torch.float64)
        label = torch.randint(0, self.present or self.classes, (2, 1, *self.shape), generator=generator)
        label[1] = label[1].clamp(max=1)  # so that batch Dice is not the mean of the samples'
        return logits.to(dtype), label.float()


SAMPLES = {
    "two classes": Sample(2, (6, 5, 4)),
    "slices": Sample(3, (17, 12)),
    "25 classes": Sample(25, (12, 9, 10)),
    "105 classes": Sample(105, (8, 9, 10)),
    "a network that is sure": Sample(4, (6, 5, 4), scale=200.0),
    "classes that do not occur": Sample(9, (6, 5, 4), present=2),
    "many voxels": Sample(3, (64, 64, 64)),
}


def result(loss: torch.nn.Module, logits: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient."""
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, label)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("batch", [False, True], ids=["each sample", "whole batch"])
@pytest.mark.parametrize("name", SAMPLES)
def test_value_and_gradient_are_monais(name: str, batch: bool) -> None:
    """To a millionth of the largest gradient in float32; in float64 much closer."""
    for dtype, close in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        made = SAMPLES[name].made(dtype)
        expected = result(DiceCELoss(to_onehot_y=True, softmax=True, batch=batch, **SMOOTH), *made)
        for found, wanted in zip(result(SparseDiceCELoss(batch, **SMOOTH), *made), expected, strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found, wanted, rtol=0, atol=close * max(1.0, float(wanted.abs().max())))
            if wanted.ndim:
                assert (found - wanted).abs().max() <= close * wanted.abs().max()


def test_weights_and_smoothing_are_monais() -> None:
    made = SAMPLES["slices"].made(torch.float64)
    options = {"smooth_nr": 2.0, "smooth_dr": 3.0, "lambda_dice": 0.3, "lambda_ce": 0.6}
    expected = result(DiceCELoss(to_onehot_y=True, softmax=True, **options), *made)
    torch.testing.assert_close(result(SparseDiceCELoss(**options), *made), expected)


@pytest.mark.parametrize("unknown", [False, True], ids=["all known", "some not known"])
@pytest.mark.parametrize("batch", [False, True], ids=["each sample", "whole batch"])
def test_the_gradient_is_that_of_the_value(batch: bool, unknown: bool) -> None:
    logits, label = Sample(3, (4, 3, 2)).made(torch.float64)
    if unknown:
        label[0, :, 1:3] = 3
    loss = SparseDiceCELoss(batch, unknown=unknown)
    assert torch.autograd.gradcheck(lambda x: 3 * loss(x, label), logits.requires_grad_())


@contextmanager
def kept() -> Iterator[dict[int, int]]:
    """Bytes of each memory that is kept for the gradient."""
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("unknown", [False, True], ids=["all known", "some not known"])
@pytest.mark.parametrize("classes", [2, 3, 25, 105])
def test_no_copy_for_each_class(classes: int, unknown: bool) -> None:
    """The probabilities and the labels, and no more: MONAI's keeps 3 to 4 times the logits."""
    logits, label = Sample(classes, (16, 16, 16)).made(torch.float32)
    with kept() as found:
        SparseDiceCELoss(unknown=unknown)(logits.requires_grad_(), label)
    assert sum(found.values()) <= 1.02 * (logits.nbytes + label.nbytes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_not_in_half_precision(dtype: torch.dtype) -> None:
    """70,000 voxels are more than float16 can count."""
    logits, label = Sample(2, (280, 250)).made(torch.float32)
    logits = logits.to(dtype)
    expected = result(SparseDiceCELoss(), logits.float(), label)
    found = result(SparseDiceCELoss(), logits, label)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1].to(dtype))


def test_autocast_changes_nothing() -> None:
    made = SAMPLES["slices"].made(torch.float32)
    expected = result(SparseDiceCELoss(), *made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = result(SparseDiceCELoss(), *made)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("unknown", [False, True], ids=["all known", "some not known"])
def test_layouts_and_kinds_of_tensors(unknown: bool) -> None:
    """Outputs of deep supervision lie apart in memory; some transforms give MetaTensors; labels may be integers."""
    logits, label = Sample(3, (6, 5, 4)).made(torch.float32)
    loss = SparseDiceCELoss(True, unknown=unknown)
    expected = result(loss, logits, label)
    apart = torch.stack([logits, logits], 1).unbind(1)[0]
    last = logits.contiguous(memory_format=torch.channels_last_3d)
    for found in (
        result(loss, apart, label),
        result(loss, last, label),
        result(loss, logits, label.to(torch.uint8)),
        result(loss, MetaTensor(logits), MetaTensor(label)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, check_stride=False)


@pytest.mark.parametrize(
    ("shape", "error", "words"),
    [
        pytest.param((2, 1, 6, 5), ValueError, r"need labels \(B, 1, \*spatial\), not \(2, 1, 6, 5\)", id="dimensions"),
        pytest.param((2, 1, 6, 5, 3), ValueError, "need labels", id="smaller"),
        pytest.param((2, 3, 6, 5, 4), ValueError, "need labels", id="one-hot"),
        pytest.param((2, 1, 6, 5, 4), RuntimeError, "out of bounds", id="no class of the network"),
    ],
)
def test_labels_that_do_not_fit(shape: tuple[int, ...], error: type[Exception], words: str) -> None:
    logits, _ = Sample(3, (6, 5, 4)).made(torch.float32)
    with pytest.raises(error, match=words):
        SparseDiceCELoss()(logits, torch.full(shape, 3.0))
