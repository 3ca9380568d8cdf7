"""What labels keep at a coarser spacing and back."""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoplan.budget import coarser
from autoplan.data.facts import Case, Dataset

SHAPE, SPACING = (20, 24, 16), (1.0, 1.0, 2.0)


def block(*corners: tuple[int, int], value: int = 1) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[tuple(slice(*c) for c in corners)] = value
    return label


def dataset(folder: Path, labels: Sequence[np.ndarray], axes: tuple[int, ...] = (0, 1, 2)) -> Dataset:
    """A dataset with some labels, stored with their axes in some order."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(SPACING)[:, axes]
    for k, label in enumerate(labels):
        nibabel.save(nibabel.Nifti1Image(label.transpose(axes), affine), folder / f"case_{k}.nii.gz")
    cases = tuple(Case(f"case_{k}", (), f"case_{k}.nii.gz") for k in range(len(labels)))
    return Dataset(folder, "Tiny", ("MRI",), ((0, "background"), (1, "one"), (2, "two")), cases, ())


# 8 x 8 x 6 voxels on even numbers: halved in the plane it is the same block, and linear interpolation rounds off the
# corners of each slice by no voxel (3/4 x 3/4 > 1/2).
WHOLE = block((4, 12), (6, 14), (3, 9))
SHEET = block((4, 5), (6, 14), (3, 9))
"""One voxel thick. Halved it is half a coarse voxel, which goes to the higher class: two voxels when it is back."""


@pytest.mark.parametrize(
    ("labels", "spacing", "expected"),
    [
        pytest.param([WHOLE], (1, 1, 2), 1.0, id="the same spacing"),
        pytest.param([WHOLE], (2, 2, 2), 1.0, id="a large block"),
        pytest.param([WHOLE], (2, 2, 4), 2 * 384 / (384 + 8**3 - 8), id="a slice more on both sides, without corners"),
        pytest.param([SHEET], (2, 2, 2), 2 * 48 / (48 + 96), id="a sheet"),
        pytest.param([WHOLE, SHEET], (2, 2, 2), (1 + 2 / 3) / 2, id="the mean of cases"),
        pytest.param([WHOLE, 0 * WHOLE], (2, 2, 2), 1.0, id="an empty label says nothing"),
        pytest.param([0 * WHOLE, 0 * WHOLE], (2, 2, 2), 0.0, id="nor do empty ones alone"),
        pytest.param([np.maximum(WHOLE, block((14, 15), (6, 14), (3, 9), value=2))], (2, 2, 2), 2 / 3,
                     id="the class that keeps least"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_what_labels_keep(
    tmp_path: Path, labels: list[np.ndarray], spacing: tuple, expected: float, axes: tuple
) -> None:
    assert coarser.dice_kept(dataset(tmp_path, labels, axes), spacing) == pytest.approx(expected)


def test_some_cases_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than said, spread over all."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(coarser, "_kept", lambda mask, *_: seen.append(mask) or 1.0)
    labels = [block((0, k + 1), (0, 1), (0, 1)) for k in range(17)]
    coarser.dice_kept(dataset(tmp_path, labels), (2, 2, 2))
    assert [int(mask.sum()) for mask in seen] == [1, 4, 7, 10, 13, 16]


def test_many_large_cases_take_no_longer_than_said(tmp_path: Path) -> None:
    """A damaged label behind those that there was time for is not read."""
    loaded = dataset(tmp_path, [WHOLE] * 3)
    (tmp_path / "case_2.nii.gz").write_bytes(b"")
    times = iter([0.0, coarser.SECONDS, coarser.SECONDS + 1])
    assert coarser.dice_kept(loaded, (2, 2, 2), clock=lambda: next(times)) == 1.0


@pytest.mark.parametrize(
    ("kept", "word"), [(0.9, "planned again at a spacing of 3 x 3 x 10 mm"), (0.89, "the spacing stays")]
)
def test_what_is_said(kept: float, word: str) -> None:
    assert word in coarser.told((3.0, 3.0, 10.0), kept)
