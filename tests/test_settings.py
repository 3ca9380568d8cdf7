"""One list explains the keys of the configs, and says which of them are flags."""

import json
from pathlib import Path

import pytest
from conftest import NAMES, TINY_PLAN, dataset_of

from autoplan import settings
from autoplan.render import render, template


def configs(configuration):
    """The configs of a rendered bundle by name."""
    files = render(TINY_PLAN, TINY_PLAN.configuration(configuration), dataset_of(TINY_PLAN, Path()), "../data")
    names = ("train", "evaluate", "inference", "multi_gpu_train", "quick")
    return {name: json.loads(files[f"configs/{name}.json"]) for name in names}


def is_value(key, value):
    """Whether a key of a config holds a value, and no structure: neither parts to be built nor steps to be run."""
    return "#" not in key and key not in ("imports", "bundle_root", "run") and not (
        isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value if v))
        or (isinstance(value, str) and value.startswith(("%", "$@network_def")))
        or (isinstance(value, list) and any(isinstance(v, str) and v.startswith("$@") for v in value))
    )  # fmt: skip


@pytest.mark.parametrize("configuration", NAMES)
def test_every_value_is_explained(configuration) -> None:
    for name, config in configs(configuration).items():
        values = [key for key, value in config.items() if is_value(key, value)]
        known = {s.name for s in settings.explained(config)}
        assert set(values) - known <= {"normalization"}, name
        assert "normalization" in known or "normalization" not in config


def test_everything_that_is_explained_is_there() -> None:
    keys = {key for name in NAMES for config in configs(name).values() for key in config}
    keys |= set(template("train.json", "2d", goes_on=True))
    assert {s.name for s in settings.load()} - keys == {"folds"}, "folds stands in the bundle to share, as 2d_folds"


def test_flags_of_a_training() -> None:
    keys = list(configs("3d_cascade_fullres")["train"])
    flags = settings.flags_of_training(keys)
    assert {"max_epochs", "patch_size", "lowres_patch_size", "dataset_dir", "device", "mirror"} <= {*flags}
    assert not {"fold", "ckpt_dir", "output_dir", "network_def", "train", "run", "overlap", "lowres_networks"} & {
        *flags
    }
    assert settings.paths() == ("dataset_dir", "cache_dir")


@pytest.mark.parametrize("configuration", NAMES)
def test_the_readme_explains_each_key_once(configuration) -> None:
    files = render(TINY_PLAN, TINY_PLAN.configuration(configuration), dataset_of(TINY_PLAN, Path()), "../data")
    text = files["docs/README.md"].decode().partition("## Keys of the configs")[2].partition("##")[0]
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len({*rows}) > 30
    assert "lowres_patch_size" in rows or configuration != "3d_cascade_fullres"
