"""Scores as people read them: text, csv, JSON."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoplan.base import written
from autoplan.base.codec import to_dict
from autoplan.base.files import write_atomically, write_text_atomically
from autoplan.base.tables import table
from autoplan.evaluation.metrics import CONVENTIONS, OVERLAP, ClassScores, Detection, detection

SAVED = ("scores.csv", "scores.json")

NUM_LOWEST = 5
"""Cases that the table shows, those of the lowest mean Dice."""


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case, one entry for each class. `tolerance_mm` is that of its surface Dice."""

    name: str
    tolerance_mm: float
    classes: tuple[ClassScores, ...]


@dataclass(frozen=True)
class Mean:
    """Means over the cases that have the score, None where none has. `num_cases` counts those that have a Dice, and
    `num_infinite` those of them whose distance is infinite, which is left out."""

    dice: float | None
    surface_dice: float | None
    hausdorff_95_mm: float | None
    num_cases: int
    num_infinite: int


@dataclass(frozen=True)
class Evaluation:
    """Scores of all cases. `labels` has value and name of each foreground class; `unpredicted` names labels that have
    no prediction; `tolerance_mm` and `overlap` are what was asked for."""

    labels: tuple[tuple[int, str], ...]
    tolerance_mm: float
    cases: tuple[CaseScores, ...]
    unpredicted: tuple[str, ...]
    overlap: float = OVERLAP

    @property
    def detections(self) -> tuple[Detection, ...]:
        """One entry for each class."""
        return tuple(detection([c.classes[i].lesions for c in self.cases]) for i in range(len(self.labels)))

    @property
    def means(self) -> tuple[Mean, ...]:
        """One entry for each class."""
        return tuple(_mean([c.classes[i] for c in self.cases]) for i in range(len(self.labels)))

    @property
    def foreground(self) -> Mean:
        """Mean over the classes of their means; the counts are sums."""
        means = self.means
        return Mean(
            _average([m.dice for m in means]),
            _average([m.surface_dice for m in means]),
            _average([m.hausdorff_95_mm for m in means]),
            sum(m.num_cases for m in means),
            sum(m.num_infinite for m in means),
        )


