"""The doctor of the report: every finding has a dataset that shows it and one that does not."""

import shutil

import numpy as np
import pytest
from faulty import FAULTS, Made, findings, write

from autoplan.report.sections import doctor


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, object]:
    """Datasets without a fault, by their modality, and what was kept of their images; not to be changed."""
    made = {}
    for modality in ("MRI", "CT"):
        root = tmp_path_factory.mktemp(modality)
        write(root / "Task01_Made", modality=modality)
        assert findings(root / "Task01_Made", root / "kept") == []
        made[modality] = root
    return made


def test_every_finding_has_a_fault() -> None:
    assert {fault.kind for fault in FAULTS} == set(doctor.KINDS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_and_nothing_else(fault, sound, tmp_path) -> None:
    shutil.copytree(sound[fault.modality], tmp_path / "made")
    folder = tmp_path / "made" / "Task01_Made"
    made = Made(folder, np.random.default_rng(1))
    fault.make(made)
    found = findings(folder, tmp_path / "made" / "kept")
    by_kind = {f.kind: f for f in found}
    assert fault.kind in by_kind
    assert set(by_kind) <= {fault.kind, *fault.also}
    assert fault.case in [name for hit in by_kind[fault.kind].hits for name in (hit.case, hit.other)]
