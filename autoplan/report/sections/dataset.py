"""Section "Dataset": what the doctor found, all cases as a table with their pictures, and how their facts spread."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from autoplan.data.facts import Dataset
from autoplan.data.fingerprint import is_ct
from autoplan.data.pictures import color_name
from autoplan.planning.values import Plan
from autoplan.report import charts
from autoplan.report.blocks import (
    Block,
    Cell,
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
from autoplan.report.sections import doctor
from autoplan.report.summaries import Summary

MAX_PICTURE_BYTES = 3_600_000
"""Of the pictures of cases, so that the page stays small enough to be sent; the odd ones come first."""
MAX_SHOWN = 4
"""Pictures of a finding that are open at once."""
MAX_HITS = 60
"""Cases that a finding lists; report.json has all."""


def section(dataset: Dataset, summaries: Sequence[Summary], plan: Plan, *, is_current: bool) -> Section:
    """The images of a dataset.

    Args:
        dataset: what dataset.json says.
        summaries: of all its images.
        plan: its folds count for cases of one patient.
        is_current: whether the dataset is the one that was planned.
    """
    classes = [name for _, name in dataset.labels[1:]]
    findings = doctor.examine(summaries, classes, plan.folds, [is_ct(m) for m in dataset.modalities])
    typical = _median_case(summaries)
    pictures = _affordable(
        summaries, [*typical, *(name for f in findings for hit in f.hits for name in (hit.case, hit.other))]
    )
    changed = "The dataset has changed since it was planned: plan again, by the same command as before."
    return Section(
        "dataset",
        "Dataset",
        [
            *([] if is_current else [Note(changed, "warning")]),
            *_doctor(findings, pictures, summaries),
            Text(_legend(classes, summaries)),
            *_typical(typical, pictures),
            Grid(_charts(dataset, summaries, classes)),
            _table(dataset, summaries, classes, pictures, findings),
        ],
        {
            "classes": dict(zip(classes, (value for value, _ in dataset.labels[1:]), strict=True)),
            "findings": [asdict(f) for f in findings],
            "looked_for": list(doctor.KINDS),
            "cases": {s.name: _facts(s, classes) for s in summaries},
        },
    )


def _legend(classes: Sequence[str], summaries: Sequence[Summary]) -> str:
    """What the pictures show."""
    outlines = ", ".join(f"{name} {color_name(i)}" for i, name in enumerate(classes))
    if all(1 in s.shape for s in summaries):
        return f"Pictures show the first channel in grey. Outlines: {outlines}."
    return (
        "Pictures show the axial, coronal and sagittal plane through the largest class, the first channel in grey. The "
        f"patient's right is on the left, and the front is on the left. Outlines: {outlines}."
    )


def _median_case(summaries: Sequence[Summary]) -> list[str]:
    """The case of the median volume of the foreground."""
    there = sorted((s for s in summaries if not s.is_test and not s.faults), key=lambda s: sum(s.ml))
    return [there[len(there) // 2].name] if there else []


def _affordable(summaries: Sequence[Summary], first: Sequence[str]) -> dict[str, Picture]:
    """Pictures of as many cases as the page has room for, those of `first` before the others."""
    rank = {name: number for number, name in reversed(list(enumerate(first)))}
    ordered = sorted((s for s in summaries if s.picture), key=lambda s: rank.get(s.name, len(rank)))
    found, used = {}, 0
    for s in ordered:
        used += len(s.picture)
        if used > MAX_PICTURE_BYTES:
            break
        width, height = s.picture_size
        alt = f"{s.name}: three planes" + ("" if s.is_test else " with the outlines of the label")
        found[s.name] = Picture(s.name, s.picture, alt, (width, height))
    return found


# The doctor.


def _doctor(
    findings: Sequence[doctor.Finding], pictures: dict[str, Picture], summaries: Sequence[Summary]
) -> list[Block]:
    """What was found, the worst first and open."""
    images = counted(len(summaries), "image")
    if not findings:
        said = f"Nothing odd was found in {images}. Looked for: {', '.join(doctor.KINDS.values())}."
        return [Note(said, "good")]
    found = {f.kind for f in findings}
    clean = ", ".join(name for kind, name in doctor.KINDS.items() if kind not in found)
    shown: set[str] = set()
    folds = [_finding(f, pictures, shown) for f in findings]
    return [Text(f"Checked {images}:"), *folds, Note(f"Not found: {clean}.", "good")]


def _finding(finding: doctor.Finding, pictures: dict[str, Picture], shown: set[str]) -> Fold:
    """One finding: what to do, its cases, and pictures of the first ones."""
    first = [hit for hit in finding.hits if hit.case in pictures and hit.case not in shown][:MAX_SHOWN]
    shown |= {hit.case for hit in first}
    rows = [Row(words(hit.case or "all", hit.what)) for hit in finding.hits[:MAX_HITS]]
    more = len(finding.hits) - len(rows)
    mosaic = [
        replace(pictures[name], title=f"{name}: {hit.what}" if name == hit.case else name)
        for hit in first
        for name in (hit.case, hit.other)
        if name in pictures
    ]
    cases = counted(len({hit.case for hit in finding.hits}), "case") if finding.hits[0].case else "all cases"
    return Fold(
        f"{finding.title}: {cases}",
        [
            Text(finding.advice),
            Table(finding.title, ("case", "what"), rows, text=2, tall=True),
            *([Text(f"And {more} more, listed in report.json.")] if more > 0 else []),
            *([Grid(mosaic)] if mosaic else []),
        ],
        is_open=finding.severity in ("error", "warning"),
        severity=finding.severity,
    )


def _typical(names: Sequence[str], pictures: dict[str, Picture]) -> list[Block]:
    found = [pictures[name] for name in names if name in pictures]
    return [Grid([replace(p, title=f"{p.title}, the case of the median volume") for p in found])]


# The cases.


def _charts(dataset: Dataset, summaries: Sequence[Summary], classes: Sequence[str]) -> list[Block]:
    """How volumes, sizes and intensities spread."""
    training = [s for s in summaries if not s.is_test and not s.faults]
    readable = [s for s in summaries if not s.faults]
    if not training:
        return []
    volumes = {name: [s.ml[i] for s in training if s.voxels[i]] for i, name in enumerate(classes)}
    volumes = {name: values for name, values in volumes.items() if values}
    parts = {
        name: [float(s.components[i]) for s in training if s.voxels[i]]
        for i, name in enumerate(classes)
        if name in volumes
    }
    extent = {f"{axis}": [s.extent_mm[i] for s in readable] for i, axis in enumerate("xyz")}
    grey = {dataset.modalities[c]: [s.intensities[c][2] for s in readable] for c in range(len(readable[0].intensities))}
    drawn: list[Block] = [
        Figure(title, charts.strips(groups, label, log=log), _said(groups, label))
        for title, groups, label, log in (
            ("Volume of each class", volumes, "ml", _spreads(volumes)),
            ("Connected components of each class", parts, "components in a label", False),
            ("Size of the images", extent, "mm", False),
            ("Median of the nonzero voxels of each channel", grey, "intensity", _spreads(grey)),
        )
        if len({v for values in groups.values() for v in values}) > 1
    ]
    kept = [s.fraction_kept for s in readable]
    if min(kept) == max(kept):
        return drawn
    said = f"Part of the voxels kept by the crop to nonzero, from {min(kept):.3f} to {max(kept):.3f}."
    drawn.append(Figure("Part kept by the crop to nonzero", charts.histogram(kept, "fraction kept"), said))
    return drawn


def _spreads(groups: dict[str, list[float]]) -> bool:
    """Whether positive values spread over more than a factor 30, so that a logarithmic scale shows them better."""
    values = [v for group in groups.values() for v in group]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def _said(groups: dict[str, list[float]], label: str) -> str:
    """What a chart shows, in words."""
    return "; ".join(
        f"{name}: {len(values)} values, median {sorted(values)[len(values) // 2]:.4g}, from {min(values):.4g} to "
        f"{max(values):.4g} {label}"
        for name, values in groups.items()
    )


def _table(
    dataset: Dataset,
    summaries: Sequence[Summary],
    classes: Sequence[str],
    pictures: dict[str, Picture],
    findings: Sequence[doctor.Finding],
) -> Block:
    """All cases; a line unfolds to its picture and what was found."""
    single = len(dataset.modalities) == 1
    columns = [
        "case", "set", "orientation", "shape", "spacing (mm)", "kept", *(f"{c} (ml)" for c in classes),
        *(f"{c} parts" for c in classes), *(f"range{'' if single else f' of {m}'}" for m in dataset.modalities),
        "found",
    ]  # fmt: skip
    said: dict[str, list[str]] = {}
    for finding in findings:
        for hit in finding.hits:
            said.setdefault(hit.case, []).append(f"{finding.title}: {hit.what}")
    rows = [_row(s, len(columns), len(classes), pictures.get(s.name), said.get(s.name, [])) for s in summaries]
    table = Table("All images; a click on a name shows the picture", columns, rows, text=3, tall=True)
    return Fold(f"All {counted(len(rows), 'image')}", [table], is_open=True)


def _row(s: Summary, width: int, num_classes: int, picture: Picture | None, said: Sequence[str]) -> Row:
    details: list[Block] = [Note(text, "warning") for text in said]
    details += [picture] if picture else []
    kind = "test" if s.is_test else "training"
    if s.faults:
        return Row([*words(s.name, kind), *words(*["-"] * (width - 3)), Cell("unreadable", mark="error")], details)
    volumes = [cell(v, 2 if v >= 0.1 or not v else 4) for v in s.ml] or [cell(None)] * num_classes
    parts = [cell(float(c), 0) for c in s.components] or [cell(None)] * num_classes
    return Row(
        [
            *words(s.name, kind, s.orientation),
            Cell(" x ".join(map(str, s.shape)), float(_product(s.shape))),
            Cell(" x ".join(f"{v:.4g}" for v in s.spacing), _product(s.spacing)),
            cell(s.fraction_kept, 2),
            *volumes,
            *parts,
            *(Cell(f"{v[1]:.4g} to {v[3]:.4g}", v[3] - v[1]) for v in s.intensities),
            Cell(str(len(said)), len(said), "warning" if said else None),
        ],
        details,
    )


def _product(values: Sequence[float]) -> float:
    found = 1.0
    for value in values:
        found *= value
    return found


def _facts(s: Summary, classes: Sequence[str]) -> dict[str, object]:
    """What report.json says of a case: everything but the picture."""
    if s.faults:
        return {"is_test": s.is_test, "faults": list(s.faults)}
    by_class = {
        name: {"ml": s.ml[i], "voxels": s.voxels[i], "components": s.components[i], "holes": s.holes[i]}
        for i, name in enumerate(classes)
        if s.voxels
    }
    return {
        "is_test": s.is_test,
        "shape": list(s.shape),
        "spacing": list(s.spacing),
        "orientation": s.orientation,
        "fraction_kept": s.fraction_kept,
        "intensities": [list(v) for v in s.intensities],
        "classes": by_class,
    }
