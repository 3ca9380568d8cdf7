"""Every command with wrong values, and folders that cannot be what they are asked to be."""

import io
import math
import os
import random
import re
from pathlib import Path

import pytest
from attack import HOSTILE_TEXTS, check_nothing_half_written, command, no_hang, outcome, refuse
from conftest import Tiny, write_tiny

from autoplan.__main__ import main
from autoplan.base import numbers
from autoplan.base.scripts import memory
from autoplan.budget import division
from autoplan.bundle import settings
from autoplan.cli import commands
from autoplan.data.facts import Case, Dataset
from autoplan.data.layouts import Layout, groups
from autoplan.planning import gpu_memory

TASK = "Task90_Tiny"
LONG = "a" * 5000


@pytest.fixture
def small(tmp_path, monkeypatch) -> Tiny:
    """A dataset of two cases in the working directory, with a file, a text that is no image, and links."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return write_tiny(tmp_path / TASK, num_cases=2)


FOLDERS = {
    "a file": "file",
    "below a file": "file/below",
    "a pipe": "pipe",
    "a loop": "loop",
    "below a loop": "loop/below",
    "a broken link": "broken",
    "a device": "/dev/null",
    "5,000 characters": LONG,
    "5,000 characters in parts": "a/" * 2500,
    "not UTF-8": "\udcff",
    "NUL": "a\0b",
}


@pytest.mark.parametrize("value", FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize(
    "words",
    [
        ["plan", TASK, "--bundles"],
        ["run", TASK, "--bundles"],
        ["status", TASK, "--bundles"],
        ["train", TASK, "--bundles"],
        ["select", TASK, "--bundles"],
        ["predict", TASK, "--bundles"],
        ["predict", TASK, "--images"],
        ["evaluate", "--labels", f"{TASK}/labelsTr", "--predictions"],
        ["evaluate", "--predictions", f"{TASK}/labelsTr", "--labels"],
        ["evaluate", "--predictions", f"{TASK}/labelsTr", "--labels", f"{TASK}/labelsTr", "--output"],
        ["phantom"],
        ["plan"],
        ["train"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_folders_that_are_none(small, tmp_path, capsys, words, value) -> None:
    refuse([*words, value], capsys, names="", folder=tmp_path)


ODD = [
    "with space",
    "#hash",
    "$dollar",
    "@at",
    "%percent",
    "$import this",
    "a::b",
    "[1,2]",
    "{a}",
    "器官",
    "-dash",
    "~",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_folders_are_folders(small, tmp_path, capsys, name) -> None:
    bundles = ["--bundles", f"./{name}"]
    assert command(["plan", TASK, *bundles, "--num_processes", "1"], capsys).status == 0
    assert (tmp_path / name / TASK / "plan.json").is_file()
    assert command(["status", TASK, *bundles], capsys).status == 0
    check_nothing_half_written(tmp_path)
    labels = ["--labels", f"{TASK}/labelsTr", "--predictions", f"{TASK}/labelsTr", "--num_processes", "1"]
    assert command(["evaluate", *labels, "--output", f"./{name}/scores"], capsys).status == 0
    assert (tmp_path / name / "scores" / "scores.json").is_file()


FLAGS = {
    "plan": [
        "--cascade x", "--cascade", "--num_processes 0", "--num_processes -1", "--num_processes 1.5",
        "--num_processes 1e99", "--num_processes [1]", "--explain=7", "--force=no", "--epochs 5", "-x", "--", "again",
        "--bundles a --bundles b", "--num_processes __import__('os')",
    ],
    "train": [
        "--folds x", "--folds 9", "--folds -1", "--folds 0,,1", "--folds 1.5",
        "--folds All", "--folds 0,every", "--folds all,", "--folds ²", f"--folds {'9' * 5000}",
        "--configurations 4d", "--configurations ..", "--configurations ,", "--configurations cache", "--jobs 0",
        "--jobs x", "--jobs 1e9", "--mirror maybe", "--quick=7", "--device cuda:7", "--fold 3", "--bundle_root x",
        "--slurm nowhere.yml", "--slurm file", "--slurm empty",
        "--max_epochs x", "--max_epochs -1", "--max_epochs 0", "--epoch_length x", "--learning_rate nan",
        "--device foo",
        "--budget 5", "--budget -1h", "--budget=-1h", "--budget 0s", "--budget 3~parsecs", "--budget 1h --quick",
        f"--budget {'9' * 5000}h", "--budget 1s", "--budget 1h --folds 9", "--budget 1h --max_epochs x",
        "--slurm pipe", "--scheduler tcp://127.0.0.1:1", "--scheduler x://y", "--scheduler $x",
    ],
    "status": [
        "--folds x", "--folds 9", "--configurations 4d", "--json=7", "--quick=7", "--jobs 2", "--nonsense 7",
        "--max_epochs x",
    ],
    "select": [
        "--folds 0", "--folds All", "--folds all,all", "--folds all", "--folds all --configurations 4d",
        "--folds all --configurations 2d", "--configurations 2d", "--folds",
        "--name choice.json", "--name plan.json", "--name ..", "--name .", "--name a/b", "--name cache", "--name 2d",
        "--name 3d_lowres", f"--name {LONG}", "--name $x", "--name -x", "--name=", "--num_processes 0", "--name a\nb",
    ],
    "predict": [
        "--name nothing", "--name ..", "--name /", f"--name {LONG}", "--force=7", "--images nowhere", "--images empty",
        "--images file", "--images pipe", "--device foo", "--name 2d",
    ],
    "run": [
        "--folds x", "--jobs 0", "--mirror maybe", "--cascade x", "--nonsense 7", "--device cuda:7", "--quick=7",
        "--max_epochs x", "--budget 5", "--budget 1h --from x", "--budget nan",
    ],
}  # fmt: skip


@pytest.fixture
def planned(small, capsys) -> Tiny:
    """The dataset and its bundles."""
    assert command(["plan", TASK, "--num_processes", "1"], capsys).status == 0
    return small


@pytest.mark.parametrize("name", FLAGS)
def test_wrong_values(planned, tmp_path, capsys, name) -> None:
    for given in FLAGS[name]:
        words = [name, TASK, *given.split(" ")]
        refuse(words, capsys, names="", folder=tmp_path)


PHANTOM = ["--num_cases -1", "--num_cases 1.5", "--num_cases x", "--num_test -1", "--seed -1", "--seed x", "--seed 1e9"]
EVALUATE = [
    "--tolerance 0",
    "--tolerance -1",
    "--tolerance x",
    "--tolerance 1e999",
    "--tolerance nan",
    "--tolerance True",
]


@pytest.mark.parametrize("flags", PHANTOM)
def test_wrong_phantoms(small, tmp_path, capsys, flags) -> None:
    refuse(["phantom", "new", *flags.split()], capsys, names="--num_|--seed", folder=tmp_path)


@pytest.mark.parametrize("flags", EVALUATE)
def test_wrong_scores(small, tmp_path, capsys, flags) -> None:
    words = ["evaluate", "--labels", f"{TASK}/labelsTr", "--predictions", f"{TASK}/labelsTr", *flags.split()]
    refuse(words, capsys, names="--tolerance", folder=tmp_path)


@pytest.mark.parametrize("words", [["statsu"], ["trian", "x"], ["--nonsense"], ["-x"], [""], ["nowhere"], [LONG]])
def test_unknown_commands(small, tmp_path, capsys, words) -> None:
    refuse(words, capsys, names="", folder=tmp_path)


SLURM = ["", "[]", "7", "cores: x", "cores: -1", "cores: [1]\nmemory: {}", "a: &a [*a]", "!!python/name:os.system",
         "{", "\t", "cores: 1\nmemory: 7\njobs: none", "queue: [[[[]]]]", "- a\n- b", "\x00"]  # fmt: skip


@pytest.mark.parametrize("text", SLURM)
def test_wrong_slurm_jobs(planned, tmp_path, capsys, text) -> None:
    Path("slurm.yml").write_text(text)
    refuse(["train", TASK, "--slurm", "slurm.yml"], capsys, names="slurm.yml|dask|Slurm", folder=tmp_path)


# What a value means, without the command around it.


def texts(alphabet: str, number: int, longest: int = 12) -> list[str]:
    """Texts at random, and those that are hostile anywhere."""
    rng = random.Random(alphabet)
    return [*HOSTILE_TEXTS, *("".join(rng.choices(alphabet, k=rng.randint(1, longest))) for _ in range(number))]


def test_numbers() -> None:
    """Decimal digits alone; then the number is that which Python reads."""
    for text in texts("0123456789.eE+-_xj ²", 1000):
        found = numbers.number(text)
        if found is None:
            continue
        assert found == float(text)
        assert set(text) <= set("0123456789.eE+-")
        assert re.match(r"-?(0|[1-9]|\.)", text)
        assert type(found) is int or set(text) & set(".eE")


def test_sizes() -> None:
    """Of a GPU and of memory alike, whatever a setting takes."""
    units = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
    for text in texts("0123456789.KMGTiB g²", 1000, 6):
        try:
            size = memory.as_bytes(text)
        except ValueError:
            assert settings.refusal("max_memory", text) or text[0] in "$@", text
            continue
        number, unit = re.fullmatch(r"([0-9.]+) ?([KMGTi]*)B?", text.strip(), re.IGNORECASE).groups()
        assert size == pytest.approx(float(number) * units.get(unit.upper(), 1), abs=0.5)
        assert not settings.refusal("max_memory", text)
        assert outcome(lambda text=text: gpu_memory.parsed(text)) == size or size <= gpu_memory.RESERVED_BYTES


def test_times_and_spacings() -> None:
    for text in texts("0123456789.hmsd, ²e-", 500):
        found = outcome(lambda text=text: division.parsed(text))
        assert isinstance(found, str) or 0 < found < math.inf
        for given in (text, f"{text},1,1", f"1,{text},1"):
            lengths = outcome(lambda given=given: commands._spacing(given))
            assert isinstance(lengths, str) or (len(lengths) == 3 and all(0 < n < 1e4 for n in lengths))


BOMBS = ["a{99999999999999999999}", "(" * 60, "[" * 60, "(?:" * 5000, "(" * 100_000, "a**", "(?P<n>.)(?P=x)",
         "(?<=a+)b", "[[a]&&b]", "(a+)+$", "(a|aa)+$", "(a*)*b", "(?:a?){99}a{99}", "x?", "(x)?a", "\\"]  # fmt: skip


def test_expressions_of_groups(monkeypatch) -> None:
    """Each case gets the group that the expression finds, or the expression is refused, soon."""
    monkeypatch.setattr(groups, "MAX_SECONDS", 0.2)
    names = [f"{'a' * 60}{i % 3}_{i}" for i in range(6)]
    cases = tuple(Case(name, (f"{name}.nii.gz",), f"l/{name}.nii.gz") for name in names)
    dataset = Dataset(Path(), "Tiny", ("CT",), ((0, "b"), (1, "a")), cases, ())
    with no_hang(["--group_by"]):
        for text in [*BOMBS, *texts("a0_d()[]{}*+?|^$.\\w,", 500, 9)]:
            found = outcome(lambda text=text: groups.grouped(dataset, Layout(group_by=text)))
            if isinstance(found, Dataset):
                assert all(case.group and case.group in case.name for case in found.training)
                assert len({case.group for case in found.training}) > 1


# What is printed to.


class Odd(io.RawIOBase):
    """A file that takes some bytes and then fails."""

    def __init__(self, takes: int, number: int) -> None:
        self.left, self.number = takes, number

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        if self.left <= 0:
            raise OSError(self.number, os.strerror(self.number))
        taken = min(len(data), self.left)
        self.left -= taken
        return taken


ENCODINGS = ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16", "koi8-r", "shift_jis"]
WORDS = [["--help"], ["plan", "--help"], ["status", TASK], ["plan", "器"], ["plan", "\x1b"], ["no", "-x"], ["train"]]


@pytest.mark.parametrize("number", [32, 28, 5, 122, 9], ids=["EPIPE", "ENOSPC", "EIO", "EDQUOT", "EBADF"])
@pytest.mark.parametrize("broken", ["stdout", "stderr"])
def test_outputs_that_fail(planned, monkeypatch, broken, number) -> None:
    """After any number of bytes, in any encoding: the exit status is that of the command, or 1 where the loss was told,
    which the end of a reader is not."""
    rng = random.Random(number)
    for encoding in ENCODINGS:
        for words in WORDS:
            kept = {name: io.BytesIO() for name in ("stdout", "stderr")}
            streams = {name: io.TextIOWrapper(file, encoding, "backslashreplace") for name, file in kept.items()}
            for name, stream in streams.items():
                monkeypatch.setattr(f"sys.{name}", stream)
            usual = main(words)
            raw = Odd(rng.choice((0, 1, 9, 100)), number)
            monkeypatch.setattr(f"sys.{broken}", io.TextIOWrapper(io.BufferedWriter(raw), encoding))
            status = main(words)
            assert status in (usual, usual if number == 32 else 1)
            for stream in streams.values():
                stream.flush()
            assert "Traceback" not in kept["stderr"].getvalue().decode(encoding)
            if usual == 0 and broken == "stdout" and number != 32:
                assert "could not be written" in kept["stderr"].getvalue().decode(encoding)
