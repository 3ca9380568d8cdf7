"""How long the phases of a prediction take, by predictions.json of `monai.bundle run inference`.

    python benchmarks/prediction_phases.py BUNDLE IMAGES [--num 12] [--set mirror=False]
    python benchmarks/prediction_phases.py --large 512 512 600 [--classes 25] [--spacing 0.8] [--set mirror=False]

BUNDLE is one with configs/inference.json; where it has no models/model.pt, its network knows nothing. `--large` makes a
random CT of a shape and a spacing in mm, and a bundle that sees it at 1 mm by a small network. "Export" is all
that becomes of the network's output, its share that of waiting, network and export together. What is read beside the
network of the image before shows in "reading", not in "waiting".
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from inference_memory import write_large
from predictions import predict, random_weights


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--large", type=int, nargs=3)
    parser.add_argument("--classes", type=int, default=25, help="foreground classes of a large image")
    parser.add_argument("--spacing", type=float, default=0.8)
    parser.add_argument("--num", type=int, default=12, help="images at most")
    parser.add_argument("--set", nargs="*", default=[], help="keys of inference.json, such as mirror=False")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle, images = given.bundle, given.images
        if given.large:
            plan, bundles, images = write_large(Path(folder), tuple(given.large), given.classes, given.spacing)
            bundle = bundles / plan.name / "3d_fullres"
        paths = sorted(p for p in images.absolute().glob("*.nii.gz") if p.name[0] != ".")[: given.num]
        listed, output, model = Path(folder) / "images.json", Path(folder) / "out", bundle / "models" / "model.pt"
        listed.write_text(json.dumps([str(path) for path in paths]))
        if not model.is_file():
            model = Path(folder) / "model.pt"
            random_weights(bundle, model)
        settings = dict(pair.split("=", 1) for pair in given.set)
        told = predict(bundle, output, images=listed, model_file=model, **settings)
    names = ("reading", "waiting", "network", "export")
    phases = {name: sum(entry["seconds"][name] for entry in told.values()) for name in names}
    whole = sum(seconds for name, seconds in phases.items() if name != "reading")
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items()))
    peak = max(entry["peak_memory"] or 0 for entry in told.values())
    print(f"{len(told)} images, export {phases['export'] / whole:.1%} of {whole:.1f} s, peak {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
