"""Facts against independent computations, and when a saved fingerprint is reused."""

import json
import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from autoplan.base.errors import DatasetError
from autoplan.data import decathlon as datasets
from autoplan.data import fingerprint as fp
from autoplan.data import stored


def facts_of(tiny, **options) -> fp.Fingerprint:
    return fp.fingerprint(datasets.load(tiny.folder), num_processes=1, **options)


def test_facts_of_a_case(tiny) -> None:
    image = np.zeros((12, 10, 8), dtype=np.int16)
    image[1:9, 2:10, 3:7] = 5
    tiny.write(tiny.image("case_0"), image)
    case = facts_of(tiny).cases[0]
    assert case.shape == (12, 10, 8)
    assert case.cropped_shape == (8, 8, 4)
    assert case.spacing == (1.0, 1.0, 2.0)
    assert case.class_voxels == (27, 18)
    assert case.class_components == (1, 1)
    assert case.fraction_kept == 256 / 960


def test_the_crop_is_the_union_over_the_channels(make_tiny) -> None:
    tiny = make_tiny(modalities=("a", "b"))
    image = np.zeros((12, 10, 8, 2), dtype=np.int16)
    image[1, 2, 3, 0] = image[4, 6, 3, 1] = -7
    tiny.write(tiny.image("case_0"), image)
    assert facts_of(tiny).cases[0].cropped_shape == (4, 5, 1)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SRA", "ALI"])
def test_orientation_changes_nothing(tiny, codes) -> None:
    image = np.zeros((12, 10, 8), dtype=np.int16)
    image[1:9, 2:10, 3:7] = 5
    tiny.write(tiny.image("case_0"), image)
    before = facts_of(tiny).cases[0]
    for part in ("imagesTr", "labelsTr"):
        path = tiny.image("case_0", part)
        loaded = nibabel.load(path)
        turned = loaded.as_reoriented(ornt_transform(io_orientation(loaded.affine), axcodes2ornt(codes)))
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(turned.dataobj), turned.affine), path)
    assert facts_of(tiny).cases[0] == replace(before, orientation=codes)


def test_an_oblique_affine_belongs_to_the_nearest_axes() -> None:
    angle = np.deg2rad(20)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.7, 0.8, 3.0]) @ np.eye(3)[:, [2, 0, 1]]
    assert fp.ras_order(fp.spacing(affine), affine) == (0.7, 0.8, 3.0)


@pytest.mark.parametrize(
    ("offset", "components"), [((1, 1, 1), 1), ((2, 0, 0), 2)], ids=["corners touch", "a gap between"]
)
def test_components_connect_at_corners(offset, components) -> None:
    label = np.zeros((5, 5, 5), dtype=np.uint8)
    label[0, 0, 0] = label[offset] = 3
    assert fp.num_components(label, [3, 4]) == (components, 0)


@pytest.mark.parametrize(
    ("modality", "ct"), [("CT", True), ("ct_portal", True), ("MRI", False), ("FLAIR", False), ("SPECT", True)]
)
def test_is_ct(modality, ct) -> None:
    assert fp.is_ct(modality) is ct


def _pooled(dataset: datasets.Dataset) -> np.ndarray:
    """Foreground intensities of the first channel of all cases, by nibabel and numpy alone."""
    found = []
    for case in dataset.training:
        image = nibabel.load(dataset.root / case.images[0]).get_fdata()
        label = nibabel.load(dataset.root / str(case.label)).get_fdata()
        found.append((image[..., 0] if image.ndim == 4 else image)[np.rint(label) > 0])
    return np.concatenate(found)


def test_ct_statistics_of_real_data(real_data) -> None:
    dataset = datasets.load(real_data("Task61_STSCT"))
    (statistics,) = fp.fingerprint(dataset).intensities
    values = _pooled(dataset)
    assert statistics is not None
    assert statistics.count == len(values)
    assert statistics.mean == pytest.approx(values.mean(), rel=1e-12)
    assert statistics.std == pytest.approx(values.std(), rel=1e-12)
    low, high = np.percentile(values, (0.5, 99.5))
    assert (statistics.percentile_00_5, statistics.percentile_99_5) == pytest.approx((low, high), abs=1e-9)
    assert round(statistics.mean, 1) == 25.4
    assert round(statistics.std, 1) == 57.7
    assert (round(low), round(high)) == (-82, 147)


def test_the_hippocampus(real_data) -> None:
    from autoplan.planning.plan import plan

    planned = plan(fp.fingerprint(datasets.load(real_data("Task04_Hippocampus"))))
    assert planned.num_training == 208
    assert [(c.patch_size, c.batch_size) for c in planned.configurations] == [((40, 56), 293), ((40, 56, 40), 7)]


def test_only_ct_channels_have_statistics(make_tiny) -> None:
    statistics = facts_of(make_tiny(modalities=("CT", "PET"))).intensities
    assert statistics[0] is not None
    assert statistics[1] is None


