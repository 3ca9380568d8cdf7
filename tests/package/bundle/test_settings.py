"""One list explains the keys of the configs, and says which of them are flags."""

import json
from pathlib import Path

import pytest
from conftest import NAMES, TINY_PLAN, dataset_of

from autoplan.bundle import settings
from autoplan.bundle.render import render
from autoplan.bundle.templates import template


def configs(configuration):
    """The configs of a rendered bundle by name."""
    files = render(TINY_PLAN, TINY_PLAN.configuration(configuration), dataset_of(TINY_PLAN, Path()), "../data")
    names = ("train", "evaluate", "inference", "multi_gpu_train", "quick", "budget")
    return {name: json.loads(files[f"configs/{name}.json"]) for name in names}


def is_value(key, value):
    """Whether a key of a config holds a value, and no structure: neither parts to be built nor steps to be run."""
    return "#" not in key and key not in ("imports", "+imports", "bundle_root", "run") and not (
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
    keys |= set(template("train.json", "2d", goes_on=True, ignores=True))
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


@pytest.mark.parametrize(
    ("name", "takes", "refused"),
    [
        ("max_epochs", "1 1000", "0 -1 x 1.5 1e3 True [1] None"),
        ("epoch_length", "250", "0 y"),
        ("lowres_batch_size", "2", "0 two"),
        ("seed", "0 7", "-1 0.5"),
        ("learning_rate", "3e-4 1", "0 -1 nan inf 1e999 fast"),
        ("weight_decay", "0 3e-5", "-1"),
        ("mirror_prob", "0 0.5 1", "1.1 -0.1 half"),
        ("overlap", "0 0.5", "1"),
        ("amp", "True False", "true 1 yes"),
        ("target_spacing", "[1,1,3] (1,1,3)", "[1,1] [0,1,1] 1 [1,1,x]"),
        ("max_epochs", "999999999", "1_0 0x2 0b1 1e1 +1 01 100000000000000000000 ²"),
        ("learning_rate", "1e-3 .5 5. 1E-3", "1_0.0 0x2 01.5 1j"),
        ("max_memory", "4GB 0.5GB 3.5GiB 100", "0 0.1 GB 4XB"),
        ("device", "cpu cuda cuda:0", "gpu cuda:x CPU"),
        ("num_workers", "0 2", "-1"),
        ("dataset_dir", "anything", ""),
        ("lr_schedule", "None", ""),
        ("max_epochs", "$1+1 @batch_size", "[" * 9999),
    ],
)
def test_values_of_settings(name, takes, refused) -> None:
    assert [text for text in takes.split() if settings.refusal(name, text)] == []
    assert [text for text in refused.split() if not settings.refusal(name, text)] == []


@pytest.mark.parametrize("configuration", NAMES)
def test_what_the_bundles_hold_is_a_value_of_each_setting(configuration) -> None:
    for config in configs(configuration).values():
        values = {key: str(value) for key, value in config.items() if is_value(key, value) and value is not None}
        assert {key: settings.refusal(key, text) for key, text in values.items() if settings.refusal(key, text)} == {}
