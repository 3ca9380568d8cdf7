"""Which jobs there are, how they stand and why they fail: without starting any."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY_PLAN

from autoplan.__main__ import main
from autoplan.base.codec import from_dict, to_dict
from autoplan.base.errors import TrainingError
from autoplan.base.files import read_object
from autoplan.bundle.settings import flags_of_training
from autoplan.cli import commands as command_line
from autoplan.planning.values import CASCADE, LOWRES, Fold
from autoplan.training import backends, failures, jobs, lease, results, standing
from autoplan.training.jobs import Job
from autoplan.training.machine import gpus, gpus_listed
from autoplan.training.recipe import as_last_started, as_trained, flags_of_recipe, max_epochs, other_recipe
from autoplan.training.results import Recipe

TASK = TINY_PLAN.name


@pytest.fixture
def task(project: Path, tmp_path: Path) -> Path:
    """The bundles of the tiny plan, to be changed."""
    return Path(shutil.copytree(project / "bundles" / TASK, tmp_path / "bundles" / TASK))


def job_of(task: Path, fold: Fold = 0, configuration: str = "2d", **settings: str) -> Job:
    [job] = jobs.jobs_of([task / configuration], [fold], settings=settings)
    return job


MODEL = hashlib.sha256(b"weights").hexdigest()[:16]


def finish(job: Job, epochs: int = 1000, **more: object) -> None:
    """Leaves what a training leaves; with `schedule` also its recipe, as versions before have not recorded it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "model.pt").write_text("weights")
    found = {"epochs": epochs, "stopped": False, "model": MODEL, **more}
    if "schedule" in more:
        found = {"max_epochs": epochs, **found}
    (job.folder / "finished.json").write_text(json.dumps(found))


def score(job: Job, model: str | None = MODEL, cases: tuple[str, ...] | None = None) -> None:
    """Leaves what an evaluation leaves."""
    (job.folder / "validation").mkdir(exist_ok=True)
    found: dict[str, object] = {"mean_foreground_dice": 0.75, "cases": dict.fromkeys(cases or (f"case_{job.fold}",))}
    found |= {"settings": dict.fromkeys(results.PREDICTION_SETTINGS)} | ({} if model is None else {"model": model})
    (job.folder / "validation" / "dice.json").write_text(json.dumps(found))
    probabilities = job.folder / "validation" / "probabilities"
    probabilities.mkdir(exist_ok=True)
    (probabilities / f"case_{job.fold}.npz").write_text("probabilities")


def test_all_jobs(task: Path) -> None:
    found = jobs.jobs_of(jobs.find_bundles(task))
    assert [(j.configuration, j.fold) for j in found] == [(c, f) for c in jobs.CONFIGURATIONS for f in range(5)]
    assert all(Path(j.bundle).is_absolute() for j in found)


