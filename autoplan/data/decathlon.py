"""A dataset in the layout of the Medical Segmentation Decathlon: dataset.json, and the files that it names.

`load` reads dataset.json alone. `read_case` reads the files of one case, once, and returns what is wrong with them as
sentences, so that the faults of all cases can be reported together.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from autoplan.base import written
from autoplan.base.errors import DatasetError, one_line, shortened
from autoplan.base.files import read_json
from autoplan.data import images
from autoplan.data.facts import Case, Dataset
from autoplan.data.images import case_name

DESCRIPTION = "dataset.json"
MIN_CASES = 2
"""Training cases that cross-validation needs."""
MAX_LABEL_VALUE = 2**16 - 1
"""Segmentations are written as numbers of at most 16 bits."""
MAX_CLASSES = 255
"""Classes with the background: the cache of training holds one byte a voxel, and the last of its values is a mark."""
MAX_NAME = 200
"""Characters of the name of a class or channel at most. Our choice."""
MAX_PATH = 1000
"""Characters of a path at most. Our choice: file systems end at 4096, with the folder in front."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
T = TypeVar("T")


def locate(name_or_path: str, root: Path) -> Path:
    """Folder of a dataset: the path itself, or `root`/name, or a task of the Decathlon that is downloaded into `root`.

    Raises:
        DatasetError: there is no such dataset, or it cannot be downloaded.
    """
    candidates = [Path(name_or_path), root / name_or_path]
    for folder in candidates:
        if os.path.isfile(folder / DESCRIPTION):
            return folder
    for folder in candidates:
        if os.path.isdir(folder):
            return folder
    if not re.fullmatch(r"Task\d\d_\w+", name_or_path):
        raise DatasetError(
            f"{shortened(name_or_path)}: neither a folder nor the name of one under {root}. "
            "Check the spelling, or name the folder of the datasets by --root."
        )
    return _download(name_or_path, root)


def _download(task: str, root: Path) -> Path:
    """`root`/`task`, downloaded to a temporary name first. MONAI knows the address and the checksum."""
    # This import takes seconds, so it stands where it is needed.
    from monai.apps.datasets import DecathlonDataset

    if task not in DecathlonDataset.resource:
        raise DatasetError(
            f"{task}: not under {root}, and no task of the Decathlon ({', '.join(DecathlonDataset.resource)}). "
            "Check the spelling, or give the folder's path."
        )
    url = DecathlonDataset.resource[task]
    try:
        _fetch(url, DecathlonDataset.md5[task], task, root)
    except Exception as error:  # the network, the archive and the disk fail in too many ways to name
        raise DatasetError(
            f"{task}: not under {root}, and the download from {url} failed ({one_line(error)}). "
            f"Download it by other means and extract it to {root / task}."
        ) from error
    return root / task


def _fetch(url: str, md5: str, task: str, root: Path) -> None:
    """Downloads an archive, checks it, and moves the folder `task` in it to `root`."""
    from monai.apps.utils import download_url, extractall  # download_and_extract needs a package MONAI does not install

    with written.anew(root / task) as temporary:
        archive = temporary / f"{task}.tar"
        download_url(url, archive, hash_val=md5, hash_type="md5")
        extractall(archive, temporary)
        (temporary / task).rename(root / task)


def load(folder: Path) -> Dataset:
    """What dataset.json of `folder` says. The dataset is named after the folder.

    Raises:
        DatasetError: dataset.json is missing or malformed, or names paths outside its folder, one case twice, or fewer
            than two training cases. Each fault is one line.
    """
    folder = Path(os.path.abspath(folder))
    name = folder.name
    content = _parse(folder)
    faults: list[str] = []
    modalities = _collect(_modalities, content, faults)
    labels = _collect(_labels, content, faults)
    training = _collect(_training, content, faults)
    test = _collect(_test, content, faults)
    cases = (*(training or ()), *(test or ()))
    faults += _name_faults(name) + _path_faults(folder, cases) + case_faults(folder, cases)
    faults += _storage_faults(labels) if labels is not None else []
    faults += _number_faults(training) if training is not None else []
    if faults or modalities is None or labels is None or training is None or test is None:
        raise DatasetError("\n".join(f"{name}, {DESCRIPTION}: {fault}" for fault in faults))
    return Dataset(root=folder, name=name, modalities=modalities, labels=labels, training=training, test=test)


