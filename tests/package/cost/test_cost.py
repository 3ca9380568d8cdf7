"""What the trainings of a plan need, before they begin."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY_PLAN
from scripts.cache import MARK, CaseCache

from autoplan.__main__ import main
from autoplan.base.errors import PlanError
from autoplan.budget.ledger import Spent
from autoplan.bundle import templates
from autoplan.bundle.saved import save_plan
from autoplan.cost import bill as cost
from autoplan.cost import footprint
from autoplan.cost import pace as pace_
from autoplan.cost.pace import paces
from autoplan.data.facts import CaseFacts, Fingerprint, Intensities
from autoplan.data.stored import save_fingerprint
from autoplan.planning.rules import resampled_shape
from autoplan.report import page
from autoplan.report.sections.cost import section

pytestmark = pytest.mark.slow
FACTS = Fingerprint(
    key="key",
    name=TINY_PLAN.name,
    modalities=TINY_PLAN.modalities,
    labels=TINY_PLAN.labels,
    cases=tuple(
        CaseFacts(f"case_{i}", (22, 20, 12), (1.25, 1.0, 2.0), (18, 18, 11), (64, 80), (1, 1)) for i in range(5)
    ),
    intensities=(None, Intensities(100, 40.5, 30.25, -50.0, 150.0)),
)
TWO_D = TINY_PLAN.configuration("2d")


@pytest.fixture(scope="module")
def bill() -> cost.Bill:
    """The costs of `TINY_PLAN`, its steps timed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprint, "MEASURED_SECONDS", 0.0)
        return cost.compute(TINY_PLAN, FACTS, progress=False)


def test_a_network_is_that_of_the_plan(bill) -> None:
    step = footprint.Step(TINY_PLAN, TWO_D)
    assert sum(p.numel() for p in step.network.parameters()) == bill.costs[0].parameters
    assert isinstance(step.optimizer, torch.optim.Adam)
    assert step.optimizer.defaults["amsgrad"]


def test_the_loss_is_that_of_a_training() -> None:
    loss = footprint.Step(TINY_PLAN, TWO_D).loss
    assert templates.template("train.json", "2d")["loss"]["_target_"] == f"scripts.losses.{type(loss).__name__}"
    assert loss.batch == TWO_D.batch_dice


def test_memory_is_that_of_the_parts() -> None:
    """Weights, gradients and three numbers of the optimizer a weight are there at the peak, and more for each patch."""
    weights = footprint.FLOAT * sum(p.numel() for p in footprint.Step(TINY_PLAN, TWO_D).network.parameters())
    sizes = [footprint.training_bytes(TINY_PLAN, replace(TWO_D, batch_size=n)) for n in (64, 128, 192)]
    assert sizes[0] > 5 * weights
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.02)


def test_mixed_precision_needs_less(monkeypatch) -> None:
    large = replace(TWO_D, batch_size=256)
    mixed = footprint.training_bytes(TINY_PLAN, large)
    monkeypatch.setattr(footprint, "half", lambda device: None)
    assert 0.4 < mixed / footprint.training_bytes(TINY_PLAN, large) < 0.75


def test_a_prediction_needs_less_than_a_step_and_more_for_a_larger_image() -> None:
    small, large = (footprint.prediction_bytes(TINY_PLAN, TWO_D, shape) for shape in ((16, 14, 10), (160, 140, 100)))
    assert small < footprint.training_bytes(TINY_PLAN, TWO_D)
    assert large - small > footprint.FLOAT * 2 * (160 * 140 * 100 - 16 * 14 * 10)


def test_the_first_stage_lies_beside_the_second(monkeypatch) -> None:
    c = TINY_PLAN.configuration("3d_cascade_fullres")
    alone = replace(TINY_PLAN, configurations=tuple(c for c in TINY_PLAN.configurations if c.name != "3d_lowres"))
    first = footprint.Step(TINY_PLAN, TINY_PLAN.configuration("3d_lowres")).network
    weights = footprint.FLOAT * sum(p.numel() for p in first.parameters())
    assert footprint.training_bytes(TINY_PLAN, c) - footprint.training_bytes(alone, c) == weights


