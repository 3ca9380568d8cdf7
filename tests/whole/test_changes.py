"""A task to which everything happens that can happen to one, in any order: no network is scored on a case that it has
seen, no file of the user is lost, and one command goes on.

The trainings have networks of one weight; what they record, and how they go on, is the bundle's own code."""

import gzip
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny, write_tiny
from ignite.engine import Engine
from scripts.checkpoint import Checkpoint

from autoplan.__main__ import main
from autoplan.base.files import file_digest
from autoplan.bundle import metadata, saved
from autoplan.data import decathlon as datasets
from autoplan.evaluation import crossvalidation as cv
from autoplan.training import backends, results
from autoplan.training.jobs import Job
from autoplan.training.standing import missing_steps

TASK, CONFIGURATION = "Task90_Tiny", "3d_fullres"
SEEDS = int(os.environ.get("SEEDS", "2"))
NAMES = ["case_a0", "case_a1", "case_b0", "case_b1", "case_c0", "case_c1", "case_d0"]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def segment(members: Sequence[Path], _: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(members[0]) as file:
        return file["pred"], file["pred"]


class World:
    """A dataset, its bundles, and what its networks have really seen."""

    def __init__(self, folder: Path, parse: Callable[..., Any], seed: int) -> None:
        self.folder, self.parse, self.random = folder, parse, random.Random(seed)
        self.data, self.bundles, self.flags = folder / "data", folder / "bundles", [""]
        self.tiny = write_tiny(self.data / TASK, num_cases=0)
        self.saw: dict[str, set[str]] = {}
        self.of_the_user: list[bytes] = []
        for name in NAMES:
            self.add(name)

    @property
    def task(self) -> Path:
        return self.bundles / TASK

    @property
    def names(self) -> list[str]:
        return sorted(path.name.removesuffix(".nii.gz") for path in (self.tiny.folder / "labelsTr").iterdir())

    def add(self, name: str) -> None:
        noise = np.random.default_rng(self.random.randrange(2**30))
        label = np.zeros((12, 10, 8), np.uint8)
        label[2:5, 2:5, 2:5], label[7:9, 2:5, 2:5] = 1, 2
        for part, array in (("imagesTr", noise.integers(1, 200, label.shape).astype(np.int16)), ("labelsTr", label)):
            self.tiny.write(self.tiny.image(name, part), array, np.diag([1.0, 1.0, 2.0, 1.0]))
        self.describe()

    def describe(self) -> None:
        entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in self.names]
        self.tiny.describe(training=entries)

    def keep(self, path: Path, content: bytes) -> None:
        """Something that the user writes, and expects to find again."""
        path.write_bytes(content)
        self.of_the_user.append(content)

    def fold(self) -> Path:
        return results.fold_folder(self.task / CONFIGURATION, self.random.randrange(5))

    def train(self, jobs: Sequence[Job], *_: object) -> Mapping[Job, backends.Outcome]:
        """In place of `backends.run_all`."""
        for job in jobs:
            for step in missing_steps(job):
                {"training": self.trained, "evaluating": self.predicted}[step](job)
        return {job: backends.Outcome("done") for job in jobs}

    def trained(self, job: Job) -> None:
        parser = self.parse(Path(job.bundle), "train", fold=job.fold, max_epochs=1)
        torch.manual_seed(self.random.randrange(2**30))  # a checkpoint brings back the random state of another
        network, seen = torch.nn.Linear(1, 1), parser.get_parsed_content("train#checkpoint#seen")
        training = parser.get_parsed_content("cases")[0]
        before = results.training(job.folder)
        job.folder.mkdir(parents=True, exist_ok=True)
        settings = parser.get_parsed_content("training_settings")
        engine = Engine(lambda *_: None)
        Checkpoint(job.folder, network, {}, settings=settings, seen=seen).attach(engine)
        engine.run(range(1), max_epochs=1)
        if before is None:
            model = file_digest(job.folder / "model.pt")
            self.saw[model] = {x for case in training for x in (case["name"], sha(Path(case["image"])))}

    def predicted(self, job: Job) -> None:
        parser = self.parse(Path(job.bundle), "train", "evaluate", fold=job.fold, mirror=True)
        held_out = parser.get_parsed_content("cases")[1]
        settings = parser.get_parsed_content("prediction_settings")
        for case in held_out:
            path = results.probabilities(job.folder, case["name"])
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, pred=self.tiny.read(Path(case["label"])))
        found = {
            "cases": {case["name"]: {} for case in held_out}, "settings": settings,
            "model": file_digest(job.folder / "model.pt"),
            "contents": parser.get_parsed_content("cache").contents(held_out),
        }  # fmt: skip
        (job.folder / "validation" / "dice.json").write_text(json.dumps(found))

    def command(self, words: Sequence[str], also: str, capsys: pytest.CaptureFixture) -> None:
        """A command; where it refuses, it names the flag by which it goes on, and that is all that it takes."""
        where = ["--bundles", str(self.bundles)]
        if main([*words, *where]) == 0:
            return
        said = capsys.readouterr().err
        assert also in said
        assert main([*words, *where, also]) == 0, capsys.readouterr().err

    def go_on(self, capsys: pytest.CaptureFixture) -> None:
        self.command([str(self.tiny.folder), "--num_processes", "1", *filter(None, self.flags)], "--force", capsys)
        self.command(["train", TASK, "--configurations", CONFIGURATION, "--max_epochs", "1"], "--anew", capsys)

    def check(self) -> None:
        """Nothing is scored on what it has seen; all is scored; all files of the user are there."""
        planned, dataset = saved.load_plan(self.task), self.loaded()
        found = cv.finished(planned, self.task)[0][CONFIGURATION]
        assert sorted(found) == list(range(len(planned.folds)))
        for k, result in found.items():
            own = {x for name in planned.folds[k] for x in (name, sha(self.tiny.image(name)))}
            assert not own & self.saw[result.model]
        choice = cv.select(
            planned, dataset, self.bundles, fingerprint_key="", segmenter=segment, num_processes=1, progress=False
        )
        assert sorted(choice.cases) == self.names
        there = {path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        assert all(content in there for content in self.of_the_user)

    def loaded(self) -> Any:
        return datasets.load(self.tiny.folder)


def case_added(world: World) -> None:
    letter = world.random.choice("abcdefg")
    world.add(next(name for n in range(99) if (name := f"case_{letter}{n}") not in world.names))


def case_removed(world: World) -> None:
    name = world.random.choice(world.names)
    for part in ("imagesTr", "labelsTr"):
        world.tiny.image(name, part).unlink()
    world.describe()


def case_renamed(world: World) -> None:
    """As a dataset that is put together anew does: what was seen has another name."""
    name = world.random.choice(world.names)
    other = next(other for n in range(99) if (other := f"{name[:-1]}{n}") not in world.names)
    for part in ("imagesTr", "labelsTr"):
        world.tiny.image(name, part).rename(world.tiny.image(other, part))
    world.describe()


def relabelled(world: World) -> None:
    path = world.tiny.image(world.random.choice(world.names), "labelsTr")
    label = world.tiny.read(path)
    label[9:11, 6:8, 6:8] = 2
    world.tiny.write(path, label)


def saved_again(world: World) -> None:
    """Equal voxels, other bytes."""
    path = world.tiny.image(world.random.choice(world.names))
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content, compresslevel=1, mtime=world.random.randrange(2**30)))