def _average(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there."""
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def _mean(scores: Sequence[ClassScores]) -> Mean:
    """Means of one class over the cases."""
    return Mean(
        _average([s.dice for s in scores]),
        _average([s.surface_dice for s in scores]),
        _average([s.hausdorff_95_mm for s in scores]),
        sum(s.dice is not None for s in scores),
        sum(s.dice is not None and s.hausdorff_95_mm is None for s in scores),
    )


def report(evaluation: Evaluation) -> str:
    """The means as an aligned table, the cases of the lowest Dice, and what the numbers mean."""
    header = ["", "Dice", "surface Dice", "HD95 (mm)", "cases", "one-sided"]
    means = [[name, *_mean_cells(m)] for (_, name), m in zip(evaluation.labels, evaluation.means, strict=True)]
    rows = [header, *means, ["foreground mean", *_mean_cells(evaluation.foreground)[:3], "", ""]]
    names = [name for _, name in evaluation.labels]
    lowest = sorted(evaluation.cases, key=_mean_dice)[:NUM_LOWEST]
    worst = [["lowest Dice", *names], *([c.name, *(_cell(s.dice) for s in c.classes)] for c in lowest)]
    parts = [table(part, left=1) for part in (rows, _lesion_rows(evaluation), worst)]
    return "\n\n".join([f"{len(evaluation.cases)} cases", *parts, _notes(evaluation)])


def _lesion_rows(evaluation: Evaluation) -> list[list[str]]:
    """How lesions of each class were found."""
    found = [
        [name, str(d.num_lesions), _cell(d.f1), _cell(d.sensitivity), _cell(d.false_positives, digits=2)]
        for (_, name), d in zip(evaluation.labels, evaluation.detections, strict=True)
    ]
    return [["lesions", "number", "F1", "sensitivity", "false positives a case"], *found]


def _notes(evaluation: Evaluation) -> str:
    """Tolerance, conventions, and labels that were left out."""
    used = sorted({case.tolerance_mm for case in evaluation.cases})
    of_cases = f"{used[0]:g}" if len(used) == 1 else f"{used[0]:g} to {used[-1]:g}"
    lines = [
        f"Surface Dice: tolerance {evaluation.tolerance_mm:g} mm, or the finest voxel edge of a case where that is "
        f"longer: {of_cases} mm.",
        CONVENTIONS,
        f"Lesions: connected components; two match from an intersection over union of {evaluation.overlap:g} on.",
    ]
    if evaluation.unpredicted:
        count = len(evaluation.unpredicted)
        shown = ", ".join(evaluation.unpredicted[:NUM_LOWEST]) + (", ..." if count > NUM_LOWEST else "")
        lines.append(f"{count} of {count + len(evaluation.cases)} labels have no prediction and are left out: {shown}.")
    return "\n".join(lines)


def _mean_dice(case: CaseScores) -> float:
    """Mean over the classes that the case has; 1 where it has none, so that it does not count as bad."""
    average = _average([s.dice for s in case.classes])
    return 1.0 if average is None else average


def _mean_cells(mean: Mean) -> list[str]:
    """Cells of a line of the table."""
    scores = (_cell(mean.dice), _cell(mean.surface_dice), _cell(mean.hausdorff_95_mm, digits=2))
    return [*scores, str(mean.num_cases), str(mean.num_infinite)]


def _cell(value: float | None, *, digits: int = 4) -> str:
    """A number, or a dash for none. One that would be shown as 0 and is not has two significant digits."""
    if value is None:
        return "-"
    return f"{value:.2g}" if 0 < value < 0.5 * 10**-digits else f"{value:.{digits}f}"


def save(evaluation: Evaluation, folder: Path, *, force: bool = False) -> list[Path]:
    """Writes scores.csv (a line for each case and class, then the means) and scores.json; returns their paths, and the
    folder with a copy of what was changed by hand and is overwritten with `force`.

    Raises:
        TemplateError: one that is there was changed by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_saved(folder, force=force)
    kept = written.keep(folder, SAVED, folder / "scores")
    paths = [folder / name for name in SAVED]
    write_atomically(paths[0], lambda path: _write_csv(evaluation, path))
    write_text_atomically(paths[1], json.dumps(as_dict(evaluation), indent=1, ensure_ascii=False) + "\n")
    written.record(folder, SAVED)
    return [*paths, *kept]


def check_saved(folder: Path, *, force: bool) -> None:
    """Refuses a folder whose scores were changed by hand, unless `force`.

    Raises:
        TemplateError: it names them.
    """
    if not force:
        written.check_own(folder, SAVED)


def _write_csv(evaluation: Evaluation, path: Path) -> None:
    """One line a case and class, then one a class; nothing stands where there is no score."""
    scores = ("case", "class", "dice", "surface_dice", "hausdorff_95_mm", "tolerance_mm")
    header = (*scores, "lesions", "predicted_lesions", "matched_lesions")
    names = [name for _, name in evaluation.labels]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for case in evaluation.cases:
            for name, s in zip(names, case.classes, strict=True):
                writer.writerow(
                    (case.name, name, s.dice, s.surface_dice, s.hausdorff_95_mm, case.tolerance_mm, *s.lesions)
                )
        for name, m in zip((*names, "foreground"), (*evaluation.means, evaluation.foreground), strict=True):
            writer.writerow(("mean", name, m.dice, m.surface_dice, m.hausdorff_95_mm, "", "", "", ""))


def as_dict(evaluation: Evaluation) -> Mapping[str, Any]:
    """Plain JSON types: means, then cases."""
    names = [name for _, name in evaluation.labels]
    return {
        "conventions": CONVENTIONS,
        "classes": {name: value for value, name in evaluation.labels},
        "tolerance_mm": evaluation.tolerance_mm,
        "foreground_mean": to_dict(evaluation.foreground),
        "means": {name: to_dict(mean) for name, mean in zip(names, evaluation.means, strict=True)},
        "overlap": evaluation.overlap,
        "lesions": {name: to_dict(found) for name, found in zip(names, evaluation.detections, strict=True)},
        "cases": {
            case.name: {
                "tolerance_mm": case.tolerance_mm,
                "classes": {name: to_dict(scores) for name, scores in zip(names, case.classes, strict=True)},
            }
            for case in evaluation.cases
        },
        "unpredicted": list(evaluation.unpredicted),
    }
