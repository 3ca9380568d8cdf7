"""What a section is made of: text, tables, pictures. No block knows of HTML; the template shows each kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Severity = Literal["error", "warning", "note", "good"]


@dataclass(frozen=True)
class Block:
    """A part of a section. `kind` names the macro of the template that shows it."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code(Block):
    """Commands, or text to be copied, as it stands."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Note(Block):
    """A sentence that stands out."""

    kind: ClassVar[str] = "note"
    text: str
    severity: Severity = "note"


@dataclass(frozen=True)
class Values(Block):
    """Names and values, side by side."""

    kind: ClassVar[str] = "values"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure(Block):
    """A drawing: `svg` is trusted markup, made by `charts` or `drawings`; `alt` says what can be seen on it."""

    kind: ClassVar[str] = "figure"
    title: str
    svg: str
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class Picture(Block):
    """An image: `data` is its address with all its bytes (data:...); `alt` says what can be seen on it."""

    kind: ClassVar[str] = "picture"
    title: str
    data: str
    alt: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `order` is what it is sorted by, its text if None; `mark` colours it."""

    text: str
    order: float | str | None = None
    mark: Severity | None = None


@dataclass(frozen=True)
class Row:
    """A line of a table, and what it unfolds to."""

    cells: Sequence[Cell]
    details: Sequence[Block] = ()


@dataclass(frozen=True)
class Table(Block):
    """A table that can be sorted by each column. `text` counts the columns, from the first, that hold words and not
    numbers; `tall` ones scroll."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    text: int = 1
    tall: bool = False


@dataclass(frozen=True)
class Grid(Block):
    """Blocks side by side, as many as the page has room for."""

    kind: ClassVar[str] = "grid"
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Fold(Block):
    """Blocks under a heading that opens and closes them."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: Sequence[Block]
    is_open: bool = False
    severity: Severity | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page: `name` is its anchor and its key in report.json, whose content is `data`."""

    name: str
    title: str
    blocks: Sequence[Block]
    data: Mapping[str, Any] = field(default_factory=dict)


def cell(value: float | None, digits: int = 3, *, mark: Severity | None = None) -> Cell:
    """A number, or a dash for none, which sorts below all numbers."""
    return Cell("-", float("-inf"), mark) if value is None else Cell(number(value, digits), value, mark)


def number(value: float, digits: int = 3) -> str:
    """A number to so many decimals, without a minus before zero."""
    return f"{round(value, digits) + 0:.{digits}f}"


def words(*texts: str) -> list[Cell]:
    """Cells of text."""
    return [Cell(text) for text in texts]


def counted(count: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{count:,} {noun if count == 1 else plural}"
