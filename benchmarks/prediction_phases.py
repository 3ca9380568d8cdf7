"""How long the phases of a prediction take, by predictions.json of `monai.bundle run inference`.

    python benchmarks/prediction_phases.py BUNDLE IMAGES [--num 12] [--set mirror=False]

BUNDLE is one with configs/inference.json; where it has no models/model.pt, its network knows nothing. "Export" is all
that becomes of the network's output, its share that of waiting, network and export together. What is read beside the
network of the image before shows in "reading", not in "waiting".
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

WEIGHTS = (
    "import sys, torch; sys.path.insert(0, sys.argv[1]); from monai.bundle import ConfigParser as C; p = C();"
    "p.read_config(sys.argv[1] + '/configs/inference.json');"
    "torch.save(p.get_parsed_content('network_def').state_dict(), sys.argv[2])"
)


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
            subprocess.run([sys.executable, "-W", "ignore", "-c", WEIGHTS, str(given.bundle), str(model)], check=True)
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference", "--config_file"]
        command += [str(given.bundle / "configs" / "inference.json"), "--images", str(listed)]
        command += ["--output_dir", str(output), "--model_file", str(model)]
        command += [word for pair in given.set for word in f"--{pair}".split("=", 1)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        told = json.loads((output / "predictions.json").read_text())
    names = ("reading", "waiting", "network", "export")
    phases = {name: sum(entry["seconds"][name] for entry in told.values()) for name in names}
    whole = sum(seconds for name, seconds in phases.items() if name != "reading")
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items()))
    peak = max(entry["peak_memory"] or 0 for entry in told.values())
    print(f"{len(told)} images, export {phases['export'] / whole:.1%} of {whole:.1f} s, peak {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
