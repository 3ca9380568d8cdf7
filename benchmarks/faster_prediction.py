"""What a faster prediction costs in Dice: less overlap, no mirroring, region first.

    python benchmarks/faster_prediction.py BUNDLE DATASET [--fold 0] [--num 41] [--canvas 128 128 128]
        [--patch_size 24 32 24]

Predicts the validation cases of a fold with `monai.bundle run inference`, by the network of that fold, once for each
setting. Printed are the time of the network (predictions.json) against that as usual, the mean Dice over all foreground
classes, and the mean difference to the usual setting with the interval that `select` computes. A bundle whose
network was trained without mirroring does not mirror as usual. `--patch_size` makes images of one window have several.
With `--canvas`, each image lies in the middle of a larger one, of smooth noise with the image's mean and standard
deviation; "lost" are the objects, a class of a case, that are found as usual and not otherwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from predictions import predict
from scipy.ndimage import gaussian_filter

from autoplan.choice import mean_intervals
from autoplan.evaluation import class_masks, dice

SETTINGS: dict[str, dict[str, str]] = {
    "as usual": {},
    "overlap 0.25": {"overlap": "0.25"},
    "no mirroring": {"mirror": "False"},
    "overlap 0.25, no mirroring": {"overlap": "0.25", "mirror": "False"},
    "region first": {"region_first": "True"},
}


def embedded(array: np.ndarray, shape: tuple[int, ...], fill: np.ndarray) -> np.ndarray:
    """The array in the middle of one of at least `shape`, filled with `fill`."""
    size = [max(n, m) for n, m in zip(array.shape, shape, strict=True)]
    found = fill[tuple(map(slice, size))].astype(array.dtype)
    found[tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(size, array.shape, strict=True))] = array
    return found


def _foreground(scores: np.ndarray) -> float:
    """Mean over the classes of the mean over the cases."""
    return float(np.nanmean(np.nanmean(scores, 0)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--num", type=int, default=10**6, help="cases at most")
    parser.add_argument("--canvas", type=int, nargs=3)
    parser.add_argument("--patch_size", type=int, nargs=3)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), help="settings by name, beside the usual one")
    given = parser.parse_args()
    datalist = json.loads((given.bundle / "configs" / "datalist.json").read_text())
    cases = [case for case in datalist["training"] if case["fold"] == given.fold][: given.num]
    values = json.loads((given.bundle / "configs" / "inference.json").read_text())["label_values"][1:]
    rng = np.random.default_rng(0)
    scores: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        images, labels = Path(name) / "images", {}
        images.mkdir()
        for case in cases:
            image: nibabel.Nifti1Image = nibabel.load(given.dataset / case["image"])
            array = np.asarray(image.dataobj, dtype=np.float32)
            label = np.asarray(nibabel.load(given.dataset / case["label"]).dataobj).round().astype(np.uint8)
            if given.canvas:
                noise = gaussian_filter(rng.normal(size=np.maximum(given.canvas, array.shape)), 1)
                shape = tuple(given.canvas)
                label = embedded(label, shape, np.zeros_like(noise))
                array = embedded(array, shape, array.mean() + array.std() * noise / noise.std())
            labels[case["name"]] = class_masks(label, values)
            nibabel.save(nibabel.Nifti1Image(array, image.affine), images / f"{case['name']}.nii.gz")
        for setting in ("as usual", *(s for s in given.only if s != "as usual")):
            settings = {**SETTINGS[setting], **({"patch_size": given.patch_size} if given.patch_size else {})}
            output, model = Path(name) / "out" / setting, given.bundle / "models" / f"fold_{given.fold}" / "model.pt"
            told = predict(given.bundle, output, dataset_dir=images, model_file=model.absolute(), **settings)
            seconds[setting] = sum(entry["seconds"]["network"] for entry in told.values())
            found = [np.asarray(nibabel.load(output / told[n]["segmentation"]).dataobj) for n in labels]
            scores[setting] = np.array([dice(b, a) for a, b in zip(found, labels.values(), strict=True)], dtype=float)
    usual = scores["as usual"]
    print(f"{len(cases)} cases\n\n| | time | Dice | difference | lost |\n|--|--|--|--|--|")
    for setting, found in scores.items():
        difference = found - usual
        told_difference = ""
        if np.nan_to_num(difference).any():
            _, (low, high) = mean_intervals(difference.tolist())
            told_difference = f"{_foreground(difference):+.4f} [{low:+.4f}, {high:+.4f}]"
        lost, time = int(((usual > 0) & (found == 0)).sum()), seconds[setting]
        time_told = f"{time:.0f} s, {time / seconds['as usual']:.2f}"
        print(f"| {setting} | {time_told} | {_foreground(found):.4f} | {told_difference} | {lost} |")


if __name__ == "__main__":
    main()
