"""Trainings that share a time: what each gets, by a fake clock, and the command by trainings that compute nothing."""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY_PLAN, Stub, wait_until, write_project

from autoplan.__main__ import main
from autoplan.base.codec import to_dict
from autoplan.base.errors import AutoplanError
from autoplan.base.files import read_object
from autoplan.budget import coarser, division, request
from autoplan.budget import trainings as timed
from autoplan.budget.division import Setting, Training
from autoplan.budget.ledger import Ledger
from autoplan.budget.trainings import Timed, jobs_by_training
from autoplan.bundle import saved
from autoplan.cli import commands
from autoplan.cost import pace as pace_
from autoplan.cost.pace import Pace
from autoplan.data import stored
from autoplan.planning.values import CASCADE, LOWRES, Configuration, Fold
from autoplan.training import backends, results
from autoplan.training.backends import Outcome
from autoplan.training.jobs import Job, find_bundles, jobs_of

PACES = (Pace("2d", 1.0, 0.1), Pace("3d_fullres", 1.0, 0.1))
SETTING = Setting(7200, (40,) * 5, 50)


@pytest.fixture
def jobs(tmp_path: Path) -> Mapping[Training, Job]:
    bundles = find_bundles(write_project(tmp_path) / "bundles" / TINY_PLAN.name)
    return jobs_by_training(jobs_of(bundles, [0, 1, 2, 3, 4, "all"], recipe="budget"))


class Clock:
    """A machine on which jobs take time. `slow` tells how many times as long as it should a job takes."""

    def __init__(self, folder: Path, seconds: float, slow: Callable[[Job], float] = lambda _: 1.0) -> None:
        self.now, self.slow, self.folder, self.seconds = 0.0, slow, folder, seconds
        self.ran: list[Job] = []
        self.besides, self.filling = 35.0, 10.0
        self.tells = True

    def ledger(self) -> Ledger:
        return Ledger(self.folder, "run", self.seconds, started=self.now, clock=lambda: self.now)

    def timed(self, jobs: Mapping[Training, Job], setting: Setting = SETTING) -> tuple[Ledger, Timed]:
        held = self.ledger()
        found = Timed(held, TINY_PLAN, setting, jobs, lambda: PACES)
        found.prepare(self.run)
        return held, found

    def run(self, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        """Each takes its time, those of a wave at once, and more to start and to predict its cases; what is done takes
        none."""
        jobs = [job for job in jobs if job not in self.ran]
        took = [self.slow(job) * self.lacks(job) for job in jobs]
        for job, seconds in zip(jobs, took, strict=True):
            job.folder.mkdir(parents=True, exist_ok=True)
            if job.fold is not None and self.tells:
                self.write(job, (results.trained_seconds(job.folder) or 0) + seconds)
        fills = all(job.fold is None for job in jobs)
        self.now += self.filling if fills else max(took) + self.besides
        self.ran += jobs
        return {job: Outcome("done") for job in jobs}  # of those that ran

    def lacks(self, job: Job) -> float:
        """Seconds that a training goes on."""
        if job.fold is None:
            return 0.0
        settings = dict(job.settings)
        whole = float(settings["budget_seconds"]) - (results.trained_seconds(job.folder) or 0.0)
        return min(whole, float(settings.get("budget_left", whole)))

    def write(self, job: Job, seconds: float) -> None:
        """What a training says of its time."""
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / results.BUDGET).write_text(json.dumps({"seconds": seconds}))
        (job.folder / "last.pt").touch()

    def killed(self, after: float) -> Callable[[Sequence[Job]], dict[Job, Outcome]]:
        """Runs jobs that are killed after some seconds, of which 25 were for nothing."""

        def run(jobs: Sequence[Job]) -> dict[Job, Outcome]:
            for job in jobs:
                self.write(job, (results.trained_seconds(job.folder) or 0.0) + after - 25)
            self.now += after
            raise KeyboardInterrupt

        return run


def given(jobs: Sequence[Job]) -> list[float]:
    return [float(dict(job.settings)["budget_seconds"]) for job in jobs if job.fold is not None]


