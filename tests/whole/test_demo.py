"""What `make demo` runs: which dataset it takes, and the whole of it on a tiny one."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "tools" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]


@pytest.mark.parametrize(
    ("task", "is_there", "failure", "name", "fetched"),
    [
        ("Task09_Spleen", True, "", "Task09_Spleen", False),
        ("", True, "", "data/Task04_Hippocampus", False),
        ("", False, "", "data/Task04_Hippocampus", True),
        ("", False, "no route", "demo/data/Task00_Phantom", True),
    ],
    ids=["named", "there", "downloaded", "offline"],
)
def test_which_dataset(demo, tmp_path, monkeypatch, task, is_there, failure, name, fetched) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []
    if is_there:
        (tmp_path / "data" / demo.TASK).mkdir(parents=True)
        (tmp_path / "data" / demo.TASK / "dataset.json").write_text("{}")
    source = demo.choose(task, Path("data"), Path("demo"), fetch=lambda: asked.append(1) or failure)
    assert (source.name, bool(asked), source.is_phantom) == (name, fetched, bool(failure))
    assert failure in source.reason


@pytest.mark.parametrize("reason", ["no route to host", "timed out"])
def test_a_download_that_fails_says_why(demo, tmp_path, monkeypatch, reason) -> None:
    def refuse(*_, **__):
        raise OSError(reason)

    monkeypatch.setattr(demo.urllib.request, "urlopen", refuse)
    assert reason in demo.download(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_commands_can_be_typed(demo, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = Path("demo/bundles/T/3d_fullres")
    arguments = demo.bundle_run("evaluating", bundle, ["train.json", "evaluate.json"], mirror=False)
    assert arguments[4] == f"['{bundle}/configs/train.json','{bundle}/configs/evaluate.json']"
    assert arguments[5:] == ["--mirror", "False"]
    demo.run(["timeit", "-n1", "-r1", "a=['b', 1]"])
    shown = capfd.readouterr().out.splitlines()[1]
    assert shown.startswith("$ ")
    assert subprocess.run(shown[2:], shell=True, check=False, capture_output=True).returncode == 0
    with pytest.raises(SystemExit) as stopped:
        demo.run(["timeit", "--no-such-flag"])
    assert stopped.value.code == 2


def test_the_table_names_worst_and_best(demo) -> None:
    cases = {f"case_{i}": {"a": i / 10, "bb": None if i == 4 else i / 10} for i in range(10)}
    lines = demo.table(cases, {"a": 0.45, "bb": 0.5}).splitlines()
    assert len(lines) == 2 + 2 * demo.EXTREMES
    assert lines[0].split() == ["a", "bb"]
    assert lines[1].split() == ["mean", "of", "10", "0.450", "0.500"]
    assert lines[2].split() == ["worst:", "case_0", "0.000", "0.000"]
    assert lines[-1].split() == ["best:", "case_9", "0.900", "0.900"]
    assert len(demo.table({"x": {"a": None}}, {"a": None}).splitlines()) == 3


def _run(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_whole_of_it(tmp_path) -> None:
    data = str(tmp_path / "data" / "Task00_Phantom")
    phantom = [sys.executable, "-m", "autoplan", "phantom", data, "--num_cases", "5", "--num_test", "2"]
    subprocess.run(phantom, check=True, cwd=PROJECT)
    arguments = ("Task00_Phantom", "--epoch_length", "2", "--max_epochs", "1")
    first = _run(tmp_path, *arguments)
    bundle = tmp_path / "demo" / "bundles" / "Task00_Phantom" / "3d_fullres"
    assert "Dataset: Task00_Phantom (you named it)" in first
    assert "mean of 1 " in first
    assert {p.name for p in (bundle / "eval").glob("*.nii.gz")} == {"phantom_005.nii.gz", "phantom_006.nii.gz"}
    for path in ("models/fold_0/progress.png", "models/fold_0/validation/dice.csv", "models/model.pt"):
        assert (bundle / path).is_file(), path
    assert [line.split()[5] for line in first.splitlines() if " monai.bundle run " in line] == [
        "training",
        "evaluating",
        "inference",
    ]
    again = _run(tmp_path, *arguments)
    assert [line.split()[5] for line in again.splitlines() if " monai.bundle run " in line] == ["training"]
    assert again[again.index("Dice on") :] == first[first.index("Dice on") :]
