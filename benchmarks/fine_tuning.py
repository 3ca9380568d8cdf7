"""What going on from a bundle gains: a network that knows one class of the hippocampus learns the other from 20 cases.

Three datasets are made of the cases of Task04_Hippocampus, drawn at random: 100 cases whose labels keep Anterior alone,
20 with both classes, and 40 with both to compare on. A network is trained on the first. From its bundle, a training on
the second goes on; another on the second starts anew and takes as many steps of as many patches. Both predict the
third.

    python benchmarks/fine_tuning.py data/Task04_Hippocampus FOLDER

Everything is written to FOLDER, and the same command continues after an interruption. Fold 0 is trained: of the 20
cases, 16 in training and 4 that only watch it.
"""

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from autoplan.evaluation import evaluate

KNOWN, BOTH = {"0": "background", "1": "Anterior"}, {"0": "background", "1": "Anterior", "2": "Posterior"}
SOURCE, TARGET, HELD_OUT = "Task80_OneClass", "Task81_TwoClasses", "held_out"
SIZES = {SOURCE: 100, TARGET: 20, HELD_OUT: 40}
PATCH = "[32,40,32]"
"""Smaller than the planned one, so that a step takes half the time."""
SEED = 0
NUM_RESAMPLES = 10_000


def write_dataset(folder: Path, names: Sequence[str], data: Path, labels: dict[str, str]) -> None:
    """A dataset of some cases; classes that `labels` lacks are background."""
    if (folder / "dataset.json").is_file():
        return
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(data / "imagesTr" / f"{name}.nii.gz", folder / "imagesTr" / f"{name}.nii.gz")
        label = nibabel.load(data / "labelsTr" / f"{name}.nii.gz")
        values = np.asarray(label.dataobj).astype(np.uint8)
        values[values >= len(labels)] = 0
        nibabel.save(nibabel.Nifti1Image(values, label.affine), folder / "labelsTr" / f"{name}.nii.gz")
    cases = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    description = {"name": folder.name, "modality": {"0": "MRI"}, "labels": labels, "training": cases, "test": []}
    (folder / "dataset.json").write_text(json.dumps(description))


def autoplan(*words: str, folder: Path) -> None:
    """A command of autoplan in the folder of the experiment."""
    print("autoplan", *words, flush=True)
    subprocess.run([sys.executable, "-m", "autoplan", *words], cwd=folder, check=True)


def training_seconds(folder: Path, bundles: str) -> float:
    """Seconds that the epochs of the training took."""
    curve = folder / bundles / TARGET / "3d_fullres" / "models" / "fold_0" / "curve.csv"
    with curve.open() as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def dice(folder: Path, bundles: str) -> np.ndarray:
    """Dice of the held-out cases, (cases, classes)."""
    output = folder / "predictions" / bundles
    autoplan(
        "predict", TARGET, "--bundles", bundles, "--name", "3d_fullres", "--images", f"data/{HELD_OUT}/imagesTr",
        "--output", str(output), "--force", folder=folder,
    )  # fmt: skip
    found = evaluate.evaluate(folder / "data" / HELD_OUT / "labelsTr", output)
    return np.array([[c.dice for c in case.classes] for case in found.cases])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval of the mean of paired differences, one a case."""
    drawn = np.random.default_rng(SEED).integers(len(differences), size=(NUM_RESAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source_epochs", default="3", help="epochs of 50 steps of the network that knows one class")
    parser.add_argument("--epochs", default="2", help="epochs of 50 steps of the two that are compared")
    given = parser.parse_args()
    folder = given.folder.absolute()
    names = sorted(path.name.removesuffix(".nii.gz") for path in (given.data / "labelsTr").glob("*.nii.gz"))
    random.Random(SEED).shuffle(names)
    for name, size in SIZES.items():
        part, names = names[:size], names[size:]
        write_dataset(folder / "data" / name, sorted(part), given.data, KNOWN if name == SOURCE else BOTH)
    recipe = ["--configurations", "3d_fullres", "--folds", "0", "--quick", "--device", "cpu", "--num_workers", "0"]
    recipe += ["--patch_size", PATCH]
    if not (folder / "bundles" / SOURCE / "plan.json").is_file():
        autoplan("plan", SOURCE, folder=folder)
    autoplan("train", SOURCE, *recipe, "--max_epochs", given.source_epochs, folder=folder)
    if not (folder / "fresh" / TARGET / "plan.json").is_file():
        autoplan("plan", TARGET, "--bundles", "fresh", folder=folder)
    both = [*recipe, "--max_epochs", given.epochs]
    autoplan("train", TARGET, *both, "--bundles", "fresh", folder=folder)
    source = f"bundles/{SOURCE}/3d_fullres"
    autoplan("train", TARGET, *both, "--bundles", "continued", "--from", source, folder=folder)
    found = {bundles: dice(folder, bundles) for bundles in ("fresh", "continued")}
    print("| training | time of its epochs | Anterior | Posterior | mean | worst case |\n|--|--|--|--|--|--|")
    for bundles, values in found.items():
        cells = [f"{v:.3f}" for v in (*values.mean(axis=0), values.mean(), values.mean(axis=1).min())]
        print(f"| {bundles} | {training_seconds(folder, bundles):.0f} s | {' | '.join(cells)} |")
    gain = found["continued"] - found["fresh"]
    for name, values in (("Anterior", gain[:, 0]), ("Posterior", gain[:, 1]), ("mean", gain.mean(axis=1))):
        print(f"continued - fresh, {name}: {values.mean():+.3f}, 95 % interval {interval(values)[0]:+.3f} to "
              f"{interval(values)[1]:+.3f}, {len(values)} cases")  # fmt: skip


if __name__ == "__main__":
    main()
