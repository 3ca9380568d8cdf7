"""Which images a run works on: the datalists."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.files import is_changed
from scripts.formats import by_case, case_name, image_files, name_of, segmentation_name

logger = logging.getLogger(__name__)

ALL = "all"
"""The fold whose network is trained on all cases, and validated on nothing."""


def read_folds(datalist: str | Path) -> list[list[dict[str, Any]]]:
    """The training cases of a datalist, fold by fold: a list of {"name", "image", "label", "fold"} for each fold."""
    entries = json.loads(Path(datalist).read_text(encoding="utf-8"))["training"]
    return [[e for e in entries if e["fold"] == k] for k in range(1 + max(e["fold"] for e in entries))]


def fold_cases(
    dataset_dir: str | Path, datalist: str | Path, fold: int | str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training and the validation cases of a fold, {"name", "image", "label"}: `image` is a path, or a list of
    paths, one a channel.

    Args:
        dataset_dir: folder that the paths of the datalist are relative to.
        datalist: MONAI datalist with folds: a fold's cases are those that it is validated on. A bundle that was shared
            has none; the cases of any dataset.json, or of nnU-Net's folders, are then divided into five folds.
        fold: counts from 0; "all": all cases are the training cases, and the validation cases, too, for the rules of a
            training need losses.

    Raises:
        ValueError: there is no such fold.
        FileNotFoundError: a case is not there.
    """
    root = Path(dataset_dir)
    folds = read_folds(datalist) if Path(datalist).is_file() else _divided_cases(root)
    if fold not in (*range(len(folds)), ALL):
        raise ValueError(f"There is no fold {fold}: there are {len(folds)}, counted from 0, and {ALL}.")
    cases = [
        [{"name": e["name"], "image": _in(root, e["image"]), "label": _in(root, e["label"])} for e in part]
        for part in folds
    ]
    files = {case["name"]: [*_paths(case["image"]), case["label"]] for part in cases for case in part}
    missing = [name for name, paths in files.items() if not all(Path(path).exists() for path in paths)]
    if missing:
        raise FileNotFoundError(
            f"{root.absolute()} lacks files of {len(missing)} of the cases that the bundle was planned for, the first "
            f"is {missing[0]}. Name the right folder, --dataset_dir DIR, or plan again with python -m autoplan"
        )
    validated = [case for k, part in enumerate(cases) if fold in (k, ALL) for case in part]
    return [case for k, part in enumerate(cases) if k != fold for case in part], validated


def _divided_cases(root: Path) -> list[list[dict[str, Any]]]:
    """The training cases of a dataset.json, the Decathlon's or nnU-Net's, fold by fold."""
    path = root / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()} does not exist. Name the folder of the dataset: --dataset_dir DIR")
    content = json.loads(path.read_text(encoding="utf-8"))
    cases = {case_name(e["image"]): e for e in content.get("training", [])}
    if (root / "imagesTr").is_dir() and not any((root / e["image"]).exists() for e in cases.values()):
        cases = _raw_cases(root, content)
    if not cases:
        raise ValueError(
            f"{path.absolute()} lists no training cases, and none lie in imagesTr and labelsTr. "
            "Name the folder of a dataset: --dataset_dir DIR"
        )
    return [[{"name": name, **cases[name]} for name in names] for names in divided(list(cases))]


