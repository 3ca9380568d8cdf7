"""Cases that belong together and stay in one fold, such as those of one patient."""

import re
import signal
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from autoplan.base.errors import DatasetError, one_line, shortened
from autoplan.data.facts import Dataset
from autoplan.data.layouts.common import some
from autoplan.data.layouts.record import Layout

MAX_GROUP = 10
"""Images of one patient at most, where their names are to say who that is. Our choice."""
MAX_SECONDS = 5.0
"""Processor time that an expression may take on all names. Our choice."""
PATIENT = r"^.*?\d+"
"""Expression that finds the patient in a name such as patient001_frame12: all up to the first number."""


def grouped(dataset: Dataset, layout: Layout) -> Dataset:
    """The dataset with the group of each case, which an expression finds in its name."""
    flag = f"--group_by {shortened(layout.group_by)!r}"
    try:
        with warnings.catch_warnings(), _at_most(MAX_SECONDS):
            warnings.simplefilter("ignore")
            pattern = re.compile(layout.group_by)
            found = {case.name: pattern.search(case.name) for case in dataset.training}
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        raise DatasetError(f"{flag} is no column and no regular expression ({one_line(error)}).") from None
    except TimeoutError:
        raise DatasetError(f"{flag} is no column, and as an expression takes too long. Write a simpler one.") from None
    groups = {name: match[min(1, len(match.groups()))] for name, match in found.items() if match is not None}
    if odd := [name for name in found if not groups.get(name)]:
        raise DatasetError(f"{flag} matches nothing in the names of {some(odd)}. Correct it.")
    if len(set(groups.values())) < 2:
        raise DatasetError(f"{flag} puts all cases into one group, {next(iter(groups.values()))!r}.")
    return replace(dataset, training=tuple(replace(c, group=groups[c.name]) for c in dataset.training))


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError where what is inside takes more processor time: an expression such as (a+)+$ may take years.
    Only the main thread of a process that is not on Windows can be interrupted so."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


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
        f"Judging by their names, {' and '.join(found[0][:2])} belong to one patient, as in {len(found)} groups of "
        f"cases. Folds are drawn case by case, which makes scores too good; to keep a patient in one fold: "
        f"--group_by '{PATIENT}'"
    )
