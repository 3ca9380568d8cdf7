"""The second stage of the cascade learns from what the first says of unseen cases, and leaves the first as it is."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import NAMES, TINY_PLAN, keep_probabilities, nearest
from scripts.augmentation import RandCropWarpd
from scripts.cache import CaseCache
from scripts.cascade import AppendOneHotd, LowresSegmentations
from scripts.patches import PatchDataset, Request
from scripts.resampling import resampled_shape

OFF = {"rotation_prob": 0.0, "scaling_prob": 0.0, "elastic_prob": 0.0}
SHAPE, LOW_SHAPE = (15, 14, 9), (7, 8, 9)
FOLDS = (("case_0", "case_3"), ("case_1",), ("case_2",))


def predict(bundle, name, fold, low_shape=LOW_SHAPE, seed=0, num_classes=3):
    """Leaves a first stage's prediction of a case, as `evaluating` does, and gives its segmentation."""
    segmentation = np.random.default_rng([seed, fold]).integers(0, num_classes, low_shape).astype(np.uint8)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(segmentation).long(), num_classes).movedim(-1, 0).float()
    folder = bundle / "models" / f"fold_{fold}" / "validation" / "probabilities"
    keep_probabilities(folder / f"{name}.npz", 0.6 * one_hot + 0.4 / num_classes, axis=fold % 3)
    return segmentation


def preprocessing(item, shape=SHAPE):
    """The image holds each voxel's own number; the label, made of it, tells where a patch lies."""
    number = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    return {"image": torch.from_numpy(number), "label": torch.from_numpy(number % 3)}


class Project:
    """Cases, their folds, a first stage's bundle with its predictions, and a cache."""

    def __init__(self, folder, slice_axis=2, shape=SHAPE):
        self.folder, self.bundle = folder, folder / "3d_lowres"
        self.datalist = folder / "datalist.json"
        entries = [{"name": name, "fold": k} for k, names in enumerate(FOLDS) for name in names]
        self.datalist.write_text(json.dumps({"training": entries}))
        self.cache = CaseCache(folder / "cache", partial(preprocessing, shape=shape), slice_axis, num_classes=3)
        self.segmentations = {n: predict(self.bundle, n, k) for k, names in enumerate(FOLDS) for n in names}

    @property
    def lowres(self):
        return LowresSegmentations(self.bundle, self.datalist, self.cache)

    def items(self, *names):
        items = []
        for name in names:
            item = {"image": str(self.folder / f"{name}.nii.gz"), "label": str(self.folder / f"{name}-label.nii.gz")}
            for path in item.values():
                Path(path).touch()
            items.append({"name": name, **item})
        return items


@pytest.fixture
def make(tmp_path):
    return lambda **options: Project(tmp_path, **options)


# Where the segmentations come from.


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_segmentations_lie_on_the_grid_of_the_cases(slice_axis, make) -> None:
    """By nearest neighbour, of the shape of the preprocessed case, whichever axis the cache stores first."""
    project = make(slice_axis=slice_axis)
    lowres, names = project.lowres, ("case_2", "case_0")
    paths = lowres.fill(project.items(*names))
    for path, name in zip(paths, names, strict=True):
        found = lowres.read(path)
        assert (found.shape, found.dtype) == ((1, *SHAPE), np.uint8)
        np.testing.assert_array_equal(found[0], nearest(project.segmentations[name], SHAPE))


@pytest.mark.parametrize("shape", [LOW_SHAPE, (14, 16, 9), (7, 8, 30), (1, 1, 1), (3, 20, 5)], ids=str)
def test_any_shape(shape, make) -> None:
    project = make(shape=shape)
    [path] = project.lowres.fill(project.items("case_1"))
    np.testing.assert_array_equal(project.lowres.read(path)[0], nearest(project.segmentations["case_1"], shape))


def test_a_case_s_segmentation_is_by_the_fold_that_did_not_train_on_it(make) -> None:
    project = make()
    for fold, names in enumerate(FOLDS):
        for name in names:
            # Other folds may have left predictions of it as well, in another evaluation.
            predict(project.bundle, name, (fold + 1) % len(FOLDS), seed=99)
            assert project.lowres.source(name).relative_to(project.bundle).parts[:2] == ("models", f"fold_{fold}")
            [path] = project.lowres.fill(project.items(name))
            expected = nearest(project.segmentations[name], SHAPE)
            np.testing.assert_array_equal(project.lowres.read(path)[0], expected)


