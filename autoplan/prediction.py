"""Predicting many images with the bundle to share: resumes, and names in the end what could not be predicted."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoplan.errors import AutoplanError, DatasetError, TemplateError
from autoplan.files import write_text_atomically
from autoplan.images import case_name, image_files
from autoplan.processes import dying_with

RECORD = ".predicted_by.json"
"""File among the predictions that tells which bundle they are by, and of which images."""


def predict(
    bundle: Path, folder: Path, images: Sequence[Path], output: Path, *, force: bool, settings: Mapping[str, str]
) -> int:
    """Predict the images that have no segmentation yet.

    Args:
        bundle: with configs/inference.json and models/model.pt.
        folder: what the bundle gets as its `dataset_dir`: of a dataset, or of images.
        images: that the folder stands for.
        output: where the segmentations go, as <case>.nii.gz.
        force: overwrite segmentations of unknown origin.
        settings: keys of inference.json with new values, as they stand on a command line.

    Returns:
        The number of images predicted now.

    Raises:
        TemplateError: the bundle is not there or has no weights.
        DatasetError: there are no images, or two of one name.
        AutoplanError: segmentations of unknown origin are there, or some images could not be predicted.
    """
    if not (bundle / "configs" / "inference.json").is_file() or not (bundle / "models" / "model.pt").is_file():
        raise TemplateError(
            f"{bundle} is no bundle with weights. Choose the best model first: python -m autoplan select "
            f"{bundle.parent.name} --bundles {bundle.parents[1]}"
        )
    targets = _targets(folder, images, output)
    _claim(output, _signature(bundle, settings), targets, force=force)
    missing = [image for image, target in targets.items() if not target.is_file()]
    if not missing:
        return 0
    command = _command(bundle, folder, output, settings)
    status = subprocess.run(command, check=False, preexec_fn=dying_with(os.getpid())).returncode
    failed = [image for image, target in targets.items() if not target.is_file()]
    if status < 0 or status > 128:
        raise AutoplanError(
            f"the prediction was stopped (exit status {status}). The same command does what is missing."
        )
    if failed:
        lines = "\n".join(f"  {image}" for image in failed)
        raise AutoplanError(
            f"{len(failed)} of {len(targets)} images have no segmentation:\n{lines}\n"
            "The reasons stand above. Mend the images; the same command does what is missing."
        )
    if status:
        raise AutoplanError(f"the prediction ended with exit status {status}; the reason stands above.")
    return len(missing)


def images_in(folder: Path) -> list[Path]:
    """The NIfTI images in a folder, sorted.

    Raises:
        DatasetError: there is no such folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder. Name the one with the images: --images DIR")
    return image_files(folder)


def _targets(folder: Path, images: Sequence[Path], output: Path) -> dict[Path, Path]:
    """The segmentation of each image."""
    if not images:
        raise DatasetError(
            f"{folder}: no images to predict, neither listed as test in dataset.json nor as NIfTI files."
        )
    targets: dict[Path, Path] = {}
    for image in images:
        target = output / f"{case_name(image.name)}.nii.gz"
        if target in targets.values():
            raise DatasetError(f"{folder}: two images are called {case_name(image.name)}. Rename one of them.")
        targets[image] = target
    sources = {image.resolve() for image in images}
    if any(target.resolve() in sources for target in targets.values()):
        raise DatasetError(
            f"{output} holds the images themselves. Name another folder for the segmentations: --output DIR"
        )
    return targets


def _signature(bundle: Path, settings: Mapping[str, str]) -> dict[str, object]:
    """What segmentations depend on, besides the image."""
    hashed = hashlib.sha256()
    for name in ("configs/inference.json", "models/model.pt"):
        with (bundle / name).open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                hashed.update(block)
    return {"bundle": hashed.hexdigest()[:16], "settings": dict(settings)}


def _stamp(image: Path) -> list[object]:
    """Tells whether an image is still the one that was predicted."""
    stat = image.stat() if image.is_file() else None
    return [str(image.resolve()), stat and stat.st_size, stat and stat.st_mtime_ns]


def _claim(output: Path, signature: Mapping[str, object], targets: Mapping[Path, Path], *, force: bool) -> None:
    """Make the folder one of predictions by this bundle, and write down which images they are of. Segmentations that
    were made here by another bundle or of another image are removed, to be made anew; those of unknown origin are not
    touched unless `force`."""
    record = output / RECORD
    try:
        claimed = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        claimed = {}
    known = claimed.get("images", {})
    there = {image: target for image, target in targets.items() if target.is_file()}
    unknown = [target for target in there.values() if target.name not in known]
    if unknown and not force:
        raise AutoplanError(
            f"{output} holds {len(unknown)} segmentations of unknown origin, such as {unknown[0].name}. Name another "
            "folder: --output DIR; or overwrite them: --force"
        )
    same = claimed.get("by") == signature
    for image, target in there.items():
        if not same or known.get(target.name) != _stamp(image):
            target.unlink()
    output.mkdir(parents=True, exist_ok=True)
    images = {**(known if same else {}), **{target.name: _stamp(image) for image, target in targets.items()}}
    write_text_atomically(record, json.dumps({"by": signature, "images": images}))


def _command(bundle: Path, folder: Path, output: Path, settings: Mapping[str, str]) -> list[str]:
    # Absolute, for fire would read a folder 2024_01 as a number.
    folders = {"dataset_dir": str(folder.absolute()), "output_dir": str(output.absolute())}
    given = {**folders, "skip_existing": "True", **settings}
    words = [text for name, value in given.items() for text in (f"--{name}", value)]
    config = str(bundle / "configs" / "inference.json")
    # MONAI warns that a config runs code. This one is autoplan's own.
    quiet = ["-W", "ignore::UserWarning:monai.bundle.scripts"]
    return [sys.executable, *quiet, "-m", "monai.bundle", "run", "inference", "--config_file", config, *words]
