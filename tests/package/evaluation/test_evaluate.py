"""`evaluate`: scores against brute force and reference values, conventions, faults, files."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoplan.__main__ import main
from autoplan.base.errors import DatasetError
from autoplan.data import labels
from autoplan.evaluation import evaluate, metrics, tables

SHAPE = (12, 10, 8)
AFFINE = np.diag([0.8, 0.9, 3.0, 1.0])


def box(low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
    """A mask of `SHAPE` that is true from `low` to before `high`."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def ball(centre: tuple[float, ...], radius: float) -> np.ndarray:
    """A mask of `SHAPE`, voxels as units."""
    return sum((i - c) ** 2 for i, c in zip(np.indices(SHAPE), centre, strict=True)) <= radius**2


BIT = box((9, 7, 5), (11, 9, 7))


@dataclass(frozen=True)
class Expect:
    """`surface_dice`: computed by google-deepmind's surface-distance 0.1, which the Decathlon scored with."""

    id: str
    label: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]
    tolerance: float
    surface_dice: float


EXPECT = [
    Expect("equal", box((3, 3, 3), (8, 7, 6)), box((3, 3, 3), (8, 7, 6)), (1.0, 1.0, 1.0), 1.0, 1.0),
    Expect("one voxel apart", box((3, 3, 3), (8, 7, 6)), box((4, 3, 3), (9, 7, 6)), (1.0, 1.0, 1.0), 1.0, 1.0),
    Expect("one slice apart", box((3, 3, 3), (8, 7, 6)), box((3, 3, 4), (8, 7, 7)), (0.8, 0.9, 3.0), 1.0, 0.787956),
    Expect("anisotropic boxes", box((2, 3, 2), (7, 8, 6)), box((3, 1, 2), (9, 8, 5)), (0.7, 1.3, 2.5), 1.0, 0.566314),
    Expect("at the border", box((0, 0, 0), (5, 6, 3)), box((0, 0, 0), (7, 5, 4)), (0.8, 0.9, 3.0), 1.0, 0.749382),
    Expect("the whole volume", box((0, 0, 0), SHAPE), box((0, 2, 0), SHAPE), (0.8, 0.9, 3.0), 1.0, 0.79498),
    Expect("balls", ball((5, 5, 4), 3), ball((6, 4, 4), 2.5), (0.6, 1.1, 1.4), 0.6, 0.742048),
    Expect("two parts", ball((3, 4, 3), 2) | BIT, ball((3, 4, 3), 2.3), (1.0, 2.0, 0.5), 1.0, 0.890845),
    Expect("single voxels", box((2, 2, 2), (3, 3, 3)), box((4, 4, 4), (5, 5, 5)), (1.0, 1.0, 1.0), 1.0, 0.0),
]


