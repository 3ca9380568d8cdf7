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


@pytest.fixture(scope="module")
def samples() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 1, 6, 5, 4, generator=generator)
    label = (image > 0.3).long() + (image > 1.0).long()
    label[3] = 0  # so that samples differ in what they hold, and batch Dice is not the mean of theirs
    partly = label.clone()
    partly[0, :, :4] = 3  # no class: one rank knows fewer voxels than the other
    return {"image": image, "label": label, "partly known": partly}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 3, 3, padding=1)


@pytest.fixture(scope="module")
def ranks(
    samples: dict[str, torch.Tensor], network: torch.nn.Module, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with what two ranks of the worker have left: gradients on the samples, and a training."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save({**samples, "network": network.state_dict()}, folder / "samples.pt")
    settings = {
        "max_epochs": 2, "epoch_length": 2, "val_batches": 2, "batch_size": 3, "num_workers": 0,
        "cache_dir": str(folder / "cache"), "ckpt_dir": str(folder / "fold"),
    }  # fmt: skip
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
    """With batch Dice and with Dice per sample, against MONAI's own loss in one process; and where not all voxels are
    known."""
    kinds = [(kind, batch) for kind in (DiceCELoss, KnownVoxelsLoss) for batch in (False, True)]
    for (kind, batch), found in zip(kinds, torch.load(ranks / "out.pt", weights_only=True), strict=True):
        loss_function = kind(to_onehot_y=True, softmax=True, batch=batch, smooth_nr=0.0, smooth_dr=1e-8)
        network.zero_grad()
        label = samples["label" if kind is DiceCELoss else "partly known"]
        loss_function(network(samples["image"]), label).backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch", [True, False], ids=["batch Dice", "Dice per sample"])
def test_in_one_process_the_loss_is_monais(samples: dict[str, torch.Tensor], batch: bool) -> None:
    settings = {"to_onehot_y": True, "softmax": True, "batch": batch, "smooth_nr": 0.0, "smooth_dr": 1e-8}
    logits = torch.randn(4, 3, 6, 5, 4, generator=torch.Generator().manual_seed(1))
    found, expected = (cls(**settings)(logits, samples["label"]) for cls in (SharedDiceCELoss, DiceCELoss))
    assert found == expected


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
