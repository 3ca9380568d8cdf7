"""The cache of preprocessed cases: true to the preprocessing, never a broken file, renewed when anything changes."""

import multiprocessing
import os
import signal
import time
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Lambdad, ScaleIntensityRanged
from scripts import cache as cache_module
from scripts.cache import CaseCache, describe, read_case
from scripts.files import TEMPORARY
from scripts.normalization import NormalizeChannelsd
from scripts.resampling import ResampleToSpacingd

FORK = multiprocessing.get_context("fork")
CT = {"lower": 0.0, "upper": 9.0, "mean": 4.0, "std": 2.0}


def make_item(folder, name="case_a"):
    """Files whose content does not matter: the preprocessing of these tests draws by their name."""
    item = {"image": str(folder / f"{name}.nii.gz"), "label": str(folder / f"{name}-label.nii.gz")}
    for path in item.values():
        Path(path).write_bytes(name.encode())
    return {"name": name, **item}


def made_up(item, shape=(7, 6, 5), values=(0, 1, 2)):
    """In place of a preprocessing: two channels and a label, drawn by the name of the case."""
    rng = np.random.default_rng(list(Path(item["image"]).name.encode()))
    image = torch.from_numpy(rng.normal(size=(2, *shape)).astype(np.float32))
    return {"image": image, "label": torch.from_numpy(rng.choice(values, (1, *shape)).astype(np.float32))}


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_what_is_read_is_what_preprocessing_gave(slice_axis, tmp_path) -> None:
    item = make_item(tmp_path)
    [path] = CaseCache(tmp_path / "cache", made_up, slice_axis, num_classes=3).fill([item])
    case, expected = read_case(path, slice_axis), made_up(item)
    assert case.name == "case_a"
    assert (case.image.dtype, case.label.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(case.image, expected["image"])
    np.testing.assert_array_equal(case.label, expected["label"])
    for value, found in enumerate(case.locations, start=1):
        assert sorted(map(tuple, found)) == sorted(map(tuple, np.argwhere(expected["label"][0].numpy() == value)))


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize(
    "box",
    [(slice(1, 4), slice(2, 5), slice(0, 3)), (slice(0, 1),) * 3, (slice(None),) * 3, (slice(3, 3),) * 3],
    ids=["inside", "a voxel", "all", "nothing"],
)
def test_bytes_of_a_box(box, slice_axis, tmp_path) -> None:
    """The runs hold every voxel of the box, and no slice and no channel that has none."""
    [path] = CaseCache(tmp_path / "cache", made_up, slice_axis, num_classes=3).fill([make_item(tmp_path)])
    case, content = read_case(path, slice_axis), path.read_bytes()
    for array in (case.image, case.image[1:], case.label):
        inside = array[(slice(None), *box)]
        cache_module.prefetch(inside)
        # Mapped memory starts at a whole page of the file: at its first byte, for so small a file.
        runs = [np.frombuffer(content[s : s + n], array.dtype) for s, n in cache_module.byte_runs(inside)]
        assert {*inside.flat} <= {value for run in runs for value in run}
        if inside.size > array.shape[0]:
            planes = np.moveaxis(inside, slice_axis + 1, 1).reshape(-1, *np.delete(inside.shape[1:], slice_axis))
            assert [(r[0], r[-1]) for r in runs] == [(p.flat[0], p.flat[-1]) for p in planes]


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_a_slice_is_one_run_of_bytes_and_reading_maps_the_file(slice_axis, tmp_path) -> None:
    [path] = CaseCache(tmp_path / "cache", made_up, slice_axis, num_classes=3).fill([make_item(tmp_path)])
    case = read_case(path, slice_axis)
    one_slice = case.image[(slice(None),) * (slice_axis + 1) + (3,)]
    assert one_slice.flags.c_contiguous
    assert isinstance(case.image, np.memmap)
    assert isinstance(case.label, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        case.image[0, 0, 0, 0] = 1


def test_the_rendered_preprocessing_survives_the_cache(project, parse, tmp_path) -> None:
    """Label values 0, 2, 5 have become classes 0, 1, 2."""
    parser = parse(project / "bundles/Task90_Tiny/3d_fullres", "train", cache_dir=str(tmp_path))
    cache, item = parser.get_parsed_content("cache"), parser.get_parsed_content("cases")[1][0]
    [path] = cache.fill([item])
    case, data = read_case(path, 2), cache.preprocessing(item)
    assert path.is_relative_to(tmp_path)
    np.testing.assert_array_equal(case.image, data["image"])
    np.testing.assert_array_equal(case.label, data["label"])
    assert set(np.unique(case.label)) == {0, 1, 2}
    for value, found in enumerate(case.locations, start=1):
        assert len(found) == (case.label == value).sum() > 0
        assert (case.label[0][tuple(found.T)] == value).all()


def test_configurations_and_folds_share_a_cache(project, parse) -> None:
    folder = project / "bundles/Task90_Tiny"
    caches = [
        parse(folder / name, "train", fold=fold).get_parsed_content("cache")
        for name, fold in (("2d", 0), ("3d_fullres", 0), ("3d_fullres", 3))
    ]
    assert len({c.folder.name for c in caches}) == 1
    assert len({os.path.normpath(c.folder) for c in caches}) == 1


# Locations.


def test_locations_are_capped_and_right(tmp_path) -> None:
    item, shape = make_item(tmp_path), (20, 20, 20)
    preprocessing = partial(made_up, shape=shape)
    [path] = CaseCache(tmp_path, preprocessing, 1, num_classes=3, max_locations=50).fill([item])
    case = read_case(path, 1)
    for value, found in enumerate(case.locations, start=1):
        assert found.shape == (50, 3)
        assert len({tuple(v) for v in found}) == 50
        assert (case.label[0][tuple(found.T)] == value).all()
        assert np.ptp(found, axis=0).min() > 10, "drawn from everywhere"


def test_locations_are_the_same_in_every_run(tmp_path) -> None:
    item, preprocessing = make_item(tmp_path), partial(made_up, shape=(20, 20, 20))
    paths = [CaseCache(tmp_path / n, preprocessing, 0, 3, max_locations=9).fill([item])[0] for n in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0,), [0, 0]), ((0, 2), [0, None]), ((1,), [210, 0])],
    ids=["no foreground", "a class is missing", "nothing but one class"],
)
def test_classes_that_are_missing(values, expected, tmp_path) -> None:
    [path] = CaseCache(tmp_path, partial(made_up, values=values), 2, num_classes=3).fill([make_item(tmp_path)])
    case = read_case(path, 2)
    counts = [len(found) for found in case.locations]
    assert all(e is None or c == e for c, e in zip(counts, expected, strict=True))
    assert all(found.shape[1:] == (3,) for found in case.locations)
    assert case.image.shape == (2, 7, 6, 5)


