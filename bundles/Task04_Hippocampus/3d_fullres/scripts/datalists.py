"""Which images a run works on: the datalists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NIFTI = (".nii.gz", ".nii")


def case_name(path: str | Path) -> str:
    """File name of an image without .nii or .nii.gz."""
    name = Path(path).name
    return next((name[: -len(ending)] for ending in NIFTI if name.endswith(ending)), name)


def _read(dataset_dir: str | Path) -> dict[str, Any]:
    path = Path(dataset_dir) / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()} does not exist. Name the folder of the dataset: --dataset_dir DIR")
    return json.loads(path.read_text(encoding="utf-8"))


def fold_cases(
    dataset_dir: str | Path, folds_file: str | Path, fold: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Image and label paths of the training and of the validation cases of a fold.

    Args:
        dataset_dir: folder with the dataset.json that lists the cases.
        folds_file: JSON list with a list of case names, the validation cases, for each fold.
        fold: counts from 0.

    Raises:
        FileNotFoundError: no dataset.json in `dataset_dir`.
        ValueError: there is no such fold, or dataset.json lacks a case.
    """
    folds = json.loads(Path(folds_file).read_text(encoding="utf-8"))
    if fold not in range(len(folds)):
        raise ValueError(f"There is no fold {fold}: there are {len(folds)}, counted from 0.")
    root = Path(dataset_dir)
    entries = {case_name(e["image"]): e for e in _read(root)["training"]}
    missing = [name for names in folds for name in names if name not in entries]
    if missing:
        raise ValueError(
            f"{root.absolute()}: dataset.json lacks {len(missing)} of the cases that the bundle was planned for, the "
            f"first is {missing[0]}. Plan again with python -m autoplan, or name the right folder: --dataset_dir DIR"
        )
    cases = [[{key: str(root / entries[n][key]) for key in ("image", "label")} for n in names] for names in folds]
    return [case for k, part in enumerate(cases) if k != fold for case in part], cases[fold]


def with_references(cases: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Cases whose labels are kept as they are, to be compared with predictions: {"image": path, "reference": path}."""
    return [{"image": case["image"], "reference": case["label"]} for case in cases]


def images_to_predict(
    dataset_dir: str | Path,
    output_dir: str | Path | None = None,
    skip_existing: bool = False,
    images: str | Path | None = None,
) -> list[dict[str, str]]:
    """Paths of the test images that dataset.json lists; without a dataset.json, of all NIfTI images in the folder.

    Args:
        dataset_dir: folder with a dataset.json or with images.
        output_dir: folder of the segmentations.
        skip_existing: leave out images whose segmentation is there.
        images: JSON file with a list of paths; these images are predicted, whatever lies in `dataset_dir`.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: it has no images.
    """
    paths = _listed(Path(dataset_dir)) if images is None else _named(Path(images))
    if skip_existing and output_dir is not None:
        paths = [path for path in paths if not (Path(output_dir) / f"{case_name(path)}.nii.gz").is_file()]
    return [{"image": str(path)} for path in paths]


def _listed(root: Path) -> list[Path]:
    """The test images of a dataset, or all images of a folder."""
    if (root / "dataset.json").is_file():
        paths = [root / (e if isinstance(e, str) else e["image"]) for e in _read(root).get("test", [])]
    elif root.is_dir():
        paths = sorted(p for p in root.iterdir() if p.name.endswith(NIFTI) and not p.name.startswith("."))
    else:
        raise FileNotFoundError(f"{root.absolute()} is no folder. Name the one with the images: --dataset_dir DIR")
    if not paths:
        raise ValueError(f"{root.absolute()}: no images to predict, neither listed in dataset.json nor as files.")
    return paths


def _named(path: Path) -> list[Path]:
    """The images that a JSON file names."""
    named = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise ValueError(f'{path.absolute()}: no JSON list of paths. Write one, such as ["/data/a.nii.gz"].')
    return [Path(name) for name in named]
