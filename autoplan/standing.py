"""What a plan means for the trainings that are there: which cases have moved, and which networks still hold."""

from collections.abc import Sequence
from pathlib import Path

from autoplan import results
from autoplan.errors import TrainingError
from autoplan.jobs import Job, find_bundles, jobs_of, unfit

Folds = Sequence[Sequence[str]]


def told(task: Path, folds: Folds, before: Folds) -> list[str]:
    """What a user should know who plans a task again, a line each; nothing where nothing has changed.

    Args:
        task: folder of the task's bundles, as they are now.
        folds: validation cases of each fold.
        before: as they were; none for a task that was not planned before.
    """
    lines = [_of_folds(folds, before)] if before and sorted(map(sorted, folds)) != sorted(map(sorted, before)) else []
    for bundle in find_bundles(task):
        jobs = [job for job in _jobs(bundle) if results.training(job.folder) is not None]
        reasons = {job: unfit(job) for job in jobs}
        lines += [f"{job.name} {reason}; train --anew trains it anew." for job, reason in reasons.items() if reason]
        lines += [f"{job.name} holds: {said}." for job in jobs if not reasons[job] and (said := _of_cases(job, folds))]
    return lines


def _jobs(bundle: Path) -> list[Job]:
    try:
        return jobs_of([bundle], begun_on_all=True)
    except TrainingError:
        return []


def _of_folds(folds: Folds, before: Folds) -> str:
    """Which cases are where they were."""
    was, now = ({name: k for k, fold in enumerate(found) for name in fold} for found in (before, folds))
    stay, new = sum(was.get(name) == k for name, k in now.items()), len(now.keys() - was.keys())
    moved, gone = len(now) - stay - new, len(was.keys() - now.keys())
    parts = [f"{stay} cases stay in their folds", f"{new} are new" if new else "", f"{gone} are gone" if gone else ""]
    parts += [f"{moved} are in another fold than before" if moved else ""]
    return f"Folds: {', '.join(filter(None, parts))}."


def _of_cases(job: Job, folds: Folds) -> str:
    """What a network that holds was not trained on, though it is in the dataset now; nothing where there is none."""
    added, changed = results.unseen(job.folder, folds, job.fold or 0)
    parts = [f"it was trained without {len(added)} of the cases" if added else ""]
    parts += [f"on earlier files of {len(changed)} cases" if changed else ""]
    return " and ".join(filter(None, parts))
