"""The same real cases in every layout and format: the plan, the preprocessed bits and the segmentations must be equal.

    python benchmarks/layouts.py [--cases N] [--task data/Task04_Hippocampus]

Takes the first N cases of a task, writes them as nnU-Net's folders (version 2 and 1), NRRD, MetaImage, pairs of folders
and a table, plans each by the command, fills the cache and predicts all cases by one and the same untrained network.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "templates"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
import torch
from monai.bundle import ConfigParser
from test_layouts import LAYOUTS, Layout, planned, preprocessed

from autoplan.base.scripts import formats
from autoplan.data import images

PROJECT = Path(__file__).resolve().parent.parent


def parse(bundle: Path, name: str, **values: object) -> ConfigParser:
    """A config of a bundle, with other values."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / f"{name}.json"))
    parser.update({"bundle_root": str(bundle), **values})
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    return parser


def subset(source: Path, target: Path, count: int) -> None:
    """The first cases of a task of the Decathlon."""
    described = json.loads((source / "dataset.json").read_text())
    entries = described["training"][:count]
    for entry in entries:
        for path in entry.values():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, target / path)
    content = {**described, "training": entries, "test": [], "numTraining": count}
    (target / "dataset.json").write_text(json.dumps(content))


def segmentations(bundle: Path, network: Path, output: Path) -> dict[str, images.Volume]:
    """The cases of a bundle, predicted as the bundle says."""
    cases = [c for fold in parse(bundle, "train").get_parsed_content("cases") for c in fold]
    listed = output.with_suffix(".json")
    listed.write_text(json.dumps([{"name": c["name"], "image": c["image"]} for c in cases]))
    values = {
        "images": str(listed),
        "model_file": str(network),
        "output_dir": str(output),
        "device": "cpu",
        "mirror": False,
    }
    parser = parse(bundle, "inference", amp=False, **values)
    for expression in parser["run"]:
        parser["one"] = expression
        parser.get_parsed_content("one")
    return {formats.case_name(path): images.read_volume(path) for path in sorted(output.iterdir())}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--cases", type=int, default=12)
    options.add_argument("--task", type=Path, default=PROJECT / "data" / "Task04_Hippocampus")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "decathlon"
        subset(given.task, source / "data" / "Task", given.cases)
        plan = planned(source, Layout())
        bundle = source / "bundles" / "Task" / "3d_fullres"
        torch.manual_seed(0)
        torch.save(parse(bundle, "inference").get_parsed_content("network_def").state_dict(), folder / "model.pt")
        bits = preprocessed(bundle, parse, source / "cache")
        expected = segmentations(bundle, folder / "model.pt", folder / "out")
        print(f"{len(bits)} cases, {sum(map(len, bits)) / 1e6:.1f} MB of cache, {len(expected)} segmentations")
        for title, write in LAYOUTS.items():
            root = folder / title
            layout = write(source / "data" / "Task", root / "data" / "Task")
            found = planned(root, layout)
            bundle = root / "bundles" / "Task" / "3d_fullres"
            predicted = segmentations(bundle, folder / "model.pt", folder / f"out-{title}")
            print(
                f"{title:12} plan {found == replace(plan, formats=found.formats)}, "
                f"bits {preprocessed(bundle, parse, root / 'cache') == bits}, segmentations "
                f"{predicted.keys() == expected.keys() and all(_same(predicted[n], expected[n]) for n in expected)}"
            )


def _same(one: images.Volume, other: images.Volume) -> bool:
    """Whether two segmentations have the same values on the same grid."""
    return np.array_equal(one.array, other.array) and np.allclose(one.affine, other.affine, atol=1e-4)


if __name__ == "__main__":
    main()