def _raw_cases(root: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The training cases in an nnU-Net dataset's folders: a file for each channel, CASE_0000 and so on, and labels."""
    channels = content.get("channel_names", content.get("modality", [0]))
    labels = {case_name(path): str(path) for path in image_files(root / "labelsTr")}
    images = by_case(image_files(root / "imagesTr"), len(channels))
    return {name: {**_item(name, paths), "label": labels[name]} for name, paths in images if name in labels}


def divided(names: Sequence[str], num_folds: int = 5) -> list[list[str]]:
    """Validation cases of each fold, as planning divides a dataset; the order of the names does not matter."""
    generator = random.Random(12345)  # only random() is promised to stay the same from one Python version to the next
    keys = {name: generator.random() for name in sorted(names)}
    shuffled, count = sorted(keys, key=keys.__getitem__), min(num_folds, len(keys))
    return [sorted(shuffled[k::count]) for k in range(count)]


def _in(root: Path, image: str | Sequence[str]) -> Any:
    """Paths from a folder; those that are absolute stay."""
    return str(root / image) if isinstance(image, str) else [str(root / path) for path in image]


def _paths(image: str | Sequence[str]) -> list[str]:
    """The files of an image."""
    return [image] if isinstance(image, str) else list(image)


def with_references(cases: Sequence[Mapping[str, Any]], fold: int | str = 0) -> list[dict[str, Any]]:
    """Validation cases whose labels are kept as they are, to be compared with predictions: "reference" in place of
    "label".

    Args:
        cases: of the fold.
        fold: whose they are.

    Raises:
        ValueError: it has none.
    """
    if fold == ALL:
        raise ValueError("The network of fold all was trained on all cases: there is none to evaluate it on.")
    return [{"name": name_of(case), "image": case["image"], "reference": case["label"]} for case in cases]


def images_to_predict(
    dataset_dir: str | Path,
    output_dir: str | Path | None = None,
    skip_existing: bool = False,
    images: str | Path | None = None,
    channels: int = 1,
) -> list[dict[str, Any]]:
    """The test images that dataset.json lists; without a dataset.json, all images in the folder: {"name", "image"}.

    Args:
        dataset_dir: folder with a dataset.json or with images. Files CASE_0000, CASE_0001 and so on are the channels of
            one image where there is one for each channel.
        output_dir: folder of the segmentations.
        skip_existing: leave out images whose segmentation is there; else only those whose segmentation was changed by
            hand since it was predicted.
        images: a folder of images, or a JSON file with a list of images: each a path, or {"name", "image"} with a path
            or a list of paths. These are predicted, whatever lies in `dataset_dir`.
        channels: of an image.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: it has no images.
    """
    if images is not None and not Path(images).is_dir():
        cases = _named(Path(images))
    else:
        cases = _listed(Path(dataset_dir), channels) if images is None else _found(Path(images), channels)
    if output_dir is not None:
        targets = [Path(output_dir) / segmentation_name(_paths(c["image"])[0], c["name"]) for c in cases]
        cases = [c for c, path in zip(cases, targets, strict=True) if not _stays(path, whatever=skip_existing)]
    return cases


def _stays(path: Path, *, whatever: bool) -> bool:
    """Whether a segmentation that is there is left as it is: any, or one that was changed by hand."""
    if whatever or not is_changed(path):
        return whatever and path.is_file()
    logger.warning("%s was changed by hand, so it stays. Remove it to have it predicted anew", path)
    return True


def _listed(root: Path, channels: int) -> list[dict[str, Any]]:
    """The test images of a dataset, or all images of a folder. nnU-Net's datasets have theirs in imagesTs: dataset.json
    lists none, or has names without the number of a channel."""
    if not (root / "dataset.json").is_file():
        return _found(root, channels)
    entries = json.loads((root / "dataset.json").read_text(encoding="utf-8")).get("test", [])
    paths = [root / (e if isinstance(e, str) else e["image"]) for e in entries]
    if (root / "imagesTs").is_dir() and not any(path.exists() for path in paths):
        return _found(root / "imagesTs", channels)
    return [_item(case_name(path), [path]) for path in paths] or _none(root)


def _found(root: Path, channels: int) -> list[dict[str, Any]]:
    """All images of a folder."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root.absolute()} is no folder. Name the one with the images: --dataset_dir DIR")
    return [_item(*case) for case in by_case(image_files(root), channels)] or _none(root)


def _none(root: Path) -> list[dict[str, Any]]:
    raise ValueError(f"{root.absolute()}: no images to predict, neither listed in dataset.json nor as files.")


def _item(name: str, paths: Sequence[Path]) -> dict[str, Any]:
    return {"name": name, "image": str(paths[0]) if len(paths) == 1 else [str(path) for path in paths]}


def _named(path: Path) -> list[dict[str, Any]]:
    """The images that a JSON file names."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list) or not entries or not all(isinstance(e, str) or _is_case(e) for e in entries):
        raise ValueError(f'{path.absolute()}: no JSON list of paths. Write one, such as ["/data/a.nii.gz"].')
    return [_item(case_name(e), [Path(e)]) if isinstance(e, str) else e for e in entries]


def _is_case(entry: object) -> bool:
    """Whether an entry names a case and its files."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    image = entry.get("image")
    return isinstance(image, str) or (
        isinstance(image, list) and bool(image) and all(isinstance(i, str) for i in image)
    )
