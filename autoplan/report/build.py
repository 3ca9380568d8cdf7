"""Reads what there is about a task and writes report.html and report.json, again only where something has changed."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoplan import __version__
from autoplan.base import written
from autoplan.base.errors import DatasetError, TemplateError, TrainingError, one_line
from autoplan.base.files import read_object
from autoplan.budget.ledger import Spent, spent
from autoplan.bundle import saved
from autoplan.cost import bill as cost
from autoplan.data import fingerprint, stored
from autoplan.data.facts import Dataset, Fingerprint
from autoplan.planning.values import Plan
from autoplan.report import page, validation
from autoplan.report.blocks import Section, counted
from autoplan.report.sections import cost as cost_section
from autoplan.report.sections import dataset as dataset_section
from autoplan.report.sections import plan as plan_section
from autoplan.report.sections import provenance, result, training
from autoplan.report.summaries import Summary, summaries

_CODE = Path(__file__).parent
WATCHED = ("*.json", "*/models/fold_*/*.csv", "*/models/fold_*/*.json", "*/models/fold_*/train.log", "*/configs/*.json",
           "*/models/fold_*/validation/dice.json", "best/configs/metadata.json")  # fmt: skip
"""Files of a task that the page depends on, beside the dataset."""


@dataclass(frozen=True)
class Material:
    """All that the sections are made of. `folder` is that of the task's bundles; `is_current` says whether the dataset
    is still the one that was planned."""

    dataset: Dataset
    folder: Path
    plan: Plan
    fingerprint: Fingerprint | None
    is_current: bool
    summaries: Sequence[Summary]
    trainings: Sequence[training.Training]
    result: validation.Result | str | None
    provenance: provenance.Provenance
    bill: cost.Bill | None
    spent: Sequence[Spent]


def build(
    dataset: Dataset,
    bundles: Path,
    *,
    num_processes: int | None = None,
    progress: bool | None = None,
    force: bool = False,
) -> Path:
    """Writes the report of a task and returns its path; one that is there and still holds is left as it is.

    Args:
        dataset: what dataset.json says.
        bundles: folder of the bundles of all datasets.
        num_processes: processes that read images and score; None: as many as there are processors.
        progress: whether to show progress bars on stderr; None: where stderr is a terminal.
        force: write over a report that was changed by hand; a copy is kept in report.before.

    Raises:
        PlanError: the task is not planned.
        TemplateError: the report that is there was changed by hand.
    """
    folder = bundles / dataset.name
    planned = saved.load_plan(folder)
    key = fingerprint.key(dataset, folder)
    html, data, state = folder / page.HTML, folder / page.JSON, state_of(folder, key)
    if html.is_file() and read_object(data).get("state") == state:
        return html
    if not force:
        written.check_own(folder, [page.HTML, page.JSON])
    sections = _sections(read(dataset, folder, planned, key, num_processes=num_processes, progress=progress))
    with written.anew(folder) as work:
        staged = work / "new"
        staged.mkdir()
        (staged / page.JSON).write_text(page.as_json(dataset.name, state, sections), encoding="utf-8")
        (staged / page.HTML).write_text(page.render(dataset.name, _subtitle(dataset), sections), encoding="utf-8")
        written.put(staged, folder, last=page.HTML, force=force, base=html.with_suffix(""))
    return html


def read(
    dataset: Dataset, folder: Path, planned: Plan, key: str, *, num_processes: int | None, progress: bool | None
) -> Material:
    """What there is about a task; what was read before is not read again."""
    try:
        facts = stored.load_fingerprint(folder / stored.FINGERPRINT)
    except DatasetError:
        facts = None
    later = validation.PRELOAD if any(folder.glob("*/models/fold_*/validation/dice.json")) else ()
    looked = summaries(dataset, folder, num_processes=num_processes, preload=later, progress=progress)
    found: validation.Result | str | None
    try:
        found = validation.read(planned, dataset, folder, num_processes=num_processes, progress=progress)
    except (TemplateError, TrainingError) as error:
        found = one_line(error)
    is_current, trained = facts is not None and facts.key == key, training.read(folder)
    origin = provenance.read(dataset, planned, folder, key, looked, trained)
    bill = cost.load(planned, facts, folder)
    return Material(dataset, folder, planned, facts, is_current, looked, trained, found, origin, bill, spent(folder))


def _sections(material: Material) -> list[Section]:
    """The sections, in the order of the page."""
    m = material
    return [
        dataset_section.section(m.dataset, m.summaries, m.plan, is_current=m.is_current),
        plan_section.section(m.plan, m.fingerprint),
        cost_section.section(m.plan, m.bill, m.spent),
        training.section(m.plan, m.trainings),
        result.section(m.plan, m.result, m.provenance.on_all),
        provenance.section(m.plan, m.provenance, m.result),
    ]


def _subtitle(dataset: Dataset) -> str:
    classes = counted(len(dataset.labels) - 1, "class")
    return (
        f"{counted(len(dataset.training), 'training case')}, {counted(len(dataset.test), 'test image')}, {classes}, "
        f"{counted(len(dataset.modalities), 'channel')}. autoplan {__version__}"
    )


def state_of(folder: Path, key: str) -> str:
    """A digest of everything that the page depends on: dataset, plan, folds, scores and the code that shows them."""
    digest = hashlib.sha256(f"{__version__} {key}".encode())
    for path in _watched(folder):
        status = path.stat()
        digest.update(f"\n{path} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _watched(folder: Path) -> Iterator[Path]:
    yield from sorted(p for p in _CODE.rglob("*") if p.is_file() and p.suffix != ".pyc")
    found = {path for pattern in WATCHED for path in folder.glob(pattern)}
    yield from sorted(path for path in found if path.name not in (page.JSON, written.RECORD) and path.is_file())
