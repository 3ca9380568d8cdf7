"""The command line: flags and help come from signatures, and what goes wrong is one line."""

import errno
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_PLAN, write_project

from autoplan.__main__ import main
from autoplan.base import files
from autoplan.base.errors import AutoplanError, PlanError
from autoplan.base.processes import run_printing
from autoplan.bundle import saved
from autoplan.cli import commands, flags
from autoplan.cli.commands import COMMANDS
from autoplan.cost import bill as costs
from autoplan.data.facts import Case
from autoplan.prediction import predict
from autoplan.sharing import ensemble

TASK = TINY_PLAN.name


def error_of(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line that a command says when it refuses."""
    assert main(words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    return lines[0]


# Flags come from signatures.


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_all_that_it_takes_and_nothing_else(name: str) -> None:
    command = COMMANDS[name]
    _, arguments = flags._docstring(command)
    assert list(arguments) == [*flags.positionals(command), *flags.flags(command)]
    assert all(text[-1] == "." for text in arguments.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_one_word_at_most_and_flags_with_defaults(name: str) -> None:
    parameters = inspect.signature(COMMANDS[name]).parameters.values()
    assert len(flags.positionals(COMMANDS[name])) <= 1
    assert all(p.default is not p.empty for p in flags.flags(COMMANDS[name]).values())
    assert {p.kind for p in parameters} <= {
        inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD,
    }  # fmt: skip


def test_run_takes_what_plan_and_train_take() -> None:
    run, plan, train = (flags.flags(COMMANDS[name]) for name in ("run", "plan", "train"))
    assert run.keys() >= train.keys()
    assert {name: p.default for name, p in run.items()} == {name: ({**plan, **train})[name].default for name in run}
    assert set(plan) - set(run) == {"explain", "num_processes"}


def example(text: str = "", *, number: int = 1, length: float = 1.0, switch: bool = False, word: str = "") -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["a"], {}, id="nothing"),
        pytest.param(["a", "--word", "2024_01"], {"word": "2024_01"}, id="text stays text"),
        pytest.param(["--word=a=b", "a"], {"word": "a=b"}, id="equals sign"),
        pytest.param(["--switch", "a"], {"switch": True}, id="a switch takes no word"),
        pytest.param(["a", "--number", "-3"], {"number": -3}, id="negative number"),
        pytest.param(["a", "--length", "0.5"], {"length": 0.5}, id="number"),
        pytest.param(["a", "--number", "999999999"], {"number": 999999999}, id="nine digits"),
        pytest.param(["a", "--length", "-1.5E-3"], {"length": -0.0015}, id="exponent"),
        *(
            pytest.param(["a", f"--{flag}={text}"], {flag: text}, id=f"{flag} {text[:9]}")
            for flag in ("number", "length")
            for text in (
                "[" * 9999,
                "1_0",
                "0x2",
                "0b1",
                "1" + "0" * 20,
                "007",
                "nan",
                "True",
                "²",
                "٣",
                "1j",
                "1 ",
                "",
            )
        ),
        pytest.param(["a", "--switch=1"], {"switch": "1"}, id="a switch with a number"),
        pytest.param(["a", "--word", "-x"], {"word": "-x"}, id="value with a dash"),
    ],
)
def test_words_become_arguments(words: list[str], expected: dict) -> None:
    assert flags.parse("example", example, words) == (["a"], expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["a", "--wrod", "x"], "no flag --wrod. Did you mean --word?", id="mistyped"),
        pytest.param(
            ["a", "--zzz"], "no flag --zzz. Its flags: python -m autoplan example --help", id="nothing like it"
        ),
        pytest.param(["a", "-w", "x"], "no flag -w", id="one letter"),
        pytest.param(["a", "-"], "no flag -", id="a dash"),
        pytest.param(["a", "--", "b"], "no flag --", id="two dashes"),
        pytest.param(["a", "--word"], "--word needs a value", id="no value"),
        pytest.param(["a", "--word", "--switch"], "--word needs a value", id="a flag instead of a value"),
        pytest.param(["a", "--word", "x", "--word", "y"], "--word is given twice", id="twice"),
        pytest.param(["a", "b"], "one argument too many, 'b'", id="too many"),
        pytest.param([], "TEXT is missing", id="too few"),
    ],
)
def test_words_that_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(AutoplanError) as raised:
        flags.parse("example", example, words)
    assert said in str(raised.value)


def test_settings_are_flags_of_trainings() -> None:
    names = ["max_epochs", "patch_size"]
    found = flags.parse("train", commands.train, ["Task", "--max-epochs", "3"], settings=names)
    assert found == (["Task"], {"max_epochs": "3"})
    with pytest.raises(AutoplanError, match="Did you mean --max_epochs"):
        flags.parse("train", commands.train, ["Task", "--max_epoch", "3"], settings=names)


# Help.


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]], ids=["no argument", "--help", "-h", "help"])
def test_help_begins_with_the_everyday_line(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(words) == 0
    written = capsys.readouterr()
    lines = written.out.splitlines()
    assert lines[0] == "python -m autoplan DATASET"
    assert re.findall(r"^  ([a-z]+) +", "\n".join(lines[4:]), re.MULTILINE) == list(COMMANDS)
    assert all(len(line) <= 100 for line in lines)
    assert "METADATA" not in written.out
    assert written.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  --{flag}" in out for flag in flags.flags(COMMANDS[name]))
    assert ("--max_epochs" in out) == flags.takes_settings(COMMANDS[name])
    assert "--fold," not in out, "which no one can set"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["statsu", "Task04"], "Did you mean status?", id="letters swapped"),
        pytest.param(["Predict", "Task04"], "Did you mean predict?", id="capital"),
        pytest.param(["trian"], "Did you mean train?", id="alone"),
        pytest.param(["Task99"], "neither a folder nor the name of one under data", id="a dataset"),
        pytest.param(["plan"], "DATASET is missing", id="no dataset"),
    ],
)
def test_a_mistyped_command(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert said in error_of(words, capsys)


@pytest.mark.parametrize("flag", [[], ["--root", "elsewhere"], ["--root=elsewhere"]], ids=["data", "word", "equals"])
def test_a_dataset_may_be_called_almost_like_a_command(
    flag: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("elsewhere" if flag else "data", "trains").mkdir(parents=True)
    assert "there is no dataset.json" in error_of(["trains", *flag], capsys)


# What is refused in one line.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--overlap", "0.25"], {"overlap": 0.25}),
        (["--overlap", "0"], {"overlap": 0}),
        (["--no_mirror", "--region_first"], {"mirror": False, "region_first": True}),
        (["--max_memory", "4GB", "--strict"], {"max_memory": "4GB", "strict": True}),
    ],
    ids=str,
)
def test_what_predict_sets_in_the_bundle(words, expected, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(predict, "predict", lambda *_, force, settings: seen.append(settings) or 0)
    monkeypatch.setattr(predict, "images_in", lambda *_: [])
    assert main(["predict", "T", "--images", "some", *words]) == 0
    assert seen == [expected]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["a\0b"], "holds a NUL character", id="NUL"),
        pytest.param(["--root", "caf\udce9", "x"], "is not valid UTF-8", id="lone surrogate"),
        pytest.param(["x" * 5000], "xxx", id="long dataset"),
        pytest.param(["status", "T", "--bundles", "b" * 5000], "bbb", id="long bundles"),
        pytest.param(["train", "T", "--mirror", "perhaps"], "--mirror takes True or False", id="mirror"),
        pytest.param(["run", "T", "--mirror", "perhaps"], "--mirror takes True or False", id="mirror of run"),
        pytest.param(["predict", "T", "--device", "foo"], "--device takes cpu or cuda:0, not foo", id="device"),
        pytest.param(["predict", "T", "--max_memory", "much"], "--max_memory takes a size such as 4GB", id="memory"),
        pytest.param(["predict", "T", "--overlap", "1"], "--overlap takes a number from 0 to below 1", id="overlap"),
        pytest.param(["predict", "T", "--overlap"], "--overlap", id="overlap without a value"),
        pytest.param(["predict", "T", "--no_mirror=maybe"], "--no_mirror takes no value", id="no_mirror"),
        pytest.param(["predict", "T", "--device", "cuda:0"], "no GPU is visible here", id="a GPU that is not there"),
        pytest.param(["run", "T", "--force=maybe"], "--force takes no value", id="force of run"),
    ],
)
def test_odd_arguments(words: list[str], said: str, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert said in error_of(words, capsys)


@pytest.mark.parametrize("below", ["", "deeper/still"], ids=["it is a file", "a file above it"])
@pytest.mark.parametrize(
    "words", [["DATASET", "--bundles"], ["evaluate", "--labels", "l", "--predictions", "p", "--output"]],
    ids=["plan", "evaluate"],
)  # fmt: skip
def test_a_file_in_place_of_a_folder(words, below, tiny, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    given = [str(tiny.folder) if word == "DATASET" else word for word in words]
    said = error_of([*given, str(tmp_path / "file" / below)], capsys)
    assert f"{tmp_path / 'file'} is a file, not a folder. Name another folder." in said
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tiny, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    assert f"{tmp_path} cannot be written" in error_of([str(tiny.folder), "--bundles", str(tmp_path / "b")], capsys)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        pytest.param(errno.ENOSPC, "the disk is full. Free space", id="full"),
        pytest.param(errno.EDQUOT, "the disk is full. Free space", id="quota"),
        pytest.param(errno.EROFS, "Change its permissions, or name another folder", id="read-only"),
        pytest.param(errno.EACCES, "Change its permissions, or name another folder", id="not allowed"),
        pytest.param(errno.EEXIST, "a file is in the place of a folder", id="in the way"),
        pytest.param(errno.EIO, "Check the path", id="broken disk"),
    ],
)
@pytest.mark.parametrize("path", [None, "/disk/plan.json"], ids=["no path", "path"])
def test_what_the_system_refuses_is_one_line(path, number, said, capsys, monkeypatch) -> None:
    def refused(*_, **__):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("autoplan.data.layouts.load", refused)
    monkeypatch.setattr("autoplan.data.decathlon.locate", lambda *_: Path("x"))
    error = error_of(["plan", "x"], capsys)
    assert said in error
    assert (path or "Error") in error


def test_a_fault_of_the_program_is_not_hidden(monkeypatch) -> None:
    def broken(*_, **__):
        raise OSError("no number, no path")

    monkeypatch.setattr("autoplan.data.decathlon.locate", broken)
    with pytest.raises(OSError, match="no number"):
        main(["plan", "x"])


def test_an_interrupt_during_the_imports_is_no_traceback() -> None:
    code = """
import sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == "nibabel":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from autoplan.__main__ import main
sys.exit(main(["Task99"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")


def test_a_reader_that_ends_early_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "autoplan", "--help"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, ""), "that the reader has gone is no failure of the command"


# What is printed to.


def _words_to(path: Path, monkeypatch, capsys, encoding: str = "utf-8") -> tuple[int, str]:
    """Exit status and errors of a help text that is printed to a file."""
    with path.open("w", encoding=encoding) as file:
        monkeypatch.setattr("sys.stdout", file)
        return main(["plan", "--help"]), capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_told_at_the_end(monkeypatch, capsys) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    status, said = _words_to(Path("/dev/full"), monkeypatch, capsys)
    assert (status, said) == (1, "Error: the output could not be written: no space left on device.\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_characters_that_an_encoding_lacks_are_escaped(encoding, tmp_path, monkeypatch, capsys) -> None:
    def example(*, länge: str = "器官 \ud800") -> None:
        """Prüft die Länge."""
        print("器官 Größe")

    monkeypatch.setitem(commands.COMMANDS, "plan", example)
    assert _words_to(tmp_path / "out", monkeypatch, capsys, encoding) == (0, "")
    said = (tmp_path / "out").read_text(encoding=encoding)
    assert ("Prüft die Länge" if encoding != "ascii" else "Pr\\xfcft die L\\xe4nge") in said
    assert "\\ud800" in said


CLOSED = """
import os, sys
os.close({number})
os.execv(sys.executable, [sys.executable, "-m", "autoplan", *sys.argv[1:]])
"""


@pytest.mark.parametrize("number", [1, 2])
def test_a_closed_output_is_no_traceback(number, tmp_path) -> None:
    """Nor does a file that the command writes become its output."""
    words = ["phantom", str(tmp_path / "Task99"), "--num_cases", "2"]
    done = subprocess.run(
        [sys.executable, "-c", CLOSED.format(number=number), *words], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(list(tmp_path.glob("Task99/*/*.nii.gz"))) == 7


def test_what_a_program_prints_is_passed_on_and_its_status(tmp_path, capsys) -> None:
    code = "import sys; print('器官\\rb'); print('odd', file=sys.stderr); sys.exit(3)"
    assert run_printing([sys.executable, "-c", code], tmp_path) == 3
    assert capsys.readouterr() == ("器官\rb\n", "odd\n")


def test_a_message_shows_no_control_characters(capsys) -> None:
    assert main(["plan", "a\x1b[31m\x07b"]) == 1
    assert r"a\x1b[31m\x07b: neither a folder" in capsys.readouterr().err


# select --name.


@pytest.mark.parametrize(
    "name", ["choice.json", "plan.json", "fingerprint.json", "..", ".", "", "cache", "2d", "a/b", "-x=1", "notes"]
)
def test_names_that_a_bundle_cannot_have(name, tmp_path, capsys, monkeypatch) -> None:
    folder = write_project(tmp_path) / "bundles" / TASK
    (folder / "notes").write_text("mine")
    (folder / "choice.json").unlink(missing_ok=True)
    monkeypatch.setattr(commands, "_crossvalidated", lambda *_: pytest.fail("it scores"))
    words = ["select", str(tmp_path / "data" / TASK), "--bundles", str(folder.parent), f"--name={name}"]
    assert "name" in error_of(words, capsys)
    assert (folder / "notes").read_text() == "mine"


def test_a_plain_name_is_allowed() -> None:
    ensemble.check_name("hippocampus_mri_segmentation")
    ensemble.check_name(None)


def test_a_spacing_is_kept_until_it_is_taken_back(tiny, tmp_path, capsys) -> None:
    bundles = tmp_path / "bundles"
    task = bundles / tiny.folder.name
    words = ["plan", str(tiny.folder), "--bundles", str(bundles), "--num_processes", "1"]
    assert main([*words, "--spacing", "2,2.5,3"]) == 0
    assert main(words) == 0
    assert saved.load_plan(task).own_spacing == (2.0, 2.5, 3.0)
    inference = json.loads((task / "2d" / "configs" / "inference.json").read_text())
    assert inference["target_spacing"] == [2.0, 2.5, 3.0]
    assert main([*words, "--spacing", "none", "--force"]) == 0
    assert saved.load_plan(task).own_spacing is None
    capsys.readouterr()
    for wrong in ("2,2", "2,2,0", "a,b,c", "2 x 2 x 2", "1,1,-1", "1,1,1e9"):
        assert main([*words, f"--spacing={wrong}"]) == 1
        said = capsys.readouterr().err
        assert f"--spacing takes three lengths in mm along x, y and z, such as 3,3,10, not '{wrong}'." in said
    assert main(["run", *words[1:4], "--from", "x", "--spacing", "2,2,2"]) == 1
    assert "--spacing and --from exclude each other" in capsys.readouterr().err


# run.


def test_run_hands_everything_on(monkeypatch, tiny, tmp_path) -> None:
    called = {}
    for name in ("plan", "train", "select", "predict"):
        monkeypatch.setattr(commands, name, lambda dataset, n=name, **given: called.update({n: given}))
    words = ["--root", "r", "--bundles", "b", "--cascade", "never", "--force", "--configurations", "2d", "--folds", "0"]
    words += ["--quick", "--anew", "--jobs", "2", "--scheduler", "tcp://x", "--slurm", "s", "--mirror", "False"]
    layout = {
        "images": "i",
        "labels": "l",
        "labels_are": "a,b",
        "channels": "CT",
        "table": "t",
        "group_by": "g",
        "gpu_memory": "8GB",
        "spacing": "3,3,10",
    }
    words += ["--max_epochs", "3", "--device", "cpu", *(f"--{name}={value}" for name, value in layout.items())]
    assert main(["run", str(tiny.folder), *words]) == 0
    planning = {"root": "r", "bundles": "b", "cascade": "never", "force": True, "scheduler": "tcp://x"}
    assert called["plan"] == {**planning, **layout}
    assert called["train"] == {
        "bundles": "b", "configurations": "2d", "folds": "0", "quick": True, "jobs": 2, "scheduler": "tcp://x",
        "slurm": "s", "mirror": "False", "max_epochs": "3", "device": "cpu", "from_": "", "anew": True, "root": "r",
    }  # fmt: skip
    assert called["select"] == {"root": "r", "bundles": "b", "folds": "", "configurations": "", "force": True}
    assert called["predict"] == {"root": "r", "bundles": "b", "device": "cpu"}
    called.clear()
    assert main(["run", str(tiny.folder), "--from", "bundle"]) == 0
    assert list(called) == ["train", "select", "predict"], "a bundle takes the place of a plan"
    assert called["train"]["from_"] == "bundle"
    assert main(["run", str(tiny.folder), "--folds", "0,all", "--configurations", "2d"]) == 0
    chosen = {"root": "data", "bundles": "bundles", "folds": "all", "configurations": "2d"}
    assert called["select"] == {**chosen, "force": False}


@pytest.mark.parametrize(
    ("failing", "status", "expected"),
    [
        pytest.param("", 0, ["plan", "report", "train", "report", "select", "report", "predict"], id="all is well"),
        pytest.param("plan", 1, ["plan"], id="nothing is planned"),
        pytest.param("train", 1, ["plan", "report", "train", "report"], id="a training fails"),
        pytest.param("report", 0, ["plan", "report", "train", "report", "select", "report", "predict"], id="no report"),
    ],
)
def test_run_reports_after_each_phase(failing, status, expected, monkeypatch, tiny, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    called = []

    def note(name: str) -> None:
        called.append(name)
        if name == failing:
            raise AutoplanError("it does not work")
        Path("bundles", TASK).mkdir(parents=True, exist_ok=True)
        Path("bundles", TASK, "plan.json").touch()

    for name in ("plan", "train", "select", "predict", "report"):
        monkeypatch.setattr(commands, name, lambda *_, n=name, **__: note(n))
    assert main(["run", str(tiny.folder)]) == status
    assert called == expected
    assert ("Warning: there is no report: it does not work" in capsys.readouterr().out) == (failing == "report")


@pytest.mark.parametrize(
    ("words", "bills"),
    [
        pytest.param([], [True, True, False], id="computed, said where that fails, and not again"),
        pytest.param(["--quick"], [False, False, False], id="it is the bill of the paper's recipe"),
    ],
)
def test_run_tells_the_cost_once(words, bills, monkeypatch, tiny, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    computed = []

    def compute(plan, fingerprint):
        computed.append(plan.name)
        if len(computed) == 1:
            raise PlanError("it does not count")
        return costs.Bill(costs.key(plan, fingerprint), "m", "cpu", 1, 5, 0, ())

    monkeypatch.setattr(costs, "compute", compute)
    for name in ("train", "select", "predict", "report"):
        monkeypatch.setattr(commands, name, lambda *_, **__: None)
    for bill in bills:
        computed_before = len(computed)
        assert main(["run", str(tiny.folder), *words]) == 0
        assert len(computed) == computed_before + bill
    assert capsys.readouterr().out.count("Warning: the cost is not known: it does not count") == sum(bills[:1])


# predict.


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("", id="empty"),
        pytest.param("[1, 2]", id="list"),
        pytest.param("null", id="null"),
        pytest.param("[" * 100_000, id="nested"),
        pytest.param('{"images": [1]}', id="images are a list"),
        pytest.param('{"images": {"a.nii.gz": 5}}', id="a number for a stamp"),
        pytest.param('{"images": {"a.nii.gz": [1, 2, 3]}}', id="a number for a path"),
        pytest.param('{"images": {"a.nii.gz": ["x"]}}', id="a short stamp"),
        pytest.param(json.dumps({"by": {"bundle": [{}]}, "images": {"a.nii.gz": None}}), id="null for a stamp"),
    ],
)
def test_a_damaged_record_means_unknown_origin(record: str, tmp_path: Path) -> None:
    (tmp_path / predict.RECORD).write_text(record)
    (tmp_path / "a.nii.gz").write_text("by hand")
    targets = {Case("a", (str(tmp_path / "images" / "a.nii.gz"),)): tmp_path / "a.nii.gz"}
    with pytest.raises(AutoplanError, match="1 segmentation of unknown origin, such as a"):
        predict._claim(tmp_path, {"bundle": "x"}, targets, force=False)
    assert (tmp_path / "a.nii.gz").read_text() == "by hand"


@pytest.mark.parametrize("text", ["", "a'b", "#$@%", "import os", "\\", "\n", "ä", "{x}"])
def test_a_value_reaches_the_bundle_as_it_is(text: str) -> None:
    from monai.bundle import ConfigParser

    config = ConfigParser({"value": predict._literal(text), "x": "another"})
    assert config.get_parsed_content("value") == text