def read_labels(folder: Path) -> tuple[tuple[tuple[int, str], ...], int | None]:
    """Values and names of the classes that dataset.json of `folder` declares, background first, and the value of voxels
    to ignore; the rest of the file does not matter.

    Raises:
        DatasetError: dataset.json is missing or malformed.
    """
    try:
        content = _parse(folder)
        named, ignore = content.get("labels"), None
        if isinstance(named, dict) and all(type(value) is int for value in named.values()):  # as nnU-Net has them
            ignore = named.get("ignore")
            named = {str(value): name for name, value in named.items() if name != "ignore"}
        return _labels({**content, "labels": named}), ignore
    except ValueError as error:
        raise DatasetError(f"{folder / DESCRIPTION}: {error}") from None


def _parse(folder: Path) -> dict[str, Any]:
    """The object in dataset.json."""
    path = folder / DESCRIPTION
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise DatasetError(f"{folder}: there is no {DESCRIPTION}. Name the folder that holds it.") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({one_line(error)}). Correct the file.") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: holds no JSON object. Write one with modality, labels, training and test.")
    return content


def _collect(read: Callable[[dict[str, Any]], T], content: dict[str, Any], faults: list[str]) -> T | None:
    """`read(content)`, or None and one more fault."""
    try:
        return read(content)
    except ValueError as error:
        faults.append(str(error))
        return None


def _numbered(content: dict[str, Any], key: str, example: str) -> dict[int, str]:
    """An object whose keys are whole numbers and whose values are names."""
    entries = content.get(key)
    remedy = f'Write it as "{key}": {example}.'
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f'"{key}" is missing or no object. {remedy}')
    if not all(re.fullmatch(r"\d{1,9}", k) and isinstance(v, str) for k, v in entries.items()):
        raise ValueError(f'"{key}" must map numbers to names. {remedy}')
    if len({int(k) for k in entries}) < len(entries):
        raise ValueError(f'"{key}" has a number twice. {remedy}')
    for name in entries.values():
        _check_name(key, name)
    return {int(k): v for k, v in sorted(entries.items(), key=lambda item: int(item[0]))}


def _check_name(key: str, name: str) -> None:
    """Raises where a text is no name that a table, a log and a file can show. All else is taken as it is."""
    shown = repr(shortened(name))
    if not name.strip():
        raise ValueError(f'"{key}" holds an empty name. Name every entry.')
    if len(name) > MAX_NAME:
        raise ValueError(f'"{key}" holds a name of {len(name)} characters, {shown}. Use at most {MAX_NAME}.')
    if _has_control_characters(name):
        raise ValueError(f'"{key}" holds a name with line breaks or control characters, {shown}. Remove them.')