def test_some_jobs(task: Path) -> None:
    found = jobs.jobs_of(jobs.find_bundles(task, ["3d_fullres"]), [1, 3])
    assert [j.name for j in found] == ["3d_fullres fold 1", "3d_fullres fold 3"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["Task99_None"], "Plan first: python -m autoplan Task99_None", id="no bundles"),
        pytest.param([TASK, "--configurations", "4d"], "There are 2d, 3d_fullres,", id="no such configuration"),
        pytest.param([TASK, "--folds", "5"], "there are 5, counted from 0", id="no such fold"),
        pytest.param([TASK, "--folds", "one"], "--folds takes numbers such as 0,1", id="fold in words"),
        pytest.param([TASK, "--max_epoch", "3"], "there is no flag --max_epoch.", id="misspelt setting"),
        pytest.param([TASK, "--fold", "3"], "--fold cannot be set here", id="set by the job"),
        pytest.param([TASK, "--jobs", "0"], "--jobs takes", id="no jobs at a time"),
        pytest.param([TASK, "more"], "one argument too many", id="argument"),
        pytest.param([TASK, "--quick=maybe"], "--quick takes no value", id="switch"),
    ],
)
@pytest.mark.parametrize("command", ["train", "status"])
def test_refused(task: Path, command: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    if command == "status" and "--jobs" in arguments:
        said = "there is no flag --jobs"
    assert main([command, *arguments, "--bundles", str(task.parent)]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--misspelt", "1"], "there is no flag --misspelt. Its flags: "),
        (["--fold", "1"], "--fold cannot be set here"),
        (["--folds", "one"], "--folds takes numbers such as 0,1"),
        (["--jobs", "0"], "--jobs takes"),
        (["--device", "cuda:1"], "put CUDA_VISIBLE_DEVICES=1 before"),
        (["--max_epochs", "x"], "--max_epochs takes a whole number, 1 or more, of at most 9 digits, not x."),
    ],
)
def test_run_refuses_flags_of_the_trainings_before_it_plans(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(command_line, "plan", lambda *_, **__: pytest.fail("it plans"))
    assert main(["run", TASK, *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_training_sees_one_gpu(task: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", TASK, "--device", "cuda:1", "--bundles", str(task.parent)]) == 1
    assert "put CUDA_VISIBLE_DEVICES=1 before the command" in capsys.readouterr().err


def test_the_settings_of_all_bundles_are_known_before_there_are_any(task: Path) -> None:
    for bundle in jobs.find_bundles(task):
        config = read_object(bundle / "configs" / "train.json")
        jobs.check_settings(dict.fromkeys(flags_of_training(config), "$1"), command_line.known_settings()[0])


@pytest.mark.parametrize(
    ("configuration", "flag", "value", "said"),
    [
        pytest.param("3d_fullres", "patch_size", "[4,4,2]", "the smallest patch is [8, 4, 2]", id="one voxel is left"),
        pytest.param("3d_fullres", "patch_size", "[18,16,8]", "must be a multiple of [4, 4, 2]", id="no multiple"),
        pytest.param("3d_fullres", "patch_size", "[16,16]", "must be a multiple of [4, 4, 2]", id="too few axes"),
        pytest.param("3d_fullres", "patch_size", "16", "takes a list of whole numbers", id="one number"),
        pytest.param("3d_fullres", "patch_size", "abc", "takes a list of whole numbers", id="a word"),
        pytest.param("3d_fullres", "patch_size", '["a",1,2]', "takes a list of whole numbers", id="words"),
        pytest.param("3d_fullres", "patch_size", "[16.0,16,8]", "takes a list of whole numbers", id="not whole"),
        pytest.param("3d_fullres", "patch_size", "null", "takes a list of whole numbers", id="nothing"),
        pytest.param("3d_fullres", "patch_size", "[" * 100_000, "takes a list of whole numbers", id="nested"),
        pytest.param("3d_fullres", "strides", "[[0,2,2]]", "strides a list of such lists", id="a stride of 0"),
        pytest.param("3d_cascade_fullres", "lowres_patch_size", "[4,4,2]", "--lowres_patch_size", id="the first stage"),
        pytest.param("3d_fullres", "strides", "[[2,2,2],[2,2,2],[2,2,2],[2,2,2]]", "smallest patch", id="deeper"),
    ],
)
def test_patches_that_the_network_cannot_take(task: Path, configuration: str, flag: str, value: str, said: str) -> None:
    with pytest.raises(TrainingError, match=re.escape(said)):
        jobs.jobs_of([task / configuration], [0], settings={flag: value})


def test_the_smallest_patch_works(task: Path) -> None:
    assert jobs.jobs_of([task / "3d_fullres"], [0], settings={"patch_size": "[8,4,2]"})
    assert jobs.jobs_of([task / "3d_fullres"], [0], settings={"patch_size": "$[16, 16, 8]"})


def test_mirroring_is_a_setting_of_the_evaluation_alone(task: Path) -> None:
    [job] = jobs.jobs_of([task / "2d"], [0], settings={"mirror": "False"})
    words = {step: jobs.command(job, step) for step in ("caching", "training", "evaluating")}
    assert {step: "--mirror" in w for step, w in words.items()} == {
        "caching": False, "training": False, "evaluating": True,
    }  # fmt: skip


def test_a_folder_names_its_task(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / TASK).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "data" / TASK)
    assert main(["status", ".", "--bundles", str(task.parent)]) == 0


@pytest.mark.parametrize(
    ("step", "recipe", "names"),
    [
        ("training", "paper", ["train"]),
        ("training", "quick", ["train", "quick"]),
        ("training", "budget", ["train", "budget"]),
        ("evaluating", "paper", ["train", "evaluate"]),
        ("evaluating", "quick", ["train", "evaluate", "quick"]),
        ("evaluating", "budget", ["train", "evaluate", "budget"]),
    ],
)
def test_commands(task: Path, step: str, recipe: Recipe, names: list[str]) -> None:
    [job] = jobs.jobs_of([task / "2d"], [3], recipe=recipe, settings={"num_workers": "0"})
    command = jobs.command(job, step)
    configs = [str(task / "2d" / "configs" / f"{name}.json") for name in names]
    assert command[:6] == [sys.executable, "-m", "monai.bundle", "run", step, "--config_file"]
    assert command[6] == (configs[0] if len(configs) == 1 else str(configs))
    assert command[7:] == ["--num_workers", "0", "--fold", "3"]


def test_max_epochs(task: Path) -> None:
    assert max_epochs(job_of(task)) == 1000
    [quick] = jobs.jobs_of([task / "2d"], [0], recipe="quick")
    assert max_epochs(quick) == 17
    assert max_epochs(job_of(task, max_epochs="3")) == 3
    assert max_epochs(job_of(task, max_epochs="$1 + 1")) == 0


def _nothing(job: Job) -> None:
    pass


def _half(job: Job) -> None:
    job.folder.mkdir(parents=True)
    (job.folder / "last.pt").write_text("")


def _without_model(job: Job) -> None:
    finish(job)
    (job.folder / "model.pt").unlink()


def _scored(**options: object) -> Callable[[Job], None]:
    def leave(job: Job) -> None:
        finish(job)
        score(job, **options)

    return leave


def _incomplete(job: Job) -> None:
    finish(job)
    score(job)
    (job.folder / "validation" / "probabilities" / f"case_{job.fold}.npz").unlink()


def _broken(job: Job) -> None:
    finish(job)
    score(job)
    (job.folder / "validation" / "dice.json").write_text('{"cases": ')


@pytest.mark.parametrize(
    ("leave", "missing", "state"),
    [
        pytest.param(_nothing, ["training", "evaluating"], "waiting", id="nothing"),
        pytest.param(_half, ["training", "evaluating"], "stopped", id="checkpoint only"),
        pytest.param(_without_model, ["training", "evaluating"], "waiting", id="no network"),
        pytest.param(lambda job: finish(job, 10), ["training", "evaluating"], "waiting", id="fewer epochs than asked"),
        pytest.param(lambda job: finish(job, 10, stopped=True), ["evaluating"], "trained", id="ended by the rule"),
        pytest.param(finish, ["evaluating"], "trained", id="not scored"),
        pytest.param(_scored(model=None), ["evaluating"], "trained", id="scores of an unnamed network"),
        pytest.param(_scored(model="1" * 16), ["evaluating"], "trained", id="scores of another network"),
        pytest.param(_scored(cases=("case_1",)), ["evaluating"], "trained", id="scores of other cases"),
        pytest.param(_broken, ["evaluating"], "trained", id="scores cut short"),
        pytest.param(_incomplete, ["evaluating"], "trained", id="probabilities are missing"),
        pytest.param(_scored(), [], "done", id="done"),
    ],
)
def test_what_is_missing(task: Path, leave: Callable[[Job], None], missing: list[str], state: str) -> None:
    job = job_of(task)
    leave(job)
    assert standing.missing_steps(job) == missing
    assert standing.row(job).state == state


def test_cases_are_predicted_again_where_they_shall_be_mirrored_otherwise(task: Path) -> None:
    job = job_of(task)
    finish(job)
    score(job)
    path = job.folder / "validation" / "dice.json"
    found = json.loads(path.read_text())
    found["settings"]["mirror"] = True
    path.write_text(json.dumps(found))
    missing = {mirror: standing.missing_steps(job_of(task, mirror=mirror)) for mirror in ("True", "False")}
    assert missing == {"True": [], "False": ["evaluating"]}
    assert standing.missing_steps(job) == []


def test_more_epochs_are_trained_unless_the_rule_has_ended_it(task: Path) -> None:
    finish(job_of(task), 5)
    assert standing.is_trained(job_of(task, max_epochs="5"))
    assert not standing.is_trained(job_of(task, max_epochs="6"))
    finish(job_of(task), 5, stopped=True)
    assert standing.is_trained(job_of(task, max_epochs="6"))


def quick_of(job: Job, **settings: str) -> Job:
    return replace(job, recipe="quick", settings=tuple(settings.items()))


def test_a_finished_training_has_one_recipe(task: Path) -> None:
    job = job_of(task)
    finish(job, 17, schedule=True)
    assert standing.is_trained(quick_of(job))
    for other in (job, quick_of(job, max_epochs="40"), job_of(task, max_epochs="17")):
        assert not standing.is_trained(other)
        assert standing.state(other, is_held=False) == ("failed", other_recipe(other))
    assert other_recipe(job) == (
        "this fold was started with another recipe (quick.json or budget.json, or with one of them another "
        f"--max_epochs or --budget_seconds). Continue with that one, or remove {job.folder} to start anew."
    )
    finish(job, 30, schedule=False, stopped=True)
    assert standing.is_trained(job)
    assert other_recipe(quick_of(job))
    assert not other_recipe(job_of(task, max_epochs="2000"))


def test_the_recipe_of_a_finished_training_is_read_from_its_mark(task: Path) -> None:
    job = job_of(task)
    assert as_trained(job) == job
    finish(job, 17, schedule=True)
    score(job)
    assert as_trained(job) == quick_of(job)
    assert standing.row(as_last_started(job)).state == "done"
    job.log.write_text(f"{failures.START} training: monai.bundle --max_epochs 3\n")
    assert as_last_started(job) == quick_of(job)
    finish(job, 4, schedule=True)
    assert as_trained(job) == quick_of(job, max_epochs="4")
    finish(job, 1000, schedule=False)
    assert as_trained(quick_of(job, max_epochs="4")) == job


def test_flags_by_which_folds_were_trained(task: Path) -> None:
    bundle = task / "2d"
    assert flags_of_recipe(bundle, 3) == ""
    finish(job_of(task, 1), 17, schedule=True)
    assert flags_of_recipe(bundle, 3) == " --quick"
    finish(job_of(task, 3), 4, schedule=True)
    assert flags_of_recipe(bundle, 3) == " --quick --max_epochs 4"
    finish(job_of(task, 3), 1000, schedule=False)
    assert flags_of_recipe(bundle, 3) == ""


@pytest.fixture
def cascade(task: Path) -> list[Job]:
    """Jobs of a task with both stages of the cascade."""
    return jobs.jobs_of(jobs.find_bundles(task))


def test_stage_2_waits_for_all_of_stage_1(cascade: list[Job]) -> None:
    first = [j for j in cascade if j.configuration == LOWRES]
    second = [j for j in cascade if j.configuration == CASCADE]
    prerequisites = {job: standing.needs(job) for job in cascade}
    assert all(prerequisites[job] == first for job in second)
    free = [job for job in cascade if job not in second]
    assert standing.ready(cascade, prerequisites, done=(), begun=()) == free
    assert standing.ready(second, prerequisites, done=first[:-1], begun=()) == []
    assert standing.ready(second, prerequisites, done=first, begun=second[:1]) == second[1:]


# Fold "all".


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", []), ("1,0", [0, 1]), ("all", ["all"]), ("all,1, 0", [0, 1, "all"]), ("all,all,00", [0, "all"])],
)
def test_folds_that_are_named(text: str, expected: list[object]) -> None:
    assert command_line._folds(text) == expected


@pytest.mark.parametrize(
    ("leave", "steps", "state"),
    [
        pytest.param(lambda _: None, ["training"], "waiting", id="nothing"),
        pytest.param(lambda job: (job.folder / "last.pt").touch(), ["training"], "stopped", id="begun"),
        pytest.param(lambda job: finish(job, 10), ["training"], "waiting", id="fewer epochs than asked"),
        pytest.param(finish, [], "done", id="trained"),
    ],
)
def test_fold_all_is_trained_and_not_evaluated(
    task: Path, leave: Callable[[Job], object], steps: list[str], state: str
) -> None:
    job = job_of(task, "all", mirror="True")
    job.folder.mkdir(parents=True)
    leave(job)
    (job.folder / "curve.csv").write_text("epoch,train_average,val_average,seconds\n1,0.5,0.4,1.5\n")
    assert (standing.missing_steps(job), standing.is_done(job)) == (steps, not steps)
    row = standing.row(job)
    assert (row.fold, row.state, row.train_average, row.val_average, row.dice) == ("all", state, 0.5, None, None)
    assert "all cases, not validated" in standing.table([row])
    assert jobs.command(job, "training")[-2:] == ["--fold", "all"]
    assert job.folder.name == "fold_all"
    assert from_dict(Job, json.loads(json.dumps(to_dict(job)))) == job


def test_fold_all_is_there_once_it_was_begun(task: Path) -> None:
    def folds(**options: bool) -> list[object]:
        return [job.fold for job in jobs.jobs_of([task / "2d"], **options)]

    assert folds(begun_on_all=True) == folds() == [0, 1, 2, 3, 4]
    finish(job_of(task, "all"))
    assert (folds(), folds(begun_on_all=True)) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, "all"])