def test_equal_shares_and_an_end_in_time(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    clock = Clock(tmp_path, 7200)
    held, found = clock.timed(jobs)
    outcomes = found.run(clock.run)
    assert [job.name for job in outcomes] == [f"3d_fullres fold {fold}" for fold in range(5)]
    assert clock.ran[0].fold is None, "the cache is filled first"
    seconds = given(clock.ran)
    assert max(seconds) - min(seconds) < 0.05 * max(seconds)
    after = division.after(found.division.trainings, found.paces, SETTING)
    assert 0.95 * 7200 < held.gone + after <= 7200


def test_what_one_loses_the_others_give(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    """A training that takes twice its time leaves less to those after it, and the end stays where it was."""
    clock = Clock(tmp_path, 7200, lambda job: 2.0 if job.fold == 1 else 1.0)
    held, found = clock.timed(jobs)
    found.run(clock.run)
    seconds = given(clock.ran)
    assert seconds[2] < 0.8 * seconds[0]
    assert held.gone + division.after(found.division.trainings, found.paces, SETTING) <= 7200


def test_a_slow_prediction_is_noticed(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    """From the first validation on, those to come and the prediction of the images are expected to take as long."""
    clock = Clock(tmp_path, 7200)
    clock.besides = 350
    held, found = clock.timed(jobs)
    found.run(clock.run)
    images = 5 * SETTING.num_images * found.paces["3d_fullres"].image_seconds
    assert images == pytest.approx(5 * 50 * 0.1 * 350 / 34, rel=0.1)
    assert held.gone + images <= 7200


@pytest.mark.parametrize("tells", [True, False], ids=["it tells", "it does not"])
def test_a_training_that_ends_late_is_no_slow_prediction(
    tells: bool, tmp_path: Path, jobs: Mapping[Training, Job]
) -> None:
    clock = Clock(tmp_path, 7200, lambda _: 1.03)
    clock.tells = tells
    held, found = clock.timed(jobs)
    found.run(clock.run)
    factor = found.paces["3d_fullres"].image_seconds / 0.1
    assert (factor == pytest.approx(35 / 34)) == tells
    assert held.gone + division.after(found.division.trainings, found.paces, SETTING) <= 7200


def test_nothing_begins_when_the_time_is_over(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    clock = Clock(tmp_path, 7200, lambda job: 6.0 if job.fold == 0 else 1.0)
    _, found = clock.timed(jobs)
    outcomes = found.run(clock.run)
    assert [job.fold for job in outcomes] == [0]
    assert [t.fold for t, share in found.shares.items() if share.seconds] == [0]


def test_decisions_hold_after_an_interruption(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    """What was begun goes on with the time it was given; what was not gets its share of what is left."""
    clock = Clock(tmp_path, 7200)
    held, found = clock.timed(jobs)

    def killed_in_fold_2(some: Sequence[Job]) -> dict[Job, Outcome]:
        if some[0].fold == 2:
            clock.now += 300
            held.write()
            raise KeyboardInterrupt
        return clock.run(some)

    with pytest.raises(KeyboardInterrupt):
        found.run(killed_in_fold_2)
    decided, clock.now = found.shares, clock.now + 10**6
    held, again = clock.timed(jobs)
    begun = len(clock.ran)
    again.run(clock.run)
    assert again.division == found.division
    assert {t: again.shares[t] for t in decided} == decided
    assert [job.fold for job in clock.ran[begun:]] == [2, 3, 4]
    assert again.shares[Training("3d_fullres", 4)].seconds < decided[Training("3d_fullres", 2)].seconds


def test_networks_are_as_wide_as_decided(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    clock = Clock(tmp_path, 7200)
    paces = [replace(PACES[1], features=features) for features in ((30, 60), (16, 32))]
    found = Timed(clock.ledger(), TINY_PLAN, SETTING, jobs, lambda: paces)
    found.prepare(clock.run)
    found.run(clock.run)
    assert {dict(job.settings)["features"] for job in clock.ran if job.fold is not None} == {"[16,32]"}


def test_waves(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    """As many at a time as there are places."""
    setting = replace(SETTING, places=2)
    clock = Clock(tmp_path, 7200)
    held, found = clock.timed(jobs, setting)
    waves: list[int] = []

    def run(some: Sequence[Job]) -> dict[Job, Outcome]:
        waves.append(len(some))
        return clock.run(some)

    found.run(run)
    assert waves == [2, 2, 1]
    assert held.gone + division.after(found.division.trainings, found.paces, setting) <= 7200


def takes(step: float) -> Callable[..., list[Pace]]:
    """In place of `cost.paces`."""
    return lambda _, __, some, *___, **____: [Pace(c.name, step, 0, c.features, 0.5) for c in some]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured, and a process starts at once."""
    monkeypatch.setattr(stored, "load_fingerprint", lambda _: None)
    monkeypatch.setattr(pace_, "paces", takes(0.01))


@pytest.mark.usefixtures("measured")
def test_train_for_a_time(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    words = ["train", TINY_PLAN.name, "--configurations", "2d", "--folds", "1,all", "--budget", "30s"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert re.search(r"2d +4-16 +1, all", out)
    assert [name for name, _ in stub.notes("start")] == [
        "caching 2d -", "training 2d 1", "evaluating 2d 1", "training 2d all",
    ]  # fmt: skip
    kept = json.loads((stub.task / "budget.json").read_text())["train, 2d, folds 1,all, 30 s"]["decisions"]
    log = (stub.task / "2d" / "models" / "fold_1" / "train.log").read_text()
    share = kept[timed.TRAININGS]["2d fold 1"]
    assert f"--budget_seconds {share['seconds']} --epoch_length {share['epoch_length']}" in log
    assert "budget.json" in log
    started = len(stub.notes("start"))
    assert main(words) == 0
    assert len(stub.notes("start")) == started, "nothing is run twice"
    assert re.search(r"2d +1 +done", capsys.readouterr().out), "and the table is there again"
    assert main(["status", TINY_PLAN.name]) == 0
    assert re.search(r"2d +1 +done", capsys.readouterr().out)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("threads", "expected"), [pytest.param(None, 0.02, id="shared"), pytest.param("1", 0.01, id="measured with one")]
)
def test_jobs_that_run_at_a_time_share_the_processors(
    threads: str | None, expected: float, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "gpus", list)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert (
        main(["train", TINY_PLAN.name, "--configurations", "2d", "--folds", "0,1", "--jobs", "2", "--budget", "30s"])
        == 0
    )
    [entry] = read_object(stub.task / "budget.json").values()
    assert {pace["step_seconds"] for pace in entry["decisions"][timed.DIVISION]["paces"]} == {expected}


@pytest.mark.usefixtures("measured", "stub")
@pytest.mark.parametrize(
    ("words", "selected"),
    [
        pytest.param([], {"folds": "", "configurations": ""}, id="cross-validation"),
        pytest.param(["--folds", "all"], {"folds": "all", "configurations": "3d_fullres"}, id="all cases"),
    ],
)
def test_run_for_a_time(
    words: list[str], selected: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It chooses and predicts with what there was time for, and writes one report."""
    called: list[tuple[str, dict[str, str]]] = []
    for name in ("plan", "select", "predict", "report"):
        monkeypatch.setattr(commands, name, lambda _, n=name, **given: called.append((n, given)))
    assert main(["run", TINY_PLAN.name, "--budget", "30s", *words]) == 0
    assert [name for name, _ in called] == ["plan", "select", "report", "predict"]
    assert called[1][1] == {"root": "data", "bundles": "bundles", "force": False, **selected}
    said = capsys.readouterr().out
    assert re.search(r"Finished in \d+ s of 30 s\.", said)
    assert "No time for 2d" in said


@pytest.mark.parametrize(("budget", "widths"), [("30m", {4, 64}), ("1m", {4})])
def test_planned_networks_are_measured_where_there_may_be_time_for_them(
    budget: str, widths: set[int], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes long, and all the time for one training of a narrow network is the most there can be."""
    wide = replace(TINY_PLAN, configurations=(replace(TINY_PLAN.configurations[0], features=(64, 128, 256)),))
    saved.save_plan(wide, stub.task, fingerprint_key="")
    monkeypatch.setattr(division, "NARROW", 4)
    monkeypatch.setattr(stored, "load_fingerprint", lambda _: None)
    asked: set[int] = set()

    def paces(_: object, __: object, some: Sequence[Configuration], *___: object, **____: object) -> list[Pace]:
        asked.update(c.features[0] for c in some)
        return [Pace(c.name, 0.02, 0, c.features, 0.5) for c in some]

    monkeypatch.setattr(pace_, "paces", paces)
    monkeypatch.setattr(Timed, "run", lambda *_: {})
    main(["train", TINY_PLAN.name, "--configurations", "2d", "--folds", "0", "--budget", budget])
    assert asked == widths


@pytest.fixture
def planning(monkeypatch: pytest.MonkeyPatch, stub: Stub) -> list[tuple[str, bool]]:
    """Spacing and force of each call of `plan`, which writes the spacing that it is given into plan.json; labels keep
    enough, and what comes after the trainings does nothing."""
    called: list[tuple[str, bool]] = []

    def plan(_: str, *, spacing: str = "", force: bool = False, **__: object) -> None:
        called.append((spacing, force))
        if spacing not in ("", "none"):
            own = tuple(map(float, spacing.split(",")))
            saved.save_plan(replace(TINY_PLAN, own_spacing=own), stub.task, fingerprint_key="")

    monkeypatch.setattr(commands, "plan", plan)
    monkeypatch.setattr(commands, "_planned_by", lambda *given: replace(TINY_PLAN, own_spacing=given[-1]))
    monkeypatch.setattr(coarser, "dice_kept", lambda *_: 0.95)
    for name in ("select", "predict", "report"):
        monkeypatch.setattr(commands, name, lambda *_, **__: None)
    return called


RUN = ["run", TINY_PLAN.name, "--budget"]
COARSER = "3,2.5,4"


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("words", "kept", "expected"),
    [
        pytest.param(["30s"], 0.95, ["", COARSER], id="labels keep enough"),
        pytest.param(["30s"], 0.89, [""], id="they do not"),
        pytest.param(["30s", "--spacing", "none"], 0.95, ["none"], id="the user has chosen"),
        pytest.param(["30s", "--features", "[8,16,32]"], 0.95, [""], id="or the network"),
        pytest.param(["30s", "--folds", "0"], 0.95, [""], id="there is time"),
    ],
)
def test_coarser_images_where_time_is_short(
    words: list[str],
    kept: float,
    expected: list[str],
    stub: Stub,
    planning: list[tuple[str, bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The task is planned again, once: before anything is decided or trained."""
    monkeypatch.setattr(coarser, "dice_kept", lambda *_: kept)
    assert main([*RUN, *words]) == 0
    assert planning == [(spacing, number > 0) for number, spacing in enumerate(expected)]
    decided = next(iter(read_object(stub.task / "budget.json").values()))["decisions"]
    assert ("spacing" in decided) == (len(expected) > 1)
    assert main([*RUN, *words]) == 0
    assert planning[len(expected) :] == [(expected[0], False)], "plan.json has the spacing now"


@pytest.mark.usefixtures("measured")
def test_planning_again_was_interrupted(
    stub: Stub, planning: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Bundles may be of both plans: the same command writes them again, as long as nothing is trained."""

    def killed(*_: object, spacing: str = "", **__: object) -> None:
        if spacing:
            raise AutoplanError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(commands, "plan", killed)
        assert main([*RUN, "30s"]) == 1
    assert main([*RUN, "30s"]) == 0
    assert planning == [(COARSER, True)]
    assert stub.notes("start")
    # The user plans for another spacing after all: that holds, and what was decided does not.
    saved.save_plan(replace(TINY_PLAN, folds=TINY_PLAN.folds[::-1]), stub.task, fingerprint_key="")
    assert main([*RUN, "30s"]) == 1
    assert planning[1:] == [("", False)]
    assert "the time was divided for another plan. Remove it to divide it anew" in capsys.readouterr().err


@pytest.mark.usefixtures("measured")
def test_a_time_that_is_too_short_decides_nothing(
    stub: Stub, planning: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_, "paces", takes(9))
    assert main([*RUN, "30s"]) == 1
    assert planning == [("", False)]
    assert not read_object(stub.task / "budget.json")


@pytest.mark.usefixtures("measured", "stub")
def test_a_plan_for_coarser_images_without_what_was_named(
    planning: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coarser images may need no cascade."""
    flat = replace(TINY_PLAN, configurations=TINY_PLAN.configurations[:1])
    monkeypatch.setattr(commands, "_planned_by", lambda *_: flat)
    assert main([*RUN, "30s", "--configurations", "3d_fullres"]) == 0
    assert planning == [("", False)]


@pytest.mark.usefixtures("measured")
def test_a_task_that_was_trained_keeps_its_spacing(stub: Stub, planning: list[tuple[str, bool]]) -> None:
    (stub.task / "2d" / "models" / "fold_0").mkdir(parents=True)
    assert main([*RUN, "30s"]) == 0
    assert planning == [("", False)]


@pytest.mark.parametrize("spacing", [7, "3,3,3", [1.0, 2.0], [1.0, 2.0, -3.0]])
def test_a_damaged_spacing(
    stub: Stub, planning: list[tuple[str, bool]], spacing: object, capsys: pytest.CaptureFixture
) -> None:
    entry = {"run, 30 s": {"budget_seconds": 30.0, "seconds": 1.0, "decisions": {"spacing": spacing}}}
    (stub.task / "budget.json").write_text(json.dumps(entry))
    assert main([*RUN, "30s"]) == 1
    assert "budget.json is damaged. Remove it to divide the time anew." in capsys.readouterr().err
    assert not planning


def test_what_failed_at_once_gets_no_more_than_there_is(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    """Shares of trainings that failed at once were larger and larger."""
    clock = Clock(tmp_path, 7200)
    held, found = clock.timed(jobs)
    found.run(lambda some: {job: Outcome("failed") for job in some})
    assert sum(share.seconds for share in found.shares.values()) > 7200
    held, found = clock.timed(jobs)
    found.run(clock.run)
    assert held.gone <= 7200
    assert all(share.seconds for share in found.shares.values())


def test_what_another_command_trained_is_refused_before_anything_is_done(
    tmp_path: Path, jobs: Mapping[Training, Job]
) -> None:
    found = Timed(Clock(tmp_path, 7200).ledger(), TINY_PLAN, SETTING, jobs, lambda: PACES)
    last = jobs[found.division.trainings[-1]].folder
    last.mkdir(parents=True)
    (last / "last.pt").touch()
    with pytest.raises(AutoplanError, match=r"was started with another recipe, or for another time\..* remove"):
        found.prepare(lambda _: pytest.fail("it runs"))


def test_what_is_left_is_said_when_it_goes_on(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    clock = Clock(tmp_path, 7200)
    _, found = clock.timed(jobs)
    whole = "\n".join(found.report())
    runs = iter([clock.run, clock.run])
    with pytest.raises(StopIteration):
        found.run(lambda some: next(runs)(some))
    _, found = clock.timed(jobs)
    said = "\n".join(found.report())
    for number, text in ((5, whole), (2, said)):
        [folds] = re.findall(r"3d_fullres +((?:\d, )*\d) ", text)
        assert len(folds.split(", ")) == number
    [rest] = re.findall(r"3 of 5 trainings have begun; .* the trainings: about (\d+) (?:min|s)\.", said)
    assert 0 < int(rest) < 60


@pytest.mark.usefixtures("measured")
def test_another_budget_is_another_recipe(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    """A fold is not trained half by the one and half by the other."""
    words = ["train", TINY_PLAN.name, "--configurations", "2d", "--folds", "1"]
    assert main([*words, "--budget", "30s"]) == 0
    assert main([*words, "--budget", "40s"]) == 1
    assert "2d fold 1 was started with another recipe, or for another time." in capsys.readouterr().err


MEASURED = """
import sys
from autoplan import __main__ as m
from autoplan.cost import pace
from autoplan.data import stored
stored.load_fingerprint = lambda _: None
pace.paces = lambda _, __, some, *___, **____: [pace.Pace(c.name, 0.01, 0, c.features, 0.5) for c in some]
sys.exit(m.main())
"""
"""The command line, with what `measured` does."""


def test_killed_again_and_again(stub: Stub) -> None:
    """What was decided holds: the same networks in the end, each by one budget; the time that is gone stays gone."""
    words = ["train", TINY_PLAN.name, "--configurations", "2d", "--folds", "0,1,2,all", "--budget", "3m"]
    rng, known, gone = random.Random(0), {}, 0.0
    for is_last in (False, False, False, False, False, True):
        process = subprocess.Popen([sys.executable, "-c", MEASURED, *words], stdout=subprocess.PIPE, text=True)
        if not is_last:
            time.sleep(rng.uniform(1, 3))
            process.kill()
        said = process.communicate()[0]
        entry = next(iter(read_object(stub.task / "budget.json").values()), {"seconds": 0.0, "decisions": {}})
        decided = entry["decisions"].get(timed.TRAININGS, {})
        assert known.items() <= decided.items()
        assert gone <= entry["seconds"]
        known, gone = decided, entry["seconds"]
    assert process.returncode == 0
    assert "of 3 min left" in said
    assert list(known) == [f"2d fold {fold}" for fold in (0, 1, 2, "all")]
    for name, share in known.items():
        log = (stub.task / "2d" / "models" / name[3:].replace(" ", "_") / "train.log").read_text()
        assert set(re.findall(r"training .*--budget_seconds (\d+)", log)) == {str(share["seconds"])}
    wait_until(lambda: not stub.alive())


@pytest.mark.parametrize("fold", [0, "all"])
def test_kills_of_the_only_training_are_made_up_for(tmp_path: Path, jobs: Mapping[Training, Job], fold: Fold) -> None:
    """Each costs what was not saved, and a start; the training is told how much is left."""
    setting = replace(SETTING, seconds=1800, named_folds=(fold,))
    clock = Clock(tmp_path, 1800)
    for _ in range(5):
        held, found = clock.timed(jobs, setting)
        with pytest.raises(KeyboardInterrupt):
            found.run(clock.killed(100))
        held.write()
    _, found = clock.timed(jobs, setting)
    found.run(clock.run)
    assert "budget_left" in dict(clock.ran[-1].settings)
    left = 1800 - clock.now - division.after(found.division.trainings, found.paces, setting)
    assert 0 <= left < 0.1 * 1800


def test_nothing_is_cut_where_nothing_was_lost(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    clock = Clock(tmp_path, 7200)
    _, found = clock.timed(jobs)
    found.run(clock.run)
    assert not any("budget_left" in dict(job.settings) for job in clock.ran)


def test_fewer_run_at_a_time_than_before(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    """Begun on a machine with five GPUs, ended on one with a single one: each gets an equal part of what it lacks."""
    clock = Clock(tmp_path, 7200)
    held, found = clock.timed(jobs, replace(SETTING, places=5))
    with pytest.raises(KeyboardInterrupt):
        found.run(clock.killed(1000))
    held.write()
    _, found = clock.timed(jobs)
    begun = found.shares
    assert "3d_fullres fold 0, 3d_fullres fold 1" in found.report()[0]
    found.run(clock.run)
    assert found.shares == begun
    lefts = [float(dict(job.settings)["budget_left"]) for job in clock.ran if job.fold is not None]
    assert len(lefts) == 5
    assert max(lefts) - min(lefts) < 0.05 * max(lefts)
    assert 0.9 * 7200 < clock.now + division.after(found.division.trainings, found.paces, SETTING) <= 7200


@pytest.mark.parametrize(("places", "folds"), [(8, (0,)), (4, (0, 1, 2, 3, 4)), (3, (0, 1)), (5, ())])
def test_places_that_stay_empty(
    places: int, folds: tuple[int, ...], tmp_path: Path, jobs: Mapping[Training, Job]
) -> None:
    """The validation of one training takes as long however many could run beside it."""
    setting = replace(SETTING, places=places, named_folds=folds, num_images=0)
    clock = Clock(tmp_path, 3600)
    clock.besides = 30 + 40 * 20
    slow = [replace(pace, image_seconds=20.0) for pace in PACES]
    found = Timed(clock.ledger(), TINY_PLAN, replace(setting, seconds=3600), jobs, lambda: slow)
    found.prepare(clock.run)
    found.run(clock.run)
    assert clock.ran[-1].fold is not None
    assert 0.85 * 3600 < clock.now <= 3600


def test_caches_take_most_of_the_time(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    """What is left is divided anew: fewer networks, and each long enough."""
    clock = Clock(tmp_path, 7200)
    clock.filling = 5000
    found = Timed(clock.ledger(), TINY_PLAN, SETTING, jobs, lambda: PACES)
    announced = found.division
    assert found.prepare(clock.run)
    assert len(found.division.trainings) < len(announced.trainings) == 5
    assert Timed(clock.ledger(), TINY_PLAN, SETTING, jobs, lambda: pytest.fail("known")).division == found.division
    found.run(clock.run)
    assert min(given(clock.ran)) > division.LEAST
    assert clock.now + division.after(found.division.trainings, found.paces, SETTING) <= 7200


def test_caches_take_all_the_time(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    clock = Clock(tmp_path, 7200)
    clock.filling = 7150
    with pytest.raises(AutoplanError, match="--budget is too short: 30 iterations of one training"):
        clock.timed(jobs)


@pytest.fixture
def stages(jobs: Mapping[Training, Job]) -> dict[Training, Job]:
    """Jobs of both stages of a cascade."""
    found = {}
    for name in (LOWRES, CASCADE):
        for t, job in jobs.items():
            if t.configuration == "2d":
                bundle = str(Path(job.bundle).with_name(name))
                found[replace(t, configuration=name)] = replace(job, bundle=bundle, configuration=name)
    return found


@pytest.mark.parametrize("places", [1, 4, 10])
@pytest.mark.parametrize("fails", [False, True])
def test_both_stages_of_a_cascade(
    places: int, fails: bool, tmp_path: Path, stages: dict[Training, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second stage learns from all folds of the first; without one of them it gets no time."""
    clock = Clock(tmp_path, 7200)
    done: set[Path] = set()
    monkeypatch.setattr(timed, "is_done", lambda job: job.folder in done)
    setting = replace(SETTING, places=places, names_configurations=True, num_images=0)
    found = Timed(clock.ledger(), TINY_PLAN, setting, stages, lambda: [Pace(LOWRES, 0.1, 0.1), Pace(CASCADE, 0.1, 0.1)])
    found.prepare(clock.run)

    def run(jobs: Sequence[Job]) -> dict[Job, Outcome]:
        assert len({job.configuration for job in jobs}) <= 1
        outcomes = clock.run(jobs) if jobs else {}
        failed = [job for job in jobs if fails and (job.configuration, job.fold) == (LOWRES, 3)]
        done.update(job.folder for job in jobs if job not in failed)
        return outcomes | {job: Outcome("failed") for job in failed}

    found.run(run)
    assert {job.configuration for job in clock.ran if job.fold is not None} == (
        {LOWRES} if fails else {LOWRES, CASCADE}
    )
    assert [t.configuration for t in found.left_out] == [CASCADE] * 5 * fails
    assert clock.now <= 7200
    if fails:  # the user corrects it
        done.add(stages[Training(LOWRES, 3)].folder)
        found.run(run)
        assert not found.left_out


@pytest.mark.usefixtures("measured")
def test_a_fold_that_fails_leaves_a_choice_among_the_others(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """And the command says so in the end."""
    called = []
    for name in ("plan", "select", "predict", "report"):
        monkeypatch.setattr(commands, name, lambda _, n=name, **__: called.append(n))
    monkeypatch.setattr(coarser, "dice_kept", lambda *_: 0.5)
    stub.fail("3d_fullres", 1, *["ValueError: broken"] * 5)
    assert main(["run", TINY_PLAN.name, "--budget", "1m", "--folds", "0,1", "--configurations", "3d_fullres"]) == 1
    assert called == ["plan", "select", "report", "predict"]
    said = capsys.readouterr()
    assert "1 of 2 jobs are done, 1 failed" in said.err
    assert "Finished in" in said.out


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        pytest.param("all", {"folds": "all", "configurations": "3d_fullres"}, id="nothing says which is better"),
        pytest.param("0,all", {"folds": "all", "configurations": "3d_fullres,2d"}, id="the cross-validation says it"),
    ],
)
def test_two_configurations_on_all_cases(
    folds: str, expected: dict[str, str], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    for name in ("plan", "select", "predict", "report"):
        monkeypatch.setattr(commands, name, lambda _, n=name, **given: chosen.append(given) if n == "select" else None)
    words = ["run", TINY_PLAN.name, "--budget", "1m", "--folds", folds, "--configurations", "2d,3d_fullres"]
    assert main(words) == 0
    assert expected.items() <= chosen[0].items()


@pytest.mark.parametrize(
    "settings",
    [{"features": "[16,32"}, {"features": "[16,a,32]"}, {"features": "[]"}, {"batch_size": "$2"}, {"batch_size": "-"},
     {"patch_size": "$[8, 16]"}],
)  # fmt: skip
def test_settings_that_cannot_be_read_here_do_not_count(settings: dict[str, str]) -> None:
    """The training takes expressions, and refuses what is none."""
    assert request.widths(TINY_PLAN, "2d", settings)[0] == request.widths(TINY_PLAN, "2d", {})[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, False), ({"mirror_prob": "0.0"}, False), ({"mirror_prob": "0.5"}, True), ({"mirror": "True"}, True),
     ({"mirror_prob": "0.5", "mirror": "False"}, False)],
)  # fmt: skip
def test_who_predicts_mirrored(settings: dict[str, str], expected: bool) -> None:
    assert request.is_mirrored(settings) is expected


@pytest.mark.parametrize("others", [["--quick"], ["--scheduler", "tcp://x"], ["--slurm", "x.yaml"], ["--from", "x"]])
def test_flags_that_it_does_not_go_with(others: list[str], stub: Stub, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", TINY_PLAN.name, "--budget", "1h", *others]) == 1
    assert f"--budget and {others[0]} exclude each other" in capsys.readouterr().err
    assert not stub.notes("start")


@pytest.mark.parametrize(
    "decisions",
    [
        {"division": 7},
        {"division": {"trainings": []}},
        {"trainings": []},
        {"trainings": {"2d fold 9": {}}},
        {"slower than expected": 1},
        {"paces": 7},
        {"division": {"trainings": [{"configuration": "2d", "fold": 9}], "paces": [to_dict(PACES[0])], "left_out": []}},
        {"division": {"trainings": [{"configuration": "2d", "fold": 0}], "paces": [], "left_out": []}},
        {"trainings": {}, "slower than expected": {"3d_fullres": float("nan")}},
    ],
)
def test_a_damaged_ledger(tmp_path: Path, jobs: Mapping[Training, Job], decisions: dict[str, object]) -> None:
    clock = Clock(tmp_path, 7200)
    held, found = clock.timed(jobs)
    found.run(clock.run)
    held.decisions.update(decisions)
    held.write()
    with pytest.raises(AutoplanError, match=r"budget\.json is damaged. Remove it"):
        clock.timed(jobs)


def test_too_short(tmp_path: Path, jobs: Mapping[Training, Job]) -> None:
    """Nothing is decided, so that a longer time is divided anew."""
    with pytest.raises(AutoplanError, match="too short"):
        Clock(tmp_path, 60).timed(jobs, replace(SETTING, seconds=60))
    assert not (tmp_path / "budget.json").exists()
