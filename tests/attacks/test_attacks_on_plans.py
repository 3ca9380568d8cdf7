"""fingerprint.json and plan.json with single values replaced, left out or doubled: each is refused by its name, or the
plan that comes out is sound."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from attack import mutated, no_hang, outcome
from conftest import TINY_PLAN

from autoplan.bundle import render, saved
from autoplan.cli.commands import explanation, summary
from autoplan.data import stored
from autoplan.data.facts import CaseFacts, Fingerprint, Intensities
from autoplan.planning import gpu_memory, recipes
from autoplan.planning.plan import plan
from autoplan.planning.reasons import warnings
from autoplan.planning.values import Plan

NUM_MUTATIONS = 3000
"""Of each file."""
KEY = "k" * 64
NAMES = "abcdef"
FACTS = tuple(
    CaseFacts(n, (40, 48, 12 + k), (1.0, 1.25, 3.0 + k), (36, 48, 12 + k), (500, 90 + k), (1, 2), 0.0, "LPS",
              ((0.1, 0.5, 2.0), (-1.0, 0.0, 1.0)))
    for k, n in enumerate(NAMES)
)  # fmt: skip
FINGERPRINT = Fingerprint(
    KEY, "Task90_Tiny", ("CT", "MR"), ((0, "background"), (1, "a"), (2, "b")), FACTS,
    (Intensities(900, 40.0, 12.0, -5.0, 90.0), None), contents=tuple(("x", "y") for _ in NAMES),
)  # fmt: skip
PLANNED = replace(plan(FINGERPRINT, cascade="always"), gpu_memory=8 * 10**9, own_spacing=(1.0, 1.25, 3.0))


def check_sound(planned: Plan) -> None:
    """What every plan must hold that is used."""
    for configuration in planned.configurations:
        assert len(configuration.patch_size) == (2 if configuration.name == "2d" else 3)
        assert all(0 < size < 2**31 for size in (*configuration.patch_size, *configuration.features))
        assert all(1e-6 <= length <= 1e6 for length in configuration.spacing)
        assert configuration.batch_size > 0
    assert len(planned.normalization) == len(planned.modalities) > 0
    assert all(n is None or (n.std > 0 and n.lower <= n.upper) for n in planned.normalization)


def used(planned: Plan) -> None:
    """What commands compute with a plan: tables and sentences, values of configs, a plan for a small GPU."""
    check_sound(planned)
    summary(planned), explanation(planned), warnings(planned)
    for configuration in planned.configurations:
        render.planned_values(planned, configuration, "data")
        recipes.budget_batch_size(configuration.batch_size)
    if isinstance(small := outcome(lambda: gpu_memory.fitted(planned, 8 * 10**9, lambda _, c: c.batch_size)), Plan):
        check_sound(small)


@pytest.mark.parametrize("part", range(4))
def test_fingerprints(part, tmp_path) -> None:
    path = tmp_path / stored.FINGERPRINT
    stored.save_fingerprint(FINGERPRINT, path)
    content, planned = json.loads(path.read_text()), 0
    for seed in range(part, NUM_MUTATIONS, 4):
        said, changed = mutated(content, seed)
        path.write_text(json.dumps(changed))
        with no_hang([said]):
            found = outcome(lambda: stored.load_fingerprint(path))
            if not isinstance(found, Fingerprint):
                assert "fingerprint.json holds no fingerprint (" in found, said
            elif isinstance(made := outcome(lambda found=found: plan(found, cascade="always")), Plan):
                used(made)
                planned += 1
    assert planned > 20, "not all changes are faults"


@pytest.mark.parametrize("part", range(4))
def test_plans(part, tmp_path) -> None:
    folder = tmp_path / PLANNED.name
    saved.save_plan(PLANNED, folder, fingerprint_key=KEY)
    path = folder / saved.PLAN
    content, accepted = json.loads(path.read_text()), 0
    for seed in range(part, NUM_MUTATIONS, 4):
        said, changed = mutated(content, seed)
        path.write_text(json.dumps(changed))
        with no_hang([said]):
            found = outcome(lambda: saved.load_plan(folder))
            if isinstance(found, Plan):
                used(found)
                accepted += 1
            else:
                assert "Plan again: python -m autoplan" in found, said
    assert accepted > 20, "not all changes are faults"


def test_the_plans_that_are_attacked_are_sound(tmp_path: Path) -> None:
    for planned in (PLANNED, TINY_PLAN):
        used(planned)
