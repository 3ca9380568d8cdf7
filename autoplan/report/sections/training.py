"""Section "Training": curves of all folds, where they went flat, time and energy, and when a training went on."""

import csv
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from autoplan.base.errors import TrainingError
from autoplan.base.files import LARGEST, regular
from autoplan.planning.values import ALL, NOT_VALIDATED, Plan
from autoplan.report import charts
from autoplan.report.blocks import Block, Cell, Figure, Grid, Note, Row, Section, Severity, Table, Text, cell, words
from autoplan.training import jobs, recipe, results, standing
from autoplan.training.failures import START

FLAT_DELTA = 0.005
"""What counts as an improvement of the averaged validation loss. Source: arXiv:1809.10486, section 2.3 (stop rule)."""
STILL_FALLING = 0.1
"""A curve whose last improvement lies within this part of its end was still falling. Our choice."""
MUCH_WAITING = 0.2
"""Part of the time spent waiting for data from which on it is said. Our choice."""
MOST_POINTS = 250
"""Of a curve on the page; longer ones are averaged."""
COLOR_OF_ALL = 7
"""Of curves, which no fold has."""
ENERGY = "emissions.csv"
"""What codecarbon leaves in a fold's folder, where it was installed when the fold was trained."""
Epochs = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Start:
    """When a step was started, and after how many epochs it went on; 0 where it began anew, None where its log does not
    say."""

    step: str
    when: str
    after: int | None


@dataclass(frozen=True)
class Training:
    """One fold of one configuration: how it stands, its curve, and its starts. `energy_kwh` is None where nothing has
    measured it, and `ended` while the training has not. In the curve of fold "all", what is called validation is of
    cases that were trained on."""

    row: standing.Row
    epochs: Epochs
    starts: tuple[Start, ...]
    energy_kwh: float | None
    ended: results.Training | None = None

    @property
    def name(self) -> str:
        """`2d fold 0`."""
        return f"{self.row.configuration} fold {self.row.fold}" + f" ({NOT_VALIDATED})" * self.is_on_all

    @property
    def is_on_all(self) -> bool:
        """Whether all cases are trained on, and none is validated."""
        return self.row.fold == ALL

    @property
    def line(self) -> tuple[str, int]:
        """Name and number of the colour of its curves."""
        fold = self.row.fold
        return (NOT_VALIDATED, COLOR_OF_ALL) if fold == ALL else (f"fold {fold}", fold)

    @property
    def flat_since(self) -> int | None:
        """See the function; fold "all" has no validation loss."""
        return None if self.is_on_all else flat_since(self.epochs)

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return sum(e.get("seconds", 0.0) for e in self.epochs)

    @property
    def waiting(self) -> float | None:
        """Part of the time that was spent waiting for data."""
        return sum(e.get("waiting_seconds", 0.0) for e in self.epochs) / self.seconds if self.seconds else None

    @property
    def resumes(self) -> list[Start]:
        """Starts that went on from a checkpoint."""
        return [s for s in self.starts if s.step == "training" and s.after]


def read(folder: Path) -> list[Training]:
    """The trainings that have left anything, of all bundles in the folder of a task."""
    found = []
    try:
        there = jobs.jobs_of(jobs.find_bundles(folder), begun_on_all=True)
    except TrainingError:
        return []
    for job in map(recipe.as_last_started, there):
        epochs, starts = results.curve(job.folder), _starts(job.log)
        if epochs or starts:
            energy, ended = _energy(job.folder / ENERGY), results.training(job.folder)
            found.append(Training(standing.row(job), epochs, starts, energy, ended))
    return found


def _starts(log: Path) -> tuple[Start, ...]:
    """The starts that a log tells of."""
    found: list[Start] = []
    begun = re.compile(rf"{START} (\w+), (\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d)")
    try:
        with regular(log).open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if match := begun.match(line):
                    found.append(Start(match[1], match[2], 0))
                elif found and (match := re.search(r"Going on from .*, after epoch (\d{1,9})\.", line)):
                    found[-1] = Start(found[-1].step, found[-1].when, int(match[1]))
    except OSError:
        return ()
    return tuple(found)


