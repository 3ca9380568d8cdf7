"""Layouts of datasets: each is a function from a folder to the `Dataset` that the rest knows.

The Decathlon's layout is read by `dataset`. Here are nnU-Net's raw folders, pairs of folders, and tables; what lies in
the folder, and the flags that were given, say which of them it is. The flags are kept beside plan.json, so that no
other command needs them.
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoplan import dataset as datasets
from autoplan import formats, images
from autoplan.errors import DatasetError, one_line
from autoplan.facts import Case, Dataset, from_dict, to_dict
from autoplan.files import read_json, read_object, write_text_atomically
from autoplan.overlays import format_json

RECORD = "layout.json"
"""File beside plan.json with the flags that a dataset was planned with."""
SPLITS = "splits_final.json"
"""nnU-Net's own division into folds."""
MAX_LISTED = 5
"""Cases that a message names."""
MAX_GROUP = 10
"""Images of one patient at most, where their names are to say who that is. Our choice."""
IMAGE_ENDS = ("", r"_\d{4}", r"[_-](image|img|im|scan|volume|vol)")
"""How the names of images may end, behind the name of their case."""
LABEL_ENDS = ("", r"[_-](label|labels|seg|segmentation|mask|gt|manual)")
"""How the names of labels may end."""
PATIENT = r"^.*?\d+"
"""Expression that finds the patient in a name such as patient001_frame12: all up to the first number."""


@dataclass(frozen=True)
class Layout:
    """How a dataset lies, as the user said by flags; what is empty was not said. `found` are the values and names of
    the classes that were found in the labels, where no file declares them."""

    images: str = ""
    labels: str = ""
    labels_are: str = ""
    channels: str = ""
    table: str = ""
    group_by: str = ""
    found: tuple[tuple[int, str], ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether any flag was given."""
        return self != Layout()


def load(folder: Path, layout: Layout) -> Dataset:
    """The dataset in a folder.

    Args:
        folder: of the dataset, whose name it gets.
        layout: flags.

    Raises:
        DatasetError: what is wrong with it, a line for each fault.
    """
    folder = Path(os.path.abspath(folder))
    if layout.table:
        dataset = _table(folder, layout)
    elif layout.images or layout.labels:
        dataset = _folders(folder, layout)
    else:
        dataset = _described(folder)
    return _grouped(dataset, layout) if layout.group_by and not layout.table else dataset


def _described(folder: Path) -> Dataset:
    """A dataset with a dataset.json: nnU-Net's, of either version, or the Decathlon's."""
    content = read_object(folder / datasets.DESCRIPTION)
    if "channel_names" in content:
        return _nnunet(folder, content)
    entries = content.get("training")
    first = entries[0].get("image") if isinstance(entries, list) and entries and isinstance(entries[0], dict) else None
    if isinstance(first, str) and _first_channel(folder / first).exists() and not (folder / first).exists():
        return _nnunet(folder, content)
    if not (folder / datasets.DESCRIPTION).is_file():
        there = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
        raise DatasetError(
            f"{folder}: there is no {datasets.DESCRIPTION}. Write one, as the Decathlon's datasets have, or name the "
            f"folders of images and labels (--images DIR --labels DIR{_of('; there are ', there)}), or a table "
            "(--table FILE.csv)."
        )
    return datasets.load(folder)


def _of(before: str, names: Sequence[str]) -> str:
    """Some names, behind a few words; nothing where there are none."""
    return before + _some(names) if names else ""


def _some(names: Sequence[str]) -> str:
    """The first of many names."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _check(name: str, faults: Iterable[str]) -> None:
    """Raises DatasetError where there are faults, a line each."""
    if lines := [f"{name}: {fault}" for fault in faults]:
        raise DatasetError("\n".join(lines))


# Flags.


def read(task: Path) -> Layout:
    """The flags that a task was planned with; none where it was planned without, or not yet."""
    try:
        layout: Layout = from_dict(Layout, read_json(task / RECORD))
    except FileNotFoundError:
        return Layout()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{task / RECORD} is damaged ({one_line(error)[:100]}). Remove it, and plan again with the flags of the "
            "dataset (--images, --labels, --table)."
        ) from None
    return layout


