"""Which patches a training sees: enough foreground, the same after a restart, the same on any number of processes."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from scripts import patches as patches_module
from scripts.augmentation import RandCropWarpd
from scripts.cache import CaseCache
from scripts.patches import ForegroundBatchSampler, PatchDataset, PatchLoader, Request

OFF = {"rotation_prob": 0.0, "scaling_prob": 0.0, "elastic_prob": 0.0}
SHAPE = (15, 14, 13)


def preprocessing(item, shape=SHAPE):
    """Class 1 is a voxel in a corner, class 2 a few voxels in the middle; a case has those that its name says. The
    image holds the label and each voxel's own number."""
    label = np.zeros(shape, np.float32)
    name = Path(item["image"]).name
    if "1" in name:
        label[0, 0, 0] = 1
    if "2" in name:
        label[tuple(slice(n // 2, n // 2 + 3) for n in shape)] = 2
    number = np.arange(label.size, dtype=np.float32).reshape(shape)
    return {"image": torch.from_numpy(np.stack([label, number])), "label": torch.from_numpy(label[None])}


@pytest.fixture
def make(tmp_path):
    """`make("case_1", "case_12")`: a dataset of cases that hold the classes in their names."""

    def made(*names, patch_size=(8, 8, 8), slice_axis=2, shape=SHAPE, transform=None):
        items = []
        for name in names:
            item = {"image": str(tmp_path / f"{name}.nii.gz"), "label": str(tmp_path / f"{name}-label.nii.gz")}
            for path in item.values():
                Path(path).touch()
            items.append({"name": name, **item})
        cache = CaseCache(tmp_path / f"cache{shape}", partial(preprocessing, shape=shape), slice_axis, num_classes=3)
        crop = RandCropWarpd(["image", "label"], patch_size, **OFF)
        return PatchDataset(items, cache, patch_size, transform or crop)

    return made


CASES = ("none", "only_1", "only_2", "both_12")


# How many patches are forced, and what that means.


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 3), (8, 3), (9, 4), (10, 4)],
)
def test_more_than_a_third_is_forced(batch_size, expected, make) -> None:
    sampler = ForegroundBatchSampler(make(*CASES), batch_size)
    for iteration in range(5):
        batch = sampler.batch(iteration)
        assert len(batch) == batch_size
        assert sum(r.foreground for r in batch) == expected


def test_more_than_a_third_of_any_batch(make) -> None:
    dataset = make(*CASES)
    for batch_size in range(1, 400):
        forced = ForegroundBatchSampler(dataset, batch_size).num_forced
        assert forced * 3 > batch_size
        assert (forced - 1) * 3 <= batch_size, "and no more than needed"


def test_a_forced_patch_holds_a_class_of_its_case(make) -> None:
    dataset = make(*CASES)
    for request in (r for i in range(40) for r in ForegroundBatchSampler(dataset, 3).batch(i) if r.foreground):
        label = dataset[request]["label"]
        assert CASES[request.case] != "none"
        assert (label > 0).any()


def test_classes_are_drawn_evenly_however_large_they_are(make) -> None:
    """One voxel of class 1, 27 of class 2. The patches of the two do not overlap."""
    dataset = make("both_12", patch_size=(4, 4, 4))
    found = [set(dataset[Request(0, True, seed)]["label"].unique().tolist()) - {0} for seed in range(300)]
    assert all(found)
    assert 0.4 < np.mean([f == {1} for f in found]) < 0.6


def test_a_class_that_a_case_lacks_is_not_drawn(make) -> None:
    dataset = make("only_2")
    assert all((dataset[Request(0, True, seed)]["label"] == 2).any() for seed in range(50))


def test_a_request_that_cannot_be_met_gives_any_patch(make) -> None:
    assert dataset_shape(make("none")[Request(0, True, 3)]) == ((2, 8, 8, 8), (1, 8, 8, 8))


def test_without_any_foreground_nothing_is_forced(make) -> None:
    dataset = make("none", "none_too")
    assert not any(r.foreground for i in range(20) for r in ForegroundBatchSampler(dataset, 4).batch(i))