def test_fold_all_of_stage_2_needs_all_of_stage_1_and_its_fold_all(task: Path) -> None:
    needed = standing.needs(job_of(task, "all", configuration=CASCADE))
    assert [(job.configuration, job.fold) for job in needed] == [(LOWRES, k) for k in (0, 1, 2, 3, 4, "all")]


def test_stage_1_has_its_own_settings(task: Path) -> None:
    given = {"patch_size": "A", "lowres_patch_size": "B", "strides": "C", "lowres_features": "D", "max_epochs": "3"}
    given |= {"lowres_spacing": "[2,2,2]"}
    job = quick_of(job_of(task, configuration=CASCADE), **given)
    expected = {"patch_size": "B", "features": "D", "max_epochs": "3", "lowres_spacing": "[2,2,2]"}
    needed = standing.needs(job)
    assert [dict(other.settings) for other in needed] == [expected] * 5
    assert all(other.recipe == "quick" for other in needed)
    jobs.check_settings(expected, read_object(task / LOWRES / "configs" / "train.json"))


def test_stage_1_is_done_by_any_recipe(task: Path) -> None:
    [second] = jobs.jobs_of([task / CASCADE], [0])
    first = standing.needs(second)
    for job in first:
        finish(job, 17, schedule=True)
        score(job)
    todo, prerequisites = backends._with_prerequisites([second], num_fillers=0)
    assert (todo, prerequisites[second]) == ([second], [])
    (first[2].folder / "validation" / "dice.json").unlink()
    todo, prerequisites = backends._with_prerequisites([second], num_fillers=0)
    assert todo == [quick_of(first[2]), second]
    assert prerequisites[second] == [quick_of(first[2])]
    assert standing.missing_steps(todo[0]) == ["evaluating"]
    assert standing.row(second).reason == "waits for 3d_lowres fold 2"