def notes(dataset: Dataset, layout: Layout) -> list[str]:
    """What was found that no file says, to be looked at: which files belong together, channels and classes."""
    if not layout.images and not layout.table:
        return []
    first = dataset.training[0]
    classes = ", ".join(f"{value} {name}" for value, name in dataset.labels)
    found = [
        f"{dataset.name}: {len(dataset.training)} cases, such as {first.name}: {', '.join(first.images)} with "
        f"{first.label}",
        f"channels: {', '.join(dataset.modalities)} (other names: --channels, such as CT); classes: {classes}",
    ]
    if [value for value, _ in dataset.labels] == [0, 255]:
        found.append("The labels hold 0 and 255: 255 is class 1, and segmentations have 255 as the labels do.")
    return found


def save(layout: Layout, task: Path) -> None:
    """Keep the flags of a task; nothing is written where there are none."""
    if layout.is_given or (task / RECORD).exists():
        task.mkdir(parents=True, exist_ok=True)
        write_text_atomically(task / RECORD, format_json(to_dict(layout)))


def complete(dataset: Dataset, layout: Layout) -> Layout:
    """The flags, with the classes that were found, so that the labels are read for them only once."""
    return replace(layout, found=dataset.labels) if layout.images or layout.table else layout


# nnU-Net.


def _first_channel(image: Path) -> Path:
    """The file of the first channel of an image, by nnU-Net's names."""
    return image.with_name(f"{formats.case_name(image)}_0000{formats.suffix_of(image)}")


def _nnunet(folder: Path, content: Mapping[str, Any]) -> Dataset:
    """A raw folder of nnU-Net, version 2 or 1."""
    faults: list[str] = []
    channels = _collect(lambda: _channels(content), faults)
    classes = _collect(lambda: nnunet_classes(content.get("labels")), faults)
    _check(f"{folder.name}, {datasets.DESCRIPTION}", faults)
    if channels is None or classes is None:
        raise DatasetError(f"{folder}: {datasets.DESCRIPTION} is damaged.")
    labels, ignore = classes
    training, faults = _nnunet_cases(folder, content, len(channels))
    test, more = _numbered_files(folder / "imagesTs", len(channels), content)
    cases = [Case(name, tuple(f"imagesTs/{path.name}" for path in paths)) for name, paths in test.items()]
    _check(folder.name, [*faults, *more])
    dataset = Dataset(folder, folder.name, channels, labels, tuple(training), tuple(cases), ignore)
    return _split(_checked(dataset, "dataset.json"))


def _collect(made: Callable[[], Any], faults: list[str]) -> Any:
    """What is made, or None and one more fault."""
    try:
        return made()
    except ValueError as error:
        faults.append(str(error))
        return None