def test_without_any_case_there_is_nothing_to_draw(make) -> None:
    with pytest.raises(ValueError, match="no case"):
        ForegroundBatchSampler(make(), 2)


def test_cases_and_places_are_drawn_evenly(make) -> None:
    dataset = make(*CASES, transform=lambda data: data)
    requests = [r for i in range(500) for r in ForegroundBatchSampler(dataset, 4).batch(i) if not r.foreground]
    counts = np.bincount([r.case for r in requests])
    assert counts.min() > 0.8 * len(requests) / len(CASES)
    centers = np.array([dataset[r]["center"] for r in requests])
    for axis, size in enumerate(SHAPE):
        assert set(centers[:, axis]) == set(range(size))


def dataset_shape(item):
    return tuple(item["image"].shape), tuple(item["label"].shape)


# What a patch holds.


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_a_volume_patch_is_cut_from_the_case(slice_axis, make) -> None:
    dataset = make("both_12", slice_axis=slice_axis)
    number = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    for seed in range(10):
        image, label = (dataset[Request(0, seed % 2 == 0, seed)][key] for key in ("image", "label"))
        assert (image.dtype, label.dtype) == (torch.float32, torch.uint8)
        start = np.argwhere(number == int(image[1].min()))[0]
        box = tuple(slice(s, s + 8) for s in start)
        np.testing.assert_array_equal(image[1], number[box])
        np.testing.assert_array_equal(image[0], label[0])


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_a_slice_patch_is_cut_across_the_slice_axis(slice_axis, make) -> None:
    dataset = make("both_12", patch_size=(8, 8), slice_axis=slice_axis)
    slices = np.moveaxis(np.arange(np.prod(SHAPE)).reshape(SHAPE), slice_axis, 0)
    for seed in range(20):
        item = dataset[Request(0, seed % 2 == 0, seed)]
        assert dataset_shape(item) == ((2, 8, 8), (1, 8, 8))
        number, *start = np.argwhere(slices == int(item["image"][1].min()))[0]
        np.testing.assert_array_equal(item["image"][1], slices[number][tuple(slice(s, s + 8) for s in start)])
        assert seed % 2 or (item["label"] > 0).any(), "a forced one"


def test_a_slice_is_not_copied_before_the_crop(make) -> None:
    """np.take would read and copy the whole case."""
    dataset = make("both_12", patch_size=(8, 8), transform=lambda data: data)
    data = dataset[Request(0, True, 0)]
    for key in ("image", "label"):
        assert isinstance(data[key], np.memmap)
        assert not data[key].flags.owndata


@pytest.mark.parametrize("patch_size", [(24, 8, 16), (32, 32, 32), (32, 8), (24, 24)], ids=str)
def test_an_image_smaller_than_the_patch_is_padded(patch_size, make) -> None:
    dataset = make("both_12", patch_size=patch_size)
    for seed in range(6):
        item = dataset[Request(0, True, seed)]
        assert dataset_shape(item) == ((2, *patch_size), (1, *patch_size))
        assert (item["label"] > 0).any()
        np.testing.assert_array_equal(item["image"][0], item["label"][0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 14, 13), (15, 14, 1)], ids=str)
def test_images_of_one_voxel_along_an_axis(shape, make) -> None:
    dataset = make("both_12", shape=shape)
    assert all(tuple(dataset[Request(0, True, s)]["image"].shape) == (2, 8, 8, 8) for s in range(3))


# The same patches again.


