"""Fixtures: real datasets where they are there, and a tiny one made on the spot."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """`real_data(task)`: the folder of a real dataset; the test is skipped where it is not there."""

    def find(task: str) -> Path:
        for root in (PROJECT.parent / "shared" / "data", PROJECT / "data"):
            if (root / task / "dataset.json").is_file():
                return root / task
        pytest.skip(f"{task} is not there")

    return find


@dataclass(frozen=True)
class Tiny:
    """A dataset of a few small images, to be spoilt by a test."""

    folder: Path

    @property
    def description(self) -> dict[str, Any]:
        """What dataset.json says."""
        return json.loads((self.folder / "dataset.json").read_text())

    def describe(self, **fields: Any) -> None:
        """Changes fields of dataset.json; None takes one out."""
        changed = {**self.description, **fields}
        kept = {name: value for name, value in changed.items() if value is not None}
        (self.folder / "dataset.json").write_text(json.dumps(kept))

    def image(self, case: str, part: str = "imagesTr") -> Path:
        """Path of a file."""
        return self.folder / part / f"{case}.nii.gz"

    def write(self, path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
        """Replaces a file's voxels and perhaps its affine."""
        affine = nibabel.load(path).affine if affine is None else affine
        nibabel.save(nibabel.Nifti1Image(array, affine), path)

    def read(self, path: Path) -> np.ndarray:
        """A file's voxels, as a copy."""
        return np.asanyarray(nibabel.load(path).dataobj).copy()


def write_tiny(folder: Path, *, num_cases: int = 5, modalities: tuple[str, ...] = ("MRI",)) -> Tiny:
    """Writes a dataset of random images of 12 x 10 x 8 voxels with two classes."""
    rng = np.random.default_rng(0)
    names = [f"case_{i}" for i in range(num_cases)]
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    tiny, affine = Tiny(folder), np.diag([1.0, 1.0, 2.0, 1.0])
    shape = (12, 10, 8) if len(modalities) == 1 else (12, 10, 8, len(modalities))
    label = np.zeros((12, 10, 8), dtype=np.uint8)
    label[2:5, 2:5, 2:5], label[7:9, 2:5, 2:5] = 1, 2
    for name in (*names, "test_0"):
        part = "imagesTs" if name == "test_0" else "imagesTr"
        tiny.write(tiny.image(name, part), rng.integers(1, 200, shape).astype(np.int16), affine)
    for name in names:
        tiny.write(tiny.image(name, "labelsTr"), label, affine)
    (folder / "dataset.json").write_text("{}")
    tiny.describe(
        name="Tiny",
        modality={str(i): m for i, m in enumerate(modalities)},
        labels={"0": "background", "1": "a", "2": "b"},
        training=[{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        test=["./imagesTs/test_0.nii.gz"],
    )
    return tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """A valid dataset of five small cases and a test image."""
    return write_tiny(tmp_path / "Task90_Tiny")


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[..., Tiny]:
    """`make_tiny(num_cases=5, modalities=("MRI",))`: a valid dataset."""
    return lambda **options: write_tiny(tmp_path / "Task91_Tiny", **options)
