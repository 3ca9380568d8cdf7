"""Whether the agreement of an ensemble's networks tells how good a segmentation is.

    python benchmarks/agreement.py BUNDLE DATASET CASES

Predicts training cases that no network of the bundle to share has seen with `monai.bundle run inference`, as they are
and degraded, and prints Spearman's correlation of `agreement` in predictions.json with the mean Dice over the
foreground classes. CASES is a JSON file with a list of {"name", "image", "label"}, paths relative to DATASET. Degraded
images have noise (of the image's standard deviation), are blurred (Gaussian, sigma in voxels) or have a header with a
wrong spacing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from predictions import predict
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from autoplan.evaluation.metrics import class_masks, dice

CHANGES: dict[str, tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], float]] = {
    "as they are": (lambda a, rng: a, 1.0),
    "noise 0.5": (lambda a, rng: a + 0.5 * a.std() * rng.normal(size=a.shape), 1.0),
    "noise 1": (lambda a, rng: a + a.std() * rng.normal(size=a.shape), 1.0),
    "blur 1.5": (lambda a, rng: gaussian_filter(a, 1.5), 1.0),
    "blur 3": (lambda a, rng: gaussian_filter(a, 3), 1.0),
    "spacing x 1.5": (lambda a, rng: a, 1.5),
    "spacing x 0.6": (lambda a, rng: a, 0.6),
}
"""Change of the voxels, and factor of the spacing in the header."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("bundle", "dataset", "cases"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    cases = json.loads(given.cases.read_text())
    rng = np.random.default_rng(0)
    scores: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images, output = Path(folder) / "images", Path(folder) / "out"
        images.mkdir()
        for number, (change, factor) in enumerate(CHANGES.values()):
            for case in cases:
                source = nibabel.load(given.dataset / case["image"])
                array = change(np.asarray(source.dataobj, dtype=np.float32), rng).astype(np.float32)
                image = nibabel.Nifti1Image(array, source.affine @ np.diag([factor, factor, factor, 1]))
                nibabel.save(image, images / f"{number}_{case['name']}.nii.gz")
        told = predict(given.bundle, output, dataset_dir=images)
        for case in cases:
            label = np.asarray(nibabel.load(given.dataset / case["label"]).dataobj).round()
            masks = class_masks(label, [value for value in np.unique(label) if value])
            for number, name in enumerate(CHANGES):
                entry = told[f"{number}_{case['name']}"]
                found = np.asarray(nibabel.load(output / entry["segmentation"]).dataobj)
                # Where no network sees anything, there is no agreement: the worst of signs.
                scores.setdefault(name, []).append((entry.get("agreement", 0.0), float(np.mean(dice(masks, found)))))
    groups = {**scores, "all together": [pair for pairs in scores.values() for pair in pairs]}
    for name, pairs in groups.items():
        agreement, score = np.array(pairs).T
        result = spearmanr(agreement, score)
        print(
            f"{name:15} n {len(pairs):4}  Dice {score.mean():.3f} ({score.min():.3f} to {score.max():.3f})  "
            f"agreement {agreement.mean():.3f}  Spearman {result.statistic:.2f} (p {result.pvalue:.1g})"
        )


if __name__ == "__main__":
    main()