# Keys.


def pipeline(spacing=(1.0, 1.0, 1.0), statistics=CT, low=0.0, function=lambda x: x + 1):
    return Compose([
        ResampleToSpacingd(["image", "label"], spacing, ["spline", "nearest"], allow_missing_keys=True),
        Lambdad("image", func=function),
        ScaleIntensityRanged("image", low, 1.0, 0.0, 1.0),
        NormalizeChannelsd("image", [None, statistics]),
    ])  # fmt: skip


def folder_of(slice_axis=2, num_classes=3, **settings):
    return CaseCache("cache", pipeline(**settings), slice_axis, num_classes).folder.name


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": (1.0, 1.0, 1.001)},
        {"statistics": {**CT, "std": 2.0001}},
        {"statistics": None},
        {"low": 0.5},
        {"slice_axis": 1},
        {"num_classes": 4},
        {"function": lambda x: x + 2},
        {"function": lambda x: x.abs()},
    ],
    ids=["spacing", "statistics", "no CT", "MONAI's transform", "slice axis", "classes", "constant", "function"],
)
def test_another_preprocessing_has_another_folder(change) -> None:
    assert folder_of(**change) != folder_of()


def test_equal_preprocessings_have_equal_folders() -> None:
    assert folder_of() == folder_of()
    assert folder_of(spacing=[1, 1, 1]) == folder_of(), "ints, floats, lists and tuples of equal numbers"


