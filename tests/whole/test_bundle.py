"""Rendered bundles as a user starts them: by MONAI's command line, from anywhere, without autoplan."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from conftest import NAMES, TINY_PLAN, write_project
from monai.bundle.properties import InferProperties, TrainProperties

pytestmark = pytest.mark.slow

TASK = TINY_PLAN.name


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder that holds nothing, in which all is started."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, forks, elsewhere):
    """A project whose bundles have been trained for 2 epochs of 2 iterations, scored, used and exported."""
    project = write_project(tmp_path_factory.mktemp("trained"))
    some = tmp_path_factory.mktemp("images")
    shutil.copy(project / "data" / TASK / "imagesTs" / "test_1.nii.gz", some / "mine.nii.gz")
    (some / "notes.txt").write_text("no image")

    def start(name):
        bundle = project / "bundles" / TASK / name
        train, evaluate, inference, metadata = (
            str(bundle / "configs" / f"{c}.json") for c in ("train", "evaluate", "inference", "metadata")
        )
        short = ["--max_epochs", "2", "--epoch_length", "2", "--val_batches", "1", "--num_workers", "0"]
        network = ["--net_id", "network_def"]
        here = ["--meta_file", metadata, "--config_file", inference]
        trainings = []
        # The second stage of the cascade learns from what all folds of the first say of the cases they have not seen.
        for fold in map(str, range(len(TINY_PLAN.folds) if name == "3d_lowres" else 1)):
            both = f"['{train}','{evaluate}']"
            trainings.append(["run", "training", "--config_file", train, "--fold", fold, *short])
            trainings.append(["run", "evaluating", "--config_file", both, "--fold", fold, "--num_workers", "0"])
        return forks.start(
            *trainings,
            ["run", "inference", "--config_file", inference, "--num_workers", "0"],
            ["run", "--config_file", inference, "--dataset_dir", str(some), "--output_dir", "mine_" + name],
            (bundle, ["verify_net_in_out", *network, *here]),
            (
                bundle,
                ["ckpt_export", *network, "--filepath", "models/model.ts", "--ckpt_file", "models/model.pt", *here],
            ),
            folder=elsewhere,
            log=project / f"{name}.log",
        )

    for together in (("3d_lowres", "2d", "3d_fullres"), ("3d_cascade_fullres",)):
        for process in [start(name) for name in together]:
            process.succeed()
    return project


@pytest.fixture(params=NAMES)
def bundle(request, trained):
    return trained / "bundles" / TASK / request.param


def test_training_leaves_what_it_should(bundle) -> None:
    left = {p.name for p in (bundle / "models" / "fold_0").iterdir()}
    assert {"last.pt", "model.pt", "curve.csv", "progress.png", "validation"} <= left
    assert not [name for name in left if name.endswith(".tmp")]
    assert (bundle / "models/model.pt").read_bytes() == (bundle / "models/fold_0/model.pt").read_bytes()
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values()), "flat"
    assert len((bundle / "models/fold_0/curve.csv").read_text().splitlines()) == 3


def test_the_caches_are_shared_and_their_keys_are_the_same_in_every_process(trained, parse) -> None:
    """One of the full and one of the low resolution, and beside the first the segmentations of the first stage."""
    folder = trained / "bundles" / TASK
    caches = {name: parse(folder / name, "train").get_parsed_content("cache").folder.resolve() for name in NAMES}
    full, low = caches["3d_fullres"], caches["3d_lowres"]
    assert full == caches["2d"] == caches["3d_cascade_fullres"] != low
    assert {path for path in (folder / "cache").iterdir() if path.is_dir()} == {full, low}
    cases = [f"case_{i}" for i in range(5)]
    for part in (full, low, full / "lowres"):
        assert sorted(p.name.partition("-")[0] for p in part.glob("*.npys")) == cases


def test_validation_cases_are_scored(bundle) -> None:
    validation = bundle / "models" / "fold_0" / "validation"
    assert {p.name for p in validation.iterdir()} == {
        "case_0.nii.gz",
        "dice.csv",
        "dice.json",
        "probabilities",
        ".written.json",
    }
    assert [p.name for p in (validation / "probabilities").iterdir()] == ["case_0.npz"]
    scores = json.loads((validation / "dice.json").read_text())
    assert set(scores["cases"]) == {"case_0"}
    assert set(scores["mean_dice"]) == {"ball", "box"}
    # Scored again from the files, in the original grid.
    pred, label = (
        np.asarray(nibabel.load(path).dataobj)
        for path in (validation / "case_0.nii.gz", bundle.parents[2] / "data" / TASK / "labelsTr" / "case_0.nii.gz")
    )
    for value, name in ((2, "ball"), (5, "box")):
        expected = 2 * ((pred == value) & (label == value)).sum() / ((pred == value).sum() + (label == value).sum())
        assert scores["cases"]["case_0"][name] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["test_0", "test_1"])
def test_a_segmentation_lies_on_its_image(name, bundle) -> None:
    """Images of other orientation, spacing and shape than those of training; one is smaller than the patch."""
    found = nibabel.load(bundle / "eval" / f"{name}.nii.gz")
    image = nibabel.load(bundle.parents[2] / "data" / TASK / "imagesTs" / f"{name}.nii.gz")
    assert sorted(p.name for p in (bundle / "eval").glob("*.nii.gz")) == ["test_0.nii.gz", "test_1.nii.gz"]
    assert found.shape == image.shape[:3]
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
    values = np.asarray(found.dataobj)
    assert values.dtype == np.uint8
    assert set(np.unique(values)) <= {0, 2, 5}


def test_a_folder_of_images_is_predicted(bundle, elsewhere) -> None:
    """Into a folder that is relative to the working directory, as it was given by the user."""
    [found] = (elsewhere / f"mine_{bundle.name}").glob("*.nii.gz")
    assert found.name == "mine.nii.gz"
    np.testing.assert_array_equal(nibabel.load(found).dataobj, nibabel.load(bundle / "eval/test_1.nii.gz").dataobj)


def test_the_exported_network_is_the_network(bundle, parse) -> None:
    network = parse(bundle, "inference").get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    exported = torch.jit.load(bundle / "models" / "model.ts").eval()
    x = torch.rand(1, 2, *TINY_PLAN.configuration(bundle.name).patch_size)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network(x))


@pytest.mark.parametrize(("configs", "properties"), [("train", TrainProperties), ("inference", InferProperties)])
def test_ids_that_clients_of_bundles_ask_for(configs, properties, bundle, parse) -> None:
    parser = parse(bundle, configs)
    ids = {p["id"]: p["required"] for p in properties.values() if not p["id"].startswith("_meta_")}
    for name, required in ids.items():
        if required:
            assert name.replace("#", "::") in parser, name
    metadata = {p["id"] for p in properties.values() if p["id"].startswith("_meta_") and p["required"]}
    assert [name for name in metadata if name.replace("#", "::") not in parser] == []
    assert "run" in parser


@pytest.fixture(scope="module")
def started(trained, tmp_path_factory, forks):
    """Inference by a copy of the project somewhere else, while the first is away, started in different folders:
    exit status and output of each, beside that folder and the folder of results."""
    there = tmp_path_factory.mktemp("moved") / "other name"
    shutil.copytree(trained, there, ignore=shutil.ignore_patterns("eval", "validation", "cache", "__pycache__"))
    bundle = there / "bundles" / TASK / "3d_fullres"
    copy = tmp_path_factory.mktemp("copy") / "3d_fullres"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("models"))
    folders = {"its own": bundle, "another configuration": bundle.with_name("2d"), "a copy of the bundle": copy}
    arguments = ["run", "inference", "--num_workers", "0", "--config_file", str(bundle / "configs/inference.json")]
    away = trained.rename(trained.with_name("away"))
    try:
        processes = {
            name: forks.start([*arguments, "--output_dir", str(there / name)], folder=folder, log=there / f"{name}.log")
            for name, folder in folders.items()
        }
        return bundle, {
            name: (p.wait(), p.log.read_text(), folders[name], there / name) for name, p in processes.items()
        }
    finally:
        away.rename(trained)


def test_a_project_that_was_moved_works_also_inside_a_bundle_s_own_folder(trained, started) -> None:
    status, output, _, results = started[1]["its own"]
    assert status == 0, output[-5000:]
    for name in ("test_0.nii.gz", "test_1.nii.gz"):
        before = trained / "bundles" / TASK / "3d_fullres" / "eval" / name
        np.testing.assert_array_equal(nibabel.load(results / name).dataobj, nibabel.load(before).dataobj)


@pytest.mark.parametrize("name", ["another configuration", "a copy of the bundle"])
def test_inside_another_bundle_s_folder_it_is_an_error(name, started) -> None:
    """Python would find the other bundle's `scripts` first."""
    bundle, found = started
    status, output, folder, results = found[name]
    assert status != 0
    assert str(bundle) in output
    assert str(folder) in output
    assert "Start from another working directory" in output
    assert not results.exists()
