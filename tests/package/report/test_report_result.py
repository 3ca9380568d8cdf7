"""Section "Result" of the report: what finished folds on disk tell."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from browser import browser, program
from conftest import keep_probabilities, write_tiny

from autoplan.__main__ import main
from autoplan.base.files import file_digest
from autoplan.data import decathlon as datasets
from autoplan.data import fingerprint as fingerprints
from autoplan.data.facts import Dataset
from autoplan.evaluation import crossvalidation, segmenter
from autoplan.evaluation.choice import CaseDice, mean_intervals
from autoplan.planning import plan as plans
from autoplan.planning.values import Plan
from autoplan.report import validation
from autoplan.report.blocks import Fold, Note, Table
from autoplan.report.build import build
from autoplan.report.sections import result
from autoplan.training.results import PREDICTION_SETTINGS, probabilities

CLASSES = ["a", "b"]


@dataclass(frozen=True)
class Made:
    """A dataset of ten cases, its plan and bundles."""

    dataset: Dataset
    plan: Plan
    folder: Path

    def finish(self, configuration: str, k: int, *, shift: int) -> None:
        """Writes a finished fold: predictions are the labels, moved along x, with probability 0.9."""
        fold = self.folder / configuration / "models" / f"fold_{k}"
        (fold / "validation" / "probabilities").mkdir(parents=True, exist_ok=True)
        for case in self.plan.folds[k]:
            label = nibabel.load(self.dataset.root / "labelsTr" / f"{case}.nii.gz")
            moved = np.roll(np.asanyarray(label.dataobj), shift, 0)
            nibabel.save(nibabel.Nifti1Image(moved, label.affine), fold / "validation" / f"{case}.nii.gz")
            one_hot = torch.stack([torch.from_numpy(moved == v) for v in (0, 1, 2)]).float() * 0.9
            keep_probabilities(probabilities(fold, case), one_hot, label.affine, axis=k % 3)
        (fold / "model.pt").write_text(f"{configuration} {k} {shift}")
        model = file_digest(fold / "model.pt")
        (fold / "finished.json").write_text(json.dumps({"epochs": 3, "stopped": False, "model": model}))
        scored = {
            "cases": {case: {} for case in self.plan.folds[k]}, "model": model,
            "settings": dict.fromkeys(PREDICTION_SETTINGS), "mean_foreground_dice": 1 - shift / 10,
        }  # fmt: skip
        (fold / "validation" / "dice.json").write_text(json.dumps(scored))

    def select(self) -> None:
        crossvalidation.select(
            self.plan, self.dataset, self.folder.parent, fingerprint_key="key", segmenter=segment, num_processes=1,
            progress=False,
        )  # fmt: skip

    def read(self) -> validation.Result:
        found = validation.read(self.plan, self.dataset, self.folder, num_processes=1, progress=False)
        assert isinstance(found, validation.Result)
        return found


def segment(members: Sequence[Path], bundle: Path) -> tuple[np.ndarray, np.ndarray]:
    """In place of the bundles' code: the larger value of the members' files counts."""
    paths = [m.parents[1] / f"{m.stem}.nii.gz" for m in members]
    found = np.maximum.reduce([np.asanyarray(nibabel.load(p).dataobj) for p in paths])
    return found, found


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Made:
    """Not to be changed."""
    root = tmp_path_factory.mktemp("result")
    tiny = write_tiny(root / "Task90_Tiny", num_cases=10)
    assert main([str(tiny.folder), "--bundles", str(root / "bundles"), "--num_processes", "1"]) == 0
    dataset = datasets.load(tiny.folder)
    facts = fingerprints.reusable(root / "bundles" / dataset.name / "fingerprint.json", dataset)
    return Made(dataset, plans.plan(facts), root / "bundles" / dataset.name)


@pytest.fixture
def made(planned, tmp_path) -> Made:
    """Fold 0 and 1 of 2d are one voxel off; those of 3d_fullres are right."""
    shutil.copytree(planned.dataset.root, tmp_path / "data" / planned.plan.name)
    shutil.copytree(planned.folder, tmp_path / "bundles" / planned.plan.name)
    dataset = datasets.load(tmp_path / "data" / planned.plan.name)
    copy = Made(dataset, planned.plan, tmp_path / "bundles" / planned.plan.name)
    for k in (0, 1):
        copy.finish("2d", k, shift=1)
        copy.finish("3d_fullres", k, shift=0)
    return copy


def tables(blocks) -> dict[str, Table]:
    """All tables by their titles."""
    found = {}
    for block in blocks:
        found |= tables(block.blocks) if isinstance(block, Fold) else {}
        found |= {block.title: block} if isinstance(block, Table) else {}
    return found


def test_without_a_choice_the_best_configuration_is_shown(made) -> None:
    found = made.read()
    assert found.members == ("3d_fullres",)
    assert [c.mean_dice for c in found.cases] == [1.0] * 4
    assert "No model is chosen yet" in str(result.section(made.plan, found).blocks[0])


def test_scores_of_a_case(made) -> None:
    shutil.rmtree(made.folder / "3d_fullres" / "models")
    (case, *_) = made.read().cases
    # Class a has three voxels along x, class b two; one of them is lost.
    assert case.dice == (pytest.approx(2 / 3), pytest.approx(1 / 2))
    assert case.reference_ml == case.predicted_ml == (pytest.approx(0.054), pytest.approx(0.036))
    assert case.tolerance_mm == 1.0
    assert {(t, p): n for t, p, n in case.confusion} == {
        (0, 1): 9, (1, 0): 9, (1, 1): 18, (0, 2): 9, (2, 0): 9, (2, 2): 9,
    }  # fmt: skip
    # 63 voxels are of a class or have a probability; those of a are 0.9 sure in 27, of which 18 are right.
    bins, error, brier = result.calibration([case], 0)
    assert [n for _, _, n in bins] == [36, 27]
    assert bins[1][:2] == (pytest.approx(230 / 255, abs=1e-3), pytest.approx(18 / 27, abs=1e-3))
    assert error == pytest.approx((36 * 9 / 36 + 27 * (230 / 255 - 18 / 27)) / 63, abs=1e-3)
    assert brier == pytest.approx((9 + 18 * (1 - 230 / 255) ** 2 + 9 * (230 / 255) ** 2) / 63, abs=1e-3)


def test_what_is_not_known_does_not_count(made) -> None:
    """Of 63 voxels, the 18 that are wrongly given a class have the value to ignore."""
    shutil.rmtree(made.folder / "3d_fullres" / "models")
    name = min(made.plan.folds[0] + made.plan.folds[1])
    path = made.dataset.root / "labelsTr" / f"{name}.nii.gz"
    label = nibabel.load(path)
    values = np.asanyarray(label.dataobj)
    unknown = np.where((np.roll(values, 1, 0) > 0) & (values == 0), 7, values)
    nibabel.save(nibabel.Nifti1Image(unknown, label.affine), path)
    (case, *_) = replace(made, dataset=replace(made.dataset, ignore=7)).read().cases
    assert case.name == name
    assert case.predicted_ml[0] == pytest.approx(0.036)
    bins, _, _ = result.calibration([case], 0)
    assert [(n, rate) for _, rate, n in bins] == [(27, pytest.approx(9 / 27)), (18, 1.0)]


def test_the_chosen_one_is_compared(made) -> None:
    made.select()
    found = made.read()
    assert found.chosen is not None
    assert found.chosen.is_current
    blocks = result.section(made.plan, found).blocks
    candidates = tables(blocks)["Candidates"]
    by_name = {row.cells[0].text: [c.text for c in row.cells] for row in candidates.rows}
    assert by_name["2d"][-2:] == ["0", "4"]
    assert by_name["3d_fullres"][-2:] == ["-", "-"]
    assert found.cases[0].agreement == pytest.approx((2 / 3 + 1 / 2) / 2)
    made.finish("3d_fullres", 1, shift=2)
    later = made.read()
    assert later.chosen is not None
    assert not later.chosen.is_current
    assert any(isinstance(b, Note) and "choose again" in b.text for b in result.section(made.plan, later).blocks)


def test_an_ensemble_is_segmented_anew(made, monkeypatch) -> None:
    made.select()
    path = made.folder / "choice.json"
    content = json.loads(path.read_text())
    content["scores"].sort(key=lambda s: len(s["candidate"]["members"]), reverse=True)
    path.write_text(json.dumps(content))
    monkeypatch.setattr(segmenter, "segmentations", segment)
    found = made.read()
    assert found.members == ("2d", "3d_fullres")
    assert found.cases[0].dice == (pytest.approx(54 / 63), pytest.approx(36 / 45))


def test_a_second_call_reads_no_image(made, monkeypatch) -> None:
    first = made.read()
    monkeypatch.setattr(validation, "read_case", None)
    assert made.read() == first


def test_cases_by_the_worst(made) -> None:
    made.finish("3d_fullres", 1, shift=1)
    found = made.read()
    blocks = result.section(made.plan, found).blocks
    table = next(t for title, t in tables(blocks).items() if title.startswith("All cases"))
    values = [row.cells[2].order for row in table.rows]
    assert values == sorted(values)
    assert {row.cells[0].text for row in table.rows[:2]} == set(made.plan.folds[1])
    assert all(row.details for row in table.rows)
    assert validation.landmarks(found.readable, 0)[0][0] in made.plan.folds[1]


PREDICTIONS = "3d_fullres/models/fold_0/validation"


def _other_shape(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(lambda m, name: (m.dataset.root / "imagesTr" / name).write_bytes(b"x"), "imagesTr", id="image"),
        pytest.param(lambda m, name: (m.folder / PREDICTIONS / name).write_bytes(b"x"), "validation", id="prediction"),
        pytest.param(lambda m, name: _other_shape(m.folder / PREDICTIONS / name), "predict it again", id="shape"),
    ],
)
def test_what_is_damaged_is_one_line(made, damage, said) -> None:
    case = made.plan.folds[0][0]
    damage(made, f"{case}.nii.gz")
    found = made.read()
    (faulty,) = [c for c in found.cases if c.faults]
    assert faulty.name == case
    assert said in faulty.faults[0]
    blocks = result.section(made.plan, found).blocks
    assert [b.severity for b in blocks if isinstance(b, Note) and case in b.text] == ["error"]


def test_a_damaged_choice_is_none(made) -> None:
    for text in (
        "{",
        "[]",
        '{"scores": 3}',
        '{"scores": [], "networks": {}, "cases": {}}',
        '{"scores": [{"name": 1}]}',
    ):
        (made.folder / "choice.json").write_text(text)
        assert made.read().chosen is None


def test_without_probabilities_on_the_grid_there_is_no_calibration(made) -> None:
    for path in (made.folder / "3d_fullres").glob("models/*/validation/probabilities/*.npz"):
        path.write_bytes(b"x")
    found = made.read()
    assert all(c.calibration == () and not c.faults for c in found.cases)
    assert "Calibration" not in str(result.section(made.plan, found).blocks)


def test_nothing_finished_and_other_folds(made) -> None:
    section = result.section(made.plan, None)
    assert "No fold is finished yet" in section.blocks[0].text
    (made.folder / "2d" / "configs" / "datalist.json").write_text('{"training": [{"name": "other", "fold": 0}]}')
    html = build(made.dataset, made.folder.parent, num_processes=1, progress=False).read_text()
    assert "has other folds than the plan" in html


def test_the_page_has_the_result(made) -> None:
    made.select()
    html = build(made.dataset, made.folder.parent, num_processes=1, progress=False)
    content = json.loads((html.parent / "report.json").read_text())["result"]
    assert content["is_chosen"]
    assert len(content["cases"]) == 4
    for text in ("Bland-Altman", "Calibration", "Confusion", "Agreement of the configurations"):
        assert text in html.read_text()


LOGS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
ROWS = "[...document.querySelectorAll('#result .tall tbody')]"


@pytest.mark.skipif(program() is None, reason="there is no Chromium")
def test_the_page_in_a_browser(made, tmp_path) -> None:
    """No error, no request, nothing wider than the window, every section; columns sort, lines unfold."""
    made.finish("3d_fullres", 1, shift=1)
    made.select()
    html = build(made.dataset, made.folder.parent, num_processes=1, progress=False)
    with browser(tmp_path / "browser") as page:
        for width, is_dark in ((1400, False), (390, True)):
            page.open(html, width=width, dark=is_dark)
            assert page.run("document.documentElement.scrollWidth") == width
        asked = [e["request"]["url"] for method, e in page.events if method == "Network.requestWillBeSent"]
        assert {url.partition(":")[0] for url in asked} == {"file", "data"}
        assert [url for url in asked if url.startswith("file:")] == [html.resolve().as_uri()]
        assert [event for event in page.events if event[0] in LOGS] == []
        names = page.run("[...document.querySelectorAll('section')].map((section) => section.id)")
        assert names == ["dataset", "plan", "cost", "training", "result", "provenance"]
        shown = f"{ROWS}.map((body) => Number(body.rows[0].cells[2].dataset.o))"
        values = page.run(shown)
        assert values == sorted(values)
        assert values[0] < values[-1]
        for wanted in (values, values[::-1]):
            page.run("document.querySelector('#result .tall th:nth-child(3) button').click()")
            assert page.run(shown) == wanted
        details = f"{ROWS}[0].querySelector('.details')"
        assert page.run(f"{details}.hidden")
        page.run(f"{ROWS}[0].querySelector('.more').click()")
        assert not page.run(f"{details}.hidden")
        page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_many_classes_have_one_line_a_case(made) -> None:
    """More than have columns, charts and a matrix."""
    count = 14
    names = ((0, "background"), *((i, f"class {i}") for i in range(1, count + 1)))
    case = validation.Scored(
        "x", (), 1.0, (0.5,) * count, (0.6,) * count, (3.0, *(None,) * (count - 1)), ((1, 1, 1),) * count,
        (0.01,) * count, (1.0,) * count,
        ((1, 2, 5), (2, 2, 5)),
    )  # fmt: skip
    found = validation.Result(
        ("2d",), {"x": 0, "y": 0, "z": 0}, (case, replace(case, name="y"), replace(case, name="z")), {}, None
    )
    blocks = result.section(replace(made.plan, labels=names), found).blocks
    table = next(t for title, t in tables(blocks).items() if title.startswith("All cases"))
    assert len(table.columns) == 7
    assert isinstance(table.rows[0].details[0], Table)
    assert "The largest confusions" in str(blocks)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param([(0.1, 0.2), (0.5, 0.6), (0.9, 0.95)], (1.0, 0.5), id="one follows the other"),
        pytest.param([(0.5, 0.9), (0.5, 0.95)], (None, None), id="constant, and none has failed"),
    ],
)
def test_agreement(pairs, expected) -> None:
    found = (result.correlation(pairs), result.threshold(pairs))
    assert found == (pytest.approx(expected[0]) if expected[0] else None, expected[1])


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], (None, None, None)),
        ([(1.0, 2.0)], (1.0, None, None)),
        ([(1.0, 2.0), (1.0, 4.0)], (2.0, pytest.approx(2 - 1.96 * 2**0.5), pytest.approx(2 + 1.96 * 2**0.5))),
    ],
)
def test_limits_of_agreement(pairs, expected) -> None:
    assert result.agreement_limits(pairs) == expected


def test_a_point() -> None:
    own = {n: CaseDice((v,), (v,)) for n, v in {"a": 0.5, "b": 0.52, "c": 0.4, "d": None}.items()}
    best = {n: CaseDice((v,), (v,)) for n, v in {"a": 0.505, "b": 0.5, "c": 0.5, "d": None}.items()}
    assert result.counts(own, best) == (1, 1)


def test_intervals_of_means() -> None:
    rng = np.random.default_rng(0)
    rows = [[float(v), None] for v in rng.normal(0.8, 0.05, 100)]
    (first, second), whole = mean_intervals(rows, num_resamples=2000)
    assert second is None
    assert first == whole
    # The standard error is 0.005.
    assert first[1] - first[0] == pytest.approx(2 * 1.96 * 0.005, rel=0.25)
    assert mean_intervals([[0.5]]) == ([None], None)


@pytest.mark.parametrize("flip", [False, True])
def test_a_label_is_sampled_on_another_grid(flip) -> None:
    label = np.arange(24).reshape(2, 3, 4)
    turned = np.array([[0, 2.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 1]])  # axes y, x, z; z twice as fine
    if flip:
        turned[:3, 2], turned[2, 3] = -turned[:3, 2], 3.0
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    found = validation.sampled(label, affine, turned, (3, 2, 7))
    z = [0, 1, 1, 2, 2, 3, 3] if not flip else [3, 3, 2, 2, 1, 1, 0]
    np.testing.assert_array_equal(found, label.transpose(1, 0, 2)[:, :, z])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(np.array([[0.7, -0.7, 0, 0], [0.7, 0.7, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), id="oblique"),
        pytest.param(np.diag([3.0, 1, 1, 1]), id="larger"),
    ],
)
def test_a_label_on_a_grid_that_does_not_fit_is_none(other) -> None:
    assert validation.sampled(np.zeros((9, 9, 9)), np.eye(4), other, (9, 9, 9)) is None
