"""What a bundle does when it is used: its configs, network, weights and prediction, tried with MONAI alone.

This file runs in a process of its own, by its path: python probe.py BUNDLE FOLDER. It imports nothing of autoplan, and
the bundle's folder is on the search path as in MONAI's own programs. FOLDER is empty; results.json is written there.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SUFFIXES = ("json", "yaml", "yml")
VERIFICATION = "docs/verification"
IMAGE, SEGMENTATION = f"{VERIFICATION}/image.nii.gz", f"{VERIFICATION}/segmentation.nii.gz"
"""Where a bundle has a small image, and what it predicts for it."""
PREDICTED = "predicted/image.nii.gz"
"""Where it writes the prediction of that image."""
PREDICTS = "predicts the stored segmentation"
LENGTH = 300
"""Characters of an error that are kept."""
SAME = 1e-3
"""How far the output of an exported network may lie from the network's, relative to its largest value."""
Result = dict[str, str]


class SkippedError(Exception):
    """A check does not apply; the message says why."""


def config_file(bundle: Path, name: str) -> Path | None:
    """A config of a bundle, whatever its format."""
    found = (bundle / "configs" / f"{name}.{suffix}" for suffix in SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def examine(bundle: Path, folder: Path) -> list[Result]:
    """Try all parts of a bundle.

    Args:
        bundle: its folder.
        folder: an empty one, to write to.

    Returns:
        For each check its "name", its "state" ("ok", "fails" or "skipped") and "why".
    """
    shared: dict[str, Any] = {}
    checks: list[tuple[str, Callable[[], str]]] = [
        ("inference.json has the properties of MONAI", lambda: _properties(bundle, ["inference"], "inference")),
        ("train.json has the properties of MONAI", lambda: _properties(bundle, ["train"], "train")),
        ("train.json and evaluate.json together", lambda: _properties(bundle, ["train", "evaluate"], "train")),
        ("parts are built without data", lambda: _parts(bundle)),
        ("the network is built", lambda: _network(bundle, shared)),
        ("the weights fit the network", lambda: _weights(bundle, shared)),
        ("train.json has the same network", lambda: _same_network(bundle, shared)),
        ("verify_net_in_out", lambda: _verify_net_in_out(bundle)),
        ("model.ts equals the network", lambda: _torchscript(bundle, shared)),
        (PREDICTS, lambda: _prediction(bundle, folder)),
    ]
    return [_tried(name, check) for name, check in checks]


def _tried(name: str, check: Callable[[], str]) -> Result:
    try:
        return {"name": name, "state": "ok", "why": check()}
    except SkippedError as reason:
        return {"name": name, "state": "skipped", "why": str(reason)}
    except (Exception, SystemExit) as error:  # whatever the code of a bundle does
        said = " ".join(str(error).split())
        return {"name": name, "state": "fails", "why": f"{type(error).__name__}: {said[-LENGTH:]}".rstrip(": ")}


def _files(bundle: Path, names: Sequence[str]) -> list[str]:
    files = [config_file(bundle, name) for name in names]
    if None in files:
        raise SkippedError(f"there is no {names[files.index(None)]}.json")
    return list(map(str, files))


def _parser(bundle: Path, name: str, **values: Any) -> Any:
    """A config of a bundle, opened by MONAI."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(_files(bundle, [name]))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    for key, value in {"bundle_root": str(bundle), "device": '$torch.device("cpu")', **values}.items():
        if key in parser:
            parser[key] = value
    return parser


def _properties(bundle: Path, names: Sequence[str], kind: str) -> str:
    from monai.bundle import ConfigWorkflow

    class Properties(ConfigWorkflow):
        """Looks whether properties are there, and builds none: the data are not here."""

        def _get_property(self, name: str, property: dict[str, Any]) -> Any:
            try:
                return self._get_prop_id(name, property)
            except KeyError as error:
                raise AttributeError(name) from error

    workflow = Properties(_files(bundle, names), workflow_type=kind, logging_file=False, bundle_root=str(bundle))
    workflow.parser.parse(reset=True)  # ids in their full form; nothing is built
    if missing := workflow.check_properties():
        raise ValueError(f"missing or under another id: {', '.join(missing)}")
    return ""


def _parts(bundle: Path) -> str:
    """Raises what building them raises."""
    parser = _parser(bundle, "inference")
    names = [name for name in ("preprocessing", "inferer", "postprocessing") if name in parser]
    for name in names:
        parser.get_parsed_content(name)
    return ", ".join(names)


def _network(bundle: Path, shared: dict[str, Any]) -> str:
    import torch

    network = _parser(bundle, "inference").get_parsed_content("network_def")
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"network_def is a {type(network).__name__}")
    shared["network"] = network.eval()
    return f"{sum(p.numel() for p in network.parameters()):,} parameters"


def _of(shared: Mapping[str, Any], name: str) -> Any:
    if name not in shared:
        raise SkippedError("it needs what failed above")
    return shared[name]


def _weights(bundle: Path, shared: dict[str, Any]) -> str:
    import torch

    network, path = _of(shared, "network"), bundle / "models" / "model.pt"
    if not path.is_file():
        listed = any((bundle / f"large_files.{suffix}").is_file() for suffix in SUFFIXES)
        raise FileNotFoundError(
            "there is no models/model.pt. " + ("Download what large_files.yml lists." if listed else "Get the weights.")
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"models/model.pt is damaged ({type(error).__name__}). Get it anew.") from error
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise ValueError("models/model.pt is no flat dictionary of weights, which monai.bundle.load needs.")
    own = network.state_dict()
    odd = [k for k in {**own, **weights} if k not in own or k not in weights or own[k].shape != weights[k].shape]
    if odd:
        raise ValueError(f"models/model.pt is of another network: {len(odd)} weights differ, the first is {odd[0]}.")
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"models/model.pt holds values that are NaN or infinite, in {broken[0]}.")
    network.load_state_dict(weights)
    shared["trained"] = network
    return f"{len(weights)} tensors"


def _same_network(bundle: Path, shared: Mapping[str, Any]) -> str:
    parser = _parser(bundle, "train")
    if "network_def" not in parser:
        raise SkippedError("it has no network_def")
    ours, other = (
        {name: tuple(value.shape) for name, value in network.state_dict().items()}
        for network in (_of(shared, "network"), parser.get_parsed_content("network_def"))
    )
    if ours != other:
        raise ValueError(f"{len(set(ours.items()) ^ set(other.items()))} weights differ")
    return ""


def _verify_net_in_out(bundle: Path) -> str:
    from monai.bundle import verify_net_in_out

    config = str(config_file(bundle, "inference"))
    metadata = str(bundle / "configs" / "metadata.json")
    verify_net_in_out("network_def", meta_file=metadata, config_file=config, device="cpu", bundle_root=str(bundle))
    return ""


def _torchscript(bundle: Path, shared: Mapping[str, Any]) -> str:
    import torch
    from monai.bundle.scripts import _get_fake_input_shape

    path = bundle / "models" / "model.ts"
    if not path.is_file():
        raise SkippedError("there is none")
    network, load = _of(shared, "trained"), torch.jit.load
    exported = load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]  # torch's own
    image = torch.rand(_get_fake_input_shape(_parser(bundle, "inference")), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, other = network(image), exported(image)
    difference = float((ours - other).abs().max() / ours.abs().max().clamp_min(1e-12))
    if not difference <= SAME:
        raise ValueError(f"their outputs differ by {difference:.2g}, relative to the largest; {SAME} is allowed")
    return f"largest relative difference {difference:.1g}"


def _prediction(bundle: Path, folder: Path) -> str:
    """Predicts the stored image to FOLDER; whoever called compares."""
    from monai.bundle import ConfigWorkflow

    if not (bundle / IMAGE).is_file() or not (bundle / SEGMENTATION).is_file():
        raise SkippedError(f"the bundle stores none in {VERIFICATION}")
    images = folder / "images"
    images.mkdir()
    (images / "image.nii.gz").write_bytes((bundle / IMAGE).read_bytes())
    workflow = ConfigWorkflow(
        _files(bundle, ["inference"]), logging_file=False, workflow_type="inference", bundle_root=str(bundle),
        dataset_dir=str(images), output_dir=str((folder / PREDICTED).parent), num_workers=0,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return ""


def main(arguments: Sequence[str]) -> None:
    """Writes results.json."""
    bundle, folder = map(Path, arguments)
    results = examine(bundle, folder)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    sys.path[0] = sys.argv[1]  # instead of the folder of this file, whose modules are no bundle's business
    main(sys.argv[1:])
