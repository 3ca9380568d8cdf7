"""Each rule by itself, on both sides of its boundary."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import LABELS, case, fingerprint

from autoplan.base.errors import PlanError
from autoplan.data.facts import CaseFacts, Fingerprint, Intensities
from autoplan.planning import recipes, rules, topology
from autoplan.planning.plan import configurations, num_input_channels, plan
from autoplan.planning.reasons import warnings


def five(**fields) -> list[CaseFacts]:
    return [case(name=name, **fields) for name in "abcde"]


@pytest.mark.parametrize(
    ("size", "max_pool", "poolings"),
    [(7, 5, 0), (8, 5, 1), (15, 5, 1), (16, 5, 2), (20, 5, 2), (40, 5, 3), (64, 5, 4), (256, 5, 5), (256, 6, 6)],
)
def test_num_poolings(size, max_pool, poolings) -> None:
    assert topology.num_poolings(size, max_pool=max_pool) == poolings


@pytest.mark.parametrize(
    ("size", "admissible"), [(1, 1), (7, 7), (9, 10), (41, 48), (58, 64), (89.6, 96), (129, 160), (512, 512)]
)
def test_admissible_size(size, admissible) -> None:
    assert topology.admissible_size(size, max_pool=5) == admissible


def test_next_smaller_size() -> None:
    assert [topology.next_smaller_size(n, max_pool=5) for n in (160, 128, 8, 2)] == [128, 112, 7, 1]


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((16, 32), ((1, 1), (1, 2), (2, 2), (2, 2))),
        ((20, 192, 192), ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))),
    ],
)
def test_axes_with_fewer_poolings_are_pooled_in_the_deeper_stages(patch, strides) -> None:
    assert topology.strides(patch, max_pool=5) == strides


def test_features_double_up_to_the_cap() -> None:
    assert topology.features(6) == (30, 60, 120, 240, 480, 960)
    assert topology.features(6, max_features=320) == (30, 60, 120, 240, 320, 320)


@pytest.mark.parametrize(
    ("shape", "patch"), [((5, 6, 7), (5, 6, 16)), ((9, 5, 9), (16, 5, 10)), ((15, 3, 3), (16, 3, 3))]
)
def test_a_tiny_patch_is_raised_to_two_poolings(shape, patch) -> None:
    assert topology.patch_size_3d(shape, (1.0, 1.0, 1.0)) == patch
    assert len(topology.strides(patch, max_pool=5)) == 3


def test_a_raised_patch_is_a_warning() -> None:
    tiny = plan(fingerprint(five(shape=(9, 9, 9), cropped_shape=(9, 9, 9))))
    assert [w.value for w in warnings(tiny)] == ["patch of 2d", "patch of 3d_fullres"]
    assert not warnings(plan(fingerprint(five())))


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1.0, 1.0, 1.0), 2), ((3.0, 1.0, 1.0), 0), ((1.0, 3.0, 1.0), 1), ((1.0, 1.0, 0.99999), 2), ((1.0, 1.0, 0.9), 1)],
)
def test_slices_run_along_the_coarsest_axis(spacing, axis) -> None:
    assert rules.slice_axis(spacing) == axis


def test_spacing_and_shape_are_medians() -> None:
    cases = [case(spacing=(s, 1.0, 2.0), cropped_shape=(n, 10, 10)) for s, n in ((1.0, 30), (1.5, 21), (4.0, 10))]
    target = rules.target_spacing([c.spacing for c in cases])
    assert target == (1.5, 1.0, 2.0)
    assert [rules.resampled_shape(c.cropped_shape, c.spacing, target=target)[0] for c in cases] == [20, 21, 27]
    assert rules.median_shape(cases, target) == (21, 10, 10)


def test_a_spacing_may_be_given_in_place_of_the_median() -> None:
    facts = fingerprint(five(shape=(256, 216, 9), cropped_shape=(256, 216, 9), spacing=(1.5, 1.5, 10.0)))
    found, usual = plan(facts, own_spacing=(3.0, 3.0, 10.0)), plan(facts)
    assert (found.own_spacing, usual.own_spacing) == ((3.0, 3.0, 10.0), None)
    assert found.spacing == (3.0, 3.0, 10.0)
    assert found.configuration("2d").patch_size == (128, 112)
    assert [c.name for c in found.configurations] == [c.name for c in usual.configurations]
    [decision] = [d for d in found.decisions if d.name == "spacing"]
    assert (decision.value, decision.source) == ("3 x 3 x 10 mm", "--spacing")
    assert decision.because.endswith(
        "is 1.5 x 1.5 x 10 mm. 3 x 3 x 10 mm was chosen in its place, by --spacing or because time was short."
    )
    assert "--spacing" not in str(usual.decisions)


def test_a_spacing_in_another_unit_is_refused() -> None:
    with pytest.raises(PlanError, match=r"--spacing 0.003 x 0.003 x 0.01 mm makes a median .* is 1.5 x 1.5 x 10"):
        plan(fingerprint(five(spacing=(1.5, 1.5, 10.0))), own_spacing=(0.003, 0.003, 0.01))


def test_a_median_of_a_half_is_rounded_up() -> None:
    cases = [case(cropped_shape=(n, 10, 10)) for n in (20, 21)]
    assert rules.median_shape(cases, (1.0, 1.0, 1.0)) == (21, 10, 10)


def test_the_cascade_needs_more_than_four_patches() -> None:
    assert not rules.cascade_is_necessary((256, 256, 128))
    assert rules.cascade_is_necessary((256, 256, 129))


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((1.0, 1.0, 2.0), ((200, 200, 200), (2.0, 2.0, 2.0))),  # in-plane doubled exactly to the coarsest
        ((1.0, 1.0, 1.9), ((200, 200, 100), (2.0, 2.0, 3.8))),  # would exceed it: all at once
        ((0.5, 1.0, 2.0), ((200, 200, 200), (1.0, 2.0, 2.0))),
    ],
)
def test_finer_axes_are_doubled_first(spacing, expected) -> None:
    assert rules.low_resolution((400, 400, 200), spacing) == expected
    assert rules.coarser(spacing) == expected[1], "where time is short, too"


def test_the_cascade_can_be_asked_for_and_refused() -> None:
    small, large = ((64, 64, 64), (1.0, 1.0, 1.0)), ((400, 400, 400), (1.0, 1.0, 1.0))
    assert rules.low_resolution(*small) is None
    assert rules.low_resolution(*small, cascade="always") == ((32, 32, 32), (2.0, 2.0, 2.0))
    assert rules.low_resolution(*large, cascade="never") is None
    assert [w.value for w in warnings(plan(fingerprint(five()), cascade="always"))] == ["cascade"]
    with pytest.raises(PlanError, match="auto, never, always"):
        plan(fingerprint(five()), cascade="perhaps")  # type: ignore[arg-type]


def test_a_refused_cascade_is_a_warning() -> None:
    large = fingerprint(five(shape=(400,) * 3, cropped_shape=(400,) * 3))
    assert [w.value for w in warnings(plan(large, cascade="never"))] == ["no cascade"]
    assert [c.name for c in plan(large).configurations] == ["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]


@pytest.mark.parametrize(
    ("name", "necessary", "over_batch"),
    [
        ("2d", False, True),
        ("2d", True, True),
        ("3d_fullres", False, False),
        ("3d_fullres", True, True),
        ("3d_lowres", True, False),
        ("3d_cascade_fullres", True, True),
    ],
)
def test_batch_dice(name, necessary, over_batch) -> None:
    assert rules.batch_dice(name, cascade_necessary=necessary) is over_batch


@pytest.mark.parametrize(
    ("patch", "mode"),
    [((64, 64), "2d"), ((32, 64, 64), "3d"), ((30, 64, 64), "slicewise"), ((64, 64, 30), "slicewise")],
)
def test_augmentation_is_slicewise_above_a_ratio_of_two(patch, mode) -> None:
    assert rules.augmentation(patch) == mode


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        pytest.param((30, 250, 250), (1.0, 1.0, 1.0), 0, id="thin along x, isotropic"),
        pytest.param((250, 30, 250), (1.0, 1.0, 1.0), 1, id="thin along y, isotropic"),
        pytest.param((250, 250, 12), (1.0, 1.0, 8.0), 2, id="thick slices"),
        pytest.param((200, 24, 24), (1.0, 1.0, 1.0), 2, id="a tie goes to the slice axis"),
        pytest.param((24, 24, 200), (1.0, 1.0, 1.0), 1, id="a tie without the slice axis"),
        pytest.param((64, 64, 64), (1.0, 1.0, 1.0), None, id="a cube"),
    ],
)
def test_slicewise_augmentation_runs_along_the_shortest_edge(shape, spacing, axis) -> None:
    planned = plan(fingerprint(five(shape=shape, cropped_shape=shape, spacing=spacing)))
    found = rules.augmentation_slice_axis(planned.configuration("3d_fullres"), slice_axis=planned.slice_axis)
    assert found == axis
    assert rules.augmentation_slice_axis(planned.configuration("2d"), slice_axis=planned.slice_axis) is None
    [why] = [d.because for d in planned.decisions if (d.configuration, d.name) == ("3d_fullres", "augmentation")]
    assert ("its shortest edge" in why) == (axis is not None)
    assert axis is None or f"shortest edge, {'xyz'[axis]}." in why


@pytest.mark.parametrize(("batch", "quick", "budget"), [(2, 2, 1), (7, 2, 1), (11, 2, 2), (12, 3, 3), (366, 91, 91)])
def test_the_batch_of_the_short_recipes(batch, quick, budget) -> None:
    assert (recipes.quick_batch_size(batch), recipes.budget_batch_size(batch)) == (quick, budget)


def test_the_batch_of_the_bundle_to_share() -> None:
    flat, whole = plan(fingerprint(five())).configurations
    for planned, limit in ((flat, 32), (whole, 4)):
        for batch in (2, limit, limit + 1, 400):
            assert recipes.shared_batch_size(dataclasses.replace(planned, batch_size=batch)) == min(batch, limit)


@pytest.mark.parametrize(
    ("change", "is_outlier"),
    [
        pytest.param({"spacing": (1000.0, 1000.0, 1000.0)}, True, id="metres for millimetres"),
        pytest.param({"spacing": (0.1, 0.1, 0.1)}, True, id="centimetres for millimetres"),
        pytest.param({"spacing": (11.0, 1.0, 1.0)}, True, id="one axis"),
        pytest.param({"spacing": (9.0, 1.0, 1.0)}, False, id="within the factor"),
        pytest.param(
            {"spacing": (0.5,) * 3, "shape": (80,) * 3, "cropped_shape": (80,) * 3}, False, id="finer, of equal size"
        ),
        pytest.param({"cropped_shape": (40, 40, 3)}, True, id="a few slices"),
    ],
)
def test_a_case_far_off_the_median_is_a_warning(change, is_outlier) -> None:
    planned = plan(fingerprint([*five(), case(name="odd", **change)]))
    assert [w.value for w in warnings(planned)] == (["outliers"] if is_outlier else [])
    assert all("odd (" in w.because and "\n" not in w.because for w in warnings(planned))


def test_a_small_size_is_not_shown_as_0_mm() -> None:
    micrometres = [case(name=n, spacing=(0.001,) * 3) for n in "abcde"]
    [warning] = warnings(plan(fingerprint([*micrometres, case(name="odd", spacing=(0.0317,) * 3)])))
    assert "odd (1.27 x 1.27 x 1.27 mm)" in warning.because


@pytest.mark.parametrize(
    ("profiles", "intensities", "warned"),
    [
        pytest.param([(0.0, 0.0, 0.0), (-2.0, 0.1, 3.0)], (None, None), "Channel T1 has one value", id="T1"),
        pytest.param([(-2.0, 0.1, 3.0)] * 2, (None, None), "", id="none"),
        pytest.param([(0.0, 0.0, 0.0)] * 2, (Intensities(1, 1.0, 1.0, 0.0, 2.0),) * 2, "", id="CT, which is absolute"),
    ],
)
def test_a_channel_of_one_value_is_a_warning(profiles, intensities, warned) -> None:
    odd = case(name="odd", intensities=tuple(profiles))
    found = warnings(plan(fingerprint([*five(), odd], ("T1", "T2"), intensities)))
    assert [w.value for w in found] == (["constant channels"] if warned else [])
    assert all(f"{warned} in all its nonzero voxels in odd." in w.because for w in found)


def test_many_odd_cases_are_one_warning() -> None:
    odd = [case(name=f"odd_{i}", spacing=(30.0, 30.0, 30.0), forms_apart_mm=7.5) for i in range(7)]
    many = [case(name=f"case_{i}") for i in range(20)]
    size, forms = warnings(plan(fingerprint([*many, *odd])))
    assert "odd_4 (1200 x 1200 x 1200 mm) and 2 more" in size.because
    assert "odd_4 (7.5 mm) and 2 more" in forms.because


@pytest.mark.parametrize(("cropped", "masked"), [((30, 40, 40), True), ((31, 40, 40), False)])
def test_normalization_is_masked_where_cropping_takes_a_quarter(cropped, masked) -> None:
    assert rules.nonzero_only([case(cropped_shape=cropped)]) is masked


def test_the_reduction_is_a_ratio_of_averages() -> None:
    """A small image that loses nearly all counts less than a large one that loses nothing."""
    cases = [case(shape=(100, 10, 10), cropped_shape=(100, 10, 10)), case(shape=(10, 10, 10), cropped_shape=(1, 1, 1))]
    assert not rules.nonzero_only(cases)


@pytest.mark.parametrize(
    ("components", "single"), [([1, 1], (7,)), ([1, 2], ()), ([1, 0], (7,)), ([0, 0], ())], ids=str
)
def test_single_component(components, single) -> None:
    cases = [case(class_components=(n,)) for n in components]
    assert rules.single_component(cases, LABELS) == single


def test_ct_is_normalized_by_the_dataset_and_all_else_by_itself() -> None:
    statistics = Intensities(100, 25.0, 50.0, -80.0, 150.0)
    planned = plan(fingerprint(five(), ("CT", "PET"), (statistics, None)))
    ct, other = planned.normalization
    assert other is None
    assert ct is not None
    assert dataclasses.astuple(ct) == (-80.0, 150.0, 25.0, 50.0)


def test_a_constant_ct_foreground_is_refused() -> None:
    with pytest.raises(PlanError, match="CT: all 100 foreground voxels have the value 25"):
        plan(fingerprint(five(), ("CT",), (Intensities(100, 25.0, 0.0, 25.0, 25.0),)))


def test_folds_stay_the_same_from_version_to_version() -> None:
    expected = (("b", "g"), ("c", "f"), ("d",), ("e",), ("a",))
    assert rules.folds(list("gfedcba")) == expected


def test_few_cases_make_few_folds_and_a_warning() -> None:
    planned = plan(fingerprint(five()[:3]))
    assert [len(f) for f in planned.folds] == [1, 1, 1]
    assert "fewer than 5" in warnings(planned)[0].because


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"]], ids=str)
def test_folds_need_two_cases(names) -> None:
    with pytest.raises(PlanError, match="at least two cases"):
        rules.folds(names)


def test_a_class_that_never_occurs_is_a_warning() -> None:
    planned = plan(fingerprint(five(class_voxels=(0,), class_components=(0,))))
    assert "organ (label 7) occurs in no training label" in warnings(planned)[0].because


def test_the_second_stage_sees_one_more_channel_a_foreground_class() -> None:
    names = ("3d_fullres", "3d_cascade_fullres")
    assert [num_input_channels(n, modalities=("a", "b"), labels=LABELS) for n in names] == [2, 3]  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "spacing"), [((35, 50, 36), (1.0, 1.0, 1.0)), ((96, 96, 20), (1.0, 1.0, 3.6))])
def test_num_parameters_are_those_of_dynunet(shape, spacing) -> None:
    torch = pytest.importorskip("torch")
    nets = pytest.importorskip("monai.networks.nets")
    for c in configurations(shape, spacing, num_cases=100, max_features=64):
        kernels = [3] * len(c.strides)
        with torch.device("meta"):
            network = nets.DynUNet(
                len(c.patch_size), 2, 3, kernels, c.strides, c.strides[1:], filters=c.features, dropout=None
            )
        assert topology.num_parameters(c, 2, 3) == sum(p.numel() for p in network.parameters())


# Folds of a dataset that has changed, and of rare classes.

FIVE = (("a", "b"), ("c", "d"), ("e",), ("f",), ("g",))


@pytest.mark.parametrize(
    ("before", "names", "groups", "expected"),
    [
        pytest.param(FIVE, "abcdefg", None, FIVE, id="nothing has changed"),
        pytest.param(FIVE, "abcdefgxyz", None, None, id="three cases more"),
        pytest.param(FIVE, "acefg", None, (("a",), ("c",), ("e",), ("f",), ("g",)), id="cases are gone"),
        pytest.param(FIVE, "abcdfg", None, (), id="a fold would be empty"),
        pytest.param(FIVE, "abcdefx", None, (("a", "b"), ("c", "d"), ("e",), ("f",), ("x",)), id="one for another"),
        pytest.param(FIVE, "vwxyz", None, (), id="no case stays"),
        pytest.param((("a",), ("b",), ("c",)), "abcde", None, None, id="three folds become five"),
        pytest.param(FIVE, "abcdefgx", dict(zip("abcdefgx", "11223457", strict=True)), None, id="a new patient"),
        pytest.param(FIVE, "abcdefgx", dict(zip("abcdefgx", "11223455", strict=True)), None, id="one comes again"),
        pytest.param(FIVE, "abcdefg", dict(zip("abcdefg", "1212345", strict=True)), (), id="a patient in two folds"),
        pytest.param((), "abcdefg", None, (), id="not planned before"),
    ],
)  # fmt: skip
def test_folds_of_a_dataset_that_has_changed(before, names, groups, expected) -> None:
    """`expected` () stands for folds that are drawn anew; None: what holds for all is looked at alone."""
    found = rules.grown_folds(before, [*names], groups, {name: [True] for name in names})
    if expected == ():
        assert found is None
        return
    assert found is not None
    assert expected in (None, found)
    assert sorted(name for fold in found for name in fold) == sorted(names)
    assert all({*old} & {*names} <= {*fold} for old, fold in zip(before, found, strict=False))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    for group in set((groups or {}).values()):
        assert sum(any(groups[name] == group for name in fold) for fold in found) == 1


def test_new_cases_with_a_rare_class_go_where_it_lacks() -> None:
    rare = "axyz"
    found = rules.grown_folds(FIVE, [*"abcdefgxyz"], None, {name: [True, name in rare] for name in "abcdefgxyz"})
    assert sorted(sum(name in rare for name in fold) for fold in found) == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("has", "spread"),
    [
        pytest.param("ab", False, id="both in one fold"),
        pytest.param("ac", True, id="two in two folds"),
        pytest.param("a", True, id="one case"),
        pytest.param("", True, id="none"),
        pytest.param("abcdef", False, id="six that one fold lacks"),
        pytest.param("acefg", True, id="five in five folds"),
    ],
)
def test_classes_are_spread(has, spread) -> None:
    assert rules.are_spread(FIVE, {name: [True, name in has] for name in "abcdefg"}) == spread


@given(st.integers(5, 30), st.integers(0, 2**30), st.data())
@settings(max_examples=60)
def test_a_rare_class_is_in_as_many_folds_as_it_can_be(count, seed, data) -> None:
    names = [f"case_{i:02d}" for i in range(count)]
    rare = data.draw(st.sets(st.sampled_from(names), max_size=7))
    cases = [case(name=name, class_voxels=(9, 5 * (name in rare)), class_components=(1, 1)) for name in names]
    labels = ((0, "background"), (1, "organ"), (2, "rare"))
    planned = plan(Fingerprint("key", "Task99_Made", ("MRI",), labels, tuple(cases), (None,)))
    assert sum(bool(rare & {*fold}) for fold in planned.folds) == min(len(rare), 5)
    told = [w.because for w in warnings(planned) if w.value == "rare"]
    assert len(told) == (len(rare) < 5)
    assert all(len(fold) >= count // 5 - 1 for fold in planned.folds)


@pytest.mark.parametrize(("groups", "is_told"), [(None, True), (dict(zip("abcde", "11234", strict=True)), False)])
def test_images_that_are_there_twice_are_told(groups, is_told) -> None:
    """Where they lie in different folds."""
    facts = dataclasses.replace(fingerprint(five()), contents=tuple((image, "1") for image in "xxyzw"))
    told = [w.because for w in warnings(plan(facts, groups=groups)) if w.value == "same images"]
    assert [text.partition(", and")[0] for text in told] == ["a and b have the same image"] * is_told
