"""Configs that are laid over each other: none undoes what another one is for, whichever meet."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import NAMES
from monai.bundle import ConfigParser

from autoplan.base.scripts import templates_folder
from autoplan.bundle import overlays, templates
from autoplan.planning import finetuning

AT_RUN_TIME = [
    over
    for recipe in ((), ("quick",), ("budget",))
    for over in (recipe, ("multi_gpu_train", *recipe), (*recipe, "multi_gpu_train"), ("evaluate", *recipe))
]
"""What a command lays over train.json."""


@dataclass(frozen=True)
class Laid:
    """A configuration whose trainings go on from a bundle, whose labels have voxels that are not known, and the configs
    that a command lays over its train.json."""

    configuration: str
    goes_on: bool
    ignores: bool
    over: tuple[str, ...]

    def __str__(self) -> str:
        words = ("goes on", self.goes_on), ("ignores", self.ignores)
        return " ".join([self.configuration, *(word for word, there in words if there), *self.over])


ALL = [
    Laid(name, goes_on, ignores, over)
    for name in NAMES
    for goes_on in ([False, True] if name in finetuning.SUPPORTED else [False])
    for ignores in (False, True)
    for over in dict.fromkeys(AT_RUN_TIME)
]


def text(value: Any) -> str:
    return json.dumps(value)


def transform(config: ConfigParser, number: int) -> Any:
    return config[f"preprocessing#transforms#{number}"]


SURVIVES: dict[str, tuple[Callable[[Laid], bool], Callable[[ConfigParser], bool]]] = {
    "the loss leaves out what is not known": (
        lambda laid: laid.ignores,
        lambda c: c["loss"].get("unknown") is True,
    ),
    "the labels of what is not known stay apart": (
        lambda laid: laid.ignores,
        lambda c: "[@ignore_value]" in c["preprocessing#transforms#9#values"] and "+ 1" in text(transform(c, 10)),
    ),
    "scores leave out what is not known": (
        lambda laid: laid.ignores and "evaluate" in laid.over,
        lambda c: c["validate#handlers"][-1].get("ignore_value") == "@ignore_value",
    ),
    "the network starts from the weights of the bundle": (
        lambda laid: laid.goes_on,
        lambda c: "scripts.networks.with_weights" in text(c["network"]),
    ),
    "the weights are recorded": (lambda laid: laid.goes_on, lambda c: "pretrained" in c["training_settings"]),
    "the learning rate of what goes on rises first": (
        lambda laid: laid.goes_on,
        lambda c: c["train#rules"].get("warm_up") == "@warm_up",
    ),
    "the second stage is what is trained": (
        lambda laid: laid.configuration == "3d_cascade_fullres" and "evaluate" not in laid.over,
        lambda c: re.search(r"SecondStage|\.cascade\[0\]", text(c["network"])) and "cascade" in c["optimizer#params"],
    ),
    "the second stage sees the first": (
        lambda laid: laid.configuration == "3d_cascade_fullres",
        lambda c: "AppendOneHotd" in text(c["train#preprocessing"]) and "lowres" in text(c["train#dataset"]),
    ),
    "both stages predict": (
        lambda laid: laid.configuration == "3d_cascade_fullres" and "evaluate" in laid.over,
        lambda c: "CascadeInferer" in text(c["validate#inferer"]) and "lowres_features" in c["prediction_settings"],
    ),
    "the first stage sees the low resolution": (
        lambda laid: laid.configuration == "3d_lowres",
        lambda c: "@lowres_spacing" in text(c["preprocessing"]),
    ),
    "the recipe quick": (
        lambda laid: "quick" in laid.over,
        lambda c: "PolynomialLR" in text(c["lr_schedule"]) and c["max_epochs"] < 100,
    ),
    "the recipe budget": (
        lambda laid: "budget" in laid.over,
        lambda c: "TimeBudget" in text(c["lr_schedule"]) and "budget_seconds" in c["training_settings"],
    ),
    "the ranks train one network, and share one loss": (
        lambda laid: "multi_gpu_train" in laid.over,
        lambda c: all(
            (
                "scripts.distributed.parallel" in text(c["network"]),
                c["loss"].get("shared") is True,
                c["device"]["_target_"] == "scripts.distributed.local_device",
                "scripts.distributed.start" in text(c["training"]),
            )
        ),
    ),
    "the cases are predicted with the inferer of a prediction": (
        lambda laid: "evaluate" in laid.over,
        lambda c: "LabelInferer" in text(c["validate#inferer"]) and "DiceReport" in text(c["validate#handlers"]),
    ),
}
"""What must be there: when, and by what it is known."""


@pytest.fixture(scope="module")
def laid_over(tmp_path_factory) -> Callable[[Laid], ConfigParser]:
    """The configs as MONAI lays them over each other."""
    root, written = tmp_path_factory.mktemp("configs"), set()

    def read(laid: Laid) -> ConfigParser:
        folder = root / f"{laid.configuration} {laid.goes_on} {laid.ignores}"
        if folder not in written:
            folder.mkdir()
            written.add(folder)
            for name in templates.CONFIGS:
                config = templates.template(name, laid.configuration, goes_on=laid.goes_on, ignores=laid.ignores)
                (folder / name).write_text(json.dumps(config))
        parser = ConfigParser()
        parser.read_config([folder / f"{name}.json" for name in ("train", *laid.over)])
        return parser

    return read


@pytest.mark.parametrize("laid", ALL, ids=str)
def test_nothing_is_undone(laid, laid_over) -> None:
    config = laid_over(laid)
    assert [name for name, (is_wanted, is_there) in SURVIVES.items() if is_wanted(laid) and not is_there(config)] == []


def test_nothing_is_there_that_nobody_asked_for(laid_over) -> None:
    """Else the test before could not fail."""
    plain = laid_over(Laid("2d", False, False, ()))
    assert [name for name, (_, is_there) in SURVIVES.items() if is_there(plain)] == []


@pytest.mark.parametrize("ignores", [False, True], ids=["all known", "ignores"])
def test_the_bundle_to_share(ignores, tmp_path: Path) -> None:
    """Its own overlays leave the loss alone."""
    config = templates.template("train.json", "3d_fullres", goes_on=True, ignores=ignores)
    last = overlays.overlaid(config, overlays.read_template(templates_folder() / "configs" / "best" / "train.json"))
    assert last["loss"].get("unknown", False) is ignores
    assert "pretrained" in last["training_settings"]
