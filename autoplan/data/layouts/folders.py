"""Pairs of folders: images in one, or in one a channel, and labels in another, matched by their names."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoplan.base.errors import DatasetError
from autoplan.base.scripts import formats
from autoplan.data import images
from autoplan.data.facts import Case, Dataset
from autoplan.data.layouts.common import MAX_LISTED, check, checked, unmatched
from autoplan.data.layouts.found import channel_names, declared, found_classes, undeclared
from autoplan.data.layouts.record import Layout

IMAGE_ENDS = ("", r"_\d{4}", r"[_-](image|img|im|scan|volume|vol)")
"""How the names of images may end, behind the name of their case."""
LABEL_ENDS = ("", r"[_-](label|labels|seg|segmentation|mask|gt|manual)")
"""How the names of labels may end."""


def load(folder: Path, layout: Layout) -> Dataset:
    """Images in one folder, or a folder for each channel, and labels in another, matched by their names."""
    if not layout.images or not layout.labels:
        raise DatasetError(
            "--images and --labels belong together: name the folder of the images and that of the labels."
        )
    parts = [part.strip() for part in layout.images.split(",")]
    places = [*parts, layout.labels]
    check(folder.name, [f"{folder / p} is no folder. Name one inside the dataset's." for p in places
                         if not (folder / p).is_dir()])  # fmt: skip
    files = {place: formats.image_files(folder / place) for place in dict.fromkeys(places)}
    check(folder.name, [f"{folder / p} has no images ({images.KNOWN})." for p in places if not files[p]])
    image_end, label_end = _ends(files[parts[0]], files[layout.labels], same=parts[0] == layout.labels)
    labels = _by_name(files[layout.labels], label_end, strict=layout.labels in parts)
    channels = _channel_files(parts, files, image_end, strict=layout.labels in parts)
    named = {name: paths[0] for name, paths in channels[0].items()}
    if not named and not labels:
        raise DatasetError(
            f"{folder.name}: no name in {parts[0]} says image and none in {layout.labels} says label, as CASE_image "
            "and CASE_label do. Rename the files, or name a folder for each."
        )
    faults = unmatched(list(named), list(labels), parts[0], layout.labels)
    for part, found in zip(parts[1:], channels[1:], strict=True):
        faults += unmatched(list(named), list(found), parts[0], part)
    faults += [f"{_listed(found)} are labels of {n}. Keep one." for n, found in labels.items() if len(found) > 1]
    check(folder.name, [*faults, *_uneven(channels)])
    cases = [
        Case(n, tuple(_relative(folder, p) for c in channels for p in c[n]), _relative(folder, labels[n][0]))
        for n in sorted(named)
    ]
    names = channel_names(folder, layout, cases[0], parts)
    dataset = Dataset(
        folder, folder.name, names, found_classes(folder, cases, layout), tuple(cases), (),
        declared=declared(layout, cases[0], parts), undeclared=undeclared(layout),
    )  # fmt: skip
    return checked(dataset, "the files")


def _listed(paths: Sequence[Path]) -> str:
    return " and ".join(path.name for path in paths[:MAX_LISTED])


def _uneven(channels: Sequence[Mapping[str, Sequence[Path]]]) -> list[str]:
    """Cases whose files are not the channels that most others have, by what follows the name of the case."""
    faults = []
    for found in channels:
        ends = {
            name: tuple(formats.case_name(p)[len(name) :].lower() for p in paths) if len(paths) > 1 else ("",)
            for name, paths in found.items()
        }
        for usual, _ in Counter(ends.values()).most_common(1):
            odd = [name for name, own in ends.items() if own != usual]
            faults += [f"{n} has {_listed(found[n])}, other cases have {len(usual)} files of images." for n in odd]
    return faults


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
