"""Jobs as processes, with trainings that take no time: what runs when, what is killed, what is run again."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest
from conftest import TINY_PLAN, Stub, is_alive, wait_until, write_tiny

from autoplan.__main__ import main
from autoplan.base.codec import to_dict
from autoplan.cli import commands as command_line
from autoplan.planning.values import CASCADE, LOWRES
from autoplan.training import backends, failures, jobs, lease, supervisor

TASK = TINY_PLAN.name
NAN = "FloatingPointError: the training loss is nan in epoch 1, iteration 2, cases case_1. Try a lower learning rate."


UP_TO_TRAINING = """
import sys
from autoplan import __main__ as m
from autoplan.cli import commands
commands.select = commands.predict = commands.report = lambda *_, **__: None
sys.exit(m.main())
"""
"""The command line, whose `run` ends after the trainings: the stand-ins leave nothing to choose by or to show."""


def start(*words: str) -> "subprocess.Popen[str]":
    """The command line as a process."""
    command = [sys.executable, "-c", UP_TO_TRAINING, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_all_jobs_then_nothing_then_what_is_missing(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    words = ["train", TASK, "--configurations", "2d,3d_fullres", "--folds", "0,1", "--jobs", "2"]
    assert main(words) == 0
    out = capsys.readouterr().out
    jobs = [f"{c} {f}" for c in ("2d", "3d_fullres") for f in (0, 1)]
    started = [name for name, _ in stub.notes("start")]
    assert started[0] == "caching 2d -"
    assert sorted(started[1:]) == sorted(f"{step} {job}" for step in ("training", "evaluating") for job in jobs)
    assert "3d_fullres     1     done" in out
    assert "2d fold 0: done" in out
    assert stub.alive() == []

    assert main(words) == 0
    assert len(stub.notes("start")) == len(started), "nothing is run twice"

    scores = stub.task / "2d" / "models" / "fold_1" / "validation" / "dice.json"
    (before := scores.read_text(), scores.unlink())
    assert main(words) == 0
    assert [name for name, _ in stub.notes("start")][len(started) :] == ["evaluating 2d 1"]
    assert scores.read_text() == before

    assert main([*words, "--max_epochs", "3"]) == 0
    assert (stub.task / "2d" / "models" / "fold_0" / "last.pt").read_text() == "3"
    assert not list(stub.task.glob("*/models/*/.*"))
    assert not list(stub.task.rglob(lease.NAME))


def test_several_jobs_fill_a_cache_together(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the backend says; trainings wait for all of them."""
    monkeypatch.setattr(backends.Machine, "num_fillers", lambda _: 2)
    assert main(["train", TASK, "--configurations", "2d", "--folds", "0,1", "--jobs", "2"]) == 0
    assert [name for name, _ in stub.notes("start")][:2] == ["caching 2d -"] * 2
    assert [name for name, _ in stub.notes("end")][:2] == ["caching 2d -"] * 2
    assert not stub.notes("clash")
    assert len(list(stub.task.glob("2d/models/caching/*/caching.log"))) == 2


def test_settings_reach_both_commands(stub: Stub) -> None:
    settings = ["--num_workers", "0", "--patch_size", "[16,16]", "--amp", "False", "--cache_dir", "2024_01"]
    settings += ["--max_epochs", "1"]
    assert main(["train", TASK, "--folds", "0", "--configurations", "2d", "--quick", *settings]) == 0
    log = (stub.task / "2d" / "models" / "fold_0" / "train.log").read_text()
    command = next(line for line in log.splitlines() if line.startswith(failures.START))
    for words in ("--num_workers 0", "--patch_size [16,16]", "--amp False", f"--cache_dir {stub.folder / '2024_01'}"):
        assert words in command
    assert "quick.json" in command


