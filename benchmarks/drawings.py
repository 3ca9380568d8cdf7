"""A 2D dataset of drawings: 40 colour PNGs in three sizes, planned, trained for some minutes on the CPU, and scored.

    python benchmarks/drawings.py [--folder DIR] [--epochs N] [--scribbles N]

Draws discs and squares in many colours on a coloured ground with noise; discs are class 1, squares class 2. Fold 0 is
trained with a narrow network and small epochs, and its validation images are predicted as PNG. With --scribbles, the
dataset is one of nnU-Net, and of the training images only the pixels under so many thick lines are labelled: all others
have the label "ignore". The validation images are labelled in full.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from autoplan.__main__ import main as autoplan

SIZES = ((96, 96), (128, 96), (128, 128))
NUM_IMAGES = 40
IGNORE, WIDTH = 3, 7
"""Label of a pixel that is not known, and width of a scribble in pixels."""


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """A drawing and its label."""
    ground, label = Image.new("RGB", size, tuple(rng.integers(0, 90, 3).tolist())), Image.new("L", size)
    for kind in (1, 2, 1, 2):
        radius = int(rng.integers(8, 16))
        x, y = (int(rng.integers(radius, n - radius)) for n in size)
        box, colour = (x - radius, y - radius, x + radius, y + radius), tuple(rng.integers(130, 255, 3).tolist())
        for image, fill in ((ground, colour), (label, kind)):
            pen = ImageDraw.Draw(image)
            (pen.ellipse if kind == 1 else pen.rectangle)(box, fill=fill)
    noisy = np.asarray(ground) + rng.normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), label


def scribbled(rng: np.random.Generator, label: Image.Image, lines: int) -> Image.Image:
    """A label of which only what lies under some lines is known."""
    known = Image.new("L", label.size)
    for _ in range(lines):
        ends = [tuple(int(rng.integers(0, n)) for n in label.size) for _ in range(2)]
        ImageDraw.Draw(known).line(ends, fill=1, width=WIDTH)
    return Image.fromarray(np.where(np.asarray(known) > 0, np.asarray(label), IGNORE).astype(np.uint8))


def write_pairs(folder: Path, drawings: list[tuple[Image.Image, Image.Image]]) -> list[str]:
    """Two folders, and the flags that name them."""
    for number, drawing in enumerate(drawings):
        for part, image in zip(("images", "masks"), drawing, strict=True):
            (folder / part).mkdir(parents=True, exist_ok=True)
            image.save(folder / part / f"drawing_{number:02}.png")
    return ["--images", "images", "--labels", "masks", "--labels_are", "ground,disc,square"]


def write_scribbles(folder: Path, drawings: list[tuple[Image.Image, Image.Image]], lines: int) -> list[str]:
    """A dataset of nnU-Net, a file a colour, whose first fold is labelled in full."""
    rng, names, known = np.random.default_rng(1), [f"drawing_{i:02}" for i in range(len(drawings))], []
    folds = [names[k::5] for k in range(5)]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for name, (image, label) in zip(names, drawings, strict=True):
        for i, colour in enumerate(image.split()):
            colour.save(folder / "imagesTr" / f"{name}_{i:04}.png")
        kept = label if name in folds[0] or not lines else scribbled(rng, label, lines)
        kept.save(folder / "labelsTr" / f"{name}.png")
        known += [] if name in folds[0] else [float((np.asarray(kept) != IGNORE).mean())]
    content = {
        "channel_names": {"0": "red", "1": "green", "2": "blue"},
        "labels": {"background": 0, "disc": 1, "square": 2, "ignore": IGNORE},
        "numTraining": len(names),
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    splits = [{"train": [n for n in names if n not in fold], "val": fold} for fold in folds]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    print(f"{100 * np.mean(known):.0f} % of the pixels of a training image are labelled")
    return []


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--folder", type=Path)
    options.add_argument("--epochs", type=int, default=8)
    options.add_argument("--scribbles", type=int, help="lines on each training image; 0: none, all is labelled")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        rng = np.random.default_rng(0)
        drawings = [draw(rng, SIZES[number % 3]) for number in range(NUM_IMAGES)]
        task = folder / "drawings"
        plan = (
            write_pairs(task, drawings) if given.scribbles is None else write_scribbles(task, drawings, given.scribbles)
        )
        bundles = ["--bundles", str(folder / "bundles")]
        assert autoplan([str(folder / "drawings"), *bundles, *plan]) == 0
        settings = {"epoch_length": 20, "max_epochs": given.epochs, "batch_size": 6, "val_batches": 2, "device": "cpu"}
        settings |= {"features": "[8,16,32,64,96,96]", "learning_rate": 0.003, "mirror_prob": 0.0, "num_workers": 0}
        flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        start = time.monotonic()
        assert autoplan(["train", str(folder / "drawings"), *bundles, "--folds", "0", *flags]) == 0
        seconds = time.monotonic() - start
        dice = json.loads((folder / "bundles/drawings/2d/models/fold_0/validation/dice.json").read_text())
        print(f"{seconds:.0f} s, Dice {dice['mean_foreground_dice']:.3f}: {dice['mean_dice']}")


if __name__ == "__main__":
    main()