def test_stage_1_that_is_asked_for_is_run_as_it_is_asked_for(cascade: list[Job]) -> None:
    todo, prerequisites = backends._with_prerequisites(cascade, num_fillers=0)
    assert sorted(j.name for j in todo) == sorted(j.name for j in cascade)
    first = [j for j in cascade if j.configuration == LOWRES]
    assert prerequisites[cascade[-1]] == first


def test_configurations_that_preprocess_alike_fill_one_cache(cascade: list[Job]) -> None:
    names = {job.configuration: filler.configuration for job, [filler] in jobs.caching_jobs(cascade, 1).items()}
    assert names == {"2d": "2d", "3d_fullres": "2d", "3d_lowres": "3d_lowres", "3d_cascade_fullres": "2d"}
    train = Path(cascade[0].bundle) / "configs" / "train.json"
    train.write_text(json.dumps({**json.loads(train.read_text()), "target_spacing": [9.0, 9.0, 9.0]}))
    fillers = jobs.caching_jobs(cascade, 2)
    assert len({filler for both in fillers.values() for filler in both}) == 6
    first, second = fillers[cascade[0]]
    assert (first.name, second.name) == ("2d cache", "2d cache, part 1")
    assert first.folder != second.folder, "each has a lease of its own"
    assert standing.missing_steps(first) == standing.missing_steps(second) == ["caching"]
    assert jobs.command(first, "caching") == jobs.command(second, "caching")


