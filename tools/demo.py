"""What `make demo` runs: plan a dataset, train one fold for a few minutes, predict, score, and say what was written.

Every step is a command that can be typed as well; it is printed before it runs. A second run goes on where the first
one stopped and leaves out what is done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoplan.base import tables
from autoplan.base.errors import AutoplanError
from autoplan.data import decathlon as datasets

TASK = "Task04_Hippocampus"
"""The dataset where none is named: small images, so that a few minutes on a CPU suffice."""
PHANTOM = "Task00_Phantom"
PHANTOM_CASES = 20
TIMEOUT_S = 10
"""Seconds after which an address that does not answer counts as out of reach."""
EXTREMES = 3
"""Worst and best cases in the table."""


@dataclass(frozen=True)
class Source:
    """The dataset that the demo takes: `name` is what `python -m autoplan` gets, `reason` says why this one."""

    name: str
    reason: str
    is_phantom: bool = False


def choose(task: str, root: Path, folder: Path, *, fetch: Callable[[], str]) -> Source:
    """Which dataset to take.

    Args:
        task: what the user named, or nothing.
        root: folder of the datasets.
        folder: the demo's own folder, for the phantom.
        fetch: downloads TASK into root, and returns nothing, or why that failed.
    """
    if task:
        return Source(task, "you named it")
    if (root / TASK / datasets.DESCRIPTION).is_file():
        return Source(str(root / TASK), "it is there")
    failure = fetch()
    if not failure:
        return Source(str(root / TASK), "downloaded from the Medical Segmentation Decathlon")
    phantom = str(folder / "data" / PHANTOM)
    return Source(phantom, f"synthetic; {root / TASK} is not there and its download failed: {failure}", True)


def download(root: Path) -> str:
    """Downloads TASK into root; nothing, or why that failed."""
    from monai.apps.datasets import DecathlonDataset

    try:
        # MONAI's download has no time limit, so see first whether the address answers.
        request = urllib.request.Request(DecathlonDataset.resource[TASK], method="HEAD")
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
        datasets.locate(TASK, root)
    except OSError as error:
        return str(getattr(error, "reason", error))
    except AutoplanError as error:
        return str(error).splitlines()[0]
    return ""


def run(arguments: Sequence[str]) -> None:
    """Prints a command of `python -m ...` as one would type it, and runs it.

    Raises:
        SystemExit: it failed; its own message stands above.
    """
    python = Path(sys.executable)
    shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    print("\n$ " + " ".join([str(shown), "-m", *map(_quoted, arguments)]), flush=True)
    status = subprocess.run([sys.executable, "-m", *arguments], check=False).returncode
    if status:
        sys.exit(status)


def _quoted(argument: str) -> str:
    return f'"{argument}"' if any(c in argument for c in " []'") else argument


def bundle_run(run_id: str, bundle: Path, configs: Sequence[str], **overrides: object) -> list[str]:
    """The arguments of a `monai.bundle run`."""
    files = [(bundle / "configs" / name).as_posix() for name in configs]
    config_file = files[0] if len(files) == 1 else "[" + ",".join(f"'{name}'" for name in files) + "]"
    settings = [text for name, value in overrides.items() for text in (f"--{name}", str(value))]
    return ["monai.bundle", "run", run_id, "--config_file", config_file, *settings]


def is_newer(results: Sequence[Path], model: Path) -> bool:
    """Whether all results are there and none is older than the model that made them."""
    return all(r.is_file() and r.stat().st_mtime >= model.stat().st_mtime for r in results)


def table(cases: Mapping[str, Mapping[str, float | None]], means: Mapping[str, float | None]) -> str:
    """Dice of each class: the mean over all cases, and the worst and best cases by their own mean."""

    def of_case(name: str) -> float:
        values = [v for v in cases[name].values() if v is not None]
        return sum(values) / len(values) if values else 0.0

    ranked = sorted(cases, key=of_case)
    shown = ranked if len(ranked) <= 2 * EXTREMES else ranked[:EXTREMES] + ranked[-EXTREMES:]
    rows = [["", *means], [f"mean of {len(cases)}", *map(_cell, means.values())]]
    rows += [[_rank(name, ranked), *map(_cell, cases[name].values())] for name in shown]
    return tables.table(rows, left=1)


def _rank(name: str, ranked: Sequence[str]) -> str:
    if name == ranked[0]:
        return f"worst: {name}"
    return f"best: {name}" if name == ranked[-1] else name


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def demo(source: Source, folder: Path, *, epoch_length: int, max_epochs: int) -> None:
    """The whole way on one dataset."""
    bundles = folder / "bundles"
    dataset = datasets.load(datasets.locate(source.name, Path("data")))
    run(["autoplan", source.name, "--bundles", str(bundles)])
    bundle = bundles / dataset.name / "3d_fullres"
    fold = bundle / "models" / "fold_0"
    scores, predictions = fold / "validation" / "dice.json", bundle / "eval"
    quick = {"epoch_length": epoch_length, "max_epochs": max_epochs}
    run(bundle_run("training", bundle, ["train.json", "quick.json"], **quick))
    if not is_newer([scores], fold / "model.pt"):
        run(bundle_run("evaluating", bundle, ["train.json", "evaluate.json", "quick.json"]))
    test = [predictions / Path(case.images[0]).name for case in dataset.test]
    if test and not is_newer(test, bundle / "models" / "model.pt"):
        run(bundle_run("inference", bundle, ["inference.json", "quick.json"]))
    dice = json.loads(scores.read_text())
    print("\nDice on the validation cases of fold 0\n")
    print(table(dice["cases"], dice["mean_dice"]))
    print("\nWritten")
    for path, what in (
        (bundle, "the bundle; docs/README.md says what was planned and why"),
        (fold / "progress.png", "the curves of the training"),
        (scores.with_suffix(".csv"), "Dice of every validation case"),
        (predictions, f"{len(test)} segmented test images"),
    ):
        print(f"  {path}: {what}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Plan, train for a few minutes, predict and score.")
    parser.add_argument("task", nargs="?", default="", help="folder with a dataset.json, or a name under data/")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where to write (default: demo)")
    parser.add_argument("--epoch_length", type=int, default=30, help="iterations an epoch (default: 30)")
    parser.add_argument("--max_epochs", type=int, default=4, help="epochs (default: 4)")
    parser.add_argument("--num_cases", type=int, default=PHANTOM_CASES, help="cases of the phantom, if it is taken")
    given = parser.parse_args(arguments)
    root = Path("data")
    try:
        source = choose(given.task, root, given.folder, fetch=lambda: download(root))
        print(f"Dataset: {source.name} ({source.reason})")
        if source.is_phantom and not (Path(source.name) / datasets.DESCRIPTION).is_file():
            run(["autoplan", "phantom", source.name, "--num_cases", str(given.num_cases)])
        demo(source, given.folder, epoch_length=given.epoch_length, max_epochs=given.max_epochs)
    except AutoplanError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:monai.bundle.scripts")
    sys.exit(main())
