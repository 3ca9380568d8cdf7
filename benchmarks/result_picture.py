"""The picture of the README: validation cases of a fold, with the reference and the prediction as outlines.

    python tools/demo.py
    B=demo/bundles/Task04_Hippocampus/3d_fullres
    python benchmarks/result_picture.py $B data/Task04_Hippocampus docs/result.png

Shown are the case of the median Dice and the worst one, each in the slice of the largest reference along every axis.
"""

import argparse
import json
from pathlib import Path

import nibabel
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#1f9e89", "#fde725", "#e8602c", "#3b528b")


def volume(path: Path) -> np.ndarray:
    """Voxels in RAS order."""
    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)


def mean_dice(scores: dict[str, float | None]) -> float:
    """Mean over the classes of a case."""
    values = [value for value in scores.values() if value is not None]
    return sum(values) / len(values) if values else 0.0


def draw(bundle: Path, dataset: Path, target: Path) -> None:
    """Writes the picture."""
    validation = bundle / "models" / "fold_0" / "validation"
    cases = json.loads((validation / "dice.json").read_text())["cases"]
    ranked = sorted(cases, key=lambda name: mean_dice(cases[name]))
    figure = Figure(figsize=(9, 6.4), layout="constrained", facecolor="black")
    rows = figure.subplots(2, 3)
    for axes, name in zip(rows, (ranked[len(ranked) // 2], ranked[0]), strict=True):
        image, label = (volume(dataset / part / f"{name}.nii.gz") for part in ("imagesTr", "labelsTr"))
        prediction = volume(validation / f"{name}.nii.gz")
        listed = ", ".join(f"{k} {v:.2f}" for k, v in cases[name].items() if v is not None)
        for axis, panel in enumerate(axes):
            others = tuple(a for a in range(3) if a != axis)
            index = int(np.argmax((label > 0).sum(others)))
            image_plane, label_plane, predicted_plane = (np.take(v, index, axis).T for v in (image, label, prediction))
            panel.imshow(image_plane, cmap="gray", origin="lower")
            for number, color in enumerate(COLORS[: int(label.max())], start=1):
                panel.contour(label_plane == number, [0.5], colors=color, linewidths=1.4, linestyles="dotted")
                panel.contour(predicted_plane == number, [0.5], colors=color, linewidths=1.4)
            panel.set_axis_off()
        axes[1].set_title(f"{name}: {listed}", color="white", fontsize=10)
    figure.suptitle("Solid: prediction. Dotted: reference.", color="white", fontsize=11)
    FigureCanvasAgg(figure).print_figure(str(target), dpi=80, facecolor="black")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument in ("bundle", "dataset", "target"):
        parser.add_argument(argument, type=Path)
    given = parser.parse_args()
    draw(given.bundle, given.dataset, given.target)