def test_float_intensities_keep_to_the_bound(make_tiny) -> None:
    tiny = make_tiny(modalities=("CT",))
    rng = np.random.default_rng(1)
    for i in range(5):
        tiny.write(tiny.image(f"case_{i}"), rng.normal(40, 300, (12, 10, 8)).astype(np.float32))
    (statistics,) = facts_of(tiny).intensities
    values = _pooled(datasets.load(tiny.folder))
    assert statistics is not None
    assert (statistics.mean, statistics.std) == pytest.approx((values.mean(), values.std()), rel=1e-12)
    exact = np.percentile(values, (0.5, 99.5))
    assert (statistics.percentile_00_5, statistics.percentile_99_5) == pytest.approx(tuple(exact), rel=2**-16)


@given(st.floats(-1e6, 1e6))
def test_rounding_error(value) -> None:
    assert abs(float(fp.rounded(np.array([value]))[0]) - value) <= abs(value) * 2**-16


def test_whole_numbers_are_exact() -> None:
    numbers = np.arange(-65536, 65537)
    np.testing.assert_array_equal(fp.rounded(numbers), numbers)


@given(st.lists(st.lists(st.integers(-50, 50), max_size=20), min_size=1, max_size=6))
def test_pools_merge_as_if_they_were_one(parts) -> None:
    histogram = None
    for part in parts:
        values = np.array(part, dtype=np.int16).reshape(-1, 1, 1)
        histogram = fp.merged(histogram, fp._histogram(values, np.ones(values.shape)))
    together = np.array([v for part in parts for v in part])
    if not together.size:
        assert histogram is None
        return
    assert histogram is not None
    assert fp.intensities(histogram).mean == pytest.approx(together.mean(), abs=1e-9)
    assert fp.intensities(histogram).std == pytest.approx(together.std(), abs=1e-6)
    for q in fp.PERCENTILES:
        assert fp.percentile(histogram, q) == pytest.approx(np.percentile(together, q), abs=1e-9)


def test_processes_change_nothing(tiny) -> None:
    dataset = datasets.load(tiny.folder)
    assert fp.fingerprint(dataset, num_processes=2) == fp.fingerprint(dataset, num_processes=1)


def test_a_fingerprint_is_reused_while_the_dataset_is_unchanged(tiny, tmp_path) -> None:
    path = tmp_path / "bundles" / "fingerprint.json"
    dataset = datasets.load(tiny.folder)
    assert fp.reusable(path, dataset) is None
    computed = facts_of(tiny)
    stored.save_fingerprint(computed, path)
    assert stored.load_fingerprint(path) == computed
    os.utime(tiny.image("case_0"))
    assert fp.reusable(path, dataset) == computed, "the content counts, not the clock"
    assert [p.name for p in path.parent.iterdir()] == ["fingerprint.json"]
    assert path.read_text().count('\n  {"name"') == 5, "one case a line"


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr", "imagesTs"])
def test_a_changed_file_makes_a_new_key(tiny, part) -> None:
    before = fp.key(datasets.load(tiny.folder))
    path = tiny.image("test_0" if part == "imagesTs" else "case_2", part)
    array = tiny.read(path)
    array[0, 0, 0] = 1 - (array[0, 0, 0] == 1)
    tiny.write(path, array)
    assert fp.key(datasets.load(tiny.folder)) != before


def test_a_file_of_the_same_size_and_time_makes_a_new_key(tiny, tmp_path) -> None:
    """As archives and rsync restore it; digests are kept beside the bundles."""
    label, dataset = tiny.image("case_2", "labelsTr"), datasets.load(tiny.folder)
    before, state = fp.key(dataset, tmp_path), label.stat()
    assert (tmp_path / "cache" / "contents.json").is_file()
    label.write_bytes(label.read_bytes()[::-1])
    os.utime(label, ns=(state.st_atime_ns, state.st_mtime_ns))
    fp._known.clear()
    assert fp.key(dataset, tmp_path) != before


def test_a_changed_description_makes_a_new_key(tiny) -> None:
    before = fp.key(datasets.load(tiny.folder))
    tiny.describe(labels={"0": "background", "1": "a", "2": "renamed"})
    assert fp.key(datasets.load(tiny.folder)) != before


def test_a_missing_file_makes_a_new_key(tiny) -> None:
    before = fp.key(datasets.load(tiny.folder))
    tiny.image("case_2").unlink()
    assert fp.key(datasets.load(tiny.folder)) != before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}'])
def test_a_damaged_fingerprint_is_not_reused(tiny, tmp_path, text) -> None:
    path = tmp_path / "fingerprint.json"
    path.write_text(text)
    assert fp.reusable(path, datasets.load(tiny.folder)) is None
    with pytest.raises(DatasetError, match="Remove the file"):
        stored.load_fingerprint(path)


def test_a_saved_fingerprint_is_plain_json(make_tiny, tmp_path) -> None:
    path = tmp_path / "fingerprint.json"
    stored.save_fingerprint(facts_of(make_tiny(modalities=("CT",))), path)
    assert json.loads(path.read_text())["intensities"][0]["count"] == 5 * 45
