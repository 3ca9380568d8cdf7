"""A 2D dataset of drawings: 40 colour PNGs in three sizes, planned, trained for some minutes on the CPU, and scored.

    python benchmarks/drawings.py [--folder DIR] [--epochs N]

Draws discs and squares in many colours on a coloured ground with noise; discs are class 1, squares class 2. Fold 0 is
trained with a narrow network and small epochs, and its validation images are predicted as PNG.
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


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--folder", type=Path)
    options.add_argument("--epochs", type=int, default=8)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        rng = np.random.default_rng(0)
        for number in range(NUM_IMAGES):
            for part, image in zip(("images", "masks"), draw(rng, SIZES[number % 3]), strict=True):
                (folder / "drawings" / part).mkdir(parents=True, exist_ok=True)
                image.save(folder / "drawings" / part / f"drawing_{number:02}.png")
        plan = ["--images", "images", "--labels", "masks", "--labels_are", "ground,disc,square"]
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
