"""plan.json, the decisions that planning leaves beside the bundles.

It is JSON to be read: a line for each field, and one for each fold, configuration and decision.
"""

from pathlib import Path

from autoplan.base.codec import DAMAGED, from_dict, said, to_dict, write_json
from autoplan.base.errors import PlanError
from autoplan.base.files import read_json
from autoplan.planning.values import Plan

PLAN = "plan.json"


def save_plan(plan: Plan, folder: Path, *, fingerprint_key: str) -> None:
    """Write the plan of a task into the folder of its bundles, with the key of the dataset that it was made for."""
    write_json(folder / PLAN, {"fingerprint": fingerprint_key, **to_dict(plan)})


def load_plan(folder: Path, *, fingerprint_key: str | None = None) -> Plan:
    """The plan that the bundles in a task's folder were written by.

    Args:
        folder: of the task's bundles.
        fingerprint_key: of the dataset as it is now; None where that is not asked.

    Raises:
        PlanError: there is no plan, it is damaged, an older version wrote it, or it is of another dataset.
    """
    path = folder / PLAN
    remedy = f"Plan again: python -m autoplan {folder.name} --bundles {folder.parent}"
    if not path.is_file():
        raise PlanError(f"{folder}: there is no {PLAN}. {remedy}")
    try:
        content = dict(read_json(path))
        key = content.pop("fingerprint")
        plan: Plan = from_dict(Plan, content)
        _check(plan)
    except DAMAGED as error:
        raise PlanError(f"{path} is damaged, or of another version of autoplan ({said(error)}). {remedy}") from error
    if plan.name != folder.name:
        raise PlanError(f"{path} is the plan of another task, {plan.name}. {remedy}")
    if fingerprint_key not in (None, key):
        raise PlanError(f"{path}: the dataset has changed since it was planned. {remedy}")
    return plan


def _check(plan: Plan) -> None:
    """Refuses a plan whose folds do not hold its cases."""
    cases = [case for fold in plan.folds for case in fold]
    if len(set(cases)) != len(cases) or len(cases) != plan.num_training:
        raise ValueError(f"its folds hold {len(cases)} cases, not {plan.num_training}")
