"""Facts and choices that several tests make."""

import dataclasses

from conftest import TINY_PLAN

from autoplan.data.facts import CaseFacts, Fingerprint
from autoplan.evaluation.choice import Candidate, CaseDice, Setting, choose

CASE = CaseFacts("a", (40, 40, 40), (1.0, 1.0, 1.0), (40, 40, 40), (9,), (1,))
LABELS = ((0, "background"), (7, "organ"))


def case(**fields) -> CaseFacts:
    return dataclasses.replace(CASE, **fields)


def fingerprint(cases, modalities=("MRI",), intensities=(None,)) -> Fingerprint:
    return Fingerprint("key", "Task99_Made", modalities, LABELS, tuple(cases), intensities)


def chosen(*members: str):
    dice = CaseDice((0.75, None), (0.5, None))
    setting = Setting(TINY_PLAN.name, ("ball", "box"), ("ball",), (0,), 5, 5)
    return choose(setting, {Candidate(members): {"case_0": dice}})
