"""A synthetic dataset: for tests, and for a demonstration where there is no internet.

A body with a border of zeros holds, at places that change from case to case: a *nodule*, bright in both channels; a
*ball* and a *tube*, bright in the first channel only, which differ by shape alone; and a decoy, bright in the second
only, that belongs to the background. Noise, a smooth bias and a random gain keep a threshold from finding any of them.
Mirroring and rotation leave the differences between the classes, so a network can learn them from augmented data.
"""

import json
import os
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from autoplan.base.errors import DatasetError

MODALITIES = ("MRI-a", "MRI-b")
LABELS = ("background", "nodule", "ball", "tube")
SHAPE = (48, 40, 20)
SPACING = (1.0, 1.0, 2.5)
BODY_MM = (19.0, 15.0, 19.0)
"""Half the extent of the body."""
NOISE = 0.25
"""Standard deviation of the noise; a bright object stands out by 1."""
BIAS = 0.4
"""Largest deviation of the smooth bias, as a factor, from 1."""
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "SRA")

Array = NDArray[np.float64]


def generate(folder: Path, *, num_cases: int = 10, num_test: int = 3, seed: int = 0) -> None:
    """Writes a dataset of `num_cases` labelled images and `num_test` images without labels to `folder`, all at once
    at the end. The same arguments make the same voxels.

    Raises:
        DatasetError: `folder` exists and is not empty, or there would be no image.
    """
    if num_cases < 1 or num_test < 0:
        raise DatasetError(
            f"cannot make {num_cases} training and {num_test} test cases. Ask for one training case or more."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder}: exists and is not empty. Name another folder, or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".phantom-", dir=folder.parent) as temporary:
        complete = Path(temporary) / "complete"
        _write(complete, num_cases, num_test, seed)
        os.replace(complete, folder)


def _write(folder: Path, num_cases: int, num_test: int, seed: int) -> None:
    """The files of a dataset."""
    names = [f"phantom_{i:03d}" for i in range(num_cases + num_test)]
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for number, name in enumerate(names):
        image, label, spacing = make_case(np.random.default_rng([seed, number]))
        orientation = ORIENTATIONS[number % len(ORIENTATIONS)]
        training = number < num_cases
        _save(folder / ("imagesTr" if training else "imagesTs") / f"{name}.nii.gz", image, spacing, orientation)
        if training:
            _save(folder / "labelsTr" / f"{name}.nii.gz", label, spacing, orientation)
    (folder / "dataset.json").write_text(json.dumps(_description(names, num_cases), indent=1) + "\n", encoding="utf-8")


def _description(names: list[str], num_cases: int) -> dict[str, object]:
    """What dataset.json says."""
    return {
        "name": "Phantom",
        "description": "Synthetic objects in a synthetic body; not medical data",
        "tensorImageSize": "4D",
        "modality": {str(i): name for i, name in enumerate(MODALITIES)},
        "labels": {str(i): name for i, name in enumerate(LABELS)},
        "numTraining": num_cases,
        "numTest": len(names) - num_cases,
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names[:num_cases]],
        "test": [f"./imagesTs/{n}.nii.gz" for n in names[num_cases:]],
    }


def make_case(rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, ...]]:
    """An image (X, Y, Z, C), its label (X, Y, Z) and its spacing, in RAS order."""
    shape = tuple(int(n + rng.integers(-2, 3)) for n in SHAPE)
    spacing = tuple(round(s * rng.uniform(0.95, 1.05), 3) for s in SPACING)
    grid = _grid_mm(shape, spacing)
    body = _norm(grid, np.array(BODY_MM), exponent=4) < 1
    objects = _objects(grid, rng)
    label = np.zeros(shape, dtype=np.uint8)
    for value in range(1, len(LABELS)):
        label[objects[value] & body] = value
    brightness = [objects[1] | objects[2] | objects[3], objects[1] | objects[0]]
    channels = [_channel(bright, body, grid, rng) for bright in brightness]
    return np.stack(channels, axis=-1), label, spacing


def _grid_mm(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Array:
    """Coordinates of the voxels, (3, X, Y, Z), mm from the centre."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    return np.array(np.meshgrid(*axes, indexing="ij"))


def _norm(grid: Array, radii: Array, *, exponent: float = 2) -> Array:
    """Distance from the origin in units of `radii`: below 1 inside an ellipsoid (rounded box for a large exponent)."""
    return np.asarray((np.abs(grid / radii.reshape(3, 1, 1, 1)) ** exponent).sum(axis=0))


def _objects(grid: Array, rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Decoy, nodule, ball and tube, one in each quarter of the plane, quarters drawn at random."""
    quarters = rng.permutation([(-1, -1), (-1, 1), (1, -1), (1, 1)]) * np.array([9.0, 7.5])
    centres = np.column_stack([quarters + rng.uniform(-1, 1, (4, 2)), rng.uniform(-4, 4, 4)])
    decoy, nodule, ball, tube = (grid - centre.reshape(3, 1, 1, 1) for centre in centres)
    solid = [_norm(g, rng.uniform(5, 6.5) * np.ones(3)) < 1 for g in (decoy, nodule, ball)]
    radius, height = rng.uniform(5.8, 6.8), rng.uniform(8, 11)
    distance = np.hypot(tube[0], tube[1])
    return [*solid, (distance < radius) & (distance > radius - 3) & (np.abs(tube[2]) < height)]


def _channel(
    bright: NDArray[np.bool_], body: NDArray[np.bool_], grid: Array, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Intensities of a channel: positive in the body, 0 outside."""
    direction = rng.normal(size=3)
    direction *= BIAS / np.abs(direction * np.array(BODY_MM)).sum()
    bias = 1 + np.tensordot(direction, grid, axes=1)
    values = (1 + bright + rng.normal(scale=NOISE, size=bright.shape)) * bias * rng.uniform(100, 400)
    return np.where(body, np.clip(np.rint(values), 1, 32767), 0).astype(np.int16)


def _save(path: Path, array: NDArray[np.generic], spacing: tuple[float, ...], orientation: str) -> None:
    """A NIfTI file whose axes have the given orientation, centred in the world."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(array.shape[:3], spacing, strict=True)]
    image = nibabel.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))  # type: ignore[no-untyped-call]
    nibabel.save(image.as_reoriented(turn), path)  # type: ignore[no-untyped-call]