def _has_control_characters(text: str) -> bool:
    """Whether a text holds a control character or a line break."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def _modalities(content: dict[str, Any]) -> tuple[str, ...]:
    """Names of the channels, in order."""
    numbered = _numbered(content, "modality", '{"0": "MRI"}')
    if list(numbered) != list(range(len(numbered))):
        raise ValueError(f'"modality" must number the channels 0, 1, ..., not {list(numbered)}. Renumber them.')
    return tuple(numbered.values())


def _labels(content: dict[str, Any]) -> tuple[tuple[int, str], ...]:
    """Values and names of the classes, in the order of the values; the first is 0."""
    numbered = _numbered(content, "labels", '{"0": "background", "1": "organ"}')
    if 0 not in numbered or len(numbered) < 2:
        raise ValueError('"labels" must hold 0, the background, and at least one other class. Add it.')
    twice = [name for name, count in Counter(name.strip() for name in numbered.values()).items() if count > 1]
    if twice:
        raise ValueError(f'"labels" has the name {twice[0]!r} more than once. Give each class a name of its own.')
    return tuple(numbered.items())


def _training(content: dict[str, Any]) -> tuple[Case, ...]:
    """Training cases."""
    entries = content.get("training")
    if not isinstance(entries, list) or not all(_is_pair(e) for e in entries):
        raise ValueError('"training" must be a list of {"image": path, "label": path}. Write one entry a case.')
    return tuple(_case(e["image"], e["label"]) for e in entries)


def _is_pair(entry: object) -> bool:
    """Whether an entry of "training" names an image and a label."""
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "label"))


def _test(content: dict[str, Any]) -> tuple[Case, ...]:
    """Test cases; "test" may be missing. An entry is a path or {"image": path}."""
    entries = content.get("test", [])
    remedy = 'Write one path an image, or "test": [].'
    if not isinstance(entries, list):
        raise ValueError(f'"test" must be a list of paths. {remedy}')
    images = [e.get("image") if isinstance(e, dict) else e for e in entries]
    if not all(isinstance(i, str) for i in images):
        raise ValueError(f'"test" must be a list of paths. {remedy}')
    return tuple(_case(str(i), None) for i in images)


def _case(image: str, label: str | None) -> Case:
    """A case, named after its image."""
    return Case(case_name(image), (str(PurePosixPath(image)),), None if label is None else str(PurePosixPath(label)))


def faults_of(dataset: Dataset) -> list[str]:
    """What is wrong with the names, the paths, the number of cases and the classes of a dataset of any layout."""
    cases, labels = (*dataset.training, *dataset.test), dataset.labels
    faults = [*_name_faults(dataset.name), *_storage_faults(labels)]
    for key, names in (("channels", dataset.modalities), ("labels", [n for _, n in labels])):
        _collect(partial(_check_names, key), {"names": names}, faults)
    twice = [n for n, count in Counter(n for _, n in labels).items() if count > 1]
    faults += [f"more than one class is called {n!r}. Give each class a name of its own." for n in twice]
    odd = [case.name for case in cases if not _is_plain(case.name)]
    faults += [f"{shortened(n)!r} is no name of a case: it becomes one of files. Rename it." for n in odd]
    faults += [_no_path(path) for path in dict.fromkeys(_paths(cases)) if not _is_path(path)]
    faults += case_faults(dataset.root, cases)
    if len(dataset.training) < MIN_CASES:
        faults.append(
            f"{len(dataset.training)} training cases; cross-validation needs at least {MIN_CASES}. Add labelled cases."
        )
    return faults


def _check_names(key: str, content: dict[str, Any]) -> None:
    """Raises for the first text that is no name."""
    for text in content["names"]:
        _check_name(key, text)


def _is_plain(name: str) -> bool:
    """Whether a text can be the name of a file, without its suffix."""
    return (
        name.strip() not in ("", ".", "..")
        and len(name) <= MAX_NAME
        and "/" not in name
        and "\\" not in name
        and (not _has_control_characters(name))
    )


def _name_faults(name: str) -> list[str]:
    """What is wrong with the name of the dataset's folder, which becomes the name of the bundles' folder."""
    if _PLAIN_NAME.fullmatch(name):
        return []
    return [f"the folder's name, {name!r}, names the bundles. Rename it to letters, digits, '_', '.' and '-' only."]


def _paths(cases: Iterable[Case]) -> list[str]:
    """The paths of cases: of images and labels."""
    return [path for case in cases for path in (*case.images, case.label) if path is not None]


def case_faults(root: Path, cases: Sequence[Case]) -> list[str]:
    """Names that occur twice, or are one name to other systems; and files that are two things at once."""
    faults, by_key = [], defaultdict[str, list[str]](list)
    for case in cases:
        by_key[_folded(case.name)].append(case.name)
    for names in by_key.values():
        first, *others = names
        if first in others:
            faults.append(f"{first}: more than one image has this name. Rename the files or remove one entry.")
        elif others:
            faults.append(
                f"{' and '.join(names[:3])} differ only in case or in the Unicode form of their letters, and are one "
                "file on other systems. Rename one."
            )
    images_of, labels_of = _users(root, cases)
    for path, names in images_of.items():
        if path in labels_of:
            faults.append(f"{path} is an image, of {names[0]}, and a label, of {labels_of[path][0]}. Correct one.")
        elif len(several := list(dict.fromkeys(names))) > 1:
            faults.append(f"{path} is the image of {' and of '.join(several[:2])}. Name each image once.")
    twice = [case.name for case in cases if len(set(case.images)) < len(case.images)]
    return faults + [f"{name}: one file is two of its channels. Name a file for each." for name in twice]


def _folded(name: str) -> str:
    """What two names have in common that a file system without case, or with one Unicode form, takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _users(root: Path, cases: Iterable[Case]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names of the cases that have a file as an image, and as a label, by its path."""
    images_of, labels_of = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for case in cases:
        for path in case.images:
            images_of[os.path.normpath(root / path)].append(case.name)
        if case.label is not None:
            labels_of[os.path.normpath(root / case.label)].append(case.name)
    return images_of, labels_of


def shared_labels(dataset: Dataset) -> str:
    """A warning where cases that may come into different folds have one label; else nothing."""
    group_of = {case.name: case.group for case in dataset.training}
    for path, names in _users(dataset.root, dataset.training)[1].items():
        if len(names) > 1 and (group_of[names[0]] is None or len({group_of[name] for name in names}) > 1):
            return (
                f"{path} is the label of {' and of '.join(names[:2])}. If that is no mistake, keep such cases in one "
                "fold (--group_by), or scores are too good."
            )
    return ""


def _number_faults(training: tuple[Case, ...]) -> list[str]:
    """Too few cases."""
    if len(training) >= MIN_CASES:
        return []
    count = "no training case" if not training else "only one training case"
    return [f'{count}; cross-validation needs at least {MIN_CASES}. Add labelled cases to "training".']


def _storage_faults(labels: tuple[tuple[int, str], ...]) -> list[str]:
    """Classes that bundles cannot store."""
    faults, (largest, _) = [], labels[-1]
    if largest > MAX_LABEL_VALUE:
        faults.append(
            f'"labels" has the value {largest}, and segmentations are stored with values of at most {MAX_LABEL_VALUE}. '
            "Renumber the classes, in the label files too."
        )
    if len(labels) > MAX_CLASSES:
        faults.append(
            f'"labels" has {len(labels)} classes with the background, and training stores at most {MAX_CLASSES}. Join '
            "classes, in the label files too."
        )
    return faults


def _is_path(text: str) -> bool:
    """Whether a text can be a path."""
    return 0 < len(text) <= MAX_PATH and not _has_control_characters(text)


def _no_path(text: str) -> str:
    """The fault of a text that is no path."""
    return (
        f"{shortened(text)!r} is no path: it has line breaks or control characters, or more than {MAX_PATH} "
        "characters. Correct it."
    )


def _path_faults(root: Path, cases: Iterable[Case]) -> list[str]:
    """What is wrong with the paths of cases."""
    return [fault for path in dict.fromkeys(_paths(cases)) for fault in _faults_of_path(root, path)]


def _faults_of_path(root: Path, path: str) -> list[str]:
    """What is wrong with a path's text. Links inside the dataset are the user's own business."""
    if not _is_path(path):
        return [_no_path(path)]
    kinds = (PurePosixPath(path), PureWindowsPath(path))
    if any(k.anchor or k.drive or ".." in k.parts for k in kinds):
        return [f"the path {path!r} leaves the dataset's folder. Write it relative to the folder, without '..'."]
    if not images.is_image(root / path):
        return [f"the path {path!r} is neither an image ({images.KNOWN}) nor a folder of DICOM files. Correct it."]
    return []
