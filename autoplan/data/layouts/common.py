"""What the layouts have in common: checks, and words for what is wrong."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autoplan.base.errors import DatasetError, shortened
from autoplan.data import decathlon as datasets
from autoplan.data.facts import Dataset

MAX_LISTED = 5
"""Cases that a message names."""


def naming(before: str, names: Sequence[str]) -> str:
    """Some names, behind a few words; nothing where there are none."""
    return before + some(names) if names else ""


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    more = len(names) - MAX_LISTED
    return ", ".join(map(shortened, names[:MAX_LISTED])) + (f" and {more} more" if more > 0 else "")


def check(name: str, faults: Iterable[str]) -> None:
    """Raises DatasetError where there are faults, a line each."""
    if lines := [f"{name}: {fault}" for fault in faults]:
        raise DatasetError("\n".join(lines))


def collect(made: Callable[[], Any], faults: list[str]) -> Any:
    """What is made, or None and one more fault."""
    try:
        return made()
    except ValueError as error:
        faults.append(str(error))
        return None


def unmatched(image_names: Sequence[str], label_names: Sequence[str], images_in: str, labels_in: str) -> list[str]:
    """Images without a label and labels without an image, by name."""
    alone, lone = sorted({*image_names} - {*label_names}), sorted({*label_names} - {*image_names})
    faults = []
    if alone:
        faults.append(
            f"{len(alone)} images of {images_in} have no label in {labels_in}: {some(alone)}. Add the labels, or move "
            "the images elsewhere."
        )
    if lone:
        faults.append(
            f"{len(lone)} labels of {labels_in} have no image in {images_in}: {some(lone)}. Add the images, or move "
            "the labels elsewhere."
        )
    return faults


def checked(dataset: Dataset, source: str) -> Dataset:
    """The dataset, after checks of its names, classes, channels and folds."""
    faults = datasets.faults_of(dataset)
    folds = sorted({case.fold for case in dataset.training if case.fold is not None})
    if folds and folds != list(range(len(folds))):
        faults.append(f"the folds are {some(list(map(str, folds)))}. Number them 0, 1, ... without gaps.")
    if folds and (alone := [case.name for case in dataset.training if case.fold is None]):
        faults.append(f"{len(alone)} cases have no fold: {some(alone)}. Give them one, or leave the column out.")
    if folds == [0]:
        faults.append("there is only one fold. Cross-validation needs two.")
    if dataset.ignore is not None and len(dataset.labels) == datasets.MAX_CLASSES:
        faults.append("there are too many classes beside one to ignore. Join two.")
    check(f"{dataset.name}, {source}", faults)
    return dataset
