"""How many windows of an image have one value everywhere, so that the network sees one of them only.

    python benchmarks/constant_windows.py BUNDLE IMAGES [--num 4]
    python benchmarks/constant_windows.py --synthetic

Images are preprocessed as the bundle does it; what takes the place of the network counts the windows that it is given.
`--synthetic` makes a CT of 512x512x300 voxels of 1 mm: an elliptic body of noise in air, on a table, in windows of 64^3
and 128^3 voxels.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

sys.path.insert(0, str(Path(__file__).parents[1] / "templates"))

from scripts.blocks import cut
from scripts.inferers import MirroredWindowInferer


def seen(image: torch.Tensor, infer: MirroredWindowInferer) -> tuple[int, int]:
    """Windows of an image (C, X, Y, Z) that the network sees, and all of them."""
    count = 0

    def network(windows: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += len(windows)
        return torch.zeros((len(windows), 2, *windows.shape[2:]))

    axis = infer.best_axis(image.shape[1:])
    for _ in infer.rows(image, network, axis):  # type: ignore[arg-type]
        pass
    return count, infer.windows(image.shape[1:], cut([image.shape[1:]], axis))


def synthetic() -> torch.Tensor:
    """A CT whose values are clipped at -1000 HU: the body is 320x240 voxels wide, the table 20 below it."""
    x, y = np.mgrid[:512, :512]
    body = ((x - 256) / 160) ** 2 + ((y - 256) / 120) ** 2 < 1
    table = (abs(x - 256) < 200) & (abs(y - 400) < 10)
    noise = np.random.default_rng(0).normal(40, 20, (300, 512, 512)).astype(np.float32)
    volume = np.where(body | table, noise, -1000)
    return torch.from_numpy(np.ascontiguousarray(volume.transpose(1, 2, 0)))[None]


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--num", type=int, default=4)
    parser.add_argument("--synthetic", action="store_true")
    given = parser.parse_args()
    if given.synthetic:
        image = synthetic()
        for edge in (64, 128):
            few, all_of_them = seen(image, MirroredWindowInferer((edge,) * 3, mirror=False))
            print(f"synthetic, {edge}^3: {all_of_them - few} of {all_of_them} windows ({1 - few / all_of_them:.0%})")
        return
    config: Any = ConfigParser()
    config.read_config(given.bundle / "configs" / "inference.json")
    config["bundle_root"] = str(given.bundle.absolute())
    preprocessing = config.get_parsed_content("preprocessing")
    infer = MirroredWindowInferer(config["patch_size"], config["slice_axis"], mirror=False)
    totals = np.zeros(2, int)
    for path in sorted(p for p in given.images.glob("*.nii.gz") if p.name[0] != ".")[: given.num]:
        totals += seen(preprocessing({"image": str(path)})["image"].as_tensor(), infer)
    print(f"{given.bundle}: {totals[1] - totals[0]} of {totals[1]} windows ({1 - totals[0] / totals[1]:.0%})")


if __name__ == "__main__":
    main()