def test_multiply_adds() -> None:
    """By hand: 9 * 2 * 4 for each of 256 voxels. A step takes three times as much, without the image's gradient."""
    counted = footprint.arithmetic(TINY_PLAN, TWO_D)
    assert counted.patch > 9 * 2 * 4 * 256
    assert 2.5 < counted.step / (counted.patch * TWO_D.batch_size) < 3.0


def test_a_small_step_has_the_same_network() -> None:
    c = replace(TWO_D, patch_size=(1024, 16), batch_size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprint, "MEASURED_MULTIPLY_ADDS", 1e6)
        small = footprint._smaller(TINY_PLAN, c)
    assert (small.strides, small.features) == (c.strides, c.features)
    assert small.patch_size[0] < 1024
    assert small.patch_size[1] >= 8
    assert footprint.arithmetic(TINY_PLAN, small).patch * small.batch_size <= 1e6


def test_a_step_on_a_larger_batch_takes_longer() -> None:
    measured = footprint.Measured(pass_seconds=2.0, optimizer_seconds=1.0, peak_bytes=0, multiply_adds=10)
    assert measured.step_seconds(30) == 7.0


def test_a_pytorch_without_the_tracker_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed._tools.mem_tracker", None)
    with pytest.raises(PlanError, match="has no MemTracker"):
        footprint.training_bytes(TINY_PLAN, TWO_D)


def test_the_cache_is_as_large_as_said(tmp_path) -> None:
    c, case = TINY_PLAN.configuration("3d_fullres"), FACTS.cases[0]
    shape = resampled_shape(case.cropped_shape, case.spacing, target=c.spacing)
    grown = math.prod(shape) / math.prod(case.cropped_shape)
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    counts = [round(n * grown) for n in case.class_voxels]
    label.view(-1)[: counts[0]] = 1
    label.view(-1)[counts[0] : sum(counts)] = 2
    item = {"name": "a", "image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "b.nii.gz")}
    for name in ("image", "label"):
        Path(item[name]).touch()
    cache = CaseCache(tmp_path, lambda _: {"image": torch.zeros(2, *shape), "label": label}, 2, 3)
    cache.folder.mkdir()
    assert cache.write(item).stat().st_size == cost.case_bytes(TINY_PLAN, case, c)
    assert len(MARK) == 4


def test_configurations_of_one_spacing_share_their_cache() -> None:
    alone = replace(TINY_PLAN, configurations=(TINY_PLAN.configuration("3d_fullres"),))
    both = replace(TINY_PLAN, configurations=TINY_PLAN.configurations[:2])
    assert cost.cache_bytes(both, FACTS) == cost.cache_bytes(alone, FACTS) < cost.cache_bytes(TINY_PLAN, FACTS)


def test_the_bill_in_words(bill) -> None:
    head, *lines = cost.rows(bill)
    assert head == ("", *(c.name for c in TINY_PLAN.configurations))
    assert all(len(line) == len(head) for line in lines)
    assert {"GPU memory of a training step", "an epoch here", "all folds on one A100, at most"} <= {r[0] for r in lines}
    assert "unverified" in " ".join(cost.notes(bill))


def test_a_measured_gpu_stands_beside_the_estimate(bill) -> None:
    measured = replace(bill, device="cuda", costs=tuple(replace(c, gpu_bytes=3 * 2**30) for c in bill.costs))
    assert ("the same, measured", *["3.0 GiB"] * 4) in cost.rows(measured)
    assert "unverified" not in " ".join(cost.notes(measured))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0005, "0.5 ms"), (1.5, "1.5e+03 ms"), (90, "90 s"), (7300, "2.03 h"), (1e9, "11,574 d")]
)
def test_times(seconds, text) -> None:
    assert cost._seconds(seconds) == text.replace("1.5e+03", "1,500")


