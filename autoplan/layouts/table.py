"""A table, whose rows are cases."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoplan import formats
from autoplan.errors import DatasetError, one_line
from autoplan.facts import Case, Dataset
from autoplan.layouts.common import check, checked
from autoplan.layouts.found import channel_names, declared, found_classes, undeclared
from autoplan.layouts.groups import grouped
from autoplan.layouts.record import Layout


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
    channels = [c for c in columns if c not in known and formats.format_of(path.parent / rows[0][c]) is not None]
    faults = [f"there is no column {name!r}. The columns are {', '.join(columns)}." for name in missing]
    if not channels:
        faults.append("no column names images. Add one a channel, with the paths of the images.")
    check(path.name, faults)
    cases = [_row_case(path, row, channels, wanted, faults) for row in rows]
    check(path.name, faults)
    training, test = ([c for c in cases if (c.label is None) == is_test] for is_test in (False, True))
    names = channel_names(folder, layout, cases[0], channels if len(channels) > 1 else [])
    labels = found_classes(folder, training, layout)
    dataset = Dataset(
        folder, folder.name, names, labels, tuple(training), tuple(test),
        declared=declared(layout, cases[0], channels), undeclared=undeclared(layout),
    )  # fmt: skip
    dataset = checked(dataset, path.name)
    return dataset if wanted or not layout.group_by else grouped(dataset, layout)


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
