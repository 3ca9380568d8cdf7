"""What the benchmarks of predictions share: a bundle's inference as users start it, and weights that know nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WEIGHTS = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from monai.bundle import ConfigParser
parser = ConfigParser()
parser.read_config(sys.argv[1] + "/configs/inference.json")
network = parser.get_parsed_content("network_def")
Path(sys.argv[2]).parent.mkdir(exist_ok=True)
torch.save(network.state_dict(), sys.argv[2])
print(sum(p.numel() for p in network.parameters()))
"""


def random_weights(bundle: Path, model: Path | None = None) -> int:
    """Write random weights of a bundle's network to a file, models/model.pt if not said; how many."""
    command = [sys.executable, "-W", "ignore", "-c", WEIGHTS, bundle, model or bundle / "models" / "model.pt"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def words(bundle: Path, **settings: Any) -> list[str]:
    """What follows `python -m monai.bundle`, for an inference with values for keys of inference.json."""
    given = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return ["run", "inference", "--config_file", str(bundle.absolute() / "configs" / "inference.json"), *given]


def predict(bundle: Path, output: Path, **settings: Any) -> dict[str, Any]:
    """Run an inference; what predictions.json tells of it, by case."""
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", *words(bundle, output_dir=output, **settings)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    told: dict[str, Any] = json.loads((output / "predictions.json").read_text())
    return told