def test_the_loader_counts_too(project, parse) -> None:
    """MONAI keeps the settings of a loader in a private attribute."""
    bundle = project / "bundles/Task90_Tiny/3d_fullres"
    plain = parse(bundle, "train").get_parsed_content("cache")
    loading = {"preprocessing#transforms#0#dtype": "$torch.float64"}
    assert parse(bundle, "train", **loading).get_parsed_content("cache").folder.name != plain.folder.name


def test_random_state_is_no_setting() -> None:
    transform = Compose([Lambdad("image", func=abs)])
    before = describe(transform)
    transform.set_random_state(seed=7)
    assert describe(transform) == before


@pytest.mark.parametrize("key", ["image", "label"])
def test_a_changed_file_is_preprocessed_again(key, tmp_path) -> None:
    """Also one of the same size and time, as archives and rsync restore it; a file that was only touched is not."""
    item = make_item(tmp_path)
    cache = CaseCache(tmp_path / "cache", made_up, 2, num_classes=3)
    before, path = cache.fill([item]), Path(item[key])
    assert cache.fill([item]) == before
    time = path.stat().st_mtime_ns
    os.utime(path, ns=(0, 0))
    assert cache.fill([item]) == before
    path.write_bytes(bytes(reversed(path.read_bytes() + b"!"))[:-1])
    os.utime(path, ns=(time, time))
    assert cache.fill([item]) != before
    assert CaseCache(tmp_path / "cache", made_up, 2, num_classes=3).fill([item]) != before


def test_a_case_is_preprocessed_once(tmp_path) -> None:
    calls = []

    def counting(item):
        calls.append(item["image"])
        return made_up(item)

    items = [make_item(tmp_path, f"case_{i}") for i in range(3)]
    cache = CaseCache(tmp_path / "cache", counting, 2, num_classes=3)
    assert cache.fill(items) == cache.fill(items)
    assert sorted(calls) == [i["image"] for i in items]
    assert [read_case(p, 2).name for p in cache.fill(items[::-1])] == ["case_2", "case_1", "case_0"]


def test_worker_processes_fill_it_alike(tmp_path) -> None:
    items = [make_item(tmp_path, f"case_{i}") for i in range(3)]
    alone = CaseCache(tmp_path / "alone", made_up, 2, num_classes=3).fill(items)
    together = CaseCache(tmp_path / "together", made_up, 2, num_classes=3).fill(items, num_workers=2)
    assert [p.read_bytes() for p in alone] == [p.read_bytes() for p in together]


# A file that exists is whole.


def test_a_failed_writing_leaves_nothing(tmp_path, monkeypatch) -> None:
    def full(*_, **__):
        raise OSError("no space left on device")

    item, cache = make_item(tmp_path), CaseCache(tmp_path / "cache", made_up, 2, num_classes=3)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.np.lib.format, "write_array", full)
        with pytest.raises(OSError, match="no space left"):
            cache.fill([item])
    assert list(cache.folder.iterdir()) == []
    assert read_case(*cache.fill([item]), 2).name == "case_a"


def fill_and_die(folder, items):
    """The process ends without a chance to tidy up when it has written the second of a file's arrays."""
    write, calls = np.lib.format.write_array, []

    def killed(file, array, **options):
        write(file, array, **options)
        file.flush()
        calls.append(array)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    np.lib.format.write_array = killed
    CaseCache(folder, made_up, 2, num_classes=3).fill(items)


def test_a_killed_writer_leaves_no_file_that_counts(tmp_path) -> None:
    item = make_item(tmp_path)
    process = FORK.Process(target=fill_and_die, args=(tmp_path / "cache", [item]))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    cache = CaseCache(tmp_path / "cache", made_up, 2, num_classes=3)
    [left] = cache.folder.iterdir()
    assert fnmatch(left.name, TEMPORARY)
    assert left.stat().st_size > 0
    [path] = cache.fill([item])
    np.testing.assert_array_equal(read_case(path, 2).image, made_up(item)["image"])
    # What was left is young, another training might be writing it; it goes when it is old.
    assert left.exists()
    os.utime(left, (time.time() - 2 * cache_module.STALE_SECONDS,) * 2)
    cache.fill([item, make_item(tmp_path, "case_b")])
    assert not left.exists()


