"""Tables, numbers and flags for people, as text."""

import shlex
from collections.abc import Mapping, Sequence


def table(rows: Sequence[Sequence[str]], *, left: int | None = None) -> str:
    """Cells as text with aligned columns, two spaces apart.

    Args:
        rows: lines of as many cells each.
        left: columns, counted from the first, whose cells stand at the left; those of the others stand at the right.
            None: all stand at the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) if left is None else left
    align = [str.ljust if number < last else str.rjust for number in range(len(widths))]
    lines = ([a(cell, w) for a, cell, w in zip(align, row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def flags(values: Mapping[str, str]) -> str:
    """Flags of a command as they are typed, with a space before each."""
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in values.items())


def duration(seconds: float) -> str:
    """A time for people."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
