"""Made datasets, each with one fault, for the doctor of the report: one that shows each of its findings, and one that
has none."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from autoplan.data import decathlon as datasets
from autoplan.data.fingerprint import is_ct
from autoplan.report.sections import doctor
from autoplan.report.summaries import summaries

SHAPE, CASES, TESTS = (24, 22, 16), 20, 2
CASE, OTHER = "case_07", "case_13"
"""The case that a fault is in, and one that it is compared with; in different folds."""


@dataclass(frozen=True)
class Made:
    """A dataset on disk."""

    folder: Path
    rng: np.random.Generator

    def path(self, name: str, part: str = "imagesTr") -> Path:
        return self.folder / part / f"{name}.nii.gz"

    def read(self, name: str, part: str = "imagesTr") -> np.ndarray:
        return np.asanyarray(nibabel.load(self.path(name, part)).dataobj).copy()

    def write(self, array: np.ndarray, name: str, part: str = "imagesTr", affine: np.ndarray | None = None) -> None:
        affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
        nibabel.save(nibabel.Nifti1Image(array, affine), self.path(name, part))

    def label(self, name: str, change: Callable[[np.ndarray], None]) -> None:
        """Changes a label in place."""
        array = self.read(name, "labelsTr")
        change(array)
        self.write(array, name, "labelsTr")

    def describe(self, **fields: object) -> None:
        path = self.folder / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    def rename(self, names: dict[str, str]) -> None:
        """Gives training cases other names."""
        for old, new in names.items():
            for part in ("imagesTr", "labelsTr"):
                self.path(old, part).rename(self.path(new, part))
        self.describe(training=_training([names.get(name, name) for name in _names()]))


def _names() -> list[str]:
    return [f"case_{i:02d}" for i in range(CASES)]


def _training(names: list[str]) -> list[dict[str, str]]:
    return [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]


def write(folder: Path, *, seed: int = 0, modality: str = "MRI") -> Made:
    """Writes a dataset without a fault: smooth images of their own, a ball and a box that vary in size and place."""
    made = Made(folder, np.random.default_rng(seed))
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for name in [*_names(), *(f"test_{i}" for i in range(TESTS))]:
        image, label = _case(made.rng)
        made.write(image, name, "imagesTs" if name.startswith("test") else "imagesTr")
        if not name.startswith("test"):
            made.write(label, name, "labelsTr")
    (folder / "dataset.json").write_text("{}")
    made.describe(
        name="Made", modality={"0": modality}, labels={"0": "background", "1": "ball", "2": "box"},
        training=_training(_names()), test=[f"./imagesTs/test_{i}.nii.gz" for i in range(TESTS)],
    )  # fmt: skip
    return made


def _case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    label = np.zeros(SHAPE, np.uint8)
    x, y, z = np.indices(SHAPE)
    at = np.array([8, 11, 8]) + rng.integers(-1, 2, 3)
    label[((x - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2]) ** 2) <= rng.uniform(10, 16)] = 1
    a, b = rng.integers(14, 17), rng.integers(5, 9)
    label[a : a + 5, b : b + 6, 5:10] = 2
    noise = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
    image = 300 + 60 * noise / noise.std() + 200 * label + rng.normal(0, 5, SHAPE)
    return np.rint(image).astype(np.int16), label


# Faults.


def _geometry(m: Made) -> None:
    m.write(m.read(CASE), CASE, affine=np.diag([4.0, 1, 2, 1]))
    m.write(m.read(CASE, "labelsTr"), CASE, "labelsTr", affine=np.diag([4.0, 1, 2, 1]))


def _orientation(m: Made) -> None:
    for part in ("imagesTr", "labelsTr"):
        m.write(m.read(CASE, part), CASE, part, affine=np.diag([-1.0, 1, 2, 1]))


def _island(label: np.ndarray) -> None:
    label[1, 1, 8:10] = 1


def _hole(label: np.ndarray) -> None:
    label[tuple(int(v) for v in ndimage.center_of_mass(label == 1))] = 0


def _without_box(label: np.ndarray) -> None:
    label[label == 2] = 0


def _tiny_box(label: np.ndarray) -> None:
    at = np.argwhere(label == 2)[0]
    label[label == 2] = 0
    label[at[0] : at[0] + 2, at[1], at[2]] = 2


def _tiny_class(m: Made) -> None:
    for name in _names():
        m.label(name, _tiny_box)


def _huge_ball(label: np.ndarray) -> None:
    label[1:14, 2:20, 1:15] = 1


def _inverted(m: Made) -> None:
    image = m.read(CASE)
    m.write(image.max() + 1 - image, CASE)


def _artefact(m: Made) -> None:
    image = m.read(CASE)
    image[3, 3, 3] = 30000
    m.write(image, CASE)


def _shifted(m: Made) -> None:
    m.write(m.read(CASE) + np.int16(1024), CASE)


def _empty_slice(m: Made) -> None:
    image = m.read(CASE)
    image[:, :, 7] = 0
    m.write(image, CASE)


def _unlabelled_slice(label: np.ndarray) -> None:
    label[:, :, 8] = 0


def _noisy(m: Made, sigma: float, source: str = CASE) -> np.ndarray:
    image = m.read(source)
    return np.rint(image + m.rng.normal(0, sigma, SHAPE)).astype(np.int16)


def _later_image(m: Made) -> None:
    """Of the same patient: a little moved and with other noise."""
    image = ndimage.shift(m.read(CASE).astype(float), (0.4, 0.3, 0.2), mode="nearest")
    m.write(np.rint(image + m.rng.normal(0, 15, SHAPE)).astype(np.int16), OTHER)


def _patient_names(m: Made) -> None:
    m.rename({n: f"patient{i // 2:03d}_frame{i % 2 * 11 + 1:02d}" for i, n in enumerate(_names())})


def _class_nowhere(m: Made) -> None:
    m.describe(labels={"0": "background", "1": "ball", "2": "box", "3": "cone"})


def _on_label(change: Callable[[np.ndarray], None]) -> Callable[[Made], None]:
    return lambda m: m.label(CASE, change)


@dataclass(frozen=True)
class Fault:
    """What is done to a dataset, the finding that should tell, and its case; `also` are other findings that are right,
    too, `modality` that of the images."""

    name: str
    kind: str
    make: Callable[[Made], None]
    case: str = CASE
    also: tuple[str, ...] = ()
    modality: str = "MRI"


FAULTS = (
    Fault("a file that is no image", "unreadable", lambda m: m.path(CASE).write_bytes(b"x")),
    Fault("a spacing four times as large", "geometry", _geometry, also=("label_gaps",)),
    Fault("another orientation", "orientation", _orientation),
    Fault("two voxels apart from a class", "islands", _on_label(_island)),
    Fault("a voxel missing inside a class", "holes", _on_label(_hole)),
    Fault("a class that no label has", "class_nowhere", _class_nowhere, ""),
    Fault("a class missing in a label", "missing_class", _on_label(_without_box)),
    Fault("a class of two voxels everywhere", "tiny_class", _tiny_class, ""),
    Fault("a class of two voxels in one label", "tiny_label", _on_label(_tiny_box), also=("volume",)),
    Fault("a class some 15 times as large", "volume", _on_label(_huge_ball), also=("intensity",)),
    Fault("an inverted image", "intensity", _inverted),
    Fault("a very bright voxel", "intensity", _artefact),
    Fault("a CT shifted by 1024 HU", "intensity", _shifted, modality="CT"),
    Fault("a slice without content", "empty_slices", _empty_slice),
    Fault("a slice without label", "label_gaps", _on_label(_unlabelled_slice), also=("islands",)),
    Fault("a test image that is a training image", "test_in_training",
          lambda m: shutil.copy(m.path(CASE), m.path("test_0", "imagesTs")), "test_0"),
    Fault("a test image that is nearly a training image", "test_in_training",
          lambda m: m.write(_noisy(m, 0.5), "test_0", "imagesTs"), "test_0"),
    Fault("an image twice", "duplicate", lambda m: shutil.copy(m.path(CASE), m.path(OTHER))),
    Fault("an image twice, with noise", "duplicate", lambda m: m.write(_noisy(m, 0.5), OTHER)),
    Fault("a later image of the patient", "patient_in_folds", _later_image),
    Fault("names of patients and frames", "patient_in_folds", _patient_names, "patient000_frame01"),
)  # fmt: skip
"""One for each finding at least."""


def findings(folder: Path, cache: Path) -> list[doctor.Finding]:
    """What the doctor says of a dataset, with folds that take every fifth case."""
    dataset = datasets.load(folder)
    looked = summaries(dataset, cache, num_processes=1, progress=False)
    names = [case.name for case in dataset.training]
    classes = [name for _, name in dataset.labels[1:]]
    return doctor.examine(looked, classes, [names[k::5] for k in range(5)], [is_ct(m) for m in dataset.modalities])