def test_two_writers_of_the_same_case_do_not_meet(tmp_path) -> None:
    """While one preprocesses a case the other starts and finishes it."""
    item = make_item(tmp_path)
    other = CaseCache(tmp_path / "cache", made_up, 2, num_classes=3)

    def interrupted(files):
        other.folder.mkdir(parents=True, exist_ok=True)
        other.write(files)
        return made_up(files)

    cache = CaseCache(tmp_path / "cache", interrupted, 2, num_classes=3)
    cache.folder = other.folder
    [path] = cache.fill([item])
    assert [path] == other.fill([item]) == list(other.folder.iterdir())
    np.testing.assert_array_equal(read_case(path, 2).image, made_up(item)["image"])


def slow_made_up(item):
    time.sleep(0.02)
    return made_up(item)


def test_two_processes_fill_one_folder(tmp_path) -> None:
    items = [make_item(tmp_path, f"case_{i}") for i in range(12)]
    fill = CaseCache(tmp_path / "cache", slow_made_up, 2, num_classes=3).fill
    fillers = [FORK.Process(target=fill, args=(items,)) for _ in range(2)]
    for filler in fillers:
        filler.start()
    for filler in fillers:
        filler.join()
    assert [filler.exitcode for filler in fillers] == [0, 0]
    cache = CaseCache(tmp_path / "cache", slow_made_up, 2, num_classes=3)
    paths = [cache.path(item) for item in items]
    assert sorted(paths) == sorted(cache.folder.iterdir())
    for path, item in zip(paths, items, strict=True):
        np.testing.assert_array_equal(read_case(path, 2).label, made_up(item)["label"])


def test_every_process_has_an_order_of_its_own(tmp_path, monkeypatch) -> None:
    """Also on two machines, where they may have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    items, orders = [make_item(tmp_path, f"case_{i}") for i in range(12)], []
    for place in ("here", "there"):
        order = []

        def noted(item, order=order):
            order.append(item["name"])
            return made_up(item)

        CaseCache(tmp_path / place, noted, 2, num_classes=3).fill(items)
        orders.append(order)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(item["name"] for item in items)
    assert orders[0] != orders[1]


def damaged(content, rng):
    """The content of a file, damaged in one of five ways."""
    kind, place = rng.integers(5), int(rng.integers(len(content)))
    changed = bytearray(content)
    if kind == 0:
        changed[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del changed[place:]
    elif kind == 2:
        changed += rng.bytes(int(rng.integers(1, 500)))
    elif kind == 3:
        changed[place : place + 64] = bytes(len(changed[place : place + 64]))
    else:
        del changed[place : place + int(rng.integers(1, 9))]
    return bytes(changed)


def test_a_damaged_file_is_made_anew(tmp_path, caplog) -> None:
    """Of 120 damages none is read as other voxels."""
    item, rng = make_item(tmp_path), np.random.default_rng(0)
    cache = CaseCache(tmp_path / "cache", made_up, 2, num_classes=3)
    [path] = cache.fill([item])
    good = path.read_bytes()
    for _ in range(120):
        changed = damaged(good, rng)
        path.write_bytes(changed)
        caplog.clear()
        assert cache.fill([item]) == [path]
        assert path.read_bytes() == good
        assert (f"{path} is damaged" in caplog.text) == (changed != good)


def test_a_case_that_cannot_be_preprocessed_is_named(tmp_path) -> None:
    def broken(item):
        raise MemoryError("Unable to allocate 247. GiB")

    with pytest.raises(RuntimeError, match=r"case_a cannot be preprocessed: Unable to allocate 247"):
        CaseCache(tmp_path / "cache", broken, 2, num_classes=3).fill([make_item(tmp_path)])