NAN = (
    "FloatingPointError: the training loss is nan in epoch 3, iteration 12, cases case_1, case_2. Try a lower learning "
    "rate, or --amp False."
)


@pytest.mark.parametrize(
    ("status", "tail", "reason", "retry"),
    [
        (137, "", "killed by the system, most likely for lack of memory (SIGKILL)", True),
        (-9, "", "killed by the system, most likely for lack of memory (SIGKILL)", True),
        (143, "Stopped. The same command goes on from here.", "stopped by a signal; everything is saved", True),
        (139, "", "crashed with SIGSEGV", True),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", "out of memory on the GPU", True),
        (1, "OSError: [Errno 28] No space left on device", "the disk is full", False),
        (1, "OSError: [Errno 122] Disk quota exceeded: 'x'", "the disk is full", False),
        (1, "OSError: [Errno 5] Input/output error: 'x'", "OSError: [Errno 5] Input/output error: 'x'", True),
        (1, NAN, "the training loss is nan in epoch 3, iteration 12, cases case_1, case_2.", False),
        (
            1,
            "RuntimeError: DataLoader worker (pid(s) 12) exited unexpectedly\n"
            "RuntimeError: DataLoader worker (pid 12) is killed by signal: Killed. ",
            "a loading process was killed",
            True,
        ),
        (
            1,
            "RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
            "workers are out of shared memory.",
            "the shared memory of the machine (/dev/shm) is full",
            True,
        ),
        (1, "RuntimeError: CUDA error: unspecified launch failure", "RuntimeError: CUDA error: unspecified", True),
        (1, "  File x, line 3\nValueError: There is no fold 9: there are 5.", "ValueError: There is no fold 9", False),
        (1, "monai.x.OwnError: no\nmore of it", "monai.x.OwnError: no", False),
        (
            1,
            "ValueError: told\nRuntimeError: applying transform <x>\nRuntimeError: Failed to evaluate y:\n'z'",
            "ValueError: told",
            False,
        ),
        (
            1,
            "RuntimeError: x\nValueError: this fold was started with another recipe (x). Go on, or remove /y.\nz",
            "this fold was started with another recipe (x). Go on, or remove /y.",
            False,
        ),
        (2, "usage: nothing", "usage: nothing", False),
        (3, "", "exit status 3, nothing printed", False),
        (0, "all well", "ended well, but its result files are not there or do not fit", False),
    ],
)
def test_explanations(status: int, tail: str, reason: str, retry: bool) -> None:
    failure = failures.explain(status, f"{failures.START} training\n{tail}\n{failures.END} {status}\n")
    assert failure.reason.startswith(reason)
    assert "\n" not in failure.reason
    assert failure.retry == retry
    assert failure.remedy


