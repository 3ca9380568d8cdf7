"""What cross-validation left on disk, scored: the Dice of every candidate on the cases of all finished folds.

`results` says which folds are finished. `Segmenter` turns the stored probabilities of a case into segmentations; it is
the bundles' own code.

The scores are kept in bundles/<Task>/choice.json, and while they are made in .choice.partial.json beside it, with the
networks that they belong to: what is there and still holds is not made again.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

from autoplan.base.codec import format_json, to_dict
from autoplan.base.errors import DatasetError, TemplateError, one_line
from autoplan.base.files import read_object, write_text_atomically
from autoplan.base.processes import MAX_PROCESSES, mapper
from autoplan.base.scripts.memory import processors
from autoplan.bundle.commands import planning_command
from autoplan.data.facts import Dataset
from autoplan.data.images import read_grid
from autoplan.data.labels import read_classes
from autoplan.evaluation import weak
from autoplan.evaluation.choice import ORDER, Candidate, CaseDice, Choice, Missing, Setting, candidates, choose
from autoplan.evaluation.metrics import class_masks, dice
from autoplan.evaluation.segmenter import UNREADABLE, Segmenter, check_same_code
from autoplan.planning.values import Plan
from autoplan.training import results
from autoplan.training.recipe import flags_of_recipe, making_command
from autoplan.training.results import FoldResult, fold_folder, probabilities

FORMAT = 1
"""Version of the saved scores. To be raised whenever their meaning changes."""
RESULT, PARTIAL = "choice.json", ".choice.partial.json"
SAVE_EVERY_S = 10.0
"""Seconds of work that a kill may cost, and a case."""
PREDICTION_SETTINGS = ("mirror", "overlap")
"""Settings of the prediction that should be the same for all candidates."""

OF_A_SHARE = {"budget_seconds", "epoch_length"}
"""Settings in which trainings differ that share a time: each gets what is left."""

Scores = dict[Candidate, dict[str, CaseDice]]


@dataclass(frozen=True)
class Unscored:
    """A case, and for each candidate that has no score yet its files and the bundle whose code segments."""

    name: str
    image: Path
    label: Path
    candidates: tuple[tuple[Candidate, tuple[Path, ...], Path], ...]


@dataclass(frozen=True)
class Comparison:
    """What can be compared: `configurations`, on the validation cases (case -> fold) of the folds they all have;
    `found` is all that is finished, by configuration and fold; `key` is what scores depend on besides networks."""

    configurations: tuple[str, ...]
    cases: Mapping[str, int]
    found: Mapping[str, Mapping[int, FoldResult]]
    key: Mapping[str, Any]


def select(
    planned: Plan,
    dataset: Dataset,
    bundles: Path,
    *,
    fingerprint_key: str,
    segmenter: Segmenter,
    num_processes: int | None = None,
    progress: bool | None = None,
) -> Choice:
    """Scores all candidates on the cases of the finished folds, chooses, and writes choice.json.

    Args:
        planned: the plan; its folds must be those of the bundles.
        dataset: where the labels are.
        bundles: folder of the bundles of all datasets.
        fingerprint_key: digest of the dataset's files.
        segmenter: turns probabilities into segmentations; must be picklable.
        num_processes: processes that score; None: as many as there are processors.
        progress: whether to show a progress bar on stderr; None: where stderr is a terminal.

    Raises:
        TemplateError: no finished fold at all, bundles of another plan, or bundles with other code than each other.
        DatasetError: a label or the probabilities of a case cannot be read, or do not fit.
    """
    folder = bundles / planned.name
    found, missing = finished(planned, folder)
    names, folds = comparable(found)
    if not names:
        raise TemplateError(_nothing(folder, missing))
    check_same_code([folder / name for name in names])
    missing += _left_out(folder, found, names, folds)
    cases = {case: k for k in folds for case in planned.folds[k]}
    comparison = Comparison(names, cases, found, _key(planned, fingerprint_key))
    scores = _scored(comparison, dataset, folder, segmenter, num_processes=num_processes, progress=progress)
    class_names = dict(planned.labels)
    setting = Setting(
        dataset=planned.name,
        classes=tuple(name for _, name in planned.labels[1:]),
        single_component=tuple(class_names[value] for value in planned.single_component),
        folds=folds,
        num_folds=len(planned.folds),
        num_cases=planned.num_training,
        missing=tuple(missing),
        notes=(
            *_notes(comparison, folds),
            *_weak(comparison, folder),
            *_grown(comparison, planned, folder),
            *_origin(planned),
        ),
    )
    choice = choose(setting, scores)
    _write(folder / RESULT, {**_result(choice), **_state(comparison, scores)})
    (folder / PARTIAL).unlink(missing_ok=True)
    return choice


def _key(planned: Plan, fingerprint_key: str) -> dict[str, Any]:
    """What scores depend on, besides the networks."""
    return {
        "format": FORMAT,
        "fingerprint": fingerprint_key,
        "labels": to_dict(planned.labels),
        "single_component": to_dict(planned.single_component),
    }


# What is there.


def finished(planned: Plan, folder: Path) -> tuple[dict[str, dict[int, FoldResult]], list[Missing]]:
    """The finished folds of each configuration that has one, and what is missing.

    Args:
        planned: the plan.
        folder: of the dataset's bundles.

    Raises:
        TemplateError: a bundle has other folds than the plan.
    """
    found: dict[str, dict[int, FoldResult]] = {}
    missing: list[Missing] = []
    for name in sorted((c.name for c in planned.configurations), key=ORDER.index):
        bundle = folder / name
        if not (bundle / "configs" / "train.json").is_file():
            missing.append(Missing(name, (), "there is no bundle", planning_command(bundle)))
            continue
        _check_folds(planned, bundle)
        read = [results.read(fold_folder(bundle, k), cases) for k, cases in enumerate(planned.folds)]
        there = {k: fold for k, fold in enumerate(read) if isinstance(fold, FoldResult)}
        gaps = {k: what for k, what in enumerate(read) if isinstance(what, str)}
        if there:
            found[name] = there
            missing += _missing_folds(bundle, gaps)
        else:
            what = f"no fold is finished; fold 0 {gaps[0]}"
            missing.append(Missing(name, (), what, making_command(bundle, [0])))
    return found, missing


def _missing_folds(bundle: Path, gaps: Mapping[int, str]) -> list[Missing]:
    """Folds that lack something, together where they lack the same and the same command makes it."""
    groups: dict[tuple[str, str], list[int]] = {}
    for k, what in gaps.items():
        groups.setdefault((what, flags_of_recipe(bundle, k)), []).append(k)
    return [Missing(bundle.name, tuple(ks), what, making_command(bundle, ks)) for (what, _), ks in groups.items()]


def _check_folds(planned: Plan, bundle: Path) -> None:
    """Refuses a bundle whose folds are not the plan's: its networks have seen other cases."""
    if results.folds(bundle) != to_dict(planned.folds):
        raise TemplateError(
            f"{bundle}: configs/datalist.json has other folds than the plan of the dataset as it is now. "
            f"Bring the dataset back, or write the bundles anew by {planning_command(bundle)} --force and train."
        )


