"""What planning leaves beside the bundles: fingerprint.json, the facts, and plan.json, the decisions.

Both are JSON to be read: a line for each field, and one for each case, fold, configuration and decision.
"""

import json
from pathlib import Path
from typing import Any

from autoplan.errors import DatasetError, PlanError, one_line
from autoplan.facts import Fingerprint, Plan, from_dict, to_dict
from autoplan.files import read_json, write_text_atomically

FINGERPRINT, PLAN = "fingerprint.json", "plan.json"
_DAMAGED = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)


def save_fingerprint(fingerprint: Fingerprint, path: Path) -> None:
    """Write a fingerprint as JSON; its folder is made where it is missing."""
    _write(path, to_dict(fingerprint))


def load_fingerprint(path: Path) -> Fingerprint:
    """The fingerprint that was saved.

    Raises:
        DatasetError: there is none, it is damaged, or an older version wrote it.
    """
    try:
        loaded: Fingerprint = from_dict(Fingerprint, read_json(path))
    except _DAMAGED as error:
        raise DatasetError(
            f"{path} holds no fingerprint ({_said(error)}). Remove the file; planning writes it again."
        ) from error
    return loaded


def save_plan(plan: Plan, folder: Path, *, fingerprint_key: str) -> None:
    """Write the plan of a task into the folder of its bundles, with the key of the dataset that it was made for."""
    _write(folder / PLAN, {"fingerprint": fingerprint_key, **to_dict(plan)})


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
    except _DAMAGED as error:
        raise PlanError(f"{path} is damaged, or of another version of autoplan ({_said(error)}). {remedy}") from error
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


def _said(error: BaseException) -> str:
    """What an error says, in few words."""
    text = one_line(error)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _write(path: Path, data: dict[str, Any]) -> None:
    """JSON, first under a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = (f" {_json(name)}: {_lines(value)}" for name, value in data.items())
    write_text_atomically(path, "{\n" + ",\n".join(fields) + "\n}\n")


def _lines(value: Any) -> str:
    """A field: a list of objects or lists has a line for each."""
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return "[\n" + ",\n".join(f"  {_json(v)}" for v in value) + "\n ]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