def test_memory_that_the_system_counts_is_named_for_sure() -> None:
    assert "most likely" not in failures.explain(137, "", out_of_memory=True).reason


def test_only_the_last_start_is_explained(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(f"{failures.START} training\n{NAN}\n{failures.END} 1\n{failures.START} training\nepoch 1\n")
    assert "nan" not in failures.log_tail(log)
    assert failures.last_status(failures.log_tail(log)) == 0
    assert failures.log_tail(tmp_path / "none") == ""


def test_status(task: Path, capsys: pytest.CaptureFixture) -> None:
    done, running, failed, stopped = (job_of(task, fold) for fold in range(4))
    finish(done)
    score(done)
    running.folder.mkdir(parents=True)
    rows = "epoch,train_average,val_average,seconds\n1,0.5,0.6,60\n2,0.25,0.5,120\n"
    (running.folder / "curve.csv").write_text(rows)
    held = lease.acquire(running.folder, max_epochs=10)
    failed.folder.mkdir()
    failed.log.write_text(f"{failures.START} training\nValueError: no\n{failures.END} 1\n")
    stopped.folder.mkdir()
    stopped.log.write_text(f"{failures.START} training\n{failures.END} 143\n")
    (stopped.folder / "last.pt").write_text("")
    words = ["status", TASK, "--bundles", str(task.parent), "--configurations", "2d"]
    assert main(words) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "configuration  fold  state     epoch  train  validation  Dice   time left",
        "2d             0     done      -      -      -           0.750  -",
        "2d             1     training  2/10   0.250  0.500       -      12 min",
        "2d             2     failed    -      -      -           -      -          ValueError: no",
        "2d             3     stopped   -      -      -           -      -",
        "2d             4     waiting   -      -      -           -      -",
    ]
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["state"] for r in rows] == ["done", "training", "failed", "stopped", "waiting"]
    assert rows[1]["seconds_left"] == 720
    assert held is not None
    held.release()
    assert standing.row(running).state == "waiting"


