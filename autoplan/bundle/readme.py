"""READMEs of bundles."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoplan.base.scripts import templates_folder
from autoplan.bundle.metadata import Performance, Trained, bundle_name, is_chosen, is_on_all, model_of, on_all
from autoplan.bundle.settings import explained
from autoplan.planning.values import ALL, Configuration, Fold, Plan


def _row(*cells: str) -> str:
    """A line of a table in a README, whatever its cells hold."""
    return f"| {' | '.join(_markdown(cell) for cell in cells)} |"


def _markdown(text: str) -> str:
    """A text that is read as it stands: no column, no tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _explained(*configs: Mapping[str, Any]) -> str:
    """Lines of a table that explains the keys of configs."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return "\n".join(
        f"| `{s.name}` | {'yes' if s.kind in ('planned', 'dataset') else ''} | {s.meaning} |" for s in explained(keys)
    )


def readme_of(templates: Path, plan: Plan, configuration: Configuration, configs: Sequence[Mapping[str, Any]]) -> str:
    decisions = [d for d in plan.decisions if d.configuration in ("", configuration.name)]
    rows = [_row(d.name, d.value, d.source, d.because) for d in decisions]
    values = {
        "name": bundle_name(plan, configuration),
        "dataset": plan.name,
        "configuration": configuration.name,
        "dimensions": f"{len(configuration.patch_size)}D",
        "modalities": _markdown(", ".join(plan.modalities)),
        "classes": _markdown(", ".join(name for _, name in plan.labels[1:])),
        "cases": plan.num_training,
        "folds": len(plan.folds),
        "last_fold": len(plan.folds) - 1,
        "decisions": "\n".join(rows),
        "keys": _explained(*configs),
        "clients": (templates / "clients.md").read_text(encoding="utf-8"),
    }
    stage = templates / f"{configuration.name}.md"
    text = "\n" + string.Template(stage.read_text(encoding="utf-8")).substitute(values) if stage.is_file() else ""
    return string.Template((templates / "README.md").read_text(encoding="utf-8")).substitute(values, stage=text)


@dataclass(frozen=True)
class Shared:
    """What a README tells of a bundle that is handed to others: where its data come from, file names of figures with
    what they show, and for a configuration and a fold the number of cases on which faster predictions were compared,
    with the table of `faster.rows`."""

    data_source: str
    figures: Mapping[str, str]
    faster: Mapping[tuple[str, Fold], tuple[int, Sequence[Sequence[str]]]]


_CHOSEN = (
    "which cross-validation on the dataset $dataset chose among the models and pairs of models that were trained\n"
    "there (sections 2.1 to 2.6 of arXiv:1809.10486)"
)

_TRAINED = "trained on the dataset $dataset (sections 2.1 to 2.5 of arXiv:1809.10486)"

_TO_DO = "; add who trained it"

_NEXT = "Before it is given to others: `python -m autoplan share $dataset` adds what the Model Zoo asks for."


def scored(metadata: Mapping[str, Any]) -> Performance | None:
    """The scores in the metadata of a bundle to share; None where it has none."""
    scores = metadata["eval_metrics"]
    return Performance(scores["cases"], tuple(scores["folds"]), tuple(scores["mean_dice"].items())) if scores else None


def best_readme(
    template: str,
    plan: Plan,
    trained: Sequence[Trained],
    metadata: Mapping[str, Any],
    performance: Performance | None,
    config: Mapping[str, Any],
    shared: Shared | None = None,
) -> str:
    names = {t.configuration.name for t in trained}
    rows = [
        _row(d.configuration or "all", d.name, d.value, d.source, d.because)
        for d in plan.decisions
        if d.configuration in ("", *names)
    ]
    networks = [
        f"- `{t.configuration.name}`: patches of {' x '.join(map(str, t.configuration.patch_size))} voxels, "
        f"{len(t.folds)} network{'s' if len(t.folds) > 1 else ''} ({told_folds(t.folds)})"
        f"{_told_without(t.folds, performance)}"
        for t in trained
    ]
    more = _NEXT if shared is None else (templates_folder() / "docs" / "shared.md").read_text(encoding="utf-8").strip()
    return string.Template(template).substitute(
        name=metadata["name"],
        authors=metadata["authors"] + ". Planned and put together by autoplan" + _TO_DO * (shared is None) + ".",
        terms="" if shared is None else f"\n\nSource: {shared.data_source}. License: `docs/data_license.txt`.",
        figures="" if shared is None else "".join(f"\n![{text}]({file})\n" for file, text in shared.figures.items()),
        faster="" if shared is None else "".join(_faster(*key, *found) for key, found in shared.faster.items()),
        more=string.Template(more).substitute(dataset=plan.name),
        intended_use=metadata["intended_use"],
        dataset=plan.name,
        model=model_of(trained),
        choice=string.Template(_CHOSEN if is_chosen(metadata["autoplan"]) else _TRAINED).substitute(dataset=plan.name),
        modalities=_markdown(", ".join(plan.modalities)),
        classes=_markdown(", ".join(n for _, n in plan.labels[1:])),
        cases=plan.num_training,
        networks="\n".join(networks),
        performance=_performance(trained, performance, is_mirrored=config["mirror"]),
        decisions="\n".join(rows),
        keys=_explained(config),
        clients=(templates_folder() / "docs" / "clients.md").read_text(encoding="utf-8"),
    )


def _told_without(folds: Sequence[Fold], performance: Performance | None) -> str:
    """Which folds count in the scores, while their networks are not there."""
    scored = [] if performance is None or ALL in folds else performance.folds
    absent = [str(k) for k in scored if k not in folds]
    return f"; without fold {' and '.join(absent)}, whose scores are far below the others'" if absent else ""


def told_folds(folds: Sequence[Fold]) -> str:
    """Whose networks they are."""
    return "trained on all cases" if ALL in folds else f"fold {', '.join(map(str, folds))}"


def _performance(trained: Sequence[Trained], performance: Performance | None, *, is_mirrored: bool) -> str:
    """The scores, and what they are of."""
    if performance is None:
        return on_all(trained, None)
    cases = f"over {performance.num_cases} cases of cross-validation ({told_folds(performance.folds)})"
    said = (
        f"{on_all(trained, performance)} Mean Dice {cases}, each predicted by networks\nthat did not train on it:"
        if is_on_all(trained)
        else f"Mean Dice {cases}, each predicted by networks that did not train on it,\n"
        f"with sliding window{', mirroring' * is_mirrored} and postprocessing:"
    )
    lines = [f"- {_markdown(n)}: {'-' if v is None else f'{v:.4f}'}" for n, v in performance.mean_dice]
    return "\n".join([said, "", *lines])


def _faster(configuration: str, fold: Fold, num_cases: int, rows: Sequence[Sequence[str]]) -> str:
    """What a faster prediction costs, as a section."""
    header, *lines = ("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"\n### A faster prediction: {configuration}\n\nThe network of fold {fold} on {num_cases} of its validation "
        "cases. Time is that of the network, as a part of the usual one; lost are objects, a class of a case, that are "
        "found as usual and not so. `overlap`, `mirror` and `region_first` are keys of `configs/inference.json`.\n\n"
        + "\n".join([header, "|--" * len(rows[0]) + "|", *lines])
        + "\n"
    )
