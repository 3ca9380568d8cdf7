"""Scores of cross-validation: what counts as finished and comparable, what is kept, and the command `select`."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from autoplan.__main__ import main
from autoplan.base.errors import DatasetError, TemplateError
from autoplan.base.files import file_digest, read_object
from autoplan.data import decathlon as datasets
from autoplan.data import fingerprint as fingerprints
from autoplan.data.facts import Dataset
from autoplan.evaluation import crossvalidation as cv
from autoplan.evaluation import segmenter as segmenter_
from autoplan.evaluation.segmenter import Segmenter, _import_scripts
from autoplan.planning import plan as plans
from autoplan.planning.values import Plan
from autoplan.sharing import ensemble
from autoplan.training.results import PREDICTION_SETTINGS, probabilities


def segment(members: Sequence[Path], bundle: Path) -> tuple[np.ndarray, np.ndarray]:
    """In place of the bundles' code: probabilities are label values, the larger one wins, and the postprocessing takes
    a stray voxel away."""
    assert bundle == members[0].parents[4]
    arrays = []
    for member in members:
        with np.load(member) as file:
            arrays.append(file["pred"])
    postprocessed = np.maximum.reduce(arrays)
    plain = postprocessed.copy()
    plain[-1, -1, -1] = 1
    return postprocessed, plain


@dataclass
class Counting:
    """A segmenter that notes what it is called for, and may fail at the n-th call."""

    fail_at: int | None = None
    calls: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, members: Sequence[Path], bundle: Path) -> tuple[np.ndarray, np.ndarray]:
        if self.fail_at is not None and len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((members[0].stem, *(m.parents[4].name for m in members)))
        return segment(members, bundle)


@dataclass(frozen=True)
class Experiment:
    """A dataset of five cases, five folds, and its bundles."""

    dataset: Dataset
    plan: Plan
    bundles: Path

    @property
    def folder(self) -> Path:
        return self.bundles / self.plan.name

    def fold(self, configuration: str, k: int) -> Path:
        return self.folder / configuration / "models" / f"fold_{k}"

    def finish(
        self, configuration: str, k: int, *, shift: int = 0, model: str = "", settings: dict | None = None
    ) -> None:
        """Writes what a finished fold has: predictions are the labels, moved by `shift` voxels."""
        found = self.fold(configuration, k)
        (found / "validation" / "probabilities").mkdir(parents=True, exist_ok=True)
        for case in self.plan.folds[k]:
            np.savez_compressed(probabilities(found, case), pred=np.roll(self.label(case), shift, 0))
        (found / "model.pt").write_text(model or f"{configuration}-{k}")
        model = file_digest(found / "model.pt")
        (found / "finished.json").write_text(json.dumps({"epochs": 3, "stopped": False, "model": model}))
        scored = {
            "cases": {case: {} for case in self.plan.folds[k]},
            "model": model,
            "settings": {**dict.fromkeys(PREDICTION_SETTINGS), "mirror": True, **(settings or {})},
        }
        (found / "validation" / "dice.json").write_text(json.dumps(scored))

    def label(self, case: str) -> np.ndarray:
        (path,) = (self.dataset.root / str(c.label) for c in self.dataset.training if c.name == case)
        return cv.read_classes(path)[0]

    def select(self, segmenter: Segmenter = segment, num_processes: int = 1):
        return cv.select(
            self.plan,
            self.dataset,
            self.bundles,
            fingerprint_key="key",
            segmenter=segmenter,
            num_processes=num_processes,
            progress=False,
        )

    @property
    def result(self) -> dict:
        return json.loads((self.folder / "choice.json").read_text())


@pytest.fixture
def experiment(tiny, tmp_path, capsys) -> Experiment:
    """Fold 0 and 1 of 2d are one voxel off; fold 0 of 3d_fullres is right."""
    assert main([str(tiny.folder), "--bundles", str(tmp_path / "bundles"), "--num_processes", "1"]) == 0
    capsys.readouterr()
    dataset = datasets.load(tiny.folder)
    facts = fingerprints.reusable(tmp_path / "bundles" / dataset.name / "fingerprint.json", dataset)
    made = Experiment(dataset, plans.plan(facts), tmp_path / "bundles")
    made.finish("2d", 0, shift=1)
    made.finish("2d", 1, shift=1)
    made.finish("3d_fullres", 0)
    return made


def test_scores_and_winner(experiment) -> None:
    choice = experiment.select()
    assert choice.winner.name == "3d_fullres"
    assert choice.cases == experiment.plan.folds[0]
    assert [s.candidate.name for s in choice.scores] == ["3d_fullres", "2d + 3d_fullres", "2d"]
    # 27 voxels of a and 18 of b; moved by one voxel of three, and of two.
    assert choice.scores[2].postprocessed.classes == (pytest.approx(2 / 3), pytest.approx(1 / 2))
    assert choice.scores[0].postprocessed.classes == (1.0, 1.0)
    assert choice.scores[0].plain.classes == (pytest.approx(54 / 55), 1.0)
    # The larger value of both members: 36 voxels of a with 27 right ones; b has 27 with 18 right ones.
    assert choice.scores[1].postprocessed.classes == (pytest.approx(54 / 63), pytest.approx(36 / 45))
    written = experiment.result
    assert written["winner"] == ["3d_fullres"]
    assert written["setting"]["folds"] == [0]
    assert [m["folds"] for m in written["setting"]["missing"]] == [[2, 3, 4], [1, 2, 3, 4]]
    case = experiment.plan.folds[0][0]
    assert written["cases"]["2d"][case]["postprocessed"] == [pytest.approx(2 / 3), 0.5]
    there = {p.name for p in experiment.folder.iterdir()}
    assert there == {"2d", "3d_fullres", "cache", "choice.json", "fingerprint.json", "plan.json", "readings.jsonl"}


def test_a_second_call_makes_nothing_again(experiment) -> None:
    first, text = experiment.select(), (experiment.folder / "choice.json").read_bytes()
    assert experiment.select(Counting(fail_at=0)) == first
    assert (experiment.folder / "choice.json").read_bytes() == text


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"model": "another"}, [("3d_fullres",), ("2d", "3d_fullres")]),
        ({"settings": {"mirror": False}}, [("3d_fullres",), ("2d", "3d_fullres")]),
    ],
    ids=["another network", "other settings"],
)
def test_what_changed_is_scored_again(experiment, change, again) -> None:
    experiment.select()
    experiment.finish("3d_fullres", 0, shift=1, **change)
    counting = Counting()
    choice = experiment.select(counting)
    assert [call[1:] for call in counting.calls] == again
    assert choice.winner.name == "2d"


def test_another_fold_adds_its_cases(experiment) -> None:
    experiment.select()
    experiment.finish("3d_fullres", 1)
    counting = Counting()
    assert len(experiment.select(counting).cases) == 2
    assert {call[0] for call in counting.calls} == set(experiment.plan.folds[1])


def test_killed_work_resumes(experiment) -> None:
    experiment.finish("3d_fullres", 1)
    with pytest.raises(KeyboardInterrupt):
        experiment.select(Counting(fail_at=4))
    assert not (experiment.folder / "choice.json").exists()
    counting = Counting()
    resumed = experiment.select(counting)
    assert {call[0] for call in counting.calls} == set(experiment.plan.folds[1])
    assert not (experiment.folder / cv.PARTIAL).exists()
    (experiment.folder / "choice.json").unlink()
    assert experiment.select() == resumed


@pytest.mark.parametrize("text", ["", "[]", '{"key": 1}', "null"], ids=["empty", "list", "other", "null"])
def test_a_broken_file_is_not_read(experiment, text) -> None:
    expected = experiment.select()
    (experiment.folder / "choice.json").write_text(text)
    assert experiment.select() == expected


def test_processes_find_the_same(experiment) -> None:
    experiment.finish("3d_fullres", 1)
    found = experiment.select(num_processes=2)
    (experiment.folder / "choice.json").unlink()
    assert experiment.select() == found


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, ((), ())),
        ({"2d": [1]}, (("2d",), (1,))),
        ({"2d": [0, 1], "3d_fullres": [0]}, (("2d", "3d_fullres"), (0,))),
        ({"2d": [0, 1], "3d_fullres": [2]}, (("2d",), (0, 1))),
        ({"3d_fullres": [2], "2d": [1]}, (("2d",), (1,))),
        ({"2d": [0, 1], "3d_fullres": [1], "3d_lowres": [0]}, (("2d", "3d_fullres"), (1,))),
        ({"2d": [0], "3d_fullres": [0, 1, 2], "3d_lowres": [1, 2]}, (("3d_fullres", "3d_lowres"), (1, 2))),
    ],
    ids=["nothing", "one", "common folds", "apart, more folds", "apart, simpler", "pair, simpler", "pair, more folds"],
)
def test_comparable(found, expected) -> None:
    assert cv.comparable({name: dict.fromkeys(folds) for name, folds in found.items()}) == expected


def test_a_configuration_without_a_common_fold_is_left_out(experiment) -> None:
    experiment.finish("3d_fullres", 0)
    (experiment.fold("3d_fullres", 0) / "finished.json").unlink()
    experiment.finish("3d_fullres", 3)
    choice = experiment.select()
    assert [s.candidate.name for s in choice.scores] == ["2d"]
    (left_out,) = (m for m in choice.setting.missing if not m.folds)
    assert left_out.configuration == "3d_fullres"
    assert left_out.what == "its finished folds (3) are none of those compared"
    assert " --configurations 3d_fullres --folds 0 " in left_out.command


@dataclass(frozen=True)
class Expect:
    id: str
    spoil: Callable[[Experiment, Path], object]
    what: str


def _network(path: Path, model: str) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": model}))


def _entry(fold: Path, **entries: object) -> None:
    path = fold / "validation/dice.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


EXPECT = [
    Expect("not trained", lambda e, f: (f / "finished.json").unlink(), "has not finished training"),
    Expect("broken", lambda e, f: (f / "finished.json").write_text("{"), "has not finished training"),
    Expect("no weights", lambda e, f: (f / "model.pt").unlink(), "has not finished training"),
    Expect("no settings", lambda e, f: _entry(f, settings=None), "are not predicted"),
    Expect("settings of an older bundle", lambda e, f: _entry(f, settings={"mirror": True}), "are not predicted"),
    Expect("other cases", lambda e, f: _entry(f, cases={"x": {}}), "predictions of other cases"),
    Expect("not predicted", lambda e, f: (f / "validation/dice.json").unlink(), "are not predicted"),
    Expect("other network", lambda e, f: _network(f / "validation/dice.json", "x"), "of another network"),
    Expect("trained on", lambda e, f: _network(f / "finished.json", "x"), "another network in model.pt"),
    Expect("weights of another fold", lambda e, f: (f / "model.pt").write_text("x"), "another network in model.pt"),
    Expect(
        "no probabilities",
        lambda e, f: next((f / "validation/probabilities").iterdir()).unlink(),
        "lacks the probabilities of 1 of 1 cases, such as case_",
    ),
]


@pytest.mark.parametrize("e", EXPECT, ids=lambda e: e.id)
def test_what_is_not_finished(experiment, e) -> None:
    e.spoil(experiment, experiment.fold("2d", 1))
    found, missing = cv.finished(experiment.plan, experiment.folder)
    assert {name: sorted(folds) for name, folds in found.items()} == {"2d": [0], "3d_fullres": [0]}
    (gap,) = (m for m in missing if m.configuration == "2d" and 1 in m.folds)
    assert e.what in gap.what
    # Folds that lack the same stand in one line.
    folds = "1,2,3,4" if e.what == "has not finished training" else "1"
    assert f" autoplan train Task90_Tiny --configurations 2d --folds {folds} --bundles " in gap.command


def test_the_command_for_what_is_missing_has_the_recipe_of_the_other_folds(experiment) -> None:
    """Every setting that differs from what the configs say, ready to be typed."""
    path = experiment.fold("2d", 1) / "finished.json"
    config = read_object(experiment.folder / "2d" / "configs" / "quick.json")
    settings = {"patch_size": [8, 16], "learning_rate": config["learning_rate"], "epoch_length": 5, "max_epochs": 3}
    recipe = {"max_epochs": 3, "schedule": True, "settings": settings}
    path.write_text(json.dumps({**json.loads(path.read_text()), **recipe}))
    _, missing = cv.finished(experiment.plan, experiment.folder)
    commands = {m.configuration: (m.folds, m.command) for m in missing}
    where = f"--bundles {experiment.bundles.as_posix()}"
    # quick.json trains without mirroring, but this fold was predicted with it.
    flags = "--quick --max_epochs 3 --patch_size '[8,16]' --epoch_length 5 --mirror True"
    folds, command = commands["2d"]
    assert folds == (2, 3, 4)
    assert command.endswith(f" --configurations 2d --folds 2,3,4 {where} {flags}")
    assert commands["3d_fullres"][1].endswith(f" --configurations 3d_fullres --folds 1,2,3,4 {where}")


def test_folds_that_were_trained_differently_are_named(experiment) -> None:
    for k, rate in ((0, 0.001), (1, 0.002)):
        path = experiment.fold("2d", k) / "finished.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "settings": {"learning_rate": rate, "seed": 0}}))
    (note,) = experiment.select().setting.notes
    assert note == (
        "Warning: the folds of 2d were trained with different settings: learning_rate 0.001 (fold 0), 0.002 (fold 1)."
    )


def test_bundles_of_different_versions_are_not_compared(experiment, tmp_path, monkeypatch) -> None:
    """A process has one package `scripts`: that of another bundle serves where it is the same, byte by byte."""
    one, other = tmp_path / "one", tmp_path / "other"
    for bundle in (one, other):
        (bundle / "scripts").mkdir(parents=True)
        (bundle / "scripts" / "__init__.py").write_text("")
    imported = ModuleType("scripts")
    imported.__file__ = str(one / "scripts" / "__init__.py")
    monkeypatch.setitem(sys.modules, "scripts", imported)
    _import_scripts(other)
    (other / "scripts" / "__init__.py").write_text("changed = True")
    with pytest.raises(TemplateError, match=r"other/scripts and .*one/scripts are of different versions"):
        _import_scripts(other)


def test_the_command_for_a_bundle_names_the_folder(experiment) -> None:
    (experiment.folder / "3d_fullres" / "configs" / "train.json").unlink()
    _, missing = cv.finished(experiment.plan, experiment.folder)
    [command] = [m.command for m in missing if m.what == "there is no bundle"]
    assert command == f"python -m autoplan Task90_Tiny --bundles {experiment.bundles.as_posix()}"


def test_a_configuration_without_a_finished_fold(experiment) -> None:
    (experiment.fold("3d_fullres", 0) / "finished.json").unlink()
    choice = experiment.select()
    assert choice.winner.name == "2d"
    (missing,) = (m for m in choice.setting.missing if m.configuration == "3d_fullres")
    assert (missing.folds, missing.what) == ((), "no fold is finished; fold 0 has not finished training")


def test_predictions_that_differ_in_settings_are_named(experiment) -> None:
    assert experiment.select().setting.notes == ()
    experiment.finish("3d_fullres", 0, settings={"mirror": False})
    (note,) = experiment.select().setting.notes
    assert "differ in mirror" in note
    assert "2d True; 3d_fullres False" in note


def _other_folds(e: Experiment) -> None:
    (e.folder / "2d" / "configs" / "datalist.json").write_text('{"training": [{"name": "case_0", "fold": 0}]}')


def _nothing_finished(e: Experiment) -> None:
    for name, k in (("2d", 0), ("2d", 1), ("3d_fullres", 0)):
        (e.fold(name, k) / "finished.json").unlink()


def _broken(e: Experiment) -> None:
    probabilities(e.fold("2d", 0), e.plan.folds[0][0]).write_bytes(b"PK broken")


def _other_grid(e: Experiment) -> None:
    np.savez_compressed(probabilities(e.fold("2d", 0), e.plan.folds[0][0]), pred=np.zeros((3, 4, 5), np.uint8))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_other_folds, TemplateError, "has other folds than the plan"),
        (_nothing_finished, TemplateError, "no configuration has a finished fold"),
        (_broken, DatasetError, "the probabilities of 2d cannot be used"),
        (_other_grid, DatasetError, "the segmentation by 2d has shape (3, 4, 5), the label (12, 10, 8)"),
    ],
    ids=["other folds", "nothing finished", "broken probabilities", "other grid"],
)
def test_faults(experiment, spoil, error, message) -> None:
    spoil(experiment)
    with pytest.raises(error) as raised:
        experiment.select()
    assert message in str(raised.value)


def test_the_command(experiment, capsys, monkeypatch) -> None:
    monkeypatch.setattr(segmenter_, "segmentations", segment)
    monkeypatch.setattr(ensemble, "share", lambda *_, name, **__: (experiment.folder / (name or "best"),))
    arguments = ["select", str(experiment.dataset.root), "--bundles", str(experiment.bundles), "--num_processes", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Chosen: 3d_fullres, mean foreground Dice 1.0000" in printed
    assert "all but the largest component of a, b is removed" in printed
    assert "3d_fullres, folds 1, 2, 3, 4: has not finished training" in printed
    assert printed.splitlines()[-2:] == [str(experiment.folder / "choice.json"), str(experiment.folder / "best")]
    assert main([*arguments, "--nme", "best"]) == 1
    assert "there is no flag --nme" in capsys.readouterr().err


def test_probabilities_that_cannot_be_read_are_an_error(experiment, capsys) -> None:
    """Those of this experiment are made up."""
    assert main(["select", str(experiment.dataset.root), "--bundles", str(experiment.bundles)]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "Delete the file and predict the fold again" in error