def _channels(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels."""
    named = content.get("channel_names", content.get("modality"))
    example = 'Write it as "channel_names": {"0": "MRI"}.'
    if not isinstance(named, dict) or sorted(named) != sorted(map(str, range(len(named)))) or not named:
        raise ValueError(f'"channel_names" must number the channels 0, 1, ... and name them. {example}')
    return tuple(str(named[str(i)]) for i in range(len(named)))


def nnunet_classes(labels: Any) -> tuple[tuple[tuple[int, str], ...], int | None]:
    """Values and names of the classes, and the value of voxels to ignore, of nnU-Net's "labels", of either version.

    Raises:
        ValueError: they are no such object, or regions.
    """
    example = 'Write it as "labels": {"background": 0, "organ": 1}.'
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f'"labels" is missing or no object. {example}')
    named = {v: int(k) for k, v in labels.items()} if all(re.fullmatch(r"\d{1,9}", k) for k in labels) else labels
    if regions := [name for name, value in named.items() if isinstance(value, (list, tuple))]:
        raise ValueError(
            f'"labels" has regions, classes of several values ({_some(regions)}), which overlap; a network here gives '
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
    labels = {formats.case_name(path): path.name for path in _images_of(folder / "labelsTr", content)}
    faults += _unmatched(list(found), list(labels), "imagesTr", "labelsTr")
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
            faults.append(f'"dataset": {name} must have "images", a list of paths, and "label", a path.')
        elif len(files) != count:
            faults.append(
                f'"dataset": {name} has {len(files)} images, and there are {count} channels. Name one a channel.'
            )
        else:
            cases.append(Case(str(name), tuple(files), entry["label"]))
    if not cases and not faults:
        faults.append('"dataset" must map cases to {"images": [paths], "label": path}.')
    return cases, faults


def _images_of(folder: Path, content: Mapping[str, Any]) -> list[Path]:
    """The images of a folder, those that end as dataset.json says."""
    ending = content.get("file_ending", "")
    there = formats.image_files(folder) if folder.is_dir() else []
    return [path for path in there if not ending or path.name.lower().endswith(str(ending).lower())]


def _numbered_files(folder: Path, count: int, content: Mapping[str, Any]) -> tuple[dict[str, list[Path]], list[str]]:
    """Files CASE_0000, CASE_0001 and so on of a folder by case, and faults."""
    there, found = _images_of(folder, content), defaultdict[str, list[Path]](list)
    every = formats.image_files(folder) if folder.is_dir() else []
    if every and not there:
        endings = sorted({formats.suffix_of(path) for path in every})
        return {}, [
            f"{folder.name} has no file that ends in {content.get('file_ending')}, which dataset.json gives as "
            f'"file_ending", but {len(every)} in {", ".join(endings)}. Correct "file_ending".'
        ]
    faults = []
    for path in there:
        name = formats.case_name(path)
        if not re.search(r"_\d{4}$", name):
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


def _unmatched(image_names: Sequence[str], label_names: Sequence[str], images_in: str, labels_in: str) -> list[str]:
    """Images without a label and labels without an image, by name."""
    alone, lone = sorted({*image_names} - {*label_names}), sorted({*label_names} - {*image_names})
    faults = []
    if alone:
        faults.append(
            f"{len(alone)} images of {images_in} have no label in {labels_in}: {_some(alone)}. Add the labels, or move "
            "the images elsewhere."
        )
    if lone:
        faults.append(
            f"{len(lone)} labels of {labels_in} have no image in {images_in}: {_some(lone)}. Add the images, or move "
            "the labels elsewhere."
        )
    return faults


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
            f'{path}: each case must be in "val" of one fold; that does not hold for {_some(odd)}. Correct it, or '
            "remove the file: folds are then drawn."
        )
    return replace(dataset, training=tuple(replace(case, fold=fold_of[case.name]) for case in dataset.training))


# Pairs of folders.


def _folders(folder: Path, layout: Layout) -> Dataset:
    """Images in one folder, or a folder for each channel, and labels in another, matched by their names."""
    if not layout.images or not layout.labels:
        raise DatasetError(
            "--images and --labels belong together: name the folder of the images and that of the labels."
        )
    parts = [part.strip() for part in layout.images.split(",")]
    places = [*parts, layout.labels]
    _check(folder.name, [f"{folder / p} is no folder. Name one inside the dataset's." for p in places
                         if not (folder / p).is_dir()])  # fmt: skip
    files = {place: formats.image_files(folder / place) for place in dict.fromkeys(places)}
    _check(folder.name, [f"{folder / p} has no images ({images.KNOWN})." for p in places if not files[p]])
    image_end, label_end = _ends(files[parts[0]], files[layout.labels], same=parts[0] == layout.labels)
    labels = _by_name(files[layout.labels], label_end, strict=layout.labels in parts)
    channels = _channel_files(parts, files, image_end, strict=layout.labels in parts)
    named = {name: paths[0] for name, paths in channels[0].items()}
    faults = _unmatched(list(named), list(labels), parts[0], layout.labels)
    for part, found in zip(parts[1:], channels[1:], strict=True):
        faults += _unmatched(list(named), list(found), parts[0], part)
    _check(folder.name, faults)
    cases = [
        Case(n, tuple(_relative(folder, p) for c in channels for p in c[n]), _relative(folder, labels[n][0]))
        for n in sorted(named)
    ]
    counts = {len(case.images) for case in cases}
    if len(counts) > 1:
        raise DatasetError(f"{folder.name}: some cases have {min(counts)} files of images, some {max(counts)}.")
    names = _channel_names(folder, layout, cases[0], parts if len(parts) > 1 else [])
    return _checked(Dataset(folder, folder.name, names, _found(folder, cases, layout), tuple(cases), ()), "the files")


def _relative(folder: Path, path: Path) -> str:
    """A path as a dataset has it: from its folder, where it lies there."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _ends(image_files: Sequence[Path], label_files: Sequence[Path], *, same: bool) -> tuple[str, str]:
    """How the names of images and labels end: the simplest pair of ends by which most of them match."""
    best, most = ("", ""), -1
    for image_end in IMAGE_ENDS:
        for label_end in LABEL_ENDS:
            if same and not (image_end and label_end):
                continue
            labels = _by_name(label_files, label_end, strict=bool(label_end))
            matched = len(labels.keys() & _by_name(image_files, image_end, strict=bool(image_end)).keys())
            if matched > most:
                best, most = (image_end, label_end), matched
    return best


def _by_name(files: Sequence[Path], end: str, *, strict: bool) -> dict[str, list[Path]]:
    """Files by the name of their case, which is that of the file without its end. `strict`: others do not count."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        name = formats.case_name(path)
        match = re.fullmatch(f"(.+?){end}", name, re.IGNORECASE)
        if match or not strict:
            found[match[1] if match and end else name].append(path)
    return dict(found)


def _channel_files(
    parts: Sequence[str], files: Mapping[str, Sequence[Path]], end: str, *, strict: bool
) -> list[dict[str, list[Path]]]:
    """Files of each case, for each folder."""
    return [{name: sorted(paths) for name, paths in _by_name(files[p], end, strict=strict).items()} for p in parts]


def _channel_names(folder: Path, layout: Layout, case: Case, known: Sequence[str]) -> tuple[str, ...]:
    """Names of the channels: those of --channels, or of the folders or columns, or what the first image suggests."""
    if layout.channels:
        return tuple(name.strip() for name in layout.channels.split(","))
    if known:
        return tuple(Path(name).name for name in known)
    if len(case.images) > 1:
        return tuple(f"channel {i}" for i in range(len(case.images)))
    try:
        count = images.read_grid(folder / case.images[0]).channels
    except DatasetError as error:
        raise DatasetError(f"{folder.name}, {case.name}: {case.images[0]} {error}") from None
    colours = formats.format_of(folder / case.images[0]) in (formats.PICTURE, formats.TIFF) and count == 3
    return (
        ("red", "green", "blue")
        if colours
        else ("image",)
        if count == 1
        else tuple(f"channel {i}" for i in range(count))
    )


def _found(folder: Path, cases: Sequence[Case], layout: Layout) -> tuple[tuple[int, str], ...]:
    """Values of the label files, with the names of --labels_are, or numbers. They are read for that once."""
    if layout.found:
        return layout.found
    values, faults = {0}, list[str]()
    for case in cases:
        path = folder / str(case.label)
        try:
            volume = images.read_volume(path)
        except DatasetError as error:
            faults.append(f"{case.name}: {case.label} {error}")
            continue
        wrong = images.label_faults(path, volume)
        array, more = images.whole_numbers(volume.array[..., 0])
        faults += [f"{case.name}: {fault}" for fault in wrong or more]
        if not wrong and not more:
            values |= {value for value, _ in images.count_values(array)}
    _check(folder.name, faults)
    numbers = sorted(values)
    if len(numbers) < 2:
        raise DatasetError(f"{folder.name}: the labels are 0 everywhere. Check that --labels names the right folder.")
    given = [name.strip() for name in layout.labels_are.split(",")] if layout.labels_are else []
    if given and len(given) != len(numbers):
        raise DatasetError(
            f"--labels_are names {len(given)} classes; the labels hold the values {_some(list(map(str, numbers)))}. "
            f"Name {len(numbers)}, in this order, the background first."
        )
    names = given or ["background", *(f"class {number}" for number in numbers[1:])]
    return tuple(zip(numbers, names, strict=True))


# Tables.


def _table(folder: Path, layout: Layout) -> Dataset:
    """A csv with a column `case`, a column `label`, perhaps `fold`, and one for each channel; paths count from it."""
    path = next(
        (p for p in (folder / layout.table, Path(layout.table).absolute()) if p.is_file()), folder / layout.table
    )
    rows = _rows(path)
    columns = list(rows[0])
    missing = [name for name in ("case", "label") if name not in columns]
    wanted = [layout.group_by] if layout.group_by in columns else []
    known = {"case", "label", "fold", *wanted}
    channels = [c for c in columns if c not in known and formats.format_of(path.parent / rows[0][c]) is not None]
    faults = [f"there is no column {name!r}. The columns are {', '.join(columns)}." for name in missing]
    if not channels:
        faults.append("no column names images. Add one a channel, with the paths of the images.")
    _check(path.name, faults)
    cases = [_row_case(path, row, channels, wanted, faults) for row in rows]
    _check(path.name, faults)
    training, test = ([c for c in cases if (c.label is None) == is_test] for is_test in (False, True))
    names = _channel_names(folder, layout, cases[0], channels if len(channels) > 1 else [])
    labels = _found(folder, training, layout)
    dataset = _checked(Dataset(folder, folder.name, names, labels, tuple(training), tuple(test)), path.name)
    return dataset if wanted or not layout.group_by else _grouped(dataset, layout)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file, separated by commas, semicolons or tabs."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({one_line(error)}). Name the table: --table FILE.csv") from None
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    read = csv.DictReader(text.splitlines(), delimiter=separator)
    rows = [{str(k).strip(): (v or "").strip() for k, v in row.items() if isinstance(v, str | None)} for row in read]
    if not rows:
        raise DatasetError(f"{path}: has no rows. Write one a case, below the names of the columns.")
    return rows


def _row_case(
    path: Path, row: Mapping[str, str], channels: Sequence[str], groups: Sequence[str], faults: list[str]
) -> Case:
    """The case of a row."""
    name, fold = row["case"], row.get("fold", "")
    if not name:
        faults.append("a row has no case. Name it.")
    if fold and not re.fullmatch(r"\d{1,4}", fold):
        faults.append(f"{name}: the fold {fold!r} is no number. Folds count from 0.")
    if absent := [channel for channel in channels if not row[channel]]:
        faults.append(f"{name}: there is no image in the column {absent[0]}. Add it, or leave the case out.")
    label = str(path.parent.absolute() / row["label"]) if row["label"] else None
    return Case(
        name,
        tuple(str(path.parent.absolute() / row[channel]) for channel in channels),
        label,
        group=row[groups[0]] if groups else None,
        fold=int(fold) if fold.isdigit() and label else None,
    )


# What all have in common.


def _checked(dataset: Dataset, source: str) -> Dataset:
    """The dataset, after checks of its names, classes, channels and folds."""
    names = [case.name for case in (*dataset.training, *dataset.test)]
    faults = datasets.faults_of(dataset.name, names, len(dataset.training), dataset.labels, dataset.modalities)
    folds = sorted({case.fold for case in dataset.training if case.fold is not None})
    if folds and folds != list(range(len(folds))):
        faults.append(f"the folds are {_some(list(map(str, folds)))}. Number them 0, 1, ... without gaps.")
    if folds and (alone := [case.name for case in dataset.training if case.fold is None]):
        faults.append(f"{len(alone)} cases have no fold: {_some(alone)}. Give them one, or leave the column out.")
    if folds == [0]:
        faults.append("there is only one fold. Cross-validation needs two.")
    if dataset.ignore is not None and len(dataset.labels) == datasets.MAX_CLASSES:
        faults.append("there are too many classes beside one to ignore. Join two.")
    _check(f"{dataset.name}, {source}", faults)
    return dataset


def _grouped(dataset: Dataset, layout: Layout) -> Dataset:
    """The dataset with the group of each case, which an expression finds in its name."""
    try:
        pattern = re.compile(layout.group_by)
    except re.error as error:
        raise DatasetError(
            f"--group_by {layout.group_by!r} is no column and no regular expression ({error})."
        ) from None
    found = {case.name: pattern.search(case.name) for case in dataset.training}
    if odd := [name for name, match in found.items() if match is None]:
        raise DatasetError(f"--group_by {layout.group_by!r} matches nothing in the names of {_some(odd)}. Correct it.")
    groups = {name: match[1] if match.groups() else match[0] for name, match in found.items() if match}
    if len(set(groups.values())) < 2:
        raise DatasetError(
            f"--group_by {layout.group_by!r} puts all cases into one group, {next(iter(groups.values()))!r}."
        )
    return replace(dataset, training=tuple(replace(c, group=groups[c.name]) for c in dataset.training))


def same_patient(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that begin with the same numbered word, as patient001_frame01 and patient001_frame12 do. None
    where the groups are too large or too few to be patients."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        match = re.match(r"(.*?\d+)[^0-9A-Za-z]+\w*\d*.*$", name)
        groups[match[1] if match else name].append(name)
    several = [group for group in groups.values() if len(group) > 1]
    if len(groups) < 2 or not several or max(map(len, several)) > MAX_GROUP:
        return []
    return several


def suspicion(dataset: Dataset) -> str:
    """A warning where names look as if several images were of one patient and no flag says so; else nothing."""
    if any(case.group is not None or case.fold is not None for case in dataset.training):
        return ""
    found = same_patient([case.name for case in dataset.training])
    if not found:
        return ""
    return (
        f"By their names, {' and '.join(found[0][:2])} are of one patient, as in {len(found)} groups of cases. Folds "
        f"are drawn case by case, which makes scores too good; to keep a patient in one fold: --group_by '{PATIENT}'"
    )