def comparable(found: Mapping[str, Mapping[int, object]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The configurations that are compared, and the finished folds that they have in common.

    As many configurations as share a fold are compared; among equally many those that share more folds, then the
    simpler ones. Nothing where nothing is finished.

    Source: our choice; the paper compares complete cross-validations.
    """
    there = sorted(found, key=ORDER.index)
    for count in range(len(there), 0, -1):
        groups = [(names, _common(found, names)) for names in itertools.combinations(there, count)]
        best = max(groups, key=lambda group: len(group[1]))  # the first of equals, which is the simplest
        if best[1]:
            return best
    return (), ()


def _common(found: Mapping[str, Mapping[int, object]], names: Sequence[str]) -> tuple[int, ...]:
    """Folds that all of these configurations have."""
    return tuple(sorted(set.intersection(*(set(found[name]) for name in names))))


def _left_out(
    folder: Path, found: Mapping[str, Mapping[int, FoldResult]], names: Sequence[str], folds: Sequence[int]
) -> list[Missing]:
    """Configurations with finished folds that share none with the compared ones."""
    return [
        Missing(
            name,
            (),
            f"its finished folds ({', '.join(map(str, there))}) are none of those compared",
            making_command(folder / name, folds[:1]),
        )
        for name, there in found.items()
        if name not in names
    ]


def _nothing(folder: Path, missing: Sequence[Missing]) -> str:
    """The message where no fold is finished."""
    lines = [f"  {m.configuration}: {m.what}\n    {m.command}" for m in missing]
    return "\n".join([f"{folder}: no configuration has a finished fold, so there is nothing to choose from.", *lines])


def _notes(comparison: Comparison, folds: Sequence[int]) -> tuple[str, ...]:
    """Warnings where the candidates were not predicted alike, or folds of one configuration not trained alike."""
    notes = []
    for setting in PREDICTION_SETTINGS:
        used = {name: _values(comparison.found[name], folds, setting) for name in comparison.configurations}
        if len({value for values in used.values() for value in values}) > 1:
            listed = "; ".join(f"{name} {' and '.join(values)}" for name, values in used.items())
            notes.append(f"Warning: the predictions differ in {setting}, so they are not quite comparable: {listed}.")
    mixed = (_mixed_recipe(name, comparison.found[name]) for name in comparison.configurations)
    return (*notes, *filter(None, mixed))


def _weak(comparison: Comparison, folder: Path) -> list[str]:
    """Networks that are far worse than the others of their configuration, or were trained far shorter."""
    return [
        line for name in comparison.configurations for line in weak.told(folder / name, list(comparison.found[name]))
    ]


def _grown(comparison: Comparison, planned: Plan, folder: Path) -> list[str]:
    """Networks that were trained before cases were added or changed."""
    notes = []
    for name in comparison.configurations:
        there = comparison.found[name]
        counts = {k: len(results.unseen(fold_folder(folder / name, k), planned.folds, k)[0]) for k in there}
        listed = ", ".join(f"fold {k} without {count}" for k, count in counts.items() if count)
        notes += [f"Networks of {name} were trained without cases that are there now: {listed}."] if listed else []
    return notes


def _origin(planned: Plan) -> tuple[str, ...]:
    """What to know where trainings have not started from random weights."""
    if planned.origin is None:
        return ()
    from_where = f"{planned.origin.title}, which was trained on {planned.origin.dataset}"
    seen = f"Cases of {planned.name} that it has seen score too well"
    return (f"The trainings went on from {from_where}. {seen}.",)


def _mixed_recipe(name: str, found: Mapping[int, FoldResult]) -> str:
    """A warning where the folds of a configuration were trained with different settings; nothing where they agree."""
    recorded = {k: fold.training for k, fold in found.items() if fold.training}
    share_a_time = all("budget_seconds" in settings for settings in recorded.values())
    keys = sorted({key for settings in recorded.values() for key in settings} - (OF_A_SHARE if share_a_time else set()))
    listed = []
    for key in keys:
        values: dict[str, list[int]] = {}
        for k, settings in recorded.items():
            values.setdefault(str(settings.get(key)), []).append(k)
        if len(values) > 1:
            told = ", ".join(f"{value} (fold {', '.join(map(str, ks))})" for value, ks in values.items())
            listed.append(f"{key} {told}")
    return f"Warning: the folds of {name} were trained with different settings: {'; '.join(listed)}." if listed else ""


def _values(found: Mapping[int, FoldResult], folds: Sequence[int], setting: str) -> list[str]:
    """Values of a setting in the folds of a configuration."""
    return sorted({str(found[k].settings.get(setting)) for k in folds})


# Scoring.


def _scored(
    comparison: Comparison,
    dataset: Dataset,
    folder: Path,
    segmenter: Segmenter,
    *,
    num_processes: int | None,
    progress: bool | None,
) -> Scores:
    """Dice of every candidate and case; what was saved is not made again."""
    scores = _saved(comparison, folder)
    jobs = _jobs(comparison, dataset, folder, scores)
    if not jobs:
        return scores
    processes = min(num_processes or min(processors(), MAX_PROCESSES), len(jobs))
    score = partial(
        _score, segmenter=segmenter, values=[value for value, _ in dataset.labels[1:]], ignore=dataset.ignore
    )
    hidden, since = None if progress is None else not progress, time.monotonic()
    try:
        with mapper(
            processes, preload=("monai.bundle", "monai.transforms", "autoplan.evaluation.crossvalidation")
        ) as each:
            for name, made in tqdm(each(score, jobs), total=len(jobs), desc="scoring", unit="case", disable=hidden):
                for candidate, result in made:
                    scores[candidate][name] = result
                if time.monotonic() - since > SAVE_EVERY_S:
                    _write(folder / PARTIAL, _state(comparison, scores))
                    since = time.monotonic()
    except BaseException:
        _write(folder / PARTIAL, _state(comparison, scores))
        raise
    return scores


def _jobs(comparison: Comparison, dataset: Dataset, folder: Path, scores: Scores) -> list[Unscored]:
    """What is not scored yet, case by case."""
    files = {case.name: (dataset.root / case.images[0], dataset.root / str(case.label)) for case in dataset.training}
    jobs = []
    for name, k in comparison.cases.items():
        todo = tuple(
            (
                c,
                tuple(probabilities(fold_folder(folder / m, k), name) for m in c.members),
                folder / c.members[0],
            )
            for c, by_case in scores.items()
            if name not in by_case
        )
        jobs += [Unscored(name, *files[name], todo)] if todo else []
    return jobs


def _score(
    job: Unscored, *, segmenter: Segmenter, values: Sequence[int], ignore: int | None
) -> tuple[str, list[tuple[Candidate, CaseDice]]]:
    """Dice of one case for each candidate, with and without postprocessing. The label is read once."""
    label, _ = read_classes(job.label, on=read_grid(job.image))
    masks, known, made = class_masks(label, values), label != ignore, []
    for candidate, members, bundle in job.candidates:
        try:
            pair = segmenter(members, bundle)
        except UNREADABLE as error:
            raise DatasetError(
                f"{members[0].parent}, {job.name}: the probabilities of {candidate.name} cannot be used "
                f"({type(error).__name__}: {one_line(error)}). Delete the file and predict the fold again."
            ) from error
        for segmentation in pair:
            if segmentation.shape != label.shape:
                raise DatasetError(
                    f"{job.name}: the segmentation by {candidate.name} has shape {segmentation.shape}, the label "
                    f"{label.shape}. Predict the fold again, with the dataset as it is now."
                )
        postprocessed, *plain = (dice(masks, s if ignore is None else s * known) for s in _different(pair))
        made.append((candidate, CaseDice(postprocessed, plain[0] if plain else postprocessed)))
    return job.name, made


def _different(pair: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """A pair of segmentations; one, where both are the same array."""
    return [pair[0]] if pair[0] is pair[1] else [*pair]


# The file.


def _saved(comparison: Comparison, folder: Path) -> Scores:
    """Scores that were saved and still hold, for each candidate; none for a candidate that has none."""
    scores: Scores = {candidate: {} for candidate in candidates(comparison.configurations)}
    for path in (folder / RESULT, folder / PARTIAL):
        content = read_object(path)
        try:
            if content and content["key"] == comparison.key:
                for candidate, by_case in scores.items():
                    by_case.update(_valid(comparison, candidate, content))
        except (KeyError, TypeError, AttributeError, ValueError):
            continue  # not what was written here
    return scores


def _valid(comparison: Comparison, candidate: Candidate, content: Mapping[str, Any]) -> dict[str, CaseDice]:
    """A candidate's saved scores of compared cases whose networks and settings are still the same."""
    now, then = _networks(comparison), content["networks"]
    return {
        case: CaseDice(_dice_values(entry["postprocessed"]), _dice_values(entry["plain"]))
        for case, entry in content["cases"].get(candidate.name, {}).items()
        if case in comparison.cases
        and all(
            then.get(m, {}).get(str(comparison.cases[case])) == now[m][str(comparison.cases[case])]
            for m in candidate.members
        )
    }


def _dice_values(values: Any) -> tuple[float | None, ...]:
    """Dice of each class, as it was written. Raises ValueError for something else."""
    if not isinstance(values, list) or any(
        v is not None and not (type(v) in (int, float) and 0 <= v <= 1) for v in values
    ):
        raise ValueError("no Dice")
    return tuple(values)


def _networks(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Network and settings behind the predictions of each compared configuration and fold."""
    folds = sorted(set(comparison.cases.values()))
    return {name: {str(k): to_dict(comparison.found[name][k]) for k in folds} for name in comparison.configurations}


def _state(comparison: Comparison, scores: Scores) -> dict[str, Any]:
    """What `_saved` reads."""
    return {
        "key": dict(comparison.key),
        "networks": _networks(comparison),
        "cases": {
            candidate.name: {case: to_dict(by_case[case]) for case in sorted(by_case)}
            for candidate, by_case in scores.items()
        },
    }


def _result(choice: Choice) -> dict[str, Any]:
    """What people and programs read."""
    return {
        "winner": list(choice.winner.members),
        "is_distinct": choice.is_distinct,
        "setting": to_dict(choice.setting),
        "bootstrap": {"num_resamples": choice.num_resamples, "seed": choice.seed},
        "scores": [{"name": score.candidate.name, **to_dict(score)} for score in choice.scores],
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON under a temporary name that is then renamed."""
    write_text_atomically(path, format_json(dict(content)))
