"""Charts as SVG, by matplotlib, in the colours of the page: what is drawn here follows its light and dark."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

INK, SOFT, LINE = "#1b2130", "#5b6475", "#d9dde4"
SERIES = ("#2f6fb7", "#d1495b", "#2a9d74", "#b07aa1", "#c98a12", "#6b7280", "#17a2b8", "#8c564b")
"""Colours of classes, folds and candidates, in this order; the ninth is the first again."""
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", **{c: f"--s{i}" for i, c in enumerate(SERIES)}}
SIZE = (4.7, 2.9)
"""Inches. A phone shows it without scaling, so that its letters can be read."""
MAX_LEGEND = 12
"""Series that a legend names; more would hide what is drawn."""
WIDE = 100
"""Largest over least value of a logarithmic axis from which on only powers of ten are written."""
FEW = 40
"""Points of a group up to which each is drawn large: none hides another."""
_NUMBERS = count()


def color(number: int) -> str:
    """Colour of a series."""
    return SERIES[number % len(SERIES)]


def draw(paint: Callable[[Any], None], *, size: tuple[float, float] = SIZE) -> str:
    """SVG of a chart that `paint` draws on axes of matplotlib."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": str(next(_NUMBERS)), "text.parse_math": False, "font.size": 8.5,
        "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
        "axes.edgecolor": LINE, "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT, "text.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "grid.color": LINE, "grid.linewidth": 0.6,
        "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        stream = io.StringIO()
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return _embedded(stream.getvalue())


def _embedded(svg: str) -> str:
    """A drawing that stands inside a page: without addresses of name spaces, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([^;]*?)px [^;\"]*", r"font-size: \1px", svg)
    for value, variable in _VARIABLES.items():
        svg = svg.replace(value, f"var({variable})")
    return re.sub(r"\n\s*", "\n", svg).strip()


def legend(axes: Any, number: int) -> None:
    """A legend where there is more than one series and not too many of them."""
    if 1 < number <= MAX_LEGEND:
        axes.legend(ncols=1 if number < 4 else 2)


def shown(name: str) -> str:
    """A name as a legend takes it: matplotlib leaves out those that start with an underscore."""
    return f" {name}" if name.startswith("_") else name


def histogram(values: Sequence[float], label: str, *, bins: int = 24) -> str:
    """How often values occur."""

    def paint(axes: Any) -> None:
        axes.hist(values, bins=min(bins, max(4, len(set(values)))), color=color(0))
        axes.set(xlabel=label, ylabel="cases")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="x", visible=False)

    return draw(paint)


def strips(groups: Mapping[str, Sequence[float]], label: str, *, log: bool = False) -> str:
    """The values of each group as points in a row, with their median and quartiles."""
    import numpy as np

    def paint(axes: Any) -> None:
        rng = np.random.default_rng(0)
        for row, (number, values) in enumerate(enumerate(groups.values())):
            spread = row + rng.uniform(-0.22, 0.22, len(values))
            size, alpha = (7, 0.45) if len(values) > FEW else (20, 0.8)
            axes.scatter(values, spread, s=size, color=color(number), alpha=alpha, linewidths=0)
            if len(values):
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
                axes.plot([low, high], [row, row], color=INK, linewidth=1.2)
                axes.plot([middle], [row], "|", color=INK, markersize=16, markeredgewidth=2)
        axes.set_yticks(range(len(groups)), [shorten(name) for name in groups])
        axes.set(xlabel=label, ylim=(len(groups) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        if all(v == int(v) for values in groups.values() for v in values) and not log:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if log:
            logarithmic(axes, "x")

    return draw(paint, size=(SIZE[0], max(1.6, 0.9 + 0.42 * len(groups))))


def logarithmic(axes: Any, which: str) -> None:
    """A logarithmic axis whose numbers are written out, few enough to stand side by side."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < WIDE * low else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@dataclass(frozen=True)
class Line:
    """A curve: points (x, y), the number of its colour, and whether it is thin, dashed, and in the legend. `mark` is an
    x at which it has a dot."""

    name: str
    points: Sequence[tuple[float, float]]
    number: int
    is_faint: bool = False
    is_dashed: bool = False
    is_named: bool = True
    mark: float | None = None


