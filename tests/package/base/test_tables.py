"""Aligned tables."""

import pytest

from autoplan.base.tables import table

ROWS = [["name", "a", "long"], ["x", "10.5", ""]]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        pytest.param(None, "name  a     long\nx     10.5", id="all at the left"),
        pytest.param(1, "name     a  long\nx     10.5", id="one at the left"),
        pytest.param(0, "name     a  long\n   x  10.5", id="all at the right"),
    ],
)
def test_columns_are_aligned(left: int | None, expected: str) -> None:
    assert table(ROWS, left=left) == expected


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        table([["a", "b"], ["c"]])