def boundary_mm(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Centres in mm of the voxels of a mask with one of six neighbours outside, voxel by voxel."""
    steps = [sign * unit for unit in np.eye(3, dtype=int) for sign in (-1, 1)]
    padded = np.pad(mask, 1)
    there = [i for i in np.argwhere(mask) if not all(padded[tuple(i + 1 + step)] for step in steps)]
    return np.array(there) * spacing


def plain_distance(label: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> float:
    """95th percentile of the Hausdorff distance, from all pairs of boundary voxels."""
    first, second = (boundary_mm(mask, spacing) for mask in (label, prediction))
    pairs = np.linalg.norm(first[:, None] - second[None], axis=2)
    return float(max(np.percentile(pairs.min(axis=axis), 95) for axis in (0, 1)))


@pytest.mark.parametrize("e", EXPECT, ids=lambda e: e.id)
def test_scores(e) -> None:
    found = metrics.class_scores(e.label, e.prediction, e.spacing, tolerance=e.tolerance)
    both = 2 * (e.label & e.prediction).sum() / (e.label.sum() + e.prediction.sum())
    assert found.dice == pytest.approx(both)
    assert found.surface_dice == pytest.approx(e.surface_dice, abs=1e-5)
    assert found.hausdorff_95_mm == pytest.approx(plain_distance(e.label, e.prediction, e.spacing), rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_noise_against_brute_force(seed) -> None:
    rng = np.random.default_rng(seed)
    spacing = tuple(rng.uniform(0.5, 4, 3))
    label, prediction = rng.random((2, 7, 6, 5)) < 0.3
    found = metrics.class_scores(label, prediction, spacing, tolerance=1.0)
    assert found.hausdorff_95_mm == pytest.approx(plain_distance(label, prediction, spacing), rel=1e-5)
    swapped = metrics.class_scores(prediction, label, spacing, tolerance=1.0)
    assert swapped.surface_dice == pytest.approx(found.surface_dice, abs=1e-6)
    assert (swapped.dice, swapped.hausdorff_95_mm) == (found.dice, found.hausdorff_95_mm)


def test_dice_is_that_of_monai() -> None:
    import torch
    from monai.metrics import compute_dice

    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 4, (2, 6, 5, 4))
    masks = [torch.from_numpy(np.stack([array == v for v in (1, 2, 3)])[None]) for array in (prediction, label)]
    expected = compute_dice(*masks, include_background=True)[0].tolist()
    assert metrics.dice(metrics.class_masks(label, [1, 2, 3]), prediction) == pytest.approx(tuple(expected))
    assert metrics.dice(metrics.class_masks(label, [8, 9]), prediction * 3) == (None, 0.0)


@pytest.mark.parametrize(
    ("spacing", "at_least", "expected"),
    [((0.7, 0.7, 5.0), 1.0, 1.0), ((1.5, 1.5, 5.0), 1.0, 1.5), ((1.0, 1.0, 1.0), 2, 2), ((2.0, 1.0, 3.0), 0.5, 1.0)],
    ids=["fine", "one voxel", "as asked", "the finest edge"],
)
def test_tolerance(spacing, at_least, expected) -> None:
    assert metrics.tolerance_mm(spacing, at_least=at_least) == expected


NONE = metrics.ClassScores(None, None, None)
MISSED = metrics.ClassScores(0.0, 0.0, None, (1, 0, 0))


@pytest.mark.parametrize(
    ("label", "prediction", "expected"),
    [(False, False, NONE), (True, False, MISSED), (False, True, replace(MISSED, lesions=(0, 1, 0)))],
    ids=["in neither", "in the label alone", "in the prediction alone"],
)
def test_absent_classes(label, prediction, expected) -> None:
    mask = box((3, 3, 3), (8, 7, 6))
    assert metrics.class_scores(mask & label, mask & prediction, (1.0, 1.0, 1.0), tolerance=1.0) == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0.00"), (0.002, "0.002"), (0.0049, "0.0049"), (0.005, "0.01"), (12.3, "12.30")],
)
def test_a_short_distance_is_not_shown_as_none(value, shown) -> None:
    assert tables._cell(value, digits=2) == shown


# Lesions.


def _blobs(*boxes: tuple[int, int]) -> np.ndarray:
    """Bars along x, from and to."""
    mask = np.zeros((40, 3, 3), dtype=bool)
    for start, stop in boxes:
        mask[start:stop, 1, 1] = True
    return mask


@pytest.mark.parametrize(
    ("label", "prediction", "overlap", "expected"),
    [
        pytest.param([(1, 5), (10, 14)], [(1, 5), (20, 24)], 0.5, (2, 2, 1), id="one found, one false"),
        pytest.param([(1, 9)], [(1, 5), (6, 9)], 0.1, (1, 2, 1), id="in two pieces, one of them counts"),
        pytest.param([(1, 5), (6, 9)], [(1, 9)], 0.1, (2, 1, 1), id="two joined are one"),
        pytest.param([(1, 5)], [(3, 7)], 0.5, (1, 1, 0), id="a third of both"),
        pytest.param([(1, 5)], [(3, 7)], 0.3, (1, 1, 1), id="a third is enough"),
        pytest.param([(1, 5)], [(1, 3)], 0.5, (1, 1, 1), id="exactly half"),
        pytest.param([], [], 0.5, (0, 0, 0), id="nothing"),
        pytest.param([(1, 5), (6, 10)], [(3, 9)], 0.1, (2, 1, 1), id="equal overlap: one"),
    ],
)
def test_lesions(label, prediction, overlap, expected) -> None:
    assert metrics.lesions(_blobs(*label), _blobs(*prediction), overlap=overlap) == expected


def test_lesions_touch_at_corners() -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert metrics.lesions(mask, mask) == (1, 1, 1)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([(2, 2, 1), (0, 1, 0)], metrics.Detection(2, pytest.approx(2 / 5), 0.5, 1.0)),
        ([(0, 0, 0)], metrics.Detection(0, None, None, None)),
        ([(0, 2, 0)], metrics.Detection(0, 0.0, None, 2.0)),
        ([], metrics.Detection(0, None, None, None)),
    ],
)
def test_rates_of_lesions(counts, expected) -> None:
    assert metrics.detection(counts) == expected


# Folders.


@dataclass(frozen=True)
class Folders:
    """Labels beneath a folder with a dataset.json, and predictions."""

    root: Path

    def path(self, part: str, case: str) -> Path:
        return self.root / part / f"{case}.nii.gz"

    def write(self, part: str, case: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
        self.path(part, case).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), self.path(part, case))

    def run(self, *flags: str) -> int:
        arguments = ["--labels", str(self.root / "labelsTr"), "--predictions", str(self.root / "predictions"), *flags]
        return main(["evaluate", *arguments, "--num_processes", "1"])


@pytest.fixture
def folders(tmp_path) -> Folders:
    """Three cases: class 2 is missed in case_b, and in neither of case_c; class 5 is equal in all."""
    made = Folders(tmp_path)
    organ, other = box((1, 1, 1), (5, 5, 4)), box((7, 2, 2), (11, 8, 6))
    for case, label, prediction in (
        ("case_a", 2 * organ + 5 * other, 2 * np.roll(organ, 1, 0) + 5 * other),
        ("case_b", 2 * organ + 5 * other, 5 * other),
        ("case_c", 5 * other, 5 * other),
    ):
        made.write("labelsTr", case, label.astype(np.uint8))
        made.write("predictions", case, prediction.astype(np.float32))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "2": "organ", "5": "other"}}))
    return made


def test_the_command_writes_and_prints(folders, capsys) -> None:
    assert folders.run("--output", str(folders.root / "out")) == 0
    printed = capsys.readouterr().out
    summary = json.loads((folders.root / "out" / "scores.json").read_text())
    assert summary["classes"] == {"organ": 2, "other": 5}
    assert summary["cases"]["case_b"]["classes"]["organ"] == {
        "dice": 0, "surface_dice": 0, "hausdorff_95_mm": None, "lesions": [1, 0, 0],
    }  # fmt: skip
    assert summary["cases"]["case_c"]["classes"]["organ"]["dice"] is None
    organ = summary["means"]["organ"]
    assert organ["dice"] == pytest.approx(0.75 / 2)  # case_a 3/4, case_b 0, case_c left out
    assert organ["hausdorff_95_mm"] == pytest.approx(0.8)
    assert (organ["num_cases"], organ["num_infinite"]) == (2, 1)
    assert summary["foreground_mean"]["dice"] == pytest.approx((0.75 / 2 + 1) / 2)
    with (folders.root / "out" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["case"], r["class"]) for r in rows[:2]] == [("case_a", "organ"), ("case_a", "other")]
    assert [r["class"] for r in rows if r["case"] == "mean"] == ["organ", "other", "foreground"]
    assert rows[4]["dice"] == ""
    assert [rows[0][name] for name in ("lesions", "predicted_lesions", "matched_lesions")] == ["1", "1", "1"]
    # Of two organs one is found, and nothing else.
    assert summary["lesions"]["organ"] == {
        "num_lesions": 2, "f1": pytest.approx(2 / 3), "sensitivity": 0.5, "false_positives": 0.0,
    }  # fmt: skip
    assert "false positives a case" in printed
    assert "organ            0.3750" in printed
    assert "its distance, being infinite, is left out" in printed
    assert sorted(p.name for p in (folders.root / "out").iterdir()) == [".written.json", "scores.csv", "scores.json"]


def test_scores_that_somebody_changed(folders, capsys) -> None:
    """They are named, and nothing is written; with --force a copy is kept. The same again is no change."""
    out = folders.root / "out"
    for _ in range(2):
        assert folders.run("--output", str(out)) == 0
    (out / "scores.csv").write_text("my columns")
    assert folders.run("--output", str(out)) == 1
    assert f"{out}: scores.csv was changed by hand" in capsys.readouterr().err
    assert (out / "scores.csv").read_text() == "my columns"
    assert folders.run("--output", str(out), "--force") == 0
    assert (out / "scores.before" / "scores.csv").read_text() == "my columns"
    assert folders.run("--output", str(out)) == 0


def test_without_dataset_json_the_classes_are_the_values(folders) -> None:
    (folders.root / "dataset.json").unlink()
    folders.write("predictions", "case_c", np.full(SHAPE, 7, np.uint8))
    found = evaluate.evaluate(folders.root / "labelsTr", folders.root / "predictions", num_processes=1)
    assert found.labels == ((2, "2"), (5, "5"), (7, "7"))
    assert found.means[2] == tables.Mean(0.0, 0.0, None, 1, 1)


@pytest.mark.parametrize("part", ["labelsTr", "predictions"])
def test_a_value_below_0_is_no_class(folders, capsys, part) -> None:
    (folders.root / "dataset.json").unlink()
    folders.write(part, "case_c", np.full(SHAPE, -1, np.int16))
    assert folders.run() == 1
    what = "label" if part == "labelsTr" else "prediction"
    assert f"case_c.nii.gz: the {what} has the value -1, and classes have 0 or more." in capsys.readouterr().err


@pytest.mark.parametrize(("units", "mm"), [(1, 1000), (2, 1), (3, 0.001)], ids=["metres", "millimetres", "micrometres"])
def test_distances_are_in_mm_whatever_the_unit_of_the_files(folders, units, mm) -> None:
    for path in [p for part in ("labelsTr", "predictions") for p in (folders.root / part).iterdir()]:
        image = nibabel.load(path)
        nibabel.save(_with_units(image, units), path)
    found = evaluate.evaluate(folders.root / "labelsTr", folders.root / "predictions", num_processes=1)
    assert found.means[0].hausdorff_95_mm == pytest.approx(0.8 * mm)


def _with_units(image: nibabel.Nifti1Image, units: int) -> nibabel.Nifti1Image:
    made = nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header)
    made.header["xyzt_units"] = units
    return made


@pytest.mark.parametrize("measured", ["labelsTr", "predictions"])
def test_one_of_two_tiffs_says_how_large_the_pixels_are(tmp_path, measured) -> None:
    """Masks that were drawn by hand seldom do."""
    import tifffile

    for part, column in (("labelsTr", 3), ("predictions", 5)):
        (tmp_path / part).mkdir()
        mask = np.zeros((20, 20), np.uint8)
        mask[5:15, column : column + 9] = 1
        size = {"resolution": (20, 20), "resolutionunit": 3} if part == measured else {}
        tifffile.imwrite(tmp_path / part / "a.tif", mask, photometric="minisblack", **size)
    found = evaluate.evaluate(tmp_path / "labelsTr", tmp_path / "predictions", num_processes=1)
    assert found.means[0].hausdorff_95_mm == pytest.approx(2 * 0.5)


def test_labels_without_a_prediction_are_named(folders, capsys) -> None:
    folders.path("predictions", "case_b").unlink()
    assert folders.run() == 0
    assert "1 of 3 labels have no prediction and are left out: case_b." in capsys.readouterr().out


@dataclass(frozen=True)
class ExpectFail:
    id: str
    spoil: Callable[[Folders], object]
    message: str


def _other_affine(folders: Folders) -> None:
    folders.write("predictions", "case_a", np.zeros(SHAPE, np.uint8), AFFINE + np.diag([0, 0, 0.5, 0]))


EXPECT_FAIL = [
    ExpectFail("shape", lambda f: f.write("predictions", "case_a", np.zeros((3, 4, 5), np.uint8)), "shape (3, 4, 5)"),
    ExpectFail("affine", _other_affine, "put a corner of the volume 3.5 mm apart (at most 0.1 mm)"),
    ExpectFail("no label", lambda f: f.path("labelsTr", "case_a").unlink(), "there is no label of that name in"),
    ExpectFail(
        "no header", lambda f: f.path("predictions", "case_a").write_bytes(b"nothing"), "case_a.nii.gz cannot be read"
    ),
    ExpectFail(
        "channels", lambda f: f.write("predictions", "case_a", np.zeros((*SHAPE, 2), np.uint8)), "not one volume"
    ),
    ExpectFail(
        "undeclared", lambda f: f.write("predictions", "case_a", np.full(SHAPE, 3, np.uint8)), "does not declare: [3]"
    ),
    ExpectFail(
        "fraction", lambda f: f.write("predictions", "case_a", np.full(SHAPE, 0.5)), "the prediction has the value 0.5"
    ),
    ExpectFail(
        "twice",
        lambda f: f.path("labelsTr", "case_a").with_suffix("").write_bytes(b""),
        "case_a.nii is of the same case",
    ),
    ExpectFail("empty folder", lambda f: [p.unlink() for p in (f.root / "predictions").iterdir()], "holds no image"),
    ExpectFail("dataset.json", lambda f: (f.root / "dataset.json").write_text("{}"), '"labels" is missing'),
]


@pytest.mark.parametrize("expect", EXPECT_FAIL, ids=lambda e: e.id)
def test_faults(folders, capsys, expect) -> None:
    expect.spoil(folders)
    assert folders.run("--output", str(folders.root / "out")) == 1
    written = capsys.readouterr()
    assert expect.message in written.err
    assert "Traceback" not in written.err
    assert not written.out
    assert not (folders.root / "out").exists()


def test_faults_of_all_cases_come_together(folders) -> None:
    folders.write("predictions", "case_a", np.zeros((3, 4, 5), np.uint8))
    _other_affine(folders)
    folders.write("predictions", "case_b", np.zeros((3, 4, 5), np.uint8))
    folders.path("labelsTr", "case_c").unlink()
    with pytest.raises(DatasetError) as error:
        evaluate.evaluate(folders.root / "labelsTr", folders.root / "predictions", num_processes=1)
    assert [Path(line.split(":")[0]).name for line in str(error.value).splitlines()] == [
        f"case_{letter}.nii.gz" for letter in "cab"
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--labels takes the folder of the labels, not ''"),
        (("--labels", "nowhere"), "--predictions takes the folder of the predictions, not ''"),
        (("--labels", "nowhere", "--predictions", "nowhere"), "--labels nowhere: there is no such folder"),
        (("--labels", "a", "--predictions", "b", "--tolerance", "0"), "--tolerance takes a length in mm"),
        (("--labels", "a", "--predictions", "b", "--overlap", "0"), "--overlap takes a number above 0"),
        (("--labels", "a", "--predictions", "b", "--overlap", "1.5"), "--overlap takes a number above 0"),
        (("--label", "nowhere"), "there is no flag --label"),
    ],
    ids=["nothing", "no predictions", "no folder", "no tolerance", "no overlap", "too much overlap", "misspelt"],
)
def test_arguments(capsys, flags, message) -> None:
    assert main(["evaluate", *flags]) == 1
    assert message in capsys.readouterr().err


def test_a_path_that_cannot_exist(folders, capsys) -> None:
    assert main(["evaluate", "--labels", str(folders.root), "--predictions", "x" * 5000]) == 1
    assert "--predictions" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.uint32, np.int64, np.float32])
def test_large_values_stay_apart(folders, kind) -> None:
    """70000 in 16 bits would be 4464."""
    label = np.zeros(SHAPE, kind)
    label[2:5, 2:5, 2:5], label[7:9, 2:5, 2:5] = 70000, 4464
    path = folders.root / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(label, AFFINE, dtype=kind), path)
    assert sorted(np.unique(labels.read_classes(path)[0])) == [0, 4464, 70000]