def test_the_same_request_gives_the_same_patch(make) -> None:
    transform = RandCropWarpd(["image", "label"], (8, 8, 8), rotation_prob=0.5, scaling_prob=0.5, elastic_prob=0.5)
    dataset = make(*CASES, transform=transform)
    requests = [r for i in range(4) for r in ForegroundBatchSampler(dataset, 3).batch(i)]
    first = [dataset[r]["image"] for r in requests]
    again = [dataset[r]["image"] for r in reversed(requests)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_seed_and_iteration_decide(make) -> None:
    dataset = make(*CASES)
    batches = [ForegroundBatchSampler(dataset, 4, seed=0).batch(i) for i in range(30)]
    assert batches == [ForegroundBatchSampler(dataset, 4, seed=0).batch(i) for i in range(30)]
    other = [ForegroundBatchSampler(dataset, 4, seed=1).batch(i) for i in range(30)]
    seeds = [r.seed for b in (*batches, *other) for r in b]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("num_batches", [None, 3])
def test_iteration_starts_where_it_is_told(num_batches, make) -> None:
    sampler = ForegroundBatchSampler(make(*CASES), 2, num_batches=num_batches)
    sampler.start = 5
    drawn = [batch for batch, _ in zip(sampler, range(3), strict=False)]
    assert drawn == [sampler.batch(i) for i in (5, 6, 7)]
    assert num_batches is None or len(list(sampler)) == 3


def centers_of_a_run(dataset, *, iteration=0, epochs=3, length=4, num_workers=0):
    """Centres of the patches that a training sees, batch by batch, when it goes on after `iteration`."""
    sampler, seen = ForegroundBatchSampler(dataset, 2), []
    engine = Engine(lambda _, batch: seen.append(torch.stack(batch["center"]).T.tolist()))

    def resume(trainer):
        trainer.state.iteration, trainer.state.epoch = iteration, iteration // length

    engine.add_event_handler(Events.STARTED, resume)
    sampler.attach(engine)
    engine.run(PatchLoader(dataset, sampler, num_workers), max_epochs=epochs, epoch_length=length)
    return seen


def only_center(data):
    return {"center": data["center"]}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("iteration", [0, 1, 4, 6, 8, 11])
def test_a_resumed_training_sees_what_it_would_have_seen(iteration, num_workers, make) -> None:
    dataset = make(*CASES, transform=only_center)
    whole = centers_of_a_run(dataset)
    assert len(whole) == 12
    assert len({str(batch) for batch in whole}) == 12
    assert centers_of_a_run(dataset, iteration=iteration, num_workers=num_workers) == whole[iteration:]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_validation_sees_its_own_patches(num_workers, make) -> None:
    """An engine that is run once for each epoch of another: in epoch e the batches of that epoch, whoever asks."""
    dataset = make(*CASES, transform=only_center)
    sampler, seen = ForegroundBatchSampler(dataset, 2, num_batches=3), []
    engine = Engine(lambda _, batch: seen.append(torch.stack(batch["center"]).T.tolist()))
    sampler.attach(engine)
    loader = PatchLoader(dataset, sampler, num_workers)
    for epoch in (1, 2, 4):
        engine.state.epoch, engine.state.iteration = epoch - 1, 0
        engine.state.max_epochs = epoch
        engine.run(loader, max_epochs=epoch, epoch_length=3)
    expected = [[list(dataset[r]["center"]) for r in sampler.batch(i)] for i in (0, 1, 2, 3, 4, 5, 9, 10, 11)]
    assert seen == expected


def test_worker_processes_give_the_same_patches(make) -> None:
    transform = RandCropWarpd(["image", "label"], (8, 8, 8), rotation_prob=0.5, scaling_prob=0.5, elastic_prob=0.5)
    dataset = make(*CASES, transform=transform)
    alone, together = (
        [batch for batch, _ in zip(PatchLoader(dataset, ForegroundBatchSampler(dataset, 3), n), range(5), strict=False)]
        for n in (0, 2)
    )
    for a, b in zip(alone, together, strict=True):
        assert a["case"] == b["case"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])


@pytest.mark.parametrize(("batch_size", "num_ranks", "rounded"), [(6, 2, 6), (6, 3, 6), (5, 2, 6), (1, 4, 4)])
def test_ranks_share_a_batch(batch_size, num_ranks, rounded, make, monkeypatch) -> None:
    dataset, shares = make(*CASES), []
    monkeypatch.setattr(patches_module.idist, "get_world_size", lambda: num_ranks)
    for rank in range(num_ranks):
        monkeypatch.setattr(patches_module.idist, "get_rank", lambda rank=rank: rank)
        sampler = ForegroundBatchSampler(dataset, batch_size)
        shares.append(next(iter(sampler)))
    assert {len(s) for s in shares} == {rounded // num_ranks}
    assert sorted(r for share in shares for r in share) == sorted(sampler.batch(0))
    assert sum(r.foreground for share in shares for r in share) * 3 > rounded
