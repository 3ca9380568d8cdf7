"""Fixtures: real datasets where they are there, and a tiny one made on the spot."""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from forks import Forks

from autoplan.bundle.saved import save_plan
from autoplan.data.facts import Case, Dataset
from autoplan.planning.values import ALL, ChannelNormalization, Configuration, Fold, Plan

PROJECT = Path(__file__).resolve().parent.parent
# More threads than that make the small arrays of these tests slower; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a script starts in the background ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The package `scripts` of a bundle, as the templates have it.
sys.path.insert(0, str(PROJECT / "templates"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-example", action="store_true", help="render the committed example anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that at the end no process waits long for another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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


TINY_PLAN = Plan(
    name="Task90_Tiny",
    modalities=("MRI", "CT"),
    labels=((0, "background"), (2, "ball"), (5, "box")),
    num_training=5,
    slice_axis=2,
    normalization=(None, ChannelNormalization(lower=-50.0, upper=150.0, mean=40.5, std=30.25)),
    nonzero_only=False,
    single_component=(2,),
    folds=tuple((f"case_{i}",) for i in range(5)),
    configurations=(
        Configuration(
            name="2d",
            spacing=(1.5, 1.25, 2.0),
            median_shape=(16, 14),
            patch_size=(16, 16),
            batch_size=4,
            strides=((1, 1), (2, 2), (2, 2)),
            features=(4, 8, 16),
            batch_dice=True,
            augmentation="2d",
        ),
        Configuration(
            name="3d_fullres",
            spacing=(1.5, 1.25, 2.0),
            median_shape=(16, 14, 10),
            patch_size=(16, 16, 8),
            batch_size=2,
            strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
            features=(4, 8, 16),
            batch_dice=False,
            augmentation="3d",
        ),
        Configuration(
            name="3d_lowres",
            spacing=(3.0, 2.5, 2.0),
            median_shape=(8, 7, 10),
            patch_size=(8, 8, 8),
            batch_size=2,
            strides=((1, 1, 1), (2, 2, 2), (2, 2, 1)),
            features=(4, 8, 12),
            batch_dice=False,
            augmentation="3d",
        ),
        Configuration(
            name="3d_cascade_fullres",
            spacing=(1.5, 1.25, 2.0),
            median_shape=(16, 14, 10),
            patch_size=(16, 16, 8),
            batch_size=2,
            strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
            features=(4, 8, 16),
            batch_dice=True,
            augmentation="3d",
        ),
    ),
    decisions=(),
)
"""A plan by hand, with networks that train in seconds: two channels of which one is CT, labels that do not count up."""
NAMES = tuple(c.name for c in TINY_PLAN.configurations)
"""Its configurations."""


def write_task(folder: Path, plan: Plan = TINY_PLAN) -> Path:
    """Writes the dataset of `TINY_PLAN`: anisotropic images of another orientation than RAS, with a border of zeros."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    turned = np.array([[-1.25, 0, 0, 40], [0, 1.0, 0, -20], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    angle = np.deg2rad(15)
    oblique = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    rotated = np.block([[oblique @ np.diag([-2.0, -1.5, 3.0]), np.array([[3.0], [4.0], [5.0]])], [0, 0, 0, 1]])
    cases = [(f"case_{i}", "imagesTr", (22, 20, 12), turned) for i in range(plan.num_training)]
    tests = [("test_0", "imagesTs", (18, 25, 9), turned), ("test_1", "imagesTs", (9, 8, 5), rotated)]
    for name, part, shape, affine in [*cases, *tests]:
        image = np.zeros((*shape, 2), np.float32)
        image[2:-2, 1:-1, :-1] = rng.normal(50, 20, (shape[0] - 4, shape[1] - 2, shape[2] - 1, 2))
        label = np.zeros(shape, np.uint8)
        label[4:8, 4:8, 2:6] = 2
        label[11:15, 9:14, 3:7] = 5
        image[label > 0] += 60
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / part / f"{name}.nii.gz")
        if part == "imagesTr":
            nibabel.save(nibabel.Nifti1Image(label, affine), folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "name": "Tiny",
        "modality": {str(i): m for i, m in enumerate(plan.modalities)},
        "labels": {str(v): n for v, n in plan.labels},
        "training": [{"image": f"./imagesTr/{c[0]}.nii.gz", "label": f"./labelsTr/{c[0]}.nii.gz"} for c in cases],
        "test": [f"./imagesTs/{t[0]}.nii.gz" for t in tests],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def dataset_of(plan: Plan, root: Path, test: Sequence[Case] = ()) -> Dataset:
    """The dataset of a plan with the Decathlon's files in `root`, which need not be there."""
    cases = [
        Case(n, (f"imagesTr/{n}.nii.gz",), f"labelsTr/{n}.nii.gz")
        for n in sorted(n for fold in plan.folds for n in fold)
    ]
    return Dataset(root, plan.name, plan.modalities, plan.labels, tuple(cases), tuple(test))


def write_project(folder: Path, plan: Plan = TINY_PLAN) -> Path:
    """Writes data/<task> and the bundles/<task>/<configuration> of a plan."""
    from autoplan.bundle.render import render_all

    render_all(plan, dataset_of(plan, write_task(folder / "data" / plan.name, plan)), folder / "bundles")
    save_plan(plan, folder / "bundles" / plan.name, fingerprint_key="key")
    return folder


def write_finished(folder: Path, parse: Callable[..., Any], folds: Mapping[str, tuple[Fold, ...]]) -> Path:
    """Writes a project of `TINY_PLAN` whose folds look finished, with random networks."""
    import torch

    from autoplan.base.files import file_digest

    project = write_project(folder)
    for name, numbers in folds.items():
        bundle = project / "bundles" / TINY_PLAN.name / name
        settings = parse(bundle, "train", "evaluate", mirror=False).get_parsed_content("prediction_settings")
        training = parse(bundle, "train").get_parsed_content("training_settings")
        for k in numbers:
            torch.manual_seed(10 * NAMES.index(name) + (9 if k == ALL else k))
            network = parse(bundle, "inference").get_parsed_content("network_def")
            found = bundle / "models" / f"fold_{k}"
            (found / "validation" / "probabilities").mkdir(parents=True)
            torch.save(network.state_dict(), found / "model.pt")
            model = file_digest(found / "model.pt")
            finished = {"epochs": 1, "stopped": False, "model": model}
            if k == ALL:
                (found / "finished.json").write_text(json.dumps({**finished, "settings": training}))
                continue
            (found / "finished.json").write_text(json.dumps(finished))
            scores = {"model": model, "settings": settings, "cases": {f"case_{k}": {"ball": 0.5 + k / 10, "box": None}}}
            (found / "validation" / "dice.json").write_text(json.dumps(scores))
            (found / "validation" / "probabilities" / f"case_{k}.npz").touch()
    return project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset and the bundles of `TINY_PLAN`; not to be changed by a test."""
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """MONAI's command line, in processes of its own."""
    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def parse() -> Callable[..., Any]:
    """`parse(bundle, "train", fold=1, …)`: a MONAI ConfigParser on configs of a bundle, with values set in them.

    The package `scripts` is that of the templates, so the check that it belongs to the bundle is replaced by the path.
    """
    from monai.bundle import ConfigParser

    def parsed(bundle: Path, *names: str, **values: Any) -> Any:
        parser = ConfigParser()
        parser.read_meta(bundle / "configs" / "metadata.json")
        parser.read_config([bundle / "configs" / f"{name}.json" for name in names])
        parser["bundle_root"] = str(bundle)
        for key, value in values.items():
            parser[key] = value
        parser.parse()
        return parser

    return parsed


@dataclass(frozen=True)
class Stub:
    """A tiny project whose trainings are those of stub_monai, in this process and in those that it starts."""

    folder: Path
    faults: Path
    notes_file: Path

    @property
    def task(self) -> Path:
        """The task's bundles."""
        return self.folder / "bundles" / TINY_PLAN.name

    def notes(self, what: str) -> list[tuple[str, int]]:
        """("training 2d 0", process id) of each note of a kind."""
        lines = self.notes_file.read_text().splitlines() if self.notes_file.is_file() else []
        words = [line.split() for line in lines]
        return [(" ".join(w[1:-1]), int(w[-1])) for w in words if w[0] == what]

    def fail(self, configuration: str, fold: Fold, *how: str) -> None:
        """Let the next starts of a training fail."""
        (self.faults / f"{configuration}-{fold}").write_text("\n".join(how))

    def alive(self) -> list[int]:
        """Processes of trainings, and helpers of theirs, that have not ended."""
        return [pid for what in ("start", "helper") for _, pid in self.notes(what) if is_alive(pid)]


def nearest(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Labels on another grid over the same field of view, voxel by voxel: the slow, plain way. Of equally near voxels
    the most frequent value counts, and the highest of equally frequent ones."""
    out = np.empty(shape, labels.dtype)
    for index in np.ndindex(*shape):
        choices = []
        for i, num_in, num_out in zip(index, labels.shape, shape, strict=True):
            edge, rest = divmod((2 * i + 1) * num_in, 2 * num_out)
            choices.append([edge] if rest else [edge - 1, edge])
        values = [labels[at] for at in itertools.product(*choices)]
        out[index] = max(values, key=lambda value: (values.count(value), value))
    return out


def keep_probabilities(
    path: Path, probabilities: Any, affine: np.ndarray | None = None, axis: int = 0, num_blocks: int = 1
) -> None:
    """Writes the probabilities (classes, X, Y, Z) of a case as the evaluation of a fold does, two rows at a time."""
    from monai.data import MetaTensor
    from scripts.blocks import cut
    from scripts.probabilities import keeping

    image = MetaTensor(probabilities[:1].float(), affine=affine)
    blocks = cut([probabilities.shape[1:]], axis, num_blocks)
    parts = [probabilities.movedim(b.axis + 1, 0)[b.spans[0]].movedim(0, b.axis + 1) for b in blocks]
    rows = (iter(part.movedim(axis + 1, 1).split(2, 1)) for part in parts)
    keeping(path, rows, image, axis, blocks, lambda found: [list(some) for some in found])


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Waits for a condition; fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """The tiny project, and trainings that take no time."""
    made = Stub(write_project(tmp_path / "project"), tmp_path / "faults", tmp_path / "notes")
    made.faults.mkdir()
    for path in made.task.glob("*/configs/train.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_epochs": 2}))
    monkeypatch.chdir(made.folder)
    for name, value in {
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests" / "stub_monai")]),
        "STUB_NOTES": str(made.notes_file),
        "STUB_FAULTS": str(made.faults),
        "CUDA_VISIBLE_DEVICES": "",
    }.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's code is tried in this process, where `scripts` are those of the templates."""

    from autoplan.sharing import probe, verification

    def tried(bundle: Path, folder: Path) -> Any:
        probe.main([str(bundle), str(folder)])
        return verification.results_in(folder)

    monkeypatch.setattr(verification, "_tried", tried)
