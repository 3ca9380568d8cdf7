"""What holds for every plan, over many synthetic datasets."""

import itertools
import json
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoplan.base.codec import from_dict, to_dict
from autoplan.data.facts import CaseFacts, Fingerprint, Intensities
from autoplan.planning import rules, topology
from autoplan.planning.plan import configurations, plan
from autoplan.planning.values import Plan

settings.register_profile("fast", max_examples=60, deadline=None)
settings.load_profile("fast")

SHAPES = st.tuples(*[st.integers(1, 600)] * 3)
SPACINGS = st.tuples(*[st.floats(0.2, 8).map(lambda s: float(f"{s:.4g}"))] * 3)
NUM_CASES = st.integers(2, 500)


@st.composite
def fingerprints(draw: st.DrawFn) -> Fingerprint:
    """Facts of a few cases of one or two channels and classes."""
    modalities = draw(st.sampled_from([("MRI",), ("CT",), ("T2", "ct")]))
    num_classes = draw(st.integers(1, 2))
    cases = draw(st.lists(_cases(num_classes), min_size=2, max_size=8))
    statistics = Intensities(count=100, mean=10.5, std=3.25, percentile_00_5=-5.0, percentile_99_5=30.0)
    return Fingerprint(
        key="key",
        name="Task99_Made",
        modalities=modalities,
        labels=((0, "background"), (1, "one"), (5, "five"))[: num_classes + 1],
        cases=tuple(replace(c, name=f"case_{i}") for i, c in enumerate(cases)),
        intensities=tuple(statistics if "ct" in m.lower() else None for m in modalities),
    )


@st.composite
def _cases(draw: st.DrawFn, num_classes: int) -> CaseFacts:
    cropped = draw(SHAPES)
    border = draw(st.tuples(*[st.integers(0, 40)] * 3))
    counts = st.tuples(*[st.integers(0, 3)] * num_classes)
    return CaseFacts(
        name="",
        shape=tuple(c + b for c, b in zip(cropped, border, strict=True)),
        spacing=draw(SPACINGS),
        cropped_shape=cropped,
        class_voxels=draw(counts),
        class_components=draw(counts),
    )


@given(SHAPES, SPACINGS, NUM_CASES, st.sampled_from(["auto", "never", "always"]))
def test_configurations_keep_to_the_limits(shape, spacing, num_cases, cascade) -> None:
    for c in configurations(shape, spacing, num_cases=num_cases, cascade=cascade):
        flat = c.name == "2d"
        patch_voxels = math.prod(c.patch_size)
        median = shape if flat else c.median_shape
        assert all(size % 2**pool == 0 for size, pool in zip(c.patch_size, c.num_pool, strict=True))
        assert max(c.num_pool) <= (topology.MAX_POOL_2D if flat else topology.MAX_POOL_3D)
        assert len(c.strides) >= 3
        assert flat or patch_voxels <= 128**3
        assert c.batch_size >= 2
        if c.batch_size > 2:
            base = topology.BASE_VOXELS_2D if flat else topology.BASE_VOXELS_3D
            assert c.batch_size * patch_voxels <= base
            assert c.batch_size * patch_voxels <= 0.05 * num_cases * math.prod(median) + patch_voxels / 2


@given(SHAPES, SPACINGS, NUM_CASES)
def test_strides_pool_as_often_as_the_sizes_say(shape, spacing, num_cases) -> None:
    for c in configurations(shape, spacing, num_cases=num_cases):
        max_pool = topology.MAX_POOL_2D if c.name == "2d" else topology.MAX_POOL_3D
        assert c.num_pool == tuple(topology.num_poolings(n, max_pool=max_pool) for n in c.patch_size)
        assert set(c.strides[0]) == {1}
        for axis in range(len(c.patch_size)):
            along = [s[axis] for s in c.strides]
            assert along == sorted(along), "an axis, once pooled, is pooled in all deeper stages"
        assert c.features == tuple(30 * 2**s for s in range(len(c.strides)))


@given(SHAPES, SPACINGS)
def test_the_low_resolution_has_few_enough_voxels(shape, spacing) -> None:
    low = rules.low_resolution(shape, spacing)
    assert (low is None) == (not rules.cascade_is_necessary(shape))
    if low is not None:
        limit = 4 * 128**3
        rounding = math.prod(n + 0.5 for n in low[0]) - math.prod(low[0])
        assert math.prod(low[0]) <= limit + rounding
        assert all(math.log2(a / b) % 1 == pytest.approx(0) for a, b in zip(low[1], spacing, strict=True))


@given(SHAPES, SPACINGS, NUM_CASES, st.permutations(range(3)))
def test_axes_permute_with_the_plan(shape, spacing, num_cases, order) -> None:
    """Ties excluded: sizes, spacings and distances to the target that are too close to tell."""
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    assume(all(abs(a - b) > 0.01 * b for v in (shape, spacing, extent) for a, b in itertools.permutations(v, 2)))
    assume(not _has_tie(shape, spacing))
    planned = configurations(shape, spacing, num_cases=num_cases)
    turned = configurations(tuple(shape[i] for i in order), tuple(spacing[i] for i in order), num_cases=num_cases)
    for before, after in zip(planned[1:], turned[1:], strict=True):
        assert after.patch_size == tuple(before.patch_size[i] for i in order)
        assert after.num_pool == tuple(before.num_pool[i] for i in order)
        assert (after.batch_size, after.features) == (before.batch_size, before.features)
    assert sorted(turned[0].patch_size) == sorted(planned[0].patch_size)


def _has_tie(shape, spacing) -> bool:
    """Whether two axes of an admissible patch may stand equally far above their targets."""
    shapes = [(shape, spacing), rules.low_resolution(shape, spacing)]
    targets = [topology.target_size_3d(*s) for s in shapes if s is not None]
    return any(abs((a - b) - round(a - b)) < 0.03 for t in targets for a, b in itertools.combinations(t, 2))


@given(fingerprints(), st.randoms())
def test_the_order_of_the_cases_changes_nothing(fingerprint, random) -> None:
    shuffled = list(fingerprint.cases)
    random.shuffle(shuffled)
    assert plan(replace(fingerprint, cases=tuple(shuffled))) == plan(fingerprint)


@given(fingerprints(), st.sampled_from(["auto", "never", "always"]), st.sampled_from([None, 320]))
def test_a_plan_survives_json(fingerprint, cascade, max_features) -> None:
    planned = plan(fingerprint, cascade=cascade, max_features=max_features)
    assert from_dict(Plan, json.loads(json.dumps(to_dict(planned)))) == planned
    assert from_dict(Fingerprint, json.loads(json.dumps(to_dict(fingerprint)))) == fingerprint


@given(fingerprints(), st.sampled_from(["auto", "never", "always"]))
def test_every_decision_is_a_sentence_with_a_source(fingerprint, cascade) -> None:
    planned = plan(fingerprint, cascade=cascade)
    for d in planned.decisions:
        assert d.because.endswith(".")
        assert "\n" not in d.because
        assert d.source
        assert d.value
    assert {d.configuration for d in planned.decisions} == {"", *(c.name for c in planned.configurations)}


@given(st.lists(st.text(min_size=1), min_size=2, max_size=60, unique=True), st.randoms())
def test_folds_divide_the_cases(names, random) -> None:
    folds = rules.folds(names)
    sizes = [len(f) for f in folds]
    assert sorted(n for f in folds for n in f) == sorted(names)
    assert len(folds) == min(5, len(names))
    assert max(sizes) - min(sizes) <= 1
    random.shuffle(names)
    assert rules.folds(names) == folds