@pytest.mark.parametrize(("allowed", "said"), [(40, "3/40"), (0, "3")], ids=["known", "not decided yet"])
def test_epochs_in_words(allowed: int, said: str) -> None:
    assert standing.Row("2d", 0, "training", 3, allowed).epochs == said


def test_status_supposes_the_recipe_of_the_last_start(task: Path) -> None:
    [quick] = jobs.jobs_of([task / "2d"], [0], recipe="quick", settings={"max_epochs": "5", "num_workers": "0"})
    quick.folder.mkdir(parents=True)
    lines = [f"{failures.START} {step}, now: {' '.join(jobs.command(quick, step))}" for step in ("training", "x")]
    quick.log.write_text("\n".join(lines) + "x" * 2 * failures.TAIL_BYTES)
    found = as_last_started(job_of(task))
    assert (found.recipe, found.settings, found.fold) == ("quick", (("max_epochs", "5"),), 0)
    assert as_last_started(job_of(task, 1)) == job_of(task, 1)


def test_the_end_of_the_command_tells_what_is_not_done(task: Path) -> None:
    job = job_of(task)
    finish(job)
    with pytest.raises(TrainingError, match=r"0 of 1 jobs are done, 1 failed\.\n.*train\.log"):
        standing.check_all_done([standing.row(job)], [job])
    score(job)
    standing.check_all_done([standing.row(job)], [])


def test_gpus() -> None:
    plain = "GPU 0: NVIDIA A100 (UUID: GPU-1)\nGPU 1: NVIDIA A100 (UUID: GPU-2)\n"
    parts = "GPU 0: NVIDIA A100 (UUID: GPU-1)\n  MIG 1g.5gb Device 0: (UUID: MIG-a)\n  MIG 1g Device 1: (UUID: MIG-b)\n"
    assert gpus_listed(plain) == ["0", "1"]
    assert gpus_listed(parts) == ["MIG-a", "MIG-b"]
    assert gpus_listed("") == []
    assert gpus({"CUDA_VISIBLE_DEVICES": "2, 3"}) == ["2", "3"]
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []


