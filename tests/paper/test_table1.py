"""Table 1 of the paper, every cell."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoplan.base.axes import from_table_order
from autoplan.planning.plan import configurations
from autoplan.planning.values import Configuration

ROWS = json.loads((Path(__file__).parent / "table1.json").read_text())["rows"]


@dataclass(frozen=True)
class Expect:
    """One cell block of the table, in x, y, z order."""

    task: str
    name: str
    median_shape: tuple[int, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    num_pool: tuple[int, ...]


def _expected() -> list[Expect]:
    return [
        Expect(
            row["task"],
            name,
            from_table_order(cells["median_shape"]),
            from_table_order(cells["patch_size"]),
            cells["batch_size"],
            from_table_order(cells["num_pool"]),
        )
        for row in ROWS
        for name, cells in row["configurations"].items()
    ]


def _planned(row: dict[str, Any], *, num_cases: int | None = None) -> dict[str, Configuration]:
    shape = from_table_order(row["configurations"]["3d_fullres"]["median_shape"])
    spacing = from_table_order(row["median_spacing_mm"])
    return {c.name: c for c in configurations(shape, spacing, num_cases=num_cases or row["training_cases"])}


@pytest.mark.parametrize("expect", _expected(), ids=lambda e: f"{e.task}-{e.name}")
def test_row(expect: Expect) -> None:
    row = next(r for r in ROWS if r["task"] == expect.task)
    c = _planned(row)[expect.name]
    assert Expect(expect.task, c.name, c.median_shape, c.patch_size, c.batch_size, c.num_pool) == expect


def test_the_table_has_18_rows() -> None:
    assert len(_expected()) == 18


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r["task"])
def test_the_cascade_applies_where_the_table_has_a_low_resolution(row: dict[str, Any]) -> None:
    assert ("3d_lowres" in _planned(row)) == ("3d_lowres" in row["configurations"])


def test_lung_liver_heart_and_pancreas_have_a_cascade() -> None:
    """And the brain tumours, the hippocampus and the prostate have none."""
    planned = {row["task"] for row in ROWS if "3d_lowres" in _planned(row)}
    assert planned == {"Task02_Heart", "Task03_Liver", "Task06_Lung", "Task07_Pancreas"}
    assert all(("3d_cascade_fullres" in _planned(row)) == (row["task"] in planned) for row in ROWS)


@pytest.mark.parametrize("row", [r for r in ROWS if "3d_lowres" in r["configurations"]], ids=lambda r: r["task"])
def test_the_second_stage_is_identical_to_the_3d_unet(row: dict[str, Any]) -> None:
    """Table 1, caption."""
    planned = _planned(row)
    full, second = planned["3d_fullres"], planned["3d_cascade_fullres"]
    assert (second.patch_size, second.batch_size, second.strides, second.features) == (
        full.patch_size,
        full.batch_size,
        full.strides,
        full.features,
    )


def test_208_cases_of_the_hippocampus_make_smaller_batches() -> None:
    row = next(r for r in ROWS if r["task"] == "Task04_Hippocampus")
    planned = _planned(row, num_cases=208)
    assert (planned["2d"].batch_size, planned["3d_fullres"].batch_size) == (293, 7)
