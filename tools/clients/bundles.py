"""Bundles for the checks of other programs beside this file: of a fold, of a cascade, and an ensemble to share.

    python tools/clients/bundles.py FOLDER

FOLDER gets a small synthetic dataset of one channel, whose label values do not count up and whose images hold whole
numbers, as DICOM does; its bundles, trained for some iterations; and the project's own predictions of its test images
in expected/<bundle>/; and the ensemble as `share` writes it, in shared/. Run it with the Python of the project.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np

from autoplan.bundle.saved import load_plan
from autoplan.data import phantom
from autoplan.evaluation.choice import Candidate, CaseDice, Setting, choose
from autoplan.sharing import ensemble

TASK = "Task90_Clients"
VALUES = (0, 2, 5, 7)
QUICK = {"epoch_length": 5, "max_epochs": 1, "val_batches": 1, "batch_size": 2, "learning_rate": 1e-5, "jobs": 1}
"""Hardly trained networks find all classes everywhere, so that every voxel tells. After a minute of training there
would be background alone."""
OWNER = {
    "name": "phantom_mri_segmentation", "authors": "A. Person", "data_source": "synthetic, https://example.org",
    "data_license": "CC0, https://creativecommons.org/publicdomain/zero/1.0", "url": "https://example.org/files",
}  # fmt: skip
FOLDS = {"3d_lowres": "0,1,2,3,4", "2d": "0,1", "3d_fullres": "0,1", "3d_cascade_fullres": "0"}
ENSEMBLE = ("2d", "3d_fullres")


def one_channel(source: Path, target: Path) -> None:
    """The synthetic dataset with its first channel alone, as int16, and with other label values."""
    description = json.loads((source / "dataset.json").read_text())
    for part in ("imagesTr", "imagesTs", "labelsTr"):
        (target / part).mkdir(parents=True)
        for path in sorted((source / part).glob("*.nii.gz")):
            image = nibabel.load(path)
            voxels = np.asanyarray(image.dataobj)
            if part == "labelsTr":
                voxels = np.array(VALUES, np.uint8)[voxels]
            else:
                first = voxels[..., 0]
                voxels = np.where(first == 0, 0, np.round(400 + 300 * first)).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(voxels, image.affine), target / part / path.name)
    names = list(description["labels"].values())
    description |= {"modality": {"0": "MRI"}, "labels": {str(v): n for v, n in zip(VALUES, names, strict=True)}}
    (target / "dataset.json").write_text(json.dumps(description))


def autoplan(*arguments: str, **settings: object) -> None:
    """Run a command of the project."""
    flags = [f"--{name}={value}" for name, value in settings.items()]
    subprocess.run([sys.executable, "-m", "autoplan", *arguments, *flags], check=True)


def main(folder: Path) -> None:
    """Make all that is missing."""
    task, bundles = folder / "data" / TASK, folder / "bundles"
    if not task.is_dir():
        with tempfile.TemporaryDirectory() as made:
            phantom.generate(Path(made) / "phantom", num_cases=5, num_test=2)
            one_channel(Path(made) / "phantom", task)
    autoplan("plan", str(task), cascade="always", bundles=bundles)
    for configuration, folds in FOLDS.items():
        autoplan("train", TASK, configurations=configuration, folds=folds, bundles=bundles, **QUICK)
    setting = Setting(TASK, ("nodule", "ball", "tube"), (), (0,), 5, 5)
    choice = choose(setting, {Candidate(ENSEMBLE): {"phantom_000": CaseDice((0.5,) * 3, (0.5,) * 3)}})
    plan = load_plan(bundles / TASK)
    ensemble.share(plan, choice, task, bundles, name="phantom_mri_segmentation", fingerprint_key="none")
    autoplan("share", TASK, bundle="phantom_mri_segmentation", bundles=bundles, output=folder / "shared", **OWNER)
    for bundle in ("3d_fullres", "3d_cascade_fullres", "phantom_mri_segmentation"):
        config = bundles / TASK / bundle / "configs" / "inference.json"
        values = [f"--output_dir={folder / 'expected' / bundle}", f"--dataset_dir={task}"]
        command = ["monai.bundle", "run", "inference", f"--config_file={config}"]
        subprocess.run([sys.executable, "-m", *command, *values], check=True, cwd=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
