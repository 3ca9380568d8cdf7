"""Section "Plan": what was decided, why, and what it looks like."""

from collections.abc import Sequence
from itertools import groupby

from autoplan.base.axes import Shape
from autoplan.base.codec import to_dict
from autoplan.data.facts import Fingerprint
from autoplan.planning import plan as plans
from autoplan.planning import reasons, rules, topology
from autoplan.planning.values import Configuration, Decision, Plan
from autoplan.report import drawings
from autoplan.report.blocks import Block, Cell, Figure, Fold, Grid, Note, Row, Section, Table, Text, words


def section(plan: Plan, fingerprint: Fingerprint | None) -> Section:
    """The configurations, drawn and as a table, and the reason for every decision."""
    warnings = [Note(d.because, "warning") for d in reasons.warnings(plan)]
    drawn = [Grid(_figures(plan, fingerprint, c)) for c in plan.configurations]
    return Section(
        "plan",
        "Plan",
        [*warnings, _table(plan), *drawn, *_reasons(plan)],
        {
            "configurations": [_facts(plan, c) for c in plan.configurations],
            "decisions": to_dict(plan.decisions),
        },
    )


def inputs(plan: Plan, configuration: Configuration) -> int:
    """Channels that the network of a configuration sees."""
    return plans.num_input_channels(configuration.name, modalities=plan.modalities, labels=plan.labels)


def parameters(plan: Plan, configuration: Configuration) -> int:
    """Numbers that its training fits."""
    return topology.num_parameters(configuration, inputs(plan, configuration), len(plan.labels))


def _facts(plan: Plan, c: Configuration) -> dict[str, object]:
    return {**to_dict(c), "input_channels": inputs(plan, c), "parameters": parameters(plan, c)}


def _table(plan: Plan) -> Table:
    """The configurations, as the paper's Table 1 has them, axes in x, y, z order."""
    rows = [
        Row(
            [
                *words(c.name, times(c.median_shape), times(c.spacing), times(c.patch_size)),
                Cell(str(c.batch_size), c.batch_size),
                *words(times(c.num_pool), f"{c.features[0]} to {c.features[-1]}"),
                Cell(f"{parameters(plan, c):,}", parameters(plan, c)),
            ]
        )
        for c in plan.configurations
    ]
    columns = (
        "configuration", "median shape", "spacing (mm)", "patch", "batch", "poolings", "feature maps", "parameters",
    )  # fmt: skip
    return Table("Configurations; axes are x, y, z", columns, rows)


def times(values: Sequence[float]) -> str:
    """`40 x 56 x 40`."""
    return " x ".join(f"{v:.4g}" for v in values)


def _figures(plan: Plan, fingerprint: Fingerprint | None, c: Configuration) -> list[Block]:
    """Field of view, to scale, and the network."""
    shape = _median(plan, fingerprint, c)
    planes = drawings.extents(c, shape, plan.slice_axis)
    covered = " and ".join(f"{p.title}: image {p.image[0]:.4g} x {p.image[1]:.4g} mm, patch {p.patch[0]:.4g} x "
                           f"{p.patch[1]:.4g} mm" for p in planes)  # fmt: skip
    levels = ", ".join(
        f"{features} of {times(size)}" for features, size in zip(c.features, drawings.level_sizes(c), strict=True)
    )
    return [
        Figure(
            f"{c.name}: the patch (blue) in the median image (black), to scale",
            drawings.field_of_view(planes),
            f"To scale, {covered}.",
        ),
        Figure(
            f"{c.name}: the network, number of feature maps in boxes, their size between them",
            drawings.network(c, inputs(plan, c), len(plan.labels)),
            f"U-Net of {len(c.features)} levels; feature maps and their size: {levels}.",
        ),
    ]


def _median(plan: Plan, fingerprint: Fingerprint | None, c: Configuration) -> Shape:
    """Median shape with three axes; a 2D network's own lacks the slice axis."""
    if len(c.median_shape) == 3:
        return c.median_shape
    if fingerprint is not None and fingerprint.cases:
        return rules.median_shape(fingerprint.cases, c.spacing)
    whole = list(c.median_shape)
    whole.insert(plan.slice_axis, 1)
    return tuple(whole)


def _reasons(plan: Plan) -> list[Block]:
    """Every decision with its reason, a part for each configuration."""
    decisions = [d for d in plan.decisions if d.name != reasons.WARNING]
    parts: list[Block] = [Text("Every decision, its place in the paper (arXiv:1809.10486) and its reason:")]
    for name, group in groupby(decisions, key=lambda d: d.configuration):
        title = name or "All configurations"
        parts.append(Fold(title, [_decisions(title, list(group))], is_open=not name))
    return parts


def _decisions(title: str, decisions: Sequence[Decision]) -> Table:
    rows = [Row(words(d.name, d.value, d.because, d.source)) for d in decisions]
    return Table(title, ("what", "value", "why", "source"), rows, text=4)