def _energy(path: Path) -> float | None:
    """kWh of all starts, as codecarbon has measured them."""
    try:
        with regular(path).open(encoding="utf-8", newline="") as file:
            values = [float(line["energy_consumed"]) for line in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return sum(values) if values and all(0 <= v < LARGEST for v in values) else None


def flat_since(epochs: Epochs) -> int | None:
    """The epoch after which the averaged validation loss has not improved by more than `FLAT_DELTA`; None for a curve
    that was still falling at its end, or of less than two epochs."""
    best, last = float("inf"), 0
    values = [(int(e["epoch"]), e["val_average"]) for e in epochs if "val_average" in e]
    for epoch, value in values:
        if best - value > FLAT_DELTA:
            best, last = value, epoch
    if len(values) < 2 or last > values[-1][0] * (1 - STILL_FALLING):
        return None
    return last


def section(plan: Plan, trainings: Sequence[Training]) -> Section:
    """The trainings of a task.

    Args:
        plan: names of the classes.
        trainings: as `read` gives them.
    """
    classes = [name for _, name in plan.labels[1:]]
    blocks: list[Block]
    if not trainings:
        blocks = [Text(f"Nothing is trained yet. The command: python -m autoplan train {plan.name}")]
    else:
        blocks = [
            *_notes(trainings),
            *_widths(plan, trainings),
            _table(trainings),
            Text(_legend(has_all=any(t.is_on_all for t in trainings))),
        ]
        for name in dict.fromkeys(t.row.configuration for t in trainings):
            own = [t for t in trainings if t.row.configuration == name and len(t.epochs)]
            blocks += [Grid(_charts(name, own, classes))] if own else []
        blocks += _starts_table(trainings)
    return Section("training", "Training", blocks, {"trainings": [_facts(t) for t in trainings]})


def _legend(*, has_all: bool) -> str:
    on_all = " Of the network that is trained on all cases, all of it is of cases that it has seen." if has_all else ""
    return (
        "Losses: thin lines are epochs, thick ones moving averages; dashed on training cases, solid on validation "
        f"cases. A dot marks where the average on validation cases last improved by more than {FLAT_DELTA}: what was "
        f"trained after it brought no visible improvement. The Dice is estimated on patches.{on_all}"
    )


def _facts(training: Training) -> dict[str, object]:
    return {
        **asdict(training.row),
        "seconds": training.seconds,
        "waiting_fraction": training.waiting,
        "flat_since_epoch": training.flat_since,
        "energy_kwh": training.energy_kwh,
        "starts": [asdict(s) for s in training.starts],
        "curve": [dict(e) for e in training.epochs],
    }


def _notes(trainings: Sequence[Training]) -> list[Block]:
    """What should not be missed."""
    failed = [Note(f"{t.name}: {t.row.reason}", "error") for t in trainings if t.row.state == "failed"]
    slow = [t for t in trainings if (t.waiting or 0) > MUCH_WAITING]
    if slow:
        worst = max(slow, key=lambda t: t.waiting or 0)
        said = (
            f"{worst.name} waited for data in {worst.waiting:.0%} of its time. More --num_workers may make it faster."
        )
        return [*failed, Note(said, "warning")]
    return list(failed)


def _widths(plan: Plan, trainings: Sequence[Training]) -> list[Block]:
    """Which networks are not as wide as planned."""
    trained = {(t.row.configuration, t.ended.features) for t in trainings if t.ended and t.ended.features}
    return [
        Text(f"{c.name}: trained with {f[0]} to {f[-1]} feature maps; planned are {c.features[0]} to {c.features[-1]}.")
        for c in plan.configurations
        for name, f in sorted(trained)
        if name == c.name and f != c.features
    ]


def _table(trainings: Sequence[Training]) -> Table:
    has_energy = any(t.energy_kwh is not None for t in trainings)
    columns = [
        "training", "state", "epochs", "train loss", "validation loss", "flat since", "Dice of cases", "s an epoch",
        "hours", "waiting", "went on", *(["kWh"] if has_energy else []),
    ]  # fmt: skip
    return Table(
        "All trainings; losses are moving averages", columns, [_row(t, energy=has_energy) for t in trainings], 2
    )


STATES: dict[str, Severity] = {"done": "good", "failed": "error", "stopped": "warning"}


def _row(t: Training, *, energy: bool) -> Row:
    flat, seconds = t.flat_since, [e["seconds"] for e in t.epochs if "seconds" in e]
    return Row(
        [
            Cell(t.name),
            Cell(t.row.state, mark=STATES.get(t.row.state)),
            Cell(t.row.epochs, t.row.epoch),
            cell(t.row.train_average),
            cell(t.row.val_average),
            Cell(
                "-" if t.is_on_all else "still falling" if flat is None else f"epoch {flat}",
                float("inf") if flat is None else flat,
            ),
            cell(t.row.dice, 4),
            cell(statistics.median(seconds) if seconds else None, 1),
            cell(t.seconds / 3600, 2),
            Cell("-", -1.0) if t.waiting is None else Cell(f"{t.waiting:.1%}", t.waiting),
            Cell(str(len(t.resumes)), len(t.resumes)),
            *([cell(t.energy_kwh, 2)] if energy else []),
        ]
    )


def _starts_table(trainings: Sequence[Training]) -> list[Block]:
    """When trainings went on after an interruption."""
    rows = [Row(words(t.name, s.when, f"after epoch {s.after}")) for t in trainings for s in t.resumes]
    return (
        [Table("Trainings that went on after an interruption", ("training", "when", "where"), rows, 3)] if rows else []
    )


# The curves.


def _charts(name: str, trainings: Sequence[Training], classes: Sequence[str]) -> list[Block]:
    """Losses, estimated Dice, learning rate and waiting of all folds of a configuration."""
    averages = _lines(trainings, lambda e: e.get("val_average"), mark=True)
    losses = [
        *_lines(trainings, lambda e: e.get("train_loss"), faint=True, dashed=True),
        *_lines(trainings, lambda e: e.get("val_loss"), faint=True),
        *_lines(trainings, lambda e: e.get("train_average"), dashed=True),
        *averages,
    ]
    dice = _lines(trainings, lambda e: _mean_dice(e, classes))
    rate = _lines(trainings, lambda e: e.get("lr") or None)
    wait = _lines(trainings, lambda e: 100 * e.get("waiting_seconds", 0.0) / e["seconds"] if e.get("seconds") else None)
    highest = max([10.0, *(1.05 * y for line in wait for _, y in line.points)])
    drawn = [
        Figure(f"{name}: losses", charts.curves(losses, "loss"), _said("Averaged validation loss", averages)),
        Figure(f"{name}: estimated Dice, mean of the classes", charts.curves(dice, "Dice", limits=(0, 1)),
               _said("Estimated Dice", dice)),
        Figure(f"{name}: learning rate", charts.curves(rate, "learning rate", log=True), _said("Learning rate", rate)),
        Figure(f"{name}: part of the time spent waiting for data", charts.curves(wait, "%", limits=(0, highest)),
               _said("Waiting, in percent", wait)),
    ]  # fmt: skip
    if len(classes) > 1:
        folds = [t for t in trainings if not t.is_on_all]
        by_class = [_of_class(c, number, folds or trainings) for number, c in enumerate(classes)]
        title = f"{name}: estimated Dice of each class, {'mean of the folds' if folds else NOT_VALIDATED}"
        drawn.insert(
            2, Figure(title, charts.curves(by_class, "Dice", limits=(0, 1)), _said("Estimated Dice", by_class))
        )
    return list(drawn)


def _mean_dice(epoch: Mapping[str, float], classes: Sequence[str]) -> float | None:
    there = [epoch[f"dice_{name}"] for name in classes if f"dice_{name}" in epoch]
    return statistics.fmean(there) if there else None


def _lines(
    trainings: Sequence[Training],
    value: Callable[[Mapping[str, float]], float | None],
    *,
    faint: bool = False,
    dashed: bool = False,
    mark: bool = False,
) -> list[charts.Line]:
    """A curve of each fold."""
    return [
        charts.Line(
            t.line[0],
            _thinned([(e["epoch"], v) for e in t.epochs if (v := value(e)) is not None]),
            t.line[1],
            is_faint=faint,
            is_dashed=dashed,
            mark=t.flat_since if mark else None,
            is_named=not faint and not dashed,
        )
        for t in trainings
    ]


def _of_class(name: str, number: int, trainings: Sequence[Training]) -> charts.Line:
    """Estimated Dice of a class, the mean over the folds that have reached an epoch."""
    values: dict[float, list[float]] = {}
    for t in trainings:
        for e in t.epochs:
            if f"dice_{name}" in e:
                values.setdefault(e["epoch"], []).append(e[f"dice_{name}"])
    return charts.Line(name, _thinned([(x, statistics.fmean(v)) for x, v in sorted(values.items())]), number)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points, each the mean of neighbours."""
    step = -(-len(points) // MOST_POINTS) or 1
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [(g[len(g) // 2][0], statistics.fmean(v for _, v in g)) for g in groups]


def _said(what: str, lines: Sequence[charts.Line]) -> str:
    """What a chart shows, in words."""
    parts = [f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines if line.points]
    return f"{what} over the epochs: {', '.join(parts) or 'nothing'}."