def test_cases_without_a_name_go_by_their_image(make) -> None:
    """As those of MONAI Label's datastore."""
    project = make()
    named = project.items("case_0", "case_2")
    unnamed = [{key: item[key] for key in ("image", "label")} for item in named]
    assert project.lowres.fill(unnamed) == project.lowres.fill(named)


def test_a_case_of_no_fold_is_named(make) -> None:
    """The first stage says nothing of an image that MONAI Label adds."""
    project = make()
    with pytest.raises(ValueError, match="The case added is in no fold of the datalist, so"):
        project.lowres.fill(project.items("added"))


def test_a_missing_prediction_is_named_with_the_command_that_makes_it(make) -> None:
    project = make()
    project.lowres.source("case_2").unlink()
    with pytest.raises(FileNotFoundError) as error:
        project.lowres.fill(project.items("case_0", "case_2"))
    message = str(error.value)
    assert "case_2 of fold 2" in message
    configs = f"['{project.bundle}/configs/train.json','{project.bundle}/configs/evaluate.json']"
    assert f'python -m monai.bundle run evaluating --config_file "{configs}" --fold 2' in message
    assert f"Train fold 2 of {project.bundle}" in message


def test_nothing_is_preprocessed_before_all_predictions_are_there(make) -> None:
    project = make()
    project.lowres.source("case_2").unlink()
    with pytest.raises(FileNotFoundError):
        project.lowres.fill(project.items("case_0", "case_2"))
    assert not list(project.folder.rglob("*.npys"))


def test_they_are_made_once(make) -> None:
    project = make()
    items = project.items("case_1")
    [path] = project.lowres.fill(items)
    before = path.stat().st_mtime_ns
    assert project.lowres.fill(items) == [path]
    assert path.stat().st_mtime_ns == before


def test_another_prediction_makes_another_segmentation(make) -> None:
    project = make()
    items = project.items("case_1")
    [before] = project.lowres.fill(items)
    source = project.lowres.source("case_1")
    segmentation = predict(project.bundle, "case_1", 1, seed=5)
    os.utime(source, ns=(1, source.stat().st_mtime_ns + 1))
    [path] = project.lowres.fill(items)
    assert path != before
    np.testing.assert_array_equal(project.lowres.read(path)[0], nearest(segmentation, SHAPE))


# Patches.


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_a_patch_of_the_segmentation_lies_where_that_of_the_image_lies(slice_axis, make) -> None:
    project = make(slice_axis=slice_axis)
    keys = ["image", "label", "lowres"]
    dataset = PatchDataset(
        project.items("case_1", "case_2"), project.cache, (6, 5, 4), RandCropWarpd(keys, (6, 5, 4), **OFF),
        lowres=project.lowres,
    )  # fmt: skip
    for seed in range(12):
        item = dataset[Request(seed % 2, seed % 3 == 0, seed)]
        assert {tuple(item[key].shape) for key in keys} == {(1, 6, 5, 4)}
        where = item["image"][0].long().numpy()
        full = nearest(project.segmentations[f"case_{1 + seed % 2}"], SHAPE)
        np.testing.assert_array_equal(item["lowres"][0], full.reshape(-1)[where])
        np.testing.assert_array_equal(item["label"][0], where % 3)


def test_without_a_first_stage_there_is_no_segmentation(make) -> None:
    project = make()
    dataset = PatchDataset(project.items("case_1"), project.cache, (6, 5, 4), lambda data: data)
    assert "lowres" not in dataset[Request(0, True, 0)]


def test_append_one_hot() -> None:
    data = {"image": torch.rand(2, 3, 2, 1), "lowres": torch.tensor([0, 1, 2, 2, 1, 0], dtype=torch.uint8)}
    data["lowres"] = data["lowres"].reshape(1, 3, 2, 1)
    before = dict(data)
    found = AppendOneHotd(3)(data)
    assert set(found) == {"image"}
    assert torch.equal(found["image"][:2], before["image"])
    for label in (1, 2):
        assert torch.equal(found["image"][1 + label], (before["lowres"][0] == label).float())
    assert data.keys() == before.keys(), "the data that it was given stays"


# The bundle.


