"""nnU-Net's raw folders, of version 2 and 1."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoplan.base.errors import DatasetError, one_line, shortened
from autoplan.base.files import read_json
from autoplan.base.scripts import formats
from autoplan.data import decathlon as datasets
from autoplan.data.facts import Case, Dataset
from autoplan.data.layouts.common import check, checked, collect, some, unmatched

SPLITS = "splits_final.json"
"""nnU-Net's own division into folds."""


def is_version_1(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether what the Decathlon's dataset.json calls CASE lies there as CASE_0000, and nothing as CASE."""
    entries = content.get("training")
    named = [entry.get("image") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    paths = [folder / image for image in named if isinstance(image, str) and image]
    is_there = os.path.exists  # False, not an error, for a text that is no path
    return not any(map(is_there, paths)) and any(is_there(_first_channel(path)) for path in paths)


def _first_channel(image: Path) -> Path:
    """The file of the first channel of an image, by nnU-Net's names."""
    return image.parent / f"{formats.case_name(image)}_0000{formats.suffix_of(image)}"


def load(folder: Path, content: Mapping[str, Any]) -> Dataset:
    """A raw folder of nnU-Net, version 2 or 1."""
    faults: list[str] = []
    channels = collect(lambda: _channels(content), faults)
    classes = collect(lambda: nnunet_classes(content.get("labels")), faults)
    check(f"{folder.name}, {datasets.DESCRIPTION}", faults)
    if channels is None or classes is None:
        raise DatasetError(f"{folder}: {datasets.DESCRIPTION} is damaged.")
    labels, ignore = classes
    training, faults = _nnunet_cases(folder, content, len(channels))
    test, more = _numbered_files(folder / "imagesTs", len(channels), content)
    cases = [Case(name, tuple(f"imagesTs/{path.name}" for path in paths)) for name, paths in test.items()]
    check(folder.name, [*faults, *more])
    dataset = Dataset(folder, folder.name, channels, labels, tuple(training), tuple(cases), ignore)
    return _split(checked(dataset, "dataset.json"))


def _channels(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels."""
    named = content.get("channel_names", content.get("modality"))
    example = 'Write it as "channel_names": {"0": "MRI"}.'
    if not isinstance(named, dict) or sorted(named) != sorted(map(str, range(len(named)))) or not named:
        raise ValueError(f'"channel_names" must number the channels 0, 1, ... and name them. {example}')
    if odd := [number for number, name in named.items() if not isinstance(name, str)]:
        raise ValueError(f'"channel_names": channel {odd[0]} has no name. {example}')
    return tuple(named[str(i)] for i in range(len(named)))


def nnunet_classes(labels: Any) -> tuple[tuple[tuple[int, str], ...], int | None]:
    """Values and names of the classes, and the value of voxels to ignore, of nnU-Net's "labels", of either version.

    Raises:
        ValueError: they are no such object, or regions.
    """
    example = 'Write it as "labels": {"background": 0, "organ": 1}.'
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f'"labels" is missing or no object. {example}')
    named = labels
    if all(re.fullmatch("[0-9]{1,9}", key) for key in labels) and all(isinstance(v, str) for v in labels.values()):
        named = {name: int(key) for key, name in labels.items()}
        if len(named) < len(labels):
            raise ValueError(f'"labels" has a name more than once. Give each class a name of its own. {example}')
    if regions := [name for name, value in named.items() if isinstance(value, (list, tuple))]:
        raise ValueError(
            f'"labels" has regions, classes of several values ({some(regions)}), which overlap; a network here gives '
            "each voxel one class. Write one value a class, as the label files have them, and join the classes of a "
            "region after predicting."
        )
    if not all(type(value) is int and 0 <= value < 10**9 for value in named.values()):
        raise ValueError(f'"labels" must map names to whole numbers. {example}')
    ignore = named.get("ignore")
    classes = sorted((value, str(name)) for name, value in named.items() if name != "ignore")
    if len({value for value, _ in classes}) < len(classes) or classes[0][0] != 0 or len(classes) < 2:
        raise ValueError(f'"labels" must hold 0, the background, and other classes, each value once. {example}')
    return tuple(classes), ignore


def _nnunet_cases(folder: Path, content: Mapping[str, Any], count: int) -> tuple[list[Case], list[str]]:
    """The training cases, by the section "dataset" or by the names of the files, and faults."""
    if "dataset" in content:
        return _nnunet_section(folder, content["dataset"], count)
    found, faults = _numbered_files(folder / "imagesTr", count, content)
    labels: dict[str, str] = {}
    for path in _images_of(folder / "labelsTr", content):
        name = formats.case_name(path)
        if name in labels:
            faults.append(f"labelsTr has {labels[name]} and {path.name} for {name}. Keep one.")
        labels[name] = path.name
    faults += unmatched(list(found), list(labels), "imagesTr", "labelsTr")
    cases = [
        Case(name, tuple(f"imagesTr/{path.name}" for path in paths), f"labelsTr/{labels[name]}")
        for name, paths in found.items()
        if name in labels
    ]
    return cases, faults


def _nnunet_section(folder: Path, section: Any, count: int) -> tuple[list[Case], list[str]]:
    """The cases of dataset.json's own "dataset": {"CASE": {"images": [paths], "label": path}}."""
    cases, faults = [], []
    for name, entry in section.items() if isinstance(section, dict) else ():
        files = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(files, list) or not all(isinstance(f, str) for f in [*files, entry.get("label")]):
            faults.append(f'"dataset": {shortened(name)} must have "images", a list of paths, and "label", a path.')
        elif len(files) != count:
            faults.append(
                f'"dataset": {shortened(name)} has {len(files)} images, and there are {count} channels. Name one a '
                "channel."
            )
        else:
            cases.append(Case(name, tuple(files), entry["label"]))
    if not cases and not faults:
        faults.append('"dataset" must map cases to {"images": [paths], "label": path}.')
    return cases, faults


def _images_of(folder: Path, content: Mapping[str, Any]) -> list[Path]:
    """The images of a folder, those that end as dataset.json says."""
    ending = _ending(content)
    there = formats.image_files(folder) if folder.is_dir() else []
    return [path for path in there if not ending or path.name.lower().endswith(ending.lower())]


def _ending(content: Mapping[str, Any]) -> str:
    """How the files end; empty where dataset.json does not say."""
    return str(content.get("file_ending") or "")


def _numbered_files(folder: Path, count: int, content: Mapping[str, Any]) -> tuple[dict[str, list[Path]], list[str]]:
    """Files CASE_0000, CASE_0001 and so on of a folder by case, and faults."""
    there, found = _images_of(folder, content), defaultdict[str, list[Path]](list)
    every = formats.image_files(folder) if folder.is_dir() else []
    if every and not there:
        endings = sorted({formats.suffix_of(path) for path in every})
        return {}, [
            f"{folder.name} has no file that ends in {shortened(_ending(content))}, which dataset.json gives as "
            f'"file_ending", but {len(every)} in {", ".join(endings)}. Correct "file_ending".'
        ]
    if count > 1 and _are_pictures(there):
        return {formats.case_name(path)[:-5]: [path] for path in there}, []
    faults = []
    for path in there:
        name = formats.case_name(path)
        if not re.search("_[0-9]{4}$", name):
            faults.append(f"{folder.name}/{path.name} has no number of a channel. Rename it to {name}_0000.")
        else:
            found[name[:-5]].append(path)
    for name, paths in found.items():
        numbers = [formats.case_name(path)[-4:] for path in paths]
        if numbers != [f"{i:04}" for i in range(count)]:
            faults.append(
                f"{folder.name}: {name} has the channels {', '.join(numbers)}, and there should be {count}, "
                f"{name}_0000 to {name}_{count - 1:04}. Add what is missing, or correct channel_names."
            )
    return dict(found), faults


def _are_pictures(files: Sequence[Path]) -> bool:
    """Whether each case has one picture, CASE_0000.png, which holds its channels, the colours: nnU-Net's natural
    images."""
    return bool(files) and all(
        formats.format_of(path) in (formats.PICTURE, formats.TIFF) and formats.case_name(path).endswith("_0000")
        for path in files
    )


def _split(dataset: Dataset) -> Dataset:
    """The dataset with nnU-Net's folds, where it has any."""
    folder = dataset.root
    places = (folder / SPLITS, folder.parent.parent / "nnUNet_preprocessed" / folder.name / SPLITS)
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        return dataset
    try:
        folds = [list(map(str, entry["val"])) for entry in read_json(path)]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise DatasetError(f'{path} is no list of {{"train": names, "val": names}} ({one_line(error)[:80]}).') from None
    fold_of = {name: k for k, names in enumerate(folds) for name in names}
    names = [case.name for case in dataset.training]
    if sorted(name for fold in folds for name in fold) != sorted(names):
        odd = sorted({*fold_of} ^ {*names}) or [n for n in names if sum(n in fold for fold in folds) > 1]
        raise DatasetError(
            f'{path}: each case must be in "val" of one fold; that does not hold for {some(odd)}. Correct it, or '
            "remove the file: folds are then drawn."
        )
    return replace(dataset, training=tuple(replace(case, fold=fold_of[case.name]) for case in dataset.training))