def spacing_forced(world: World) -> None:
    world.flags[0] = f"--spacing=1,1,{world.random.choice([1.5, 2, 2.5])}"


def grouped(world: World) -> None:
    world.flags.append("--group_by=case_([a-z])")


def configs_edited(world: World) -> None:
    configs = world.task / CONFIGURATION / "configs"
    train = json.loads((configs / "train.json").read_text())
    (configs / "train.json").write_text(json.dumps({**train, "target_spacing": [3.0, 3.0, 3.0]}))
    world.keep(configs / "own.json", b'{"learning_rate": 0.01}')


def fold_deleted(world: World) -> None:
    """With what the user has put there."""
    fold = world.fold()
    gone = {path.read_bytes() for path in fold.rglob("*") if path.is_file()}
    world.of_the_user = [content for content in world.of_the_user if content not in gone]
    shutil.rmtree(fold)


def network_replaced(world: World) -> None:
    world.keep(world.fold() / "model.pt", world.random.randbytes(20))


def bundles_moved(world: World) -> None:
    place = world.folder / f"moved_{world.random.randrange(2**30)}" / "deeper" / "bundles"
    place.parent.mkdir(parents=True)
    world.bundles = world.bundles.rename(place)


def dataset_moved(world: World) -> None:
    place = world.folder / f"data_{world.random.randrange(2**30)}"
    place.mkdir()
    world.tiny = Tiny(world.tiny.folder.rename(place / TASK))


def version_raised(world: World) -> None:
    metadata.__version__ = f"99.{world.random.randrange(2**30)}"


CHANGES = [
    case_added, case_removed, case_renamed, relabelled, saved_again, spacing_forced, grouped, configs_edited,
    fold_deleted, network_replaced, bundles_moved, dataset_moved, version_raised,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_task_goes_through_changes(
    tmp_path: Path, parse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, seed: int
) -> None:
    world = World(tmp_path, parse, seed)
    monkeypatch.setattr(backends, "run_all", world.train)
    monkeypatch.setattr(metadata, "__version__", metadata.__version__)
    world.go_on(capsys)
    world.check()
    changes = list(CHANGES)
    world.random.shuffle(changes)
    for change in changes:
        change(world)
        world.go_on(capsys)
        try:
            world.check()
        except AssertionError as error:
            done = ", ".join(c.__name__ for c in changes[: changes.index(change) + 1])
            raise AssertionError(f"after {done}") from error
