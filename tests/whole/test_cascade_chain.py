"""The cascade from a dataset to a segmentation, on images that are large enough for the paper's criterion."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from autoplan.training import results

pytestmark = pytest.mark.slow

TASK, SHAPE, SPACING = "Task92_Large", (208, 208, 200), (0.8, 0.8, 1.0)
CASES = ("case_0", "case_1")
SMALL = ["--strides", "[[1,1,1],[2,2,2],[2,2,2]]", "--features", "[2,4,8]"]
LOW = ["--lowres_strides", "[[1,1,1],[2,2,2],[2,2,2]]", "--lowres_features", "[2,4,8]"]
SHORT = ["--max_epochs", "1", "--epoch_length", "2", "--val_batches", "1", "--batch_size", "2"]
WINDOW = ["--mirror", "False", "--overlap", "0.0", "--batch_size", "1"]
"""Networks and trainings as small as they can be; large windows that do not overlap, for the large images."""


def write_large(folder: Path) -> Path:
    """Bright balls with a core in flat images of more than 8.39 million voxels; the test image lies otherwise."""
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    turned = np.array([[0, -SPACING[0], 0, 90], [SPACING[1], 0, 0, -80], [0, 0, -SPACING[2], 60], [0, 0, 0, 1.0]])
    for number, name in enumerate((*CASES, "test_0")):
        grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
        distance = sum((g - c - 5 * number) ** 2 for g, c in zip(grid, (80, 100, 90), strict=True))
        label = (2 * (distance < 50**2) + 5 * (distance < 20**2)).astype(np.uint8)
        image = (10 + grid[2] // 20 + 40 * (label > 0) + 40 * (label == 7)).astype(np.int16)
        affine = turned if name == "test_0" else np.diag([*SPACING, 1.0])
        part = "imagesTs" if name == "test_0" else "imagesTr"
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / part / f"{name}.nii.gz")
        if part == "imagesTr":
            nibabel.save(nibabel.Nifti1Image(label, affine), folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "name": "Large",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "2": "ball", "7": "core"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in CASES],
        "test": ["./imagesTs/test_0.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def chain(tmp_path_factory, forks):
    """What autoplan printed, and the folder of its bundles after both stages were trained and an image predicted."""
    folder = tmp_path_factory.mktemp("large")
    write_large(folder / "data" / TASK)
    arguments = [str(folder / "data" / TASK), "--bundles", str(folder / "bundles"), "--num_processes", "1"]
    planned = subprocess.run(
        [sys.executable, "-m", "autoplan", *arguments, "--explain"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    bundles = folder / "bundles" / TASK

    def config(name, *files):
        paths = [str(bundles / name / "configs" / f"{file}.json") for file in files]
        return ["--config_file", paths[0] if len(paths) == 1 else str(paths).replace(" ", ""), "--num_workers", "0"]

    patch, window = ["--patch_size", "[32,32,32]"], ["--patch_size", "[104,104,104]"]
    first, folds = [], [str(k) for k in range(len(CASES))]
    for fold in folds:
        first += [
            ["run", "training", *config("3d_lowres", "train"), "--fold", fold, *SMALL, *SHORT, *patch],
            ["run", "evaluating", *config("3d_lowres", "train", "evaluate"), "--fold", fold, *SMALL, *WINDOW, *window],
        ]
    both = [*SMALL, *LOW, "--lowres_patch_size", "[104,104,104]"]
    second = [
        *(
            ["run", "training", *config("3d_cascade_fullres", "train"), "--fold", k, *both, *SHORT, *patch]
            for k in folds
        ),
        ["run", "inference", *config("3d_cascade_fullres", "inference"), *both, *WINDOW, *window],
    ]
    for stage in (first, second):
        forks.start(*stage, folder=folder, log=folder / "log").succeed()
    return planned.stdout, bundles


def test_the_criterion_applies_and_the_command_says_why(chain) -> None:
    printed, bundles = chain
    [line] = [line for line in printed.splitlines() if line.strip().startswith("cascade: ")]
    assert "first stage at 1.6 x 1.6 x 2 mm" in line
    assert "8.65 million voxels, more than 8.39 million" in line
    assert {p.name for p in bundles.iterdir() if p.is_dir()} == {
        "2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres", "cache"
    }  # fmt: skip


def test_the_plan_is_for_both_resolutions(chain) -> None:
    _, bundles = chain
    train = json.loads((bundles / "3d_cascade_fullres" / "configs" / "train.json").read_text())
    assert train["target_spacing"] == list(SPACING)
    assert train["lowres_spacing"] == [1.6, 1.6, 2.0]


def test_every_case_is_segmented_by_the_fold_that_did_not_see_it(chain) -> None:
    """On the grid of the original image, with the labels of the dataset."""
    _, bundles = chain
    folds = results.folds(bundles / "3d_lowres")
    assert sorted(name for names in folds for name in names) == sorted(CASES)
    for fold, names in enumerate(folds):
        validation = bundles / "3d_lowres" / "models" / f"fold_{fold}" / "validation"
        assert sorted(p.stem for p in (validation / "probabilities").iterdir()) == sorted(names)
        for name in names:
            found = nibabel.load(validation / f"{name}.nii.gz")
            assert found.shape == SHAPE
            np.testing.assert_allclose(found.affine, np.diag([*SPACING, 1.0]), atol=1e-6)
            assert set(np.unique(found.dataobj)) <= {0, 2, 7}


def test_the_second_stage_holds_the_first_stage_of_its_fold(chain) -> None:
    _, bundles = chain
    for fold in range(len(CASES)):
        first, both = (
            torch.load(bundles / name / "models" / f"fold_{fold}" / "model.pt", weights_only=True)
            for name in ("3d_lowres", "3d_cascade_fullres")
        )
        assert all(torch.equal(both[f"lowres.0.{key}"], value) for key, value in first.items())
    assert len(list((bundles / "cache").glob("*/lowres/*.npys"))) == len(CASES)


def test_the_prediction_lies_on_its_image(chain) -> None:
    _, bundles = chain
    [path] = (bundles / "3d_cascade_fullres" / "eval").glob("*.nii.gz")
    assert path.name == "test_0.nii.gz"
    found = nibabel.load(path)
    image = nibabel.load(bundles.parents[1] / "data" / TASK / "imagesTs" / "test_0.nii.gz")
    assert found.shape == image.shape
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
    values = np.asarray(found.dataobj)
    assert values.dtype == np.uint8
    assert set(np.unique(values)) <= {0, 2, 7}