def curves(
    lines: Sequence[Line],
    label: str,
    *,
    log: bool = False,
    limits: tuple[float | None, float | None] | None = None,
    x_label: str = "epoch",
) -> str:
    """Curves over epochs."""

    def paint(axes: Any) -> None:
        for line in lines:
            xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
            style = {"linewidth": 0.7 if line.is_faint else 1.4, "alpha": 0.4 if line.is_faint else 1.0}
            name = shown(shorten(line.name)) if line.is_named else None
            dash = "--" if line.is_dashed else "-"
            axes.plot(xs, ys, dash, color=color(line.number), label=name, marker="." if len(xs) == 1 else "", **style)
            if line.mark is not None and xs:
                nearest = min(line.points, key=lambda point: abs(point[0] - (line.mark or 0)))
                axes.plot(*nearest, "o", color=color(line.number), markersize=5)
        if log and any(line.points for line in lines):
            logarithmic(axes, "y")
        axes.set(xlabel=x_label, ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if limits is not None:
            axes.set_ylim(*limits)
        legend(axes, sum(line.is_named for line in lines))

    return draw(paint)


def band(points: Sequence[tuple[float, float]], label: str, y_label: str, *, number: int = 0) -> str:
    """Points with the mean of their y and the band of 1.96 standard deviations around it (Bland and Altman)."""
    import numpy as np

    def paint(axes: Any) -> None:
        xs, ys = np.array(points, dtype=np.float64).T
        axes.scatter(xs, ys, s=10, color=color(number), alpha=0.6, linewidths=0)
        middle, spread = float(ys.mean()), 1.96 * float(ys.std(ddof=1)) if len(ys) > 1 else 0.0
        axes.axhline(0, color=LINE, linewidth=1)
        for at, style in ((middle, "-"), (middle - spread, "--"), (middle + spread, "--")):
            axes.axhline(at, color=INK, linewidth=1, linestyle=style)
            axes.annotate(f"{at:.3g}", (1, at), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
        axes.set(xlabel=label, ylabel=y_label)

    return draw(paint)


def scatter(
    points: Sequence[tuple[float, float]], label: str, y_label: str, *, limits: tuple[float, float] | None = None
) -> str:
    """Points."""

    def paint(axes: Any) -> None:
        axes.scatter([x for x, _ in points], [y for _, y in points], s=10, color=color(0), alpha=0.6, linewidths=0)
        axes.set(xlabel=label, ylabel=y_label)
        if limits is not None:
            axes.set_ylim(*limits)

    return draw(paint)


def reliability(lines: Sequence[Line]) -> str:
    """Observed frequency over predicted probability; the diagonal is what it should be."""

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], "--", color=SOFT, linewidth=1)
        for line in lines:
            xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
            axes.plot(xs, ys, ".-", color=color(line.number), label=shown(shorten(line.name)), linewidth=1.2)
        axes.set(
            xlabel="predicted probability", ylabel="part of the voxels that are the class", xlim=(0, 1), ylim=(0, 1)
        )
        legend(axes, len(lines))

    return draw(paint)


def matrix(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> str:
    """Parts of each row as shades, with their numbers."""

    def paint(axes: Any) -> None:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                axes.add_patch(_square(j, i, value))
                axes.text(j, i, f"{value:.1%}" if value < 0.1 else f"{value:.0%}", ha="center", va="center", fontsize=8)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel="prediction", ylabel="reference")
        axes.set_xticks(range(len(columns)), [shorten(c, 12) for c in columns], rotation=30, ha="right")
        axes.set_yticks(range(len(rows)), [shorten(r, 12) for r in rows])
        axes.grid(visible=False)

    return draw(paint, size=(SIZE[0], max(2.4, 1.2 + 0.34 * len(rows))))


def _square(x: float, y: float, part: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, color=color(0), alpha=0.08 + 0.5 * part if part else 0.0, linewidth=0)


def shorten(name: str, length: int = 18) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
