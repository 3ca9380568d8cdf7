"""Cases that belong together and stay in one fold, such as those of one patient."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from autoplan.errors import DatasetError
from autoplan.facts import Dataset
from autoplan.layouts.common import some
from autoplan.layouts.record import Layout

MAX_GROUP = 10
"""Images of one patient at most, where their names are to say who that is. Our choice."""
PATIENT = r"^.*?\d+"
"""Expression that finds the patient in a name such as patient001_frame12: all up to the first number."""


def grouped(dataset: Dataset, layout: Layout) -> Dataset:
    """The dataset with the group of each case, which an expression finds in its name."""
    try:
        pattern = re.compile(layout.group_by)
    except re.error as error:
        raise DatasetError(
            f"--group_by {layout.group_by!r} is no column and no regular expression ({error})."
        ) from None
    found = {case.name: pattern.search(case.name) for case in dataset.training}
    if odd := [name for name, match in found.items() if match is None]:
        raise DatasetError(f"--group_by {layout.group_by!r} matches nothing in the names of {some(odd)}. Correct it.")
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
