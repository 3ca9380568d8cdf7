"""The lesions that `evaluate` finds, against panoptica, which is made for this and stays out of our dependencies.

    python benchmarks/lesions.py [--environment DIR] [--cases 20]

Panoptica runs in an environment of its own, which is made where DIR has none (from the package index, about a minute).
Both get the same masks: made ones of balls that the prediction moves, shrinks, loses and invents, and the labels of
Task64_OpenMS, where they are there, against copies that were shifted, eroded and dilated. Compared are, for each pair,
the components of the label, of the prediction, and those that match, from an overlap of 0.1, 0.25 and 0.5 on.
"""

import json
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

PINS = ("panoptica==2.1.7",)
OVERLAPS = (0.1, 0.25, 0.5)
DATA = Path(__file__).resolve().parent.parent / "data" / "Task64_OpenMS"
WORKER = """
import json, sys
import numpy as np
from panoptica import ConnectedComponentsInstanceApproximator, InputType, NaiveThresholdMatching, Panoptica_Evaluator
from panoptica.metrics import Metric
from panoptica.utils.constants import CCABackend

found = []
for name, overlap in json.load(open(sys.argv[1])):
    masks = np.load(name)
    evaluator = Panoptica_Evaluator(
        InputType.SEMANTIC,
        ConnectedComponentsInstanceApproximator(CCABackend.cc3d),
        NaiveThresholdMatching(matching_metric=Metric.IOU, matching_threshold=overlap),
        instance_metrics=[Metric.IOU], global_metrics=[], verbose=False,
    )
    result = evaluator.evaluate(masks["prediction"].astype(np.uint8), masks["label"].astype(np.uint8), verbose=False)
    result = result["ungrouped"] if "ungrouped" in result else next(iter(result.values()))
    found.append([int(result.n_ref_instances), int(result.n_pred_instances), int(result.tp)])
json.dump(found, open(sys.argv[2], "w"))
"""


def balls(rng: np.random.Generator, shape: tuple[int, ...] = (64, 64, 48)) -> tuple[np.ndarray, np.ndarray]:
    """A label of some balls, and a prediction that has moved, resized, lost and invented some."""
    label, prediction = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    for _ in range(rng.integers(4, 25)):
        at, radius = rng.uniform(4, np.array(shape) - 4), rng.uniform(1.2, 6)
        moved, kind = at + rng.normal(0, 1.2, 3), rng.random()
        if kind < 0.85:
            label |= ((grid - at[:, None, None, None]) ** 2).sum(0) < radius**2
        if kind > 0.15:
            prediction |= ((grid - moved[:, None, None, None]) ** 2).sum(0) < (radius * rng.uniform(0.6, 1.3)) ** 2
    return label, prediction


def real() -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Labels of multiple sclerosis against copies that were changed as predictions err."""
    import nibabel
    from scipy import ndimage

    found = []
    for path in sorted(DATA.glob("labelsTr/*.nii.gz")):
        label = np.asarray(nibabel.load(path).dataobj) > 0
        changes = {
            "shifted by a voxel": np.roll(label, 1, 0),
            "eroded": ndimage.binary_erosion(label),
            "dilated": ndimage.binary_dilation(label),
        }
        found += [(f"{path.name.partition('.')[0]}, {how}", label, changed) for how, changed in changes.items()]
    return found


def python_of(folder: Path) -> Path:
    """The interpreter of panoptica's environment, which is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
    return python


def by_panoptica(python: Path, folder: Path, tasks: list[tuple[str, float]]) -> list[list[int]]:
    """Components of each label, of each prediction, and the matches, as panoptica counts them."""
    worker, asked, answer = folder / "worker.py", folder / "asked.json", folder / "answer.json"
    worker.write_text(WORKER)
    asked.write_text(json.dumps(tasks))
    subprocess.run([python, worker, asked, answer], check=True, stdout=subprocess.DEVNULL)
    return list(json.loads(answer.read_text()))


def main(environment: str = "/tmp/panoptica", cases: int = 20) -> None:
    """Compares all and prints a table; every pair that differs has a line."""
    from autoplan.evaluation.metrics import lesions

    pairs = [(f"balls {n}", *balls(np.random.default_rng(n))) for n in range(cases)] + real()
    python = python_of(Path(environment))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (_, label, prediction) in enumerate(pairs):
            np.savez_compressed(folder / f"{number}.npz", label=label, prediction=prediction)
        tasks = [(str(folder / f"{n}.npz"), o) for o in OVERLAPS for n in range(len(pairs))]
        theirs = by_panoptica(python, folder, tasks)
    ours = [lesions(label, prediction, overlap=o) for o in OVERLAPS for _, label, prediction in pairs]
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {', '.join(PINS)}\n")
    print(
        "| overlap | pairs | components of labels | of predictions | matches | pairs that differ |\n|--|--|--|--|--|--|"
    )
    for k, overlap in enumerate(OVERLAPS):
        mine, other = (list(map(tuple, counts[k * len(pairs) : (k + 1) * len(pairs)])) for counts in (ours, theirs))
        differ = [(pair[0], a, b) for pair, a, b in zip(pairs, mine, other, strict=True) if a != b]
        sums = " | ".join(str(sum(column)) for column in zip(*mine, strict=True))
        print(f"| {overlap} | {len(pairs)} | {sums} | {len(differ)} |")
        for pair, a, b in differ:
            print(f"{pair}: {a} here, {b} by panoptica", file=sys.stderr)


if __name__ == "__main__":
    import fire

    fire.Fire(main)
