"""How long the phases of a prediction take, by predictions.json of `monai.bundle run inference`.

    python benchmarks/prediction_phases.py BUNDLE IMAGES [--num 12] [--set mirror=False]

BUNDLE is one with configs/inference.json; where it has no models/model.pt, its network knows nothing. "Export" is all
that becomes of the network's output, its share that of waiting, network and export together. What is read beside the
network of the image before shows in "reading", not in "waiting".
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from predictions import predict, random_weights


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--num", type=int, default=12, help="images at most")
    parser.add_argument("--set", nargs="*", default=[], help="keys of inference.json, such as mirror=False")
    given = parser.parse_args()
    images = sorted(p for p in given.images.absolute().glob("*.nii.gz") if p.name[0] != ".")[: given.num]
    with tempfile.TemporaryDirectory() as folder:
        listed, output, model = Path(folder) / "images.json", Path(folder) / "out", given.bundle / "models" / "model.pt"
        listed.write_text(json.dumps([str(path) for path in images]))
        if not model.is_file():
            model = Path(folder) / "model.pt"
            random_weights(given.bundle, model)
        settings = dict(pair.split("=", 1) for pair in given.set)
        told = predict(given.bundle, output, images=listed, model_file=model, **settings)
    names = ("reading", "waiting", "network", "export")
    phases = {name: sum(entry["seconds"][name] for entry in told.values()) for name in names}
    whole = sum(seconds for name, seconds in phases.items() if name != "reading")
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items()))
    peak = max(entry["peak_memory"] or 0 for entry in told.values())
    print(f"{len(told)} images, export {phases['export'] / whole:.1%} of {whole:.1f} s, peak {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
