"""What a shell allows a process: too little is told before anything starts, for it would hang or end in a traceback."""

import resource
import subprocess
import sys

import pytest

from autoplan.__main__ import WITH_NETWORKS, main
from autoplan.base.processes import LEAST_FILES, LEAST_MEMORY
from autoplan.cli.commands import COMMANDS

LIMITS = {
    "memory": (resource.RLIMIT_AS, 800_000_000, "this shell allows 0.8 GB of memory, and at least 2 GB are needed"),
    "files": (resource.RLIMIT_NOFILE, 40, "this shell allows 40 open files, and at least 64 are needed: ulimit -n 64"),
}


@pytest.mark.parametrize(("kind", "limit", "said"), LIMITS.values(), ids=LIMITS)
def test_a_shell_that_allows_too_little(kind: int, limit: int, said: str, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoplan", "predict", "Task90_Tiny"], cwd=tmp_path, capture_output=True, text=True,
        check=False, timeout=60, preexec_fn=lambda: resource.setrlimit(kind, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", WITH_NETWORKS)
def test_all_commands_with_networks_look(name: str, monkeypatch, capsys) -> None:
    assert name in COMMANDS
    monkeypatch.setattr(resource, "getrlimit", lambda _: (30, 30))
    words = [name, "x", *(["--folds", "all"] if name == "train" else [])]
    assert main(words) == 1
    assert "this shell allows" in capsys.readouterr().err


def test_what_is_enough_is_not_told(monkeypatch, capsys) -> None:
    enough = {resource.RLIMIT_AS: LEAST_MEMORY, resource.RLIMIT_NOFILE: LEAST_FILES}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (enough[kind], enough[kind]))
    assert main(["predict", "Task90_Nowhere"]) == 1
    assert "this shell allows" not in capsys.readouterr().err


def test_memory_that_runs_out_is_one_line(monkeypatch, capsys) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setitem(COMMANDS, "status", fails)
    monkeypatch.setattr("autoplan.cli.flags.parse", lambda *_, **__: ([], {}))
    assert main(["status", "x"]) == 1
    assert capsys.readouterr().err == "Error: there is not enough memory. Give more, or close other programs.\n"