def test_a_failure_is_explained_and_others_go_on(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    stub.fail("2d", 0, NAN)
    stub.fail("2d", 1, "ValueError: There is no such thing.")
    stub.fail("2d", 2, *["kill"] * 3)
    stub.fail("2d", 3, "kill", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.")
    assert main(["train", TASK, "--configurations", "2d", "--jobs", "3"]) == 1
    starts = Counter(name for name, _ in stub.notes("start"))
    assert [starts[f"training 2d {fold}"] for fold in range(5)] == [1, 1, 3, 3, 1]
    out, err = capsys.readouterr()
    assert "2d fold 0: failed: the training loss is nan in epoch 1, iteration 2, cases case_1." in out
    assert "2d fold 1: failed: ValueError: There is no such thing." in out
    assert "2d fold 2: failed: killed by the system, most likely for lack of memory" in out
    assert "2d fold 3: done" in out
    states = [line.split()[2] for line in out.splitlines()[-5:]]
    assert states == ["failed", "failed", "failed", "done", "done"]
    assert "2 of 5 jobs are done, 3 failed." in err
    assert "Traceback" not in err
    for fold in range(3):
        assert str(stub.task / "2d" / "models" / f"fold_{fold}" / "train.log") in err
    assert main(["train", TASK, "--configurations", "2d"]) == 0, "the same command does the rest"


def test_stage_2_does_not_start_when_stage_1_failed(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    stub.fail(LOWRES, 1, NAN)
    words = ["train", TASK, "--configurations", f"{LOWRES},{CASCADE}", "--jobs", "4"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert "4 of 10 jobs are done, 1 failed." in err
    assert out.count("waits for 3d_lowres fold 1") == 5
    assert not [name for name, _ in stub.notes("start") if name.startswith(f"training {CASCADE}")]
    assert main(words) == 0
    names = [name for name, _ in stub.notes("start") if not name.startswith("caching")]
    last_of_first = max(i for i, name in enumerate(names) if LOWRES in name)
    assert last_of_first < min(i for i, name in enumerate(names) if CASCADE in name)


def test_what_a_fold_of_the_cascade_needs_is_run_too(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    words = ["train", TASK, "--configurations", CASCADE, "--quick", "--max_epochs", "1"]
    assert main([*words, "--folds", "0", "--patch_size", "[16,16,16]", "--lowres_patch_size", "[8,8,8]"]) == 0
    out = capsys.readouterr().out
    assert out.count(" done ") == 6
    log = (stub.task / LOWRES / "models" / "fold_3" / "train.log").read_text()
    assert "--patch_size [8,8,8]" in log
    assert "lowres_patch_size" not in log
    before = len(stub.notes("start"))
    assert main(["train", TASK, "--configurations", CASCADE, "--folds", "1"]) == 0
    started = [name for name, _ in stub.notes("start")][before:]
    assert started == [f"{step} {CASCADE} 1" for step in ("training", "evaluating")]


def test_fold_all_is_trained_once_and_goes_on(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    words = ["train", TASK, "--configurations", "2d", "--folds", "0,all"]
    stub.fail("2d", "all", NAN, NAN)
    assert main(words) == 1
    assert "2d fold all: failed: the training loss is nan" in capsys.readouterr().out
    assert main(words) == 1
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-2].split()[:3] == ["2d", "0", "done"]
    assert out[-1].split()[:3] == ["2d", "all", "done"]
    assert out[-1].endswith("all cases, not validated")
    before = [name for name, _ in stub.notes("start")]
    assert [name for name in before if name.endswith("all")] == ["training 2d all"] * 3
    assert main(words) == 0
    assert [name for name, _ in stub.notes("start")] == before
    assert main(["status", TASK, "--configurations", "2d"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["2d", "all", "done"]


def test_a_fold_of_every_configuration(stub: Stub) -> None:
    assert main(["train", TASK, "--folds", "0", "--max_epochs", "1"]) == 0
    trained = [name for name, _ in stub.notes("start") if name.startswith("training")]
    expected = [f"{c} 0" for c in ("2d", "3d_fullres", CASCADE)]
    expected += [f"{LOWRES} {fold}" for fold in range(5)]
    assert sorted(trained) == sorted(f"training {name}" for name in expected)


@pytest.mark.parametrize(("first", "then"), [(["--quick"], []), ([], ["--quick"])], ids=["short first", "short later"])
def test_another_recipe_is_not_run_over_a_finished_one(
    stub: Stub, capsys: pytest.CaptureFixture, first: list[str], then: list[str]
) -> None:
    words = ["train", TASK, "--configurations", "2d", "--folds", "0"]
    assert main([*words, *first]) == 0
    before = len(stub.notes("start"))
    capsys.readouterr()
    assert main([*words, *then]) == 1
    folder = stub.task / "2d" / "models" / "fold_0"
    out = capsys.readouterr().out
    assert "2d fold 0: failed: this fold was started with another recipe (quick.json or budget.json, or" in out
    assert f"Continue with that one, or remove {folder} to start anew." in out
    assert len(stub.notes("start")) == before
    assert main(["status", TASK, "--configurations", "2d", "--folds", "0"]) == 0
    assert " done " in capsys.readouterr().out


def test_nothing_outlives_a_command_that_is_killed(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_SECONDS", "0.2")
    words = ("train", TASK, "--configurations", "2d", "--jobs", "2", "--folds", "0,1", "--max_epochs", "10")
    process = start(*words)
    wait_until(lambda: len(stub.notes("helper")) == 2)
    process.kill()
    process.wait()
    again = start(*words)
    assert again.wait(60) == 0, again.stdout.read()
    assert stub.alive() == []
    assert not stub.notes("clash")
    assert len(list(stub.task.glob("2d/models/*/finished.json"))) == 2


def test_ctrl_c_saves_and_says_so(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_SECONDS", "0.2")
    process = start("train", TASK, "--configurations", "2d", "--folds", "0", "--max_epochs", "100")
    last = stub.task / "2d" / "models" / "fold_0" / "last.pt"
    wait_until(last.is_file)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "Interrupted" in process.stdout.read()
    assert stub.alive() == []
    assert failures.last_status((last.parent / "train.log").read_text()) == 143
    assert not list(stub.task.rglob(lease.NAME))


def test_a_training_dies_with_its_supervisor(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_SECONDS", "0.2")
    process = start("train", TASK, "--configurations", "2d", "--folds", "0", "--max_epochs", "8")
    wait_until(lambda: stub.notes("helper"))
    [(_, training)] = stub.notes("start")
    held = lease.holder(stub.task / "2d" / "models" / "fold_0")
    os.kill(held.pid, signal.SIGKILL)
    wait_until(lambda: training not in stub.alive(), 5)
    assert process.wait(60) == 0, process.stdout.read()
    assert not stub.notes("clash")
    os.kill(stub.notes("helper")[0][1], signal.SIGKILL)  # of a real training it looks for its parent itself


def test_another_process_keeps_a_job_off(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(backends, "HELD_SECONDS", 0.5)
    held = lease.acquire(stub.task / "2d" / "models" / "fold_0")
    words = ["train", TASK, "--configurations", "2d", "--folds", "0"]
    assert main(words) == 1
    assert f"process {os.getpid()} on " in capsys.readouterr().out
    assert not stub.notes("start")
    held.release()
    assert main(words) == 0


def test_two_commands_at_once_share_the_work(stub: Stub) -> None:
    words = ("train", TASK, "--configurations", "2d", "--folds", "0,1")
    first, second = start(*words), start(*words)
    assert [first.wait(60), second.wait(60)] == [0, 0]
    assert not stub.notes("clash")
    assert sorted(Counter(name for name, _ in stub.notes("start")).values()) == [1, 1, 1, 1]


def test_a_lost_lease_ends_the_training(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that stood still for long, as in a suspended machine, finds that another has taken over."""
    monkeypatch.setenv("STUB_SECONDS", "0.5")
    [job] = jobs.jobs_of([stub.task / "2d"], [0], settings={"max_epochs": "100"})
    code = "import sys; from autoplan.training import lease, supervisor; lease.HEARTBEAT_SECONDS = 0; "
    code += "exit(supervisor.main(sys.argv[1]))"
    argument = json.dumps({**to_dict(job), "settings": []})
    process = subprocess.Popen([sys.executable, "-c", code, argument], stdin=subprocess.PIPE)
    wait_until(lambda: stub.notes("helper"))
    path = job.folder / lease.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "id": "another"}))
    assert process.wait(30) == supervisor.LOST
    assert stub.alive() == []
    assert json.loads(path.read_text())["id"] == "another"
    process.stdin.close()


@pytest.mark.slow
def test_a_real_training_with_loading_processes_that_is_killed(project: Path, tmp_path: Path) -> None:
    """With MONAI: the command is killed in the middle, all of its processes end, and it goes on."""
    bundles = shutil.copytree(project, tmp_path / "project") / "bundles"
    some = ("--configurations", "2d", "--folds", "0", "--max_epochs", "3", "--epoch_length", "20")
    words = ("train", TASK, "--bundles", str(bundles), *some, "--val_batches", "1", "--num_workers", "1")
    process = start(*words)
    folder = bundles / TASK / "2d" / "models" / "fold_0"
    wait_until((folder / "last.pt").is_file)
    family = descendants(process.pid)
    assert len(family) >= 4, "supervisor, training, a process that loads for training and one for validation"
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, family)))
    again = start(*words)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert "2d fold 0: done" in out
    assert [line.split(",")[0] for line in (folder / "curve.csv").read_text().splitlines()] == ["epoch", "1", "2", "3"]


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    found = [int(c) for path in Path(f"/proc/{pid}/task").glob("*/children") for c in path.read_text().split()]
    return found + [grandchild for child in found for grandchild in descendants(child)]


def table_of(text: str) -> list[str]:
    """The last table that a command printed."""
    table = text[text.rindex("configuration  fold") :].splitlines()
    return list(takewhile(lambda line: line.startswith(("configuration", "2d", "3d")), table))


def test_run_killed_five_times_ends_like_an_undisturbed_one(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("select", "predict", "report"):
        monkeypatch.setattr(command_line, name, lambda *_, **__: None)
    for name in ("undisturbed", "killed"):
        write_tiny(tmp_path / name / "data" / "Task90_Tiny")
    words = ("run", TASK, "--quick", "--max_epochs", "4", "--jobs", "2", "--folds", "0,1,2")
    os.chdir(tmp_path / "undisturbed")
    assert main(list(words)) == 0
    undisturbed = table_of(capsys.readouterr().out)
    assert len(undisturbed) == 7
    assert all(" done " in line for line in undisturbed[1:])
    os.chdir(tmp_path / "killed")
    moments = random.Random(0)
    for _ in range(5):
        process = start(*words)
        time.sleep(moments.uniform(0.3, 2.0))
        process.kill()
        process.communicate()
    process = start(*words)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert table_of(out) == undisturbed
    assert not stub.notes("clash")
    assert stub.alive() == []


def test_run_goes_on_with_the_choice_and_the_prediction(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("plan", "select", "predict"):
        monkeypatch.setattr(command_line, name, lambda dataset, n=name, **_: called.append((n, dataset)))
    assert main(["run", TASK, "--configurations", "2d", "--folds", "0"]) == 0
    assert called == [("plan", TASK), ("select", TASK), ("predict", TASK)]