def test_jobs_share_devices_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(backends, "threads", lambda jobs: 16 // jobs)
    machine = backends.Machine(4, devices=["0", "1"])
    found = [machine._free.get() for _ in range(4)]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0", "1", "0", "1"]
    assert {e["OMP_NUM_THREADS"] for e in found} == {"4"}
    assert backends.Machine(devices=["0", "1", "2"]).places == 3
    assert backends.Machine(devices=[]).places == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", "[" * 100_000])
def test_a_damaged_config_is_named(task: Path, text: str) -> None:
    """And not the flags."""
    path = task / "2d" / "configs" / "train.json"
    path.write_text(text)
    with pytest.raises(TrainingError, match=re.escape(f"{path} is damaged")):
        jobs.jobs_of([task / "2d"], [0], settings={"max_epochs": "3"})


# Trainings that fit no more.


def seen(job: Job, *cases: str, **settings: object) -> None:
    """The training of a job has seen these cases, with other settings than planned."""
    config = read_object(Path(job.bundle) / "configs" / "train.json")
    recorded = {name: config[name] for name in (*results.OF_THE_DATA, *jobs.SHAPE) if name in config}
    finish(job, schedule=False, settings={**recorded, **settings}, cases={name: [name, name] for name in cases})


@pytest.fixture
def unfit(task: Path) -> list[Job]:
    """Fold 0 has seen its own case, fold 1 another spacing, fold 2 fits, fold 3 is not trained."""
    found = jobs.jobs_of([task / "2d"], [0, 1, 2, 3])
    seen(found[0], "case_0", "case_2")
    seen(found[1], "case_0", target_spacing=[2.0, 2.0, 5.0])
    seen(found[2], "case_0", "case_1")
    return found


def test_trainings_that_fit_no_more_are_refused(task: Path, unfit: list[Job], capsys: pytest.CaptureFixture) -> None:
    assert [standing.is_trained(job) for job in unfit] == [False, False, True, False]
    assert [standing.row(job).state for job in unfit] == ["failed", "failed", "trained", "waiting"]
    assert main(["train", TASK, "--bundles", str(task.parent), "--configurations", "2d"]) == 1
    err = capsys.readouterr().err
    assert "2d fold 0 was trained on 1 of its 1 validation cases, such as case_0." in err
    assert "2d fold 1 was trained with target_spacing [2.0, 2.0, 5.0], and now it is" in err
    assert f"train {TASK} --configurations 2d --folds 0,1 --anew --bundles {task.parent} (what is there moves" in err
    assert "--spacing 2,2,5 --force" in err


def test_a_flag_that_was_given_again_fits(task: Path, unfit: list[Job]) -> None:
    again = job_of(task, 1, target_spacing="[2,2,5]")
    assert standing.unfit(again) == ""
    assert standing.is_trained(again)


def test_what_fits_no_more_is_set_aside(unfit: list[Job]) -> None:
    """Each time under a name of its own; what fits stays."""
    for number in (1, 2):
        before = [job.folder.parent / "before" / f"{job.folder.name}_{number}" for job in unfit[:2]]
        assert standing.set_aside(unfit) == before
        assert all((path / "model.pt").is_file() for path in before)
        assert [job.folder.exists() for job in unfit] == [False, False, True, False]
        standing.check_fit(unfit)
        seen(unfit[0], "case_0")
        seen(unfit[1], target_spacing=[2.0, 2.0, 5.0])


def test_what_is_being_trained_is_not_set_aside(unfit: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "holder", lambda folder: object())
    with pytest.raises(TrainingError, match="2d fold 0: a process is training it"):
        standing.set_aside(unfit)
    assert all(job.folder.exists() for job in unfit[:3])


def test_the_second_stage_needs_a_first_one_that_fits(task: Path) -> None:
    [second] = jobs.jobs_of([task / CASCADE], [0])
    seen(standing.needs(second)[3], "case_3")
    with pytest.raises(TrainingError, match="3d_lowres fold 3 was trained on 1 of its 1 validation cases"):
        standing.check_fit([second])


def test_cases_are_predicted_by_the_network_as_it_was_trained(task: Path) -> None:
    """Another plan may have other patches and features; a training goes by the plan."""
    job = job_of(task)
    seen(job, features=[4, 8], patch_size=[32, 32])
    words = jobs.command(job, "evaluating")
    assert [words[words.index(f"--{name}") + 1] for name in ("features", "patch_size")] == ["[4,8]", "[32,32]"]
    assert "--strides" not in words
    assert "--features" not in jobs.command(job, "training")


@pytest.mark.parametrize(
    "name", ["normalization", "nonzero_only", "class_names", "label_values", "single_component", "slice_axis"]
)
def test_what_a_plan_decides_for_all_networks_is_no_flag(task: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", TASK, f"--{name}", "[]", "--bundles", str(task.parent)]) == 1
    assert f"--{name} cannot be set here" in capsys.readouterr().err
