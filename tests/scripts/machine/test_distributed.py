"""Training in two processes on the CPU, connected by Gloo."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.losses import DiceCELoss
from scripts.losses import SparseDiceCELoss

WORKER = Path(__file__).with_name("distributed_worker.py")
SETTINGS = {
    "max_epochs": 2, "epoch_length": 2, "val_batches": 2, "num_workers": 0, "amp": False, "batch_dice": True,
    "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.01},
}  # fmt: skip
"""Of the trainings that are compared."""


@pytest.fixture(scope="module")
def samples() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 1, 6, 5, 4, generator=generator, dtype=torch.float64)
    label = (image > 0.3).long() + (image > 1.0).long()
    label[3] = 0  # so that samples differ in what they hold, and batch Dice is not the mean of theirs
    partly = label.clone()
    partly[0, :, :4] = 3  # no class: one rank knows fewer voxels than the other
    return {"image": image, "label": label, "partly known": partly}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 3, 3, padding=1, dtype=torch.float64)


@pytest.fixture(scope="module")
def ranks(
    samples: dict[str, torch.Tensor], network: torch.nn.Module, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with what two ranks of the worker have left: gradients on the samples, and a training."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save({**samples, "network": network.state_dict()}, folder / "samples.pt")
    settings = {**SETTINGS, "batch_size": 3, "cache_dir": str(folder / "cache"), "ckpt_dir": str(folder / "fold")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER)]
    command += [str(folder), str(project / "bundles" / "Task90_Tiny" / "2d"), json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Error" not in done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_a_step_of_two_ranks_equals_that_of_one(
    samples: dict[str, torch.Tensor], network: torch.nn.Module, ranks: Path
) -> None:
    """Value and gradients, to float64's rounding: with Dice of each sample and of the batch, against MONAI's own loss
    in one process; and where one rank knows fewer voxels than the other."""
    smooth = {"smooth_nr": 0.0, "smooth_dr": 1e-8}
    losses = [DiceCELoss(to_onehot_y=True, softmax=True, batch=batch, **smooth) for batch in (False, True)]
    losses += [SparseDiceCELoss(batch, **smooth, unknown=True) for batch in (False, True)]
    for loss_function, found in zip(losses, torch.load(ranks / "out.pt", weights_only=True), strict=True):
        network.zero_grad()
        label = samples["partly known" if isinstance(loss_function, SparseDiceCELoss) else "label"]
        loss = loss_function(network(samples["image"]), label)
        loss.backward()
        expected = {"loss": loss.detach(), **{name: p.grad for name, p in network.named_parameters()}}
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_a_training_of_two_ranks_equals_that_of_one(project: Path, ranks: Path, parse, tmp_path: Path) -> None:
    """Four steps of gradient descent. Adam divides a gradient by its size: one that is only rounding would move its
    weight by a whole learning rate, to the one side or the other."""
    settings = {**SETTINGS, "batch_size": 4, "cache_dir": str(tmp_path / "cache"), "ckpt_dir": str(tmp_path / "fold")}
    parser = parse(project / "bundles" / "Task90_Tiny" / "2d", "train", device="cpu", **settings)
    torch.manual_seed(parser.get_parsed_content("seed"))
    trainer = parser.get_parsed_content("train#trainer")
    network = parser.get_parsed_content("network_def")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer.run()
    found = torch.load(ranks / "rank_0.pt", weights_only=True)
    torch.testing.assert_close(found, dict(network.state_dict()), rtol=0, atol=1e-6)
    assert max((found[name] - before[name]).abs().max() for name in found) > 1e-3, "something was learnt"


@pytest.mark.slow
def test_ranks_decide_alike_and_only_the_first_writes(ranks: Path) -> None:
    first, second = (json.loads((ranks / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["batch"] == 2  # 3 samples are rounded up to 4, 2 on each rank
    one, other = (torch.load(ranks / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len((ranks / "fold" / "curve.csv").read_text().splitlines()) == 3


def test_the_rounding_of_the_batch_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts import patches

    class TwoCases:
        def __len__(self) -> int:
            return 2

        def with_foreground(self) -> list[int]:
            return [0, 1]

    monkeypatch.setattr(patches.idist, "get_world_size", lambda: 2)
    with caplog.at_level(logging.INFO):
        sampler = patches.ForegroundBatchSampler(TwoCases(), 7)
    assert sampler.batch_size == 8
    assert "a batch of 7 is divided over 2 ranks: 4 samples each, 8 in all" in caplog.text
