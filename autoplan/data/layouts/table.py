"""A table, whose rows are cases."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from autoplan.base.errors import DatasetError, one_line, shortened
from autoplan.base.files import read_text
from autoplan.base.scripts import formats
from autoplan.data.facts import Case, Dataset
from autoplan.data.layouts.common import check, checked
from autoplan.data.layouts.found import channel_names, declared, found_classes, undeclared
from autoplan.data.layouts.groups import grouped
from autoplan.data.layouts.record import Layout


def load(folder: Path, layout: Layout) -> Dataset:
    """A csv with a column `case`, a column `label`, perhaps `fold`, and one for each channel; paths count from it."""
    path = next(
        (p for p in (folder / layout.table, Path(layout.table).absolute()) if p.is_file()), folder / layout.table
    )
    rows = _rows(path)
    columns = list(rows[0])
    missing = [name for name in ("case", "label") if name not in columns]
    wanted = [layout.group_by] if layout.group_by in columns else []
    known = {"case", "label", "fold", *wanted}
    channels = [c for c in columns if c not in known and any(_is_image(path, row[c]) for row in rows)]
    faults = [f"there is no column {name!r}. The columns are {', '.join(columns)}." for name in missing]
    if not channels:
        faults.append("no column names images. Add one a channel, with the paths of the images.")
    check(path.name, faults)
    cases = [_row_case(path, row, channels, wanted, faults) for row in rows]
    check(path.name, faults)
    training, test = ([c for c in cases if (c.label is None) == is_test] for is_test in (False, True))
    names = channel_names(folder, layout, cases[0], channels)
    labels = found_classes(folder, training, layout)
    dataset = Dataset(
        folder, folder.name, names, labels, tuple(training), tuple(test),
        declared=declared(layout, cases[0], channels), undeclared=undeclared(layout),
    )  # fmt: skip
    dataset = checked(dataset, path.name)
    return dataset if wanted or not layout.group_by else grouped(dataset, layout)


def _is_image(path: Path, cell: str) -> bool:
    """Whether a cell of a table names an image."""
    try:
        return bool(cell) and formats.format_of(path.parent / cell) is not None
    except OSError:  # a text that is too long to be a name
        return False


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file, separated by commas, semicolons or tabs, each by the names of the columns."""
    try:
        text = read_text(path)
        separator = max(",;\t", key=text.partition("\n")[0].count)
        lines = [
            [cell.strip() for cell in line]
            for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
            if any(map(str.strip, line))
        ]
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read ({one_line(error)}). Name the table: --table FILE.csv") from None
    if len(lines) < 2:
        raise DatasetError(f"{path}: has no rows. Write one a case, below the names of the columns.")
    columns, *rows = lines
    faults = [f"{n} columns are called {name!r}. Rename one." for name, n in Counter(columns).items() if n > 1 and name]
    faults += [
        f"the row of {shortened(row[0])!r} has {len(row)} cells, and there are {len(columns)} columns. Put a cell with "
        "a separator in it between quotation marks."
        for row in rows
        if any(row[len(columns) :])
    ]
    check(path.name, faults)
    return [dict(zip_longest(columns, row[: len(columns)], fillvalue="")) for row in rows]


def _row_case(
    path: Path, row: Mapping[str, str], channels: Sequence[str], groups: Sequence[str], faults: list[str]
) -> Case:
    """The case of a row."""
    name, fold = row["case"], row.get("fold", "")
    shown = shortened(name)
    if not name:
        faults.append("a row has no case. Name it.")
    if fold and not re.fullmatch("[0-9]{1,4}", fold):
        faults.append(f"{shown}: the fold {shortened(fold)!r} is no number. Folds count from 0.")
    if absent := [channel for channel in channels if not row[channel]]:
        faults.append(f"{shown}: there is no image in the column {absent[0]}. Add it, or leave the case out.")
    if odd := [channel for channel in channels if row[channel] and not _is_image(path, row[channel])]:
        faults.append(f"{shown}: {shortened(row[odd[0]])!r} in the column {odd[0]} is no image. Correct the path.")
    if groups and row["label"] and not row[groups[0]]:
        faults.append(f"{shown}: the column {groups[0]} is empty. Say whose image it is.")
    label = str(path.parent.absolute() / row["label"]) if row["label"] else None
    return Case(
        name,
        tuple(str(path.parent.absolute() / row[channel]) for channel in channels),
        label,
        group=row[groups[0]] if groups else None,
        fold=int(fold) if label and re.fullmatch("[0-9]{1,4}", fold) else None,
    )
