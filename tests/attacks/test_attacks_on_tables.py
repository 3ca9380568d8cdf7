"""Tables with hostile cells, and texts that are no tables: refused in short, or read as they are written."""

import csv
import io
import os
import random
from pathlib import Path

import pytest
from attack import HOSTILE_TEXTS, no_hang, outcome
from conftest import Tiny, write_tiny

from autoplan.data import layouts
from autoplan.data.facts import Dataset
from autoplan.data.layouts import Layout

FOUND = ((0, "background"), (1, "a"), (2, "b"))
LAYOUT = Layout(table="cases.csv", found=FOUND)
COLUMNS = ("case", "ct", "flair", "label", "fold", "patient")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Tiny:
    """Three cases with images of one channel."""
    return write_tiny(tmp_path_factory.mktemp("tables") / "Task90_Tiny", num_cases=3)


def rows(folder: Path) -> list[dict[str, str]]:
    """A table that is right: its channels are an image and its label."""
    names = [f"case_{i}" for i in range(3)]
    for name in names:
        for copy in ("a", "b"):
            (folder / f"{copy}_{name}.nii.gz").touch()
    return [
        {
            "case": n, "ct": f"a_{n}.nii.gz", "flair": f"b_{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz",
            "fold": str(i % 2), "patient": f"p{i}",
        }
        for i, n in enumerate(names)
    ]  # fmt: skip


def write(folder: Path, cells: list[dict[str, str]], separator: str = ",") -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, delimiter=separator)
    writer.writeheader()
    writer.writerows(cells)
    (folder / "cases.csv").write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))


def check_as_written(found: Dataset, cells: list[dict[str, str]], folder: Path) -> None:
    """Each row is a case, with each cell where it belongs."""
    assert found.modalities == ("ct", "flair")
    assert {case.name for case in (*found.training, *found.test)} == {row["case"].strip() for row in cells}
    by_name = {case.name: case for case in (*found.training, *found.test)}
    for row in cells:
        case, label = by_name[row["case"].strip()], row["label"].strip()
        assert case.images == tuple(str(folder / row[channel].strip()) for channel in ("ct", "flair"))
        assert case.label == (str(folder / label) if label else None)
        assert case.fold == (int(row["fold"]) if label else None)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("group_by", ["", "patient"], ids=["no groups", "groups"])
def test_hostile_cells(small, column, group_by) -> None:
    """In the first row, and in another one."""
    folder = small.folder
    with no_hang(["hostile cells"]):
        for text in HOSTILE_TEXTS:
            for row in (0, 1):
                cells = rows(folder)
                cells[row][column] = text
                write(folder, cells, random.Random(text).choice(",;\t"))
                layout = Layout(table="cases.csv", found=FOUND, group_by=group_by)
                found = outcome(lambda layout=layout: layouts.load(folder, layout))
                if isinstance(found, Dataset):
                    check_as_written(found, cells, folder)


HEAD = "case,ct,label\n"
ROW = "case_0,a_case_0.nii.gz,labelsTr/case_0.nii.gz\n"
NO_TABLES = {
    "nothing": b"",
    "a line break": b"\n",
    "the columns alone": HEAD.encode(),
    "NUL": (HEAD + ROW).encode() + b"\0\0\0",
    "NUL in a cell": HEAD.encode() + b"ca\0se,a_case_0.nii.gz,x\n",
    "UTF-16": (HEAD + ROW).encode("utf-16"),
    "latin-1": (HEAD + "Größe,a,b\n").encode("latin-1"),
    "a field of 200 kB": HEAD.encode() + b"x" * 200_000 + b",a,b\n",
    "a field of 20 MB": HEAD.encode() + b"x" * 20_000_000 + b",a,b\n",
    "an open quotation mark": (HEAD + '"' + 3 * ROW).encode(),
    "a quotation mark inside": (HEAD + '"a"b,c,d\n').encode(),
    "more cells than columns": (HEAD + "case_0,a,b,case_0.nii.gz,x\n").encode(),
    "columns twice": ("case,ct,ct,label\n" + ROW).encode(),
    "columns without names": b",,,\n" + ROW.encode(),
    "a million empty lines": HEAD.encode() + b"\n" * 1_000_000,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "JSON": b'{"case": []}',
    "other line breaks": (HEAD + ROW).replace("\n", "\x0b").encode(),
    "no images": b"case,ct,label\na,b,c\n",
    "too few cases": (HEAD + ROW).encode(),
    "a case twice": (HEAD + 2 * ROW).encode(),
    "names that differ in case": (HEAD + ROW + ROW.replace("case_0,a_", "CASE_0,b_")).encode(),
    "an image that is a label": (HEAD + ROW + ROW.replace("case_0,a_case_0", "x,labelsTr/case_0", 1)).encode(),
    "an image of two cases": (HEAD + ROW + ROW.replace("case_0,", "x,", 1)).encode(),
    "an image as two channels": b"case,ct,t1,label\nx,a_case_0.nii.gz,a_case_0.nii.gz,labelsTr/case_0.nii.gz\n",
}


@pytest.mark.parametrize("content", NO_TABLES.values(), ids=NO_TABLES)
def test_what_is_no_table(small, content) -> None:
    rows(small.folder)
    (small.folder / "cases.csv").write_bytes(content)
    with no_hang(["no table"]):
        assert isinstance(outcome(lambda: layouts.load(small.folder, LAYOUT)), str)


FILES = {
    "a pipe": lambda path: os.mkfifo(path),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a loop": lambda path: path.symlink_to(path.name),
    "a file of 4 TB": lambda path: path.touch() or os.truncate(path, 2**42),
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
@pytest.mark.parametrize("absolute", [False, True], ids=["inside", "absolute"])
def test_tables_that_are_no_files(small, tmp_path, make, absolute) -> None:
    path = (tmp_path if absolute else small.folder) / f"{tmp_path.name}.csv"
    make(path)
    layout = Layout(table=str(path) if absolute else path.name, found=FOUND)
    with no_hang(["no file"]):
        assert "Name the table: --table FILE.csv" in str(outcome(lambda: layouts.load(small.folder, layout)))


def test_bytes_of_a_table_at_random(small) -> None:
    folder, rng = small.folder, random.Random(0)
    write(folder, rows(folder))
    content, read = (folder / "cases.csv").read_bytes(), 0
    with no_hang(["bytes at random"]):
        for _ in range(400):
            data = bytearray(content)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.choice(b'\0\n\r",;\t\xff0a\x80/')
            (folder / "cases.csv").write_bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
            read += isinstance(outcome(lambda: layouts.load(folder, LAYOUT)), Dataset)
    assert 0 < read < 400