@pytest.fixture(scope="module")
def first_stage(project, parse, tmp_path_factory):
    """A first stage's bundle that has networks and predictions of all folds, as if it had been trained."""
    bundle = tmp_path_factory.mktemp("first") / "3d_lowres"
    shutil.copytree(project / "bundles" / TINY_PLAN.name / "3d_lowres" / "configs", bundle / "configs")
    low = TINY_PLAN.configuration("3d_lowres")
    for fold, names in enumerate(TINY_PLAN.folds):
        torch.manual_seed(fold)
        network = parse(bundle, "train").get_parsed_content("network_def")
        for name in names:
            predict(bundle, name, fold, low.median_shape)
        torch.save(network.state_dict(), bundle / "models" / f"fold_{fold}" / "model.pt")
    return bundle


@pytest.fixture
def second_stage(project, parse, first_stage, tmp_path):
    """`second_stage(fold=1)`: parsed training of the second stage."""

    def parsed(**values):
        settings = {"max_epochs": 1, "epoch_length": 2, "val_batches": 1, "num_workers": 0, "device": "cpu"}
        settings |= {"cache_dir": str(tmp_path / "cache"), "ckpt_dir": str(tmp_path / "fold")}
        bundle = project / "bundles" / TINY_PLAN.name / "3d_cascade_fullres"
        return parse(bundle, "train", lowres_bundle=str(first_stage), **settings, **values)

    return parsed


@pytest.mark.parametrize("part", ["train", "validate"])
def test_the_network_sees_the_image_and_the_foreground_classes(part, second_stage) -> None:
    parser = second_stage()
    dataset = parser.get_parsed_content(f"{part}#dataset")
    planned = TINY_PLAN.configuration("3d_cascade_fullres")
    for seed in range(4):
        item = dataset[Request(0, True, seed)]
        assert "lowres" not in item
        assert item["image"].shape == (2 + 2, *planned.patch_size)
        codes = item["image"][2:]
        assert set(codes.unique().tolist()) <= {0.0, 1.0}
        assert float(codes.sum(0).max()) <= 1, "a voxel has one class at most"
    inputs = parser.get_parsed_content("network")(item["image"][None])
    assert inputs.shape == (1, 3, *planned.patch_size)


def test_mistakes_are_for_training_only(second_stage) -> None:
    """With the known defaults of nnU-Net; after the mirroring, before the channels are made."""
    parser = second_stage()
    kinds = {
        part: [type(t).__name__ for t in parser.get_parsed_content(f"{part}#preprocessing").transforms]
        for part in ("train", "validate")
    }
    assert kinds["train"][-3:] == ["RandMirrord", "RandDegradeSegmentationd", "AppendOneHotd"]
    assert kinds["validate"] == ["RandCropWarpd", "AppendOneHotd"]
    degrade = parser.get_parsed_content("train#preprocessing").transforms[-2]
    assert (degrade.morphology_prob, degrade.radius) == (0.4, (1, 8))
    assert (degrade.removal_prob, degrade.removal_fraction) == (0.2, 0.15)


def test_validation_sees_the_segmentation_as_it_is(second_stage) -> None:
    """A first stage that makes no mistake: the channels are those of the label."""
    dataset = second_stage(fold=2).get_parsed_content("validate#dataset")
    [case], [path] = TINY_PLAN.folds[2], dataset.lowres_paths
    assert case in path.name
    dataset.lowres.read = lambda _: dataset.case(0).label
    for seed in range(5):
        item = dataset[Request(0, True, seed)]
        assert (item["label"] > 0).any()
        for label in (1, 2):
            np.testing.assert_array_equal(item["image"][1 + label], item["label"][0] == label)


@pytest.mark.parametrize("fold", [0, 3])
def test_training_changes_the_second_stage_alone(fold, second_stage, first_stage, tmp_path) -> None:
    """model.pt holds the first stage of the same fold, bit by bit, and a second stage that has learnt."""
    parser = second_stage(fold=fold)
    torch.manual_seed(0)
    start = {k: v.clone() for k, v in parser.get_parsed_content("network_def").state_dict().items()}
    parser.get_parsed_content("train#trainer").run()
    found = torch.load(tmp_path / "fold" / "model.pt", weights_only=True)
    first = torch.load(first_stage / "models" / f"fold_{fold}" / "model.pt", weights_only=True)
    assert {k.removeprefix("lowres.0."): v for k, v in found.items() if k.startswith("lowres")}.keys() == first.keys()
    assert all(torch.equal(found[f"lowres.0.{key}"], value) for key, value in first.items())
    second = [key for key in found if key.startswith("cascade.0.") and key.endswith("weight") and found[key].ndim > 1]
    assert second
    assert not any(torch.equal(found[key], start[key]) for key in second)
    assert all(key.split(".")[:2] in (["lowres", "0"], ["cascade", "0"]) for key in found)


