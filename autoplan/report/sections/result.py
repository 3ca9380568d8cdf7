"""Section "Result": the candidates, every case by the worst, pictures, volumes, calibration, confusion, agreement."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from autoplan.data.pictures import color_name
from autoplan.evaluation.choice import CaseDice, Score, mean_intervals
from autoplan.evaluation.metrics import CONVENTIONS, OVERLAP, detection
from autoplan.planning.values import Plan
from autoplan.report import charts
from autoplan.report.blocks import (
    Block,
    Cell,
    Code,
    Figure,
    Fold,
    Grid,
    Note,
    Picture,
    Row,
    Section,
    Table,
    Text,
    cell,
    counted,
    words,
)
from autoplan.report.validation import BINS, Result, Scored, landmarks, worst_class

POINT = 0.01
"""A case is better or worse where its mean Dice differs by more than a point."""
MOST_COLUMNS = 3
"""Classes that have columns of their own in the table of cases."""
MOST_CLASSES = 8
"""Classes that have charts and pictures of their own."""
MOST_DETAILS = 50
"""Cases, the worst ones, whose classes are listed where there are too many for columns."""
MOST_CONFUSED = 12
"""Classes of a matrix of confusion; of more, the largest confusions are listed."""
LOW = 0.8
"""A Dice below which a case has failed, for what the agreement catches. Our choice."""
BAD, GOOD = 0.7, 0.9
"""Dice that colour a cell."""


def section(plan: Plan, result: Result | str | None, on_all: Sequence[str] = ()) -> Section:
    """The result of the chosen candidate.

    Args:
        plan: classes and name.
        result: what is known; None where no fold is finished; a text where it cannot be read.
        on_all: configurations with a network that was trained on all cases, which none of this is about.
    """
    if not isinstance(result, Result):
        nothing = f"No fold is finished yet. The command: python -m autoplan train {plan.name}"
        block = Text(nothing) if result is None else Note(result, "warning")
        return Section("result", "Result", [*_unscored(on_all), block], {})
    classes = [name for _, name in plan.labels[1:]]
    blocks: list[Block] = [
        *_unscored(on_all),
        *_candidates(plan, result, classes),
        *_missing(result),
        Text(_shown(result)),
        *[Note(f"{c.name}: {' '.join(c.faults)}", "error") for c in result.cases if c.faults],
    ]
    if result.readable:
        blocks += [
            _class_table(result.readable, classes),
            Text(
                f"Surface Dice: tolerance {_tolerance(result.readable)} mm. {CONVENTIONS} Lesions are connected "
                f"components; two match from an intersection over union of {OVERLAP:g} on."
            ),
            *_mosaics(result, classes),
            _case_table(result, classes),
            *_charts(result, classes),
        ]
    return Section("result", "Result", blocks, _data(result, classes))


def _unscored(on_all: Sequence[str]) -> list[Block]:
    """What no score is about."""
    one = f"The network of {' and that of '.join(on_all)} that was trained on all cases is not validated"
    return [Note(f"{one}: no score on this page is its own.")] if on_all else []


def _shown(result: Result) -> str:
    folds = sorted(set(result.folds.values()))
    return (
        f"What follows is about {' + '.join(result.members)} on {counted(len(result.cases), 'validation case')} of "
        f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}, each predicted by a network that has not seen it."
    )


def _tolerance(cases: Sequence[Scored]) -> str:
    values = sorted({c.tolerance_mm for c in cases})
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _missing(result: Result) -> list[Block]:
    """What is not finished, and the commands."""
    if not result.missing:
        return []
    said = [Text("Not finished, and not in these numbers:")]
    return [*said, *(block for what, command in result.missing for block in (Text(what), Code(command)))]


# Candidates.


def _candidates(plan: Plan, result: Result, classes: Sequence[str]) -> list[Block]:
    """All candidates, the best first, against the winner."""
    chosen = result.chosen
    if chosen is None:
        return [Note(f"No model is chosen yet. The command: python -m autoplan select {plan.name}")]
    notes = [] if chosen.is_current else [
        Note("Networks were trained since the model was chosen: choose again, by the command select.", "warning")
    ]  # fmt: skip
    best, *others = (chosen.cases[s.candidate.name] for s in chosen.scores)
    rows = [_candidate(chosen.scores[0], best, None)]
    rows += [_candidate(s, own, best) for s, own in zip(chosen.scores[1:], others, strict=True)]
    columns = ["candidate", *classes, "mean", "95 % interval", "behind", "95 % interval of that", "better", "worse"]
    if len(classes) > MOST_CLASSES:
        columns = [columns[0], *columns[1 + len(classes) :]]
        rows = [replace(row, cells=[row.cells[0], *row.cells[1 + len(classes) :]]) for row in rows]
    said = f"{chosen.scores[0].candidate.name} is chosen."
    if len(chosen.scores) > 1 and not chosen.is_distinct:
        said += " On these cases it cannot be told from the runner-up."
    legend = (
        "Mean Dice over the cases, after postprocessing; intervals by a bootstrap over the cases. Better and worse: "
        f"cases whose mean Dice differs from the chosen model's by more than {POINT:g}."
    )
    return [*notes, Text(said), Table("Candidates", columns, rows), Text(legend)]


def _candidate(score: Score, own: Mapping[str, CaseDice], best: Mapping[str, CaseDice] | None) -> Row:
    """A line of the table; the winner is compared with none."""
    _, interval = mean_intervals([dice.postprocessed for dice in own.values()])
    better, worse = (None, None) if best is None else counts(own, best)
    return Row(
        [
            Cell(score.candidate.name),
            *(cell(v, 4) for v in score.postprocessed.classes),
            cell(score.postprocessed.foreground, 4),
            _interval(interval),
            cell(score.behind, 4),
            _interval(score.interval),
            cell(better, 0),
            cell(worse, 0),
        ]
    )


def _interval(values: tuple[float, float] | None) -> Cell:
    return Cell("-", float("-inf")) if values is None else Cell(f"{values[0]:.4f} to {values[1]:.4f}", values[0])


def counts(own: Mapping[str, CaseDice], best: Mapping[str, CaseDice]) -> tuple[int, int]:
    """Cases whose mean Dice is higher, and lower, by more than a point."""
    better = worse = 0
    for name in own.keys() & best.keys():
        a, b = _mean(own[name].postprocessed), _mean(best[name].postprocessed)
        if a is not None and b is not None:
            better, worse = better + (a - b > POINT), worse + (b - a > POINT)
    return better, worse


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


# Classes and cases.


def _class_table(cases: Sequence[Scored], classes: Sequence[str]) -> Table:
    """Means of each class."""
    intervals, _ = mean_intervals([c.dice for c in cases])
    rows = []
    for i, name in enumerate(classes):
        bias, low, high = agreement_limits(volumes(cases, i))
        found = detection([c.lesions[i] for c in cases])
        rows.append(
            Row(
                [
                    Cell(name),
                    cell(_mean([c.dice[i] for c in cases]), 4),
                    _interval(intervals[i]),
                    cell(_mean([c.surface_dice[i] for c in cases]), 4),
                    cell(_mean([c.hausdorff_95_mm[i] for c in cases]), 2),
                    Cell(str(n := sum(c.dice[i] is not None for c in cases)), n),
                    Cell(str(n := _one_sided(cases, i)), n, "warning" if n else None),
                    cell(found.f1, 3),
                    cell(found.false_positives, 2),
                    cell(bias, 2),
                    Cell("-", -math.inf) if low is None or high is None else Cell(f"{low:.2f} to {high:.2f}", low),
                ]
            )
        )
    columns = ("class", "Dice", "95 % interval", "surface Dice", "HD95 (mm)", "cases", "one-sided", "lesion F1",
               "false positives a case", "volume bias (ml)", "limits of agreement (ml)")  # fmt: skip
    return Table("Classes, means over the cases", columns, rows)


def _one_sided(cases: Sequence[Scored], i: int) -> int:
    return sum(c.dice[i] is not None and c.hausdorff_95_mm[i] is None for c in cases)


def volumes(cases: Sequence[Scored], i: int) -> list[tuple[float, float]]:
    """Volume of the reference and of the prediction, ml, of the cases that have a class."""
    return [(c.reference_ml[i], c.predicted_ml[i]) for c in cases if c.dice[i] is not None]


def agreement_limits(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None, float | None]:
    """Mean difference of prediction and reference, and the limits of agreement, 1.96 standard deviations around it.

    Source: Bland and Altman, Lancet 1986 (https://doi.org/10.1016/S0140-6736(86)90837-8).
    """
    differences = [p - r for r, p in pairs]
    if len(differences) < 2:
        return (differences[0] if differences else None), None, None
    middle, spread = statistics.fmean(differences), 1.96 * statistics.stdev(differences)
    return middle, middle - spread, middle + spread


def _mosaics(result: Result, classes: Sequence[str]) -> list[Block]:
    """Of each class the worst, the median and the best case."""
    outlines = ", ".join(f"{name} {color_name(i)}" for i, name in enumerate(classes[:MOST_CLASSES]))
    found: list[Block] = []
    for i, name in enumerate(classes[:MOST_CLASSES]):
        places = landmarks(result.readable, i)
        ranks = ("worst", "median", "best") if len(places) == 3 else ("worst", "best")[: len(places)]
        shown = [
            _picture(result, case, number, f"{name}, {rank}")
            for rank, (case, number) in zip(ranks, places, strict=True)
            if (case, number) in result.pictures
        ]
        found += [Grid(shown)] if shown else []
    said = (
        "The worst, the median and the best case of each class, by its Dice. Solid outlines: reference; dashed: "
        f"prediction. {outlines}."
    )
    return [Text(said), *found] if found else []


def _picture(result: Result, name: str, number: int, title: str) -> Picture:
    drawn = result.pictures[name, number]
    case = next(c for c in result.cases if c.name == name)
    dice = case.dice[number]
    alt = f"{name}: three planes with the outlines of reference and prediction"
    said = f"{title}: {name}" + ("" if dice is None else f", Dice {dice:.3f}")
    return Picture(said, drawn.data, alt, drawn.size)


def _case_table(result: Result, classes: Sequence[str]) -> Block:
    """Every case, the worst first; the worst ones unfold to their pictures."""
    ordered = sorted(result.readable, key=lambda c: (2.0 if c.mean_dice is None else c.mean_dice, c.name))
    narrow = len(classes) <= MOST_COLUMNS
    columns = ["case", "fold", "mean Dice"]
    if narrow:
        parts = ("Dice", "surface Dice", "HD95 (mm)", "ml", "predicted ml")
        columns += [f"{c} {part}" if len(classes) > 1 else part for c in classes for part in parts]
    else:
        columns += ["mean surface Dice", "largest HD95 (mm)", "worst class", "its Dice"]
    rows = [
        Row(
            [
                Cell(c.name),
                Cell(str(result.folds[c.name]), result.folds[c.name]),
                _dice_cell(c.mean_dice),
                *(_columns(c, range(len(classes))) if narrow else _summary(c, classes)),
            ],
            _details(result, c, classes, is_listed=not narrow and rank < MOST_DETAILS),
        )
        for rank, c in enumerate(ordered)
    ]
    title = "All cases, the worst first; a click on a name with + shows the picture"
    return Fold(f"All {counted(len(rows), 'case')}", [Table(title, columns, rows, 1, tall=True)], is_open=True)


def _dice_cell(value: float | None) -> Cell:
    mark = None if value is None else "error" if value < BAD else "good" if value >= GOOD else None
    return cell(value, 3, mark=mark)  # type: ignore[arg-type]


def _columns(c: Scored, numbers: Sequence[int]) -> list[Cell]:
    """Scores and volumes of some classes."""
    found = []
    for i in numbers:
        digits = 2 if c.reference_ml[i] >= 0.1 else 4
        found += [
            _dice_cell(c.dice[i]),
            cell(c.surface_dice[i], 3),
            cell(c.hausdorff_95_mm[i], 1),
            cell(c.reference_ml[i], digits),
            cell(c.predicted_ml[i], digits),
        ]
    return found


def _summary(c: Scored, classes: Sequence[str]) -> list[Cell]:
    """The classes of a case in four numbers."""
    worst = worst_class(c)
    far = [v for v in c.hausdorff_95_mm if v is not None]
    return [
        cell(_mean(c.surface_dice), 3), cell(max(far) if far else None, 1), Cell(classes[worst]),
        _dice_cell(c.dice[worst]),
    ]  # fmt: skip


def _details(result: Result, c: Scored, classes: Sequence[str], *, is_listed: bool) -> list[Block]:
    """What a line unfolds to."""
    number = worst_class(c)
    found: list[Block] = []
    if (c.name, number) in result.pictures:
        found.append(_picture(result, c.name, number, classes[number]))
    if is_listed:
        rows = [Row([Cell(name), *_columns(c, [i])]) for i, name in enumerate(classes) if c.dice[i] is not None]
        found.append(Table(c.name, ("class", "Dice", "surface Dice", "HD95 (mm)", "ml", "predicted ml"), rows))
    return found


# Charts.


def _charts(result: Result, classes: Sequence[str]) -> list[Block]:
    """Volumes, calibration, confusion and agreement."""
    cases = result.readable
    found = [
        *_volume_charts(cases, classes), *_calibration(cases, classes), *_confusion(cases, classes),
        *_agreement(result),
    ]  # fmt: skip
    return [Grid(found)] if found else []


def _volume_charts(cases: Sequence[Scored], classes: Sequence[str]) -> list[Block]:
    """Bland-Altman charts."""
    found: list[Block] = []
    for i, name in enumerate(classes[:MOST_CLASSES]):
        pairs = volumes(cases, i)
        bias, low, high = agreement_limits(pairs)
        if low is None:
            continue
        points = [((r + p) / 2, p - r) for r, p in pairs]
        said = f"{name}: mean difference of the volumes {bias:.3g} ml, limits of agreement {low:.3g} to {high:.3g} ml."
        chart = charts.band(points, "mean of reference and prediction, ml", "prediction - reference, ml", number=i)
        found.append(Figure(f"Volumes of {name} (Bland-Altman)", chart, said))
    return found


def calibration(cases: Sequence[Scored], i: int) -> tuple[list[tuple[float, float, float]], float, float] | None:
    """Calibration of a class over all cases: (mean probability, part of the voxels that are the class, voxels) of each
    interval that has voxels; the expected calibration error; the Brier score.

    Source: Guo et al., ICML 2017 (arXiv:1706.04599), 10 intervals of equal width.
    """
    sums = [c.calibration[i] for c in cases if i < len(c.calibration)]
    if not sums:
        return None
    *totals, squared = (math.fsum(column) for column in zip(*sums, strict=True))
    bins = [totals[3 * k : 3 * k + 3] for k in range(BINS)]
    count = sum(n for n, _, _ in bins)
    if not count:
        return None
    error = sum(abs(p - hits) for n, p, hits in bins) / count
    return [(p / n, hits / n, n) for n, p, hits in bins if n], error, squared / count


def _calibration(cases: Sequence[Scored], classes: Sequence[str]) -> list[Block]:
    """Reliability of the probabilities."""
    known = {i: found for i in range(len(classes)) if (found := calibration(cases, i)) is not None}
    if not known:
        return []
    lines = [charts.Line(classes[i], [(p, h) for p, h, _ in found[0]], i) for i, found in known.items()]
    said = "; ".join(
        f"{classes[i]}: expected calibration error {found[1]:.3f}, Brier score {found[2]:.3f}"
        for i, found in known.items()
    )
    title = f"Calibration, voxels near classes. {said if len(known) <= MOST_COLUMNS else ''}"
    return [Figure(title, charts.reliability(lines[:MOST_CLASSES]), f"{said}.")]


def _confused(cases: Sequence[Scored]) -> Counter[tuple[int, int]]:
    """Voxels by class of the reference and of the prediction, all cases."""
    total: Counter[tuple[int, int]] = Counter()
    for c in cases:
        total.update({(t, p): n for t, p, n in c.confusion})
    return total


def _confusion(cases: Sequence[Scored], classes: Sequence[str]) -> list[Block]:
    """Where voxels of each class of the reference went."""
    total, names = _confused(cases), ["background", *classes]
    sizes = [sum(n for (t, _), n in total.items() if t == i) for i in range(len(names))]
    wrong = sorted(((n, t, p) for (t, p), n in total.items() if t != p), reverse=True)
    if len(classes) > MOST_CONFUSED:
        rows = [
            Row([*words(names[t], names[p]), cell(n, 0), cell(n / sizes[t], 3)]) for n, t, p in wrong[:MOST_CONFUSED]
        ]
        columns = ("reference", "prediction", "voxels", "part of the reference")
        return [Table("The largest confusions between classes", columns, rows, 2)]
    values = [[total[i, j] / sizes[i] if sizes[i] else 0.0 for j in range(len(names))] for i in range(1, len(names))]
    said = ", ".join(f"{names[t]} as {names[p]} {n / sizes[t]:.1%}" for n, t, p in wrong[:MOST_CONFUSED] if t)
    drawn = charts.matrix(values, classes, names)
    return [
        Figure("Confusion: where the voxels of each class went", drawn, f"Voxels predicted as another class: {said}.")
    ]


def _agreement(result: Result) -> list[Block]:
    """Agreement between configurations against true Dice."""
    pairs = [(c.agreement, c.mean_dice) for c in result.readable if c.agreement is not None and c.mean_dice is not None]
    if len(pairs) < 3:
        return []
    rank = correlation(pairs)
    said = "no correlation" if rank is None else f"rank correlation {rank:.2f}"
    caught = threshold(pairs)
    if caught is not None:
        said += f"; below {caught:.3f} lie 90 % of the cases whose Dice is below {LOW:g}"
    title = f"Agreement of the configurations against true Dice: {said}"
    return [
        Figure(title, charts.scatter(pairs, "Dice between the configurations", "Dice to the reference"), f"{title}.")
    ]


def correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation; None where one side is constant."""
    from scipy.stats import spearmanr

    xs, ys = zip(*pairs, strict=True)
    return float(spearmanr(xs, ys).statistic) if len(set(xs)) > 1 and len(set(ys)) > 1 else None


def threshold(pairs: Sequence[tuple[float, float]]) -> float | None:
    """The agreement below which 90 % of the failed cases lie; None where none has failed."""
    failed = sorted(a for a, dice in pairs if dice < LOW)
    return failed[math.ceil(0.9 * len(failed)) - 1] if failed else None


# For programs.


def _data(result: Result, classes: Sequence[str]) -> dict[str, object]:
    cases = result.readable
    known = {name: calibration(cases, i) for i, name in enumerate(classes)}
    chosen = result.chosen
    return {
        "members": list(result.members),
        "is_chosen": chosen is not None and chosen.is_current,
        "candidates": [] if chosen is None else [asdict(s) for s in chosen.scores],
        "missing": [{"what": what, "command": command} for what, command in result.missing],
        "calibration": {
            name: {"expected_error": found[1], "brier": found[2]} for name, found in known.items() if found is not None
        },
        "volume_agreement_ml": {
            name: dict(zip(("bias", "low", "high"), agreement_limits(volumes(cases, i)), strict=True))
            for i, name in enumerate(classes)
        },
        "confusion": [{"reference": t, "prediction": p, "voxels": n} for (t, p), n in sorted(_confused(cases).items())],
        "cases": {c.name: {"fold": result.folds[c.name], **_case_data(c, classes)} for c in result.cases},
    }


def _case_data(c: Scored, classes: Sequence[str]) -> dict[str, object]:
    if c.faults:
        return {"faults": list(c.faults)}
    by_class = {
        name: {
            "dice": c.dice[i], "surface_dice": c.surface_dice[i], "hausdorff_95_mm": c.hausdorff_95_mm[i],
            "lesions": c.lesions[i],
            "reference_ml": c.reference_ml[i], "predicted_ml": c.predicted_ml[i],
        }
        for i, name in enumerate(classes)
    }  # fmt: skip
    return {"mean_dice": c.mean_dice, "agreement": c.agreement, "classes": by_class}
