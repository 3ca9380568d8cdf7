"""What a faster prediction costs: how it is compared, kept, and told in the README of a shared bundle."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import TINY_PLAN, write_finished

from autoplan.__main__ import main
from autoplan.base.files import file_digest
from autoplan.data.facts import Case
from autoplan.data.images import read_volume
from autoplan.prediction import predict
from autoplan.sharing import faster, verification, zoo
from autoplan.sharing.faster import SETTINGS, Comparison, Faster
from autoplan.sharing.verification import Check
from autoplan.sharing.zoo import Request

TASK, CONFIGURATION = TINY_PLAN.name, "3d_fullres"
CASES = [Case(f"case_{n}", (f"imagesTr/case_{n}.nii.gz",), f"labelsTr/case_{n}.nii.gz") for n in range(3)]
COMPARISON = Comparison(
    "digest",
    ("case_0", "case_1"),
    (
        Faster("as usual", 8.0, 0.875, None, None, 0),
        Faster("--no_mirror", 1.0, 0.870, -0.005, (-0.0105, 0.0005), 1),
        Faster("--region_first", 2.5, 0.875, None, None, 0),
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, parse: Callable[..., Any]) -> Path:
    return write_finished(tmp_path_factory.mktemp("faster"), parse, {CONFIGURATION: (0, 1)})


@pytest.fixture
def bundle(finished: Path) -> Path:
    path = finished / "bundles" / TASK / CONFIGURATION
    (path / "models" / "fold_0" / faster.FASTER).unlink(missing_ok=True)
    return path


Told = Callable[[Path, Path, Sequence[Case], Path, Mapping[str, Any]], dict[str, dict[str, Any]]]


def predictions(seconds: Mapping[str, float], spoil: Callable[[str, str, np.ndarray], None]) -> tuple[Told, list[Any]]:
    """Stands for a bundle's inference: it gives the labels themselves, which `spoil(flags, case, label)` may change,
    and the seconds of each way. Also the settings that it was called with."""
    asked: list[Any] = []

    def told(_: Path, folder: Path, cases: Sequence[Case], output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(settings)
        flags = list(SETTINGS)[len(asked) - 1]
        output.mkdir()
        for case in cases:
            volume = read_volume(folder / str(case.label))
            label = volume.array.copy()
            spoil(flags, case.name, label)
            nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), output / f"{case.name}.nii.gz")
        share = {"network": seconds.get(flags, 1.0) / len(cases)}
        return {case.name: {"segmentation": f"{case.name}.nii.gz", "seconds": share} for case in cases}

    return told, asked


def test_each_way_is_compared_with_the_usual_one(bundle: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(flags: str, case: str, label: np.ndarray) -> None:
        if flags == "--no_mirror" and case == "case_1":
            label[label == 2] = 0  # the ball is lost
        if flags == "--overlap 0.25":
            label[:6] = 0  # half of each ball

    told, asked = predictions({"as usual": 8.0, "--no_mirror": 1.0}, spoil)
    monkeypatch.setattr(predict, "told", told)
    found = faster.compare(bundle, 0, finished / "data" / TASK, CASES, {"device": "cpu"})
    model = bundle / "models" / "fold_0" / "model.pt"
    assert found.model == file_digest(model)
    assert asked == [{"model_file": str(model), "device": "cpu", **way} for way in SETTINGS.values()]
    ways = {way.flags: way for way in found.ways}
    assert list(ways) == list(SETTINGS)
    assert ways["as usual"] == Faster("as usual", 8.0, 1.0, None, None, 0)
    assert ways["--region_first"] == Faster("--region_first", 1.0, 1.0, None, None, 0)
    lost = ways["--no_mirror"]  # ball 1, 0, 1 and box 1, 1, 1
    assert (lost.seconds, lost.lost) == (1.0, 1)
    assert (lost.dice, lost.difference) == (pytest.approx(5 / 6), pytest.approx(-1 / 6))
    assert lost.interval == (pytest.approx(-0.5), 0.0)
    half = ways["--overlap 0.25"]  # ball 2/3 in each, box as it is
    assert (half.dice, half.difference, half.lost) == (pytest.approx(5 / 6), pytest.approx(-1 / 6), 0)
    assert half.interval == (pytest.approx(-1 / 6), pytest.approx(-1 / 6))


def test_what_was_measured_is_kept_for_this_network_and_these_cases(
    bundle: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def compare(_: Path, fold: int, __: Path, cases: Sequence[Case], ___: object) -> Comparison:
        called.append((fold, len(cases)))
        names = tuple(case.name for case in cases)
        return Comparison(file_digest(bundle / "models" / "fold_0" / "model.pt"), names, COMPARISON.ways)

    monkeypatch.setattr(faster, "compare", compare)
    assert faster.load(bundle, 0) is None
    for _ in range(2):
        faster.measure(bundle, 0, finished, CASES[:2], {})
    faster.measure(bundle, 0, finished, CASES, {})
    assert called == [(0, 2), (0, 3)]
    assert faster.load(bundle, 0) is not None
    path = bundle / "models" / "fold_0" / faster.FASTER
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "of another network"}))
    assert faster.load(bundle, 0) is None
    path.write_text("{")
    assert faster.load(bundle, 0) is None


def test_the_table() -> None:
    assert faster.report(COMPARISON).splitlines() == [
        "flags of predict  time  mean Dice  difference       95 % interval  lost",
        "as usual          1.00     0.8750           -                   -     0",
        "--no_mirror       0.12     0.8700     -0.0050  -0.0105 to +0.0005     1",
        "--region_first    0.31     0.8750           -                   -     0",
    ]


def test_the_readme_of_a_shared_bundle_tells_what_is_known(
    bundle: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "store_segmentation", lambda built: (built / "docs" / "verification").mkdir())
    monkeypatch.setattr(verification, "verify", lambda _: [Check("all", "ok")])
    request = Request("ball_mri_segmentation", "A. Person", "Phantom Hospital", "CC BY 4.0")
    publish: Any = lambda measure: zoo.publish(  # noqa: E731
        finished / "bundles" / TASK, CONFIGURATION, (), finished / "shared", request, measure
    )
    asked: list[tuple[str, int]] = []

    def measure(configuration: str, fold: int) -> None:
        asked.append((configuration, fold))
        path = bundle / "models" / f"fold_{fold}" / faster.FASTER
        digest = file_digest(path.with_name("model.pt"))
        ways = [vars(way) for way in COMPARISON.ways]
        path.write_text(json.dumps({"model": digest, "cases": ["case_0", "case_1"], "ways": ways}))

    readme = (publish(None).folder / "docs" / "README.md").read_text()
    assert "A faster prediction" not in readme
    done = publish(measure)
    readme = (done.folder / "docs" / "README.md").read_text()
    assert (asked, done.version) == ([(CONFIGURATION, 0)], "0.1.1")
    assert "### A faster prediction: 3d_fullres\n\nThe network of fold 0 on 2 of its validation cases." in readme
    assert "\n| --no_mirror | 0.12 | 0.8700 | -0.0050 | -0.0105 to +0.0005 | 1 |\n" in readme
    assert publish(None).checks == [], "what was measured before stays"


@pytest.mark.parametrize("value", ["-1", "1.5", "many", "True"])
def test_a_number_of_cases_that_is_none(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share", TASK, "--name", "a_b_segmentation", "--faster", value]) == 1
    assert "--faster takes a number of cases, not" in capsys.readouterr().err
