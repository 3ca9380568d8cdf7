"""How many ordinary images are called unlike those of the training, and how many odd ones are not.

    python benchmarks/familiarity.py

For each dataset in data/: its training images against the ranges of the four folds that they are not in, its test
images against those of all training images, and training images with a fault against the ranges of the other folds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

HERE = Path(__file__).resolve().parent.parent
sys.path += [str(HERE), str(HERE / "templates")]

from scripts.familiarity import UNLIKE, CompareWithTrainingd  # noqa: E402

from autoplan.base.codec import to_dict  # noqa: E402
from autoplan.data import decathlon as datasets  # noqa: E402
from autoplan.data import fingerprint  # noqa: E402
from autoplan.data.images import Volume, read_volume  # noqa: E402
from autoplan.planning import rules  # noqa: E402

Image = tuple[np.ndarray, np.ndarray]  # (X, Y, Z, C) and the affine
FAULTS: dict[str, Callable[[np.ndarray, np.ndarray], Image]] = {
    "slices twice as thick by the header": lambda a, m: (a, m @ np.diag([1, 1, 2, 1])),
    "cm in place of mm": lambda a, m: (a, m @ np.diag([0.1, 0.1, 0.1, 1])),
    "a quarter of the image": lambda a, m: (a[: len(a) // 4], m),
    "left and right exchanged by the header": lambda a, m: (a, np.diag([-1, 1, 1, 1]) @ m),
    "shifted by 1024": lambda a, m: (a + 1024.0, m),
    "scaled to 0 to 255": lambda a, m: ((a - a.min()) / (a.max() - a.min()) * 255, m),
    "inverted": lambda a, m: (a.max() - a.astype(float), m),
    "a few very bright voxels": lambda a, m: (
        np.where(np.arange(a.size).reshape(a.shape) % 150 == 0, 50.0 * a.max(), a),
        m,
    ),
    "noise": lambda a, m: (np.random.default_rng(0).uniform(1, 100, a.shape), m),
}


def unlike(image: Image, ranges: object, absolute: list[bool]) -> bool:
    """Whether a warning is given."""
    array, affine = image
    tensor = MetaTensor(
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 3, 0)).astype(np.float32)), affine=affine
    )
    compare = CompareWithTrainingd("image", to_dict(ranges), [0 if a else None for a in absolute])
    return bool(compare({"image": tensor})["image"].meta[UNLIKE])


def images(dataset: object, cases: object) -> Iterator[Volume]:
    """The images of cases."""
    for case in cases:  # type: ignore[attr-defined]
        yield read_volume(dataset.root / case.images[0])  # type: ignore[attr-defined]


def main() -> None:
    """Measure and print."""
    rows: dict[str, list[str]] = {name: [] for name in ("ordinary, of another fold", "ordinary, test", *FAULTS)}
    names = []
    for folder in sorted((HERE / "data").glob("Task*")):
        dataset = datasets.load(folder)
        facts = fingerprint.fingerprint(dataset).cases
        absolute = [fingerprint.is_ct(m) for m in dataset.modalities]
        folds = rules.folds([case.name for case in facts])
        ranges = [rules.training_range([case for case in facts if case.name not in fold]) for fold in folds]
        fold_of = {name: k for k, fold in enumerate(folds) for name in fold}
        found: dict[str, list[bool]] = {name: [] for name in rows}
        for case, volume in zip(dataset.training, images(dataset, dataset.training), strict=True):
            known = ranges[fold_of[case.name]]
            found["ordinary, of another fold"].append(unlike((volume.array, volume.affine), known, absolute))
            for name, fault in FAULTS.items():
                found[name].append(unlike(fault(volume.array, volume.affine), known, absolute))
        everything = rules.training_range(facts)
        for volume in images(dataset, dataset.test):
            found["ordinary, test"].append(unlike((volume.array, volume.affine), everything, absolute))
        names.append(dataset.name)
        for name, flags in found.items():
            rows[name].append(f"{sum(flags)} of {len(flags)}")
    print(f"| | {' | '.join(names)} |\n|--{'|--' * len(names)}|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