def test_the_bill_is_kept_for_its_plan(bill, tmp_path) -> None:
    cost.save(bill, tmp_path)
    assert cost.load(TINY_PLAN, FACTS, tmp_path) == bill
    assert cost.load(replace(TINY_PLAN, configurations=TINY_PLAN.configurations[:1]), FACTS, tmp_path) is None
    assert cost.load(TINY_PLAN, None, tmp_path) is None
    (tmp_path / cost.COST).write_text("{}")
    assert cost.load(TINY_PLAN, FACTS, tmp_path) is None


def test_the_section_of_the_report(bill) -> None:
    assert "python -m autoplan cost Task90_Tiny" in section(TINY_PLAN, None).blocks[0].text
    found = section(TINY_PLAN, bill)
    assert [[c.text for c in row.cells] for row in found.blocks[0].rows] == [list(r) for r in cost.rows(bill)[1:]]
    assert found.data["costs"][0]["parameters"] == bill.costs[0].parameters
    assert "unverified" in page.render("T", "s", [found])
    spent = [Spent("run, 2d", 7200, 6900, ("folds 3, 4",))]
    for used in (section(TINY_PLAN, None, spent), section(TINY_PLAN, bill, spent)):
        assert used.blocks[0].text == "run, 2d, for a given time: 115 min of 2.0 h are gone. No time for folds 3, 4."
        assert used.data["budgets"][0]["gone"] == 6900


def test_the_command(tiny, bill, tmp_path, capsys, monkeypatch) -> None:
    from autoplan.data import decathlon, fingerprint

    key, task = fingerprint.key(decathlon.load(tiny.folder)), tmp_path / "bundles" / tiny.folder.name
    save_plan(replace(TINY_PLAN, name=tiny.folder.name), task, fingerprint_key=key)
    save_fingerprint(FACTS, task / "fingerprint.json")
    monkeypatch.setattr(cost, "compute", lambda *_: bill)
    assert main(["cost", str(tiny.folder), "--bundles", str(tmp_path / "bundles")]) == 0
    assert json.loads((task / "cost.json").read_text())["folds"] == 5
    assert "GPU memory of a prediction" in capsys.readouterr().out
    assert main(["cost", str(tiny.folder), "--bundles", str(tmp_path / "none")]) == 1
    assert "there is no plan.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "batch"),
    [pytest.param(math.inf, TWO_D.batch_size, id="short"), pytest.param(0.0, 1, id="long")],
)
def test_time_is_divided_by_the_step_that_is_trained_where_it_is_short(monkeypatch, limit, batch) -> None:
    """On a CPU: a small step, scaled, is up to half or twice as long as the real one."""
    monkeypatch.setattr(footprint, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(footprint, "MEASURED_MULTIPLY_ADDS", 1)
    monkeypatch.setattr(pace_, "STEP_SECONDS", limit)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    batches, gradients = [], footprint.Step.gradients
    monkeypatch.setattr(footprint.Step, "gradients", lambda s: batches.append(len(s.image)) or gradients(s))
    (pace,) = paces(TINY_PLAN, FACTS, [TWO_D])
    assert pace.step_seconds > 0
    assert pace.image_seconds > 0
    assert batches[-1] == batch


def test_time_of_an_image(monkeypatch) -> None:
    """Mirrored ones take as many passes as there are sets of axes; large ones take long to write."""
    measured = footprint.measured_step(TINY_PLAN, TWO_D, device="cpu")
    asked = []
    monkeypatch.setattr(footprint, "measured_step", lambda *_, device, **__: asked.append(device) or measured)
    (once,) = paces(TINY_PLAN, FACTS, [TWO_D])
    (mirrored,) = paces(TINY_PLAN, FACTS, [TWO_D], "cuda", is_mirrored=True)
    assert mirrored.image_seconds == pytest.approx(4 * once.image_seconds)
    assert asked == ["cpu", "cpu", "cuda"]
    large = replace(FACTS, cases=tuple(replace(case, shape=(512, 512, 600)) for case in FACTS.cases))
    (slow,) = paces(TINY_PLAN, large, [TWO_D])
    assert slow.case_seconds == pytest.approx(0.1 + 512 * 512 * 600 * 0.5e-6)
    assert slow.case_seconds > 100 * once.case_seconds