def test_training_starts_by_naming_a_first_stage_that_is_missing(second_stage, first_stage, tmp_path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(first_stage, moved)
    [case] = TINY_PLAN.folds[4]
    shutil.rmtree(moved / "models" / "fold_4" / "validation")
    parser = second_stage()
    parser["lowres_bundle"] = str(moved)
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("train#trainer")
    cause = error.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, FileNotFoundError)
    assert f"{case} of fold 4" in str(cause)


def test_the_second_stage_shares_the_cache_of_the_full_resolution(project, parse) -> None:
    folders = {n: parse(project / "bundles" / TINY_PLAN.name / n, "train").get_parsed_content("cache") for n in NAMES}
    names = {n: cache.folder.name for n, cache in folders.items()}
    assert names["2d"] == names["3d_fullres"] == names["3d_cascade_fullres"] != names["3d_lowres"]


class Stages(torch.nn.Module):
    """A first stage that takes bright voxels for class 1, and a second one that believes the first."""

    def __init__(self, threshold):
        super().__init__()
        self.lowres = torch.nn.ModuleList([Bright(threshold)])
        self.cascade = torch.nn.ModuleList([Believer()])


class Bright(torch.nn.Module):
    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        excess = 9 * (x[:, :1] - self.threshold)
        return torch.cat([-excess, excess, -excess.abs() - 9], 1)


class Believer(torch.nn.Module):
    def forward(self, x):
        return 9 * torch.cat([0.5 + 0 * x[:, :1], x[:, 2:]], 1)


@pytest.mark.parametrize("spacing", [(1.5, 1.25, 2.0), (0.9, 1.1, 1.3), (2.1, 1.9, 2.7)], ids=str)
@pytest.mark.parametrize("shape", [(60, 57, 51), (55, 61, 46)], ids=str)
def test_nothing_moves_on_the_way_through_both_resolutions(shape, spacing, project, parse, tmp_path) -> None:
    """The centre of a ball in an oblique image, of a few voxels of the low resolution, is off by 0.1 of them at most.

    A shift by half a voxel in any step would be seen.
    """
    angle = np.deg2rad(15)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.block([[turn @ np.diag([-1, 1, 1]) @ np.diag(spacing), np.array([[9.0], [8.0], [7.0]])], [0, 0, 0, 1]])
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    center, radius_mm = (
        [n * part for n, part in zip(shape, (0.53, 0.46, 0.5), strict=True)],
        0.3 * shape[2] * spacing[2],
    )
    distance = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, center, spacing, strict=True)) ** 0.5
    bright = 10 + 90 / (1 + np.exp(distance - radius_mm))
    image = np.stack([bright, np.random.default_rng(0).normal(50, 9, shape)], -1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "image.nii.gz")
    parser = parse(project / "bundles" / TINY_PLAN.name / "3d_cascade_fullres", "inference", mirror=False)
    data = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "image.nii.gz")})
    threshold = float((data["image"][0].max() + data["image"][0].min()) / 2)
    data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], Stages(threshold))[0]
    for transform in parser.get_parsed_content("postprocessing").transforms[:-1]:
        data = transform(data)
    found = data["pred"][0].numpy()
    assert found.shape == shape
    assert set(np.unique(found)) == {0, 1}
    expected = distance < radius_mm
    moved_mm = (np.argwhere(found == 1).mean(0) - np.argwhere(expected).mean(0)) * spacing
    low = np.array(TINY_PLAN.configuration("3d_lowres").spacing)
    assert (np.abs(moved_mm) / low).max() < 0.1
    assert (found == 1).sum() == pytest.approx(expected.sum(), rel=0.05)


@pytest.mark.parametrize("case", ["case_0", "case_3"])
def test_the_first_stage_s_cases_have_the_shape_that_inference_gives_them(case, project, parse) -> None:
    """The number of voxels follows from that of the full resolution alone."""
    path = str(project / "data" / TINY_PLAN.name / "imagesTr" / f"{case}.nii.gz")
    shapes = {}
    for name in ("3d_fullres", "3d_lowres"):
        transform = parse(project / "bundles" / TINY_PLAN.name / name, "train").get_parsed_content("preprocessing")
        shapes[name] = tuple(transform({"image": path})["image"].shape[1:])
    full, low = (TINY_PLAN.configuration(name).spacing for name in shapes)
    assert shapes["3d_lowres"] == resampled_shape(shapes["3d_fullres"], full, low)
