"""A training that is interrupted goes on as if it had never stopped: section "Resume" of the bundle's README."""

import csv
import io
import json
import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import wait_until
from forks import Fork, Forks
from ignite.engine import Events
from scripts.checkpoint import check_features, model_file_of, was_mirrored
from scripts.files import file_digest

EPOCHS, LENGTH = 3, 4
KILLS = int(os.environ.get("KILLS", "3"))
SETTINGS = {"max_epochs": EPOCHS, "epoch_length": LENGTH, "val_batches": 2, "num_workers": 0, "device": "cpu"}


class Killed(BaseException):
    """Stands for kill -9: nothing of the training catches it."""


@pytest.fixture(scope="module")
def train(project: Path, parse: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`train(ckpt_dir, at=7, do=f)`: run the training of a tiny bundle; `do()` is called in iteration 7."""
    cache = tmp_path_factory.mktemp("cache")

    def run(ckpt_dir: Path, *, at: int | None = None, do: Callable[[], None] | None = None, **values: Any) -> Any:
        bundle = project / "bundles" / "Task90_Tiny" / "3d_fullres"
        settings = {**SETTINGS, "cache_dir": str(cache), "ckpt_dir": str(ckpt_dir), **values}
        parser = parse(bundle, "train", **settings)
        torch.manual_seed(parser.get_parsed_content("seed"))
        trainer = parser.get_parsed_content("train#trainer")
        if do is not None:
            trainer.add_event_handler(Events.ITERATION_STARTED(once=at), lambda _: do())
        trainer.run()
        return trainer

    return run


@pytest.fixture(scope="module")
def undisturbed(train: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open() as file:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]


def assert_same(first: Path, second: Path) -> None:
    assert curve(first) == curve(second)
    assert len(curve(first)) == EPOCHS
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("iteration", [1, LENGTH, LENGTH + 1, EPOCHS * LENGTH])
def test_killed_in_any_iteration(train: Callable[..., Any], undisturbed: Path, tmp_path: Path, iteration: int) -> None:
    with pytest.raises(Killed):
        train(tmp_path, at=iteration, do=kill)
    train(tmp_path)
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("send", "iteration"),
    [
        pytest.param(terminate, 1, id="SIGTERM in the first iteration"),
        pytest.param(terminate, LENGTH, id="SIGTERM in the last iteration of an epoch"),
        pytest.param(interrupt, LENGTH + 2, id="Ctrl-C in the middle of an epoch"),
    ],
)
def test_a_signal_ends_after_the_iteration_with_everything_saved(
    train: Callable[..., Any], undisturbed: Path, tmp_path: Path, send: Callable[[], None], iteration: int
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, at=iteration, do=send)
    assert stopped.value.code == 128 + (signal.SIGTERM if send is terminate else signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["epoch"] * LENGTH + state["batches"] == iteration
    train(tmp_path)
    assert_same(tmp_path, undisturbed)


def test_a_finished_training_says_so_and_changes_nothing(
    train: Callable[..., Any], undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in undisturbed.iterdir()}
    with caplog.at_level(logging.INFO):
        train(undisturbed)
    assert f"is finished: {EPOCHS} epochs" in caplog.text
    assert {p.name: p.stat().st_mtime_ns for p in undisturbed.iterdir()} == before


def test_a_finished_training_goes_on_with_more_epochs(
    train: Callable[..., Any], tmp_path: Path, undisturbed: Path
) -> None:
    train(tmp_path, max_epochs=1)
    assert len(curve(tmp_path)) == 1
    train(tmp_path)
    assert_same(tmp_path, undisturbed)


def finished(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "finished.json").read_text())


def test_a_finished_training_is_marked(undisturbed: Path) -> None:
    model = file_digest(undisturbed / "model.pt")
    expected = {"epochs": EPOCHS, "stopped": False, "model": model, "max_epochs": EPOCHS, "schedule": False}
    rest = {"settings": None, "cases": None}
    assert {**finished(undisturbed), **rest} == {**expected, **rest}
    assert len(model) == 16


def test_fold_all_says_that_it_is_validated_on_nothing(
    train: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        trainer = train(tmp_path, fold="all", max_epochs=1, epoch_length=1)
    first = next(message for message in caplog.messages if not message.startswith("Engine"))
    assert first.startswith("Fold all: trained on all cases, validated on none")
    assert {"last.pt", "model.pt", "finished.json"} <= {path.name for path in tmp_path.iterdir()}
    [row] = [*csv.DictReader((tmp_path / "curve.csv").open())]
    assert float(row["val_loss"]) == trainer.state.metrics["val_loss"]


@pytest.mark.parametrize(
    ("fold", "trained", "inside", "is_used"),
    [
        pytest.param(0, [], True, True, id="fold 0"),
        pytest.param(0, ["all"], True, True, id="fold 0 after all"),
        pytest.param("all", [], True, True, id="all"),
        pytest.param("all", ["1"], True, True, id="all after another"),
        pytest.param("all", ["0"], True, False, id="all after fold 0"),
        pytest.param(1, [], True, False, id="another"),
        pytest.param("all", [], False, False, id="elsewhere"),
    ],
)
def test_the_network_that_inference_uses(
    tmp_path: Path, fold: int | str, trained: list[str], inside: bool, is_used: bool
) -> None:
    for name in trained:
        (tmp_path / "models" / f"fold_{name}").mkdir(parents=True)
        (tmp_path / "models" / f"fold_{name}" / "model.pt").touch()
    folder = tmp_path / "models" / f"fold_{fold}" if inside else "elsewhere"
    expected = str(tmp_path / "models" / "model.pt") if is_used else None
    assert model_file_of(str(tmp_path), str(folder), fold) == expected


def test_the_settings_are_recorded_beside_every_network(train: Callable[..., Any], tmp_path: Path) -> None:
    """With the values that they had, whoever set them."""
    train(tmp_path, max_epochs=1, mirror_prob=0.0, learning_rate=0.002)
    recorded = {name: finished(tmp_path)[name] for name in ("settings", "cases")}
    model = file_digest(tmp_path / "model.pt")
    assert json.loads((tmp_path / "model.json").read_text()) == {"model": model, **recorded}
    expected = {"mirror_prob": 0.0, "learning_rate": 0.002, "max_epochs": 1, "epoch_length": LENGTH, "seed": 0}
    settings = recorded["settings"]
    assert {name: settings[name] for name in expected} == expected
    assert settings["patch_size"] == [16, 16, 8]


@pytest.mark.parametrize(("mirror_prob", "mirrored"), [(0.0, False), (0.5, True)])
def test_a_network_predicts_as_it_was_trained(
    train: Callable[..., Any],
    parse: Callable[..., Any],
    project: Path,
    tmp_path: Path,
    mirror_prob: float,
    mirrored: bool,
) -> None:
    """Mirroring helps a network that was trained with it, and harms one that was not; who asks for it gets it."""
    train(tmp_path, max_epochs=1, mirror_prob=mirror_prob)
    bundle = project / "bundles" / "Task90_Tiny" / "3d_fullres"
    for names, values in (
        (("train", "evaluate"), {"ckpt_dir": str(tmp_path)}),
        (("inference",), {"model_file": str(tmp_path / "model.pt")}),
    ):
        assert parse(bundle, *names, **values).get_parsed_content("mirror") is mirrored
        assert parse(bundle, *names, **values, mirror=not mirrored).get_parsed_content("mirror") is not mirrored
    (tmp_path / "model.pt").write_bytes(b"of another training")
    assert parse(bundle, "inference", model_file=str(tmp_path / "model.pt")).get_parsed_content("mirror") is True


def test_a_network_without_a_record_is_mirrored(parse: Callable[..., Any], project: Path, tmp_path: Path) -> None:
    """As those of older bundles were."""
    bundle = project / "bundles" / "Task90_Tiny" / "3d_fullres"
    for text in (None, "", "[]", '{"mirror_prob": "x"}'):
        if text is not None:
            (tmp_path / "model.json").write_text(text)
        assert parse(bundle, "inference", model_file=str(tmp_path / "model.pt")).get_parsed_content("mirror") is True


@pytest.mark.parametrize("settings", [{}, {"mirror_prob": "x"}, {"mirror_prob": None}, 7])
def test_a_damaged_record_says_nothing_of_mirroring(tmp_path: Path, settings: object) -> None:
    model_file = tmp_path / "model.pt"
    model_file.write_bytes(b"weights")
    (tmp_path / "model.json").write_text(json.dumps({"model": file_digest(model_file), "settings": settings}))
    assert [was_mirrored(model_file, prob) for prob in (0.0, 0.5)] == [False, True]
    (tmp_path / "model.json").write_text(json.dumps({"model": "another", "settings": settings}))
    assert was_mirrored(model_file, 0.0), "the record is of another network"


def test_inference_says_how_wide_the_network_is(train: Callable[..., Any], tmp_path: Path) -> None:
    """A training for a short time may have made it narrow; without a record nobody knows."""
    train(tmp_path, max_epochs=1, features=[2, 4, 8])
    model_file = tmp_path / "model.pt"
    check_features(model_file, [2, 4, 8])
    with pytest.raises(ValueError, match=r"features \[2, 4, 8\]. Add to the command: --features '\[2, 4, 8\]'"):
        check_features(model_file, [4, 8, 16])
    (tmp_path / "model.json").unlink()
    check_features(model_file, [4, 8, 16])


SCHEDULE = {
    "_target_": "torch.optim.lr_scheduler.PolynomialLR",
    "optimizer": "@optimizer",
    "total_iters": "@max_epochs",
    "power": 0.9,
}
"""That of quick.json."""


def test_the_mark_tells_the_recipe(train: Callable[..., Any], tmp_path: Path) -> None:
    train(tmp_path, max_epochs=2, lr_schedule=SCHEDULE)
    assert (finished(tmp_path)["max_epochs"], finished(tmp_path)["schedule"]) == (2, True)


@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "begun"])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param({"lr_schedule": SCHEDULE}, {}, id="schedule first"),
        pytest.param({}, {"lr_schedule": SCHEDULE}, id="schedule later"),
        pytest.param({"lr_schedule": SCHEDULE}, {"lr_schedule": SCHEDULE, "max_epochs": 3}, id="longer schedule"),
    ],
)
def test_another_recipe_is_refused_and_changes_nothing(
    train: Callable[..., Any], tmp_path: Path, first: dict[str, Any], then: dict[str, Any], *, is_finished: bool
) -> None:
    if is_finished:
        train(tmp_path, max_epochs=2, **first)
    else:
        with pytest.raises(Killed):
            train(tmp_path, at=LENGTH + 1, do=kill, max_epochs=2, **first)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if not p.name.startswith("events.")}
    with pytest.raises(ValueError, match="started with another recipe") as refused:
        train(tmp_path, **{"max_epochs": 2, **then})
    assert str(refused.value) == (
        "this fold was started with another recipe (quick.json or budget.json, or with one of them another "
        f"--max_epochs or --budget_seconds). Continue with that one, or remove {tmp_path} to start anew."
    )
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if not p.name.startswith("events.")}
    assert after == before
    train(tmp_path, max_epochs=2, **first)
    assert finished(tmp_path)["epochs"] == 2


def test_the_stop_rule_marks_a_training_too(train: Callable[..., Any], tmp_path: Path) -> None:
    train(tmp_path, **{"train#rules#stop_patience": 0, "train#rules#stop_lr": 1.0})
    assert finished(tmp_path)["stopped"] is True
    assert finished(tmp_path)["epochs"] < EPOCHS


@pytest.mark.parametrize("iteration", [1, EPOCHS * LENGTH], ids=["first iteration", "last iteration"])
def test_a_signal_does_not_mark_a_training_as_finished(
    train: Callable[..., Any], tmp_path: Path, iteration: int
) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, at=iteration, do=terminate)
    assert not (tmp_path / "finished.json").exists()
    train(tmp_path)
    assert finished(tmp_path)["epochs"] == EPOCHS


def test_the_mark_goes_when_a_training_goes_on(train: Callable[..., Any], tmp_path: Path) -> None:
    train(tmp_path, max_epochs=1)
    assert finished(tmp_path)["epochs"] == 1
    with pytest.raises(Killed):
        train(tmp_path, at=LENGTH + 1, do=kill)
    assert not (tmp_path / "finished.json").exists()


def test_a_kill_between_the_checkpoint_and_the_network_loses_neither(
    train: Callable[..., Any], tmp_path: Path, undisturbed: Path
) -> None:
    """last.pt of the last epoch beside the model.pt of the one before, and no mark yet."""
    train(tmp_path, max_epochs=EPOCHS - 1)
    old = (tmp_path / "model.pt").read_bytes()
    train(tmp_path)
    (tmp_path / "model.pt").write_bytes(old)
    (tmp_path / "finished.json").unlink()
    train(tmp_path)
    assert_same(tmp_path, undisturbed)
    assert finished(tmp_path)["model"] == file_digest(tmp_path / "model.pt")


def flipped(content: bytes) -> bytes:
    """With 2,000 bytes changed, all of them behind the first kilobyte, so that it looks like a checkpoint."""
    changed = bytearray(content)
    for place in random.Random(0).sample(range(1024, len(changed) - 1024), 2000):
        changed[place] ^= 0xFF
    return bytes(changed)


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "flipped", "of other things"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    train: Callable[..., Any], undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    train(tmp_path, max_epochs=2)
    last = tmp_path / "last.pt"
    good = last.read_bytes()
    other = io.BytesIO()
    torch.save([1, {"network": 2}], other)
    content = {
        "of other things": other.getvalue(),
        "empty": b"",
        "cut": good[:-1000],
        "garbage": b"x" * 5000,
        "flipped": flipped(good),
    }[damage]
    last.unlink()
    last.write_bytes(content)
    train(tmp_path)
    assert "cannot be read" in caplog.text
    assert_same(tmp_path, undisturbed)


def test_without_a_checkpoint_that_can_be_read_the_training_stops(train: Callable[..., Any], tmp_path: Path) -> None:
    """It does not start anew over the network that is there."""
    train(tmp_path, max_epochs=2)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(flipped((tmp_path / name).read_bytes()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".pt"}
    with pytest.raises(ValueError, match=r"last\.pt, .*previous\.pt.*remove .* to start anew"):
        train(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".pt"} == before


def test_nothing_temporary_is_left(undisturbed: Path) -> None:
    # TensorBoard's files are there where it is installed.
    names = {p.name for p in undisturbed.iterdir() if not p.name.startswith("events.")}
    assert names == {"last.pt", "previous.pt", "model.pt", "model.json", "curve.csv", "progress.png", "finished.json"}


def test_the_networks_file_is_a_flat_state_dict(undisturbed: Path) -> None:
    assert all(torch.is_tensor(value) for value in weights(undisturbed).values())


def test_another_seed_gives_another_training(train: Callable[..., Any], tmp_path: Path, undisturbed: Path) -> None:
    train(tmp_path, seed=1)
    assert curve(tmp_path) != curve(undisturbed)


@pytest.fixture
def start(project: Path, tmp_path: Path, forks: Forks) -> Iterator[Callable[..., Fork]]:
    """`start(max_epochs=3)`: a training in a process of its own, which loads in another one."""
    processes: list[Fork] = []

    def started(**values: Any) -> Fork:
        bundle = project / "bundles" / "Task90_Tiny" / "3d_fullres"
        given = {**SETTINGS, "num_workers": 1, "ckpt_dir": tmp_path / "fold", "cache_dir": tmp_path / "cache", **values}
        words = ["run", "training", "--config_file", bundle / "configs/train.json"]
        words += [word for key, value in given.items() for word in (f"--{key}", value)]
        processes.append(forks.start([str(w) for w in words], folder=tmp_path, log=tmp_path / "log"))
        return processes[-1]

    yield started
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)


def wait_for(path: Path, process: Fork) -> None:
    wait_until(lambda: path.exists() or process.poll() is not None, 120)


@pytest.mark.slow
def test_real_kills_of_a_real_process(start: Callable[..., Fork], tmp_path: Path, undisturbed: Path) -> None:
    """kill -9 at random moments after the start, the same command again each time; worker processes are used too."""
    moments = random.Random(0)
    for _ in range(KILLS):
        process = start()
        wait_for(tmp_path / "cache", process)
        time.sleep(moments.uniform(0.0, 1.5))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    start().succeed()
    assert_same(tmp_path / "fold", undisturbed)


@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_job(start: Callable[..., Fork], tmp_path: Path) -> None:
    """As schedulers send it: the workers leave the end to the training, which saves and exits with 143."""
    process = start(max_epochs=10**6)
    wait_for(tmp_path / "fold" / "curve.csv", process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, process.log.read_text()[-2000:]
    assert "The same command goes on from here" in process.log.read_text()
    assert torch.load(tmp_path / "fold" / "last.pt", weights_only=True)["epoch"] >= 1


def test_the_record_has_the_cases(undisturbed: Path, project: Path) -> None:
    finished, beside = (json.loads((undisturbed / name).read_text()) for name in ("finished.json", "model.json"))
    datalist = project / "bundles" / "Task90_Tiny" / "3d_fullres" / "configs" / "datalist.json"
    cases = {case["name"]: case["fold"] for case in json.loads(datalist.read_text())["training"]}
    assert finished["cases"].keys() == {name for name, fold in cases.items() if fold != 0}
    assert beside["cases"] == finished["cases"]
    assert {"target_spacing", "normalization", "nonzero_only", "label_values"} <= finished["settings"].keys()


def test_a_training_does_not_go_on_where_it_has_seen_its_validation_cases(
    train: Callable[..., Any], undisturbed: Path, tmp_path: Path
) -> None:
    """As after a new division into folds; nothing is changed."""
    folder = tmp_path / "fold"
    shutil.copytree(undisturbed, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="This training has seen 1 of the 1 cases that it is to be validated on"):
        train(folder, fold=1, max_epochs=EPOCHS + 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_network_of_the_user_is_kept(train: Callable[..., Any], undisturbed: Path, tmp_path: Path) -> None:
    """In place of the model.pt of a finished training, which gets its own back."""
    folder = tmp_path / "fold"
    shutil.copytree(undisturbed, folder)
    (folder / "model.pt").write_bytes(b"of the user")
    train(folder)
    assert (folder / "model.before.pt").read_bytes() == b"of the user"
    assert file_digest(folder / "model.pt") == file_digest(undisturbed / "model.pt")
