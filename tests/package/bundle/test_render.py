"""What a bundle's files say: the plan and nothing else, once, in JSON to be read; and when they are written."""

import ast
import dataclasses
import errno
import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import NAMES, PROJECT, TINY_PLAN, dataset_of, write_project
from monai.data import MetaTensor

from autoplan.__main__ import main
from autoplan.base.codec import format_json, to_dict
from autoplan.base.errors import TemplateError
from autoplan.bundle import saved
from autoplan.bundle.ensemble import render_shared
from autoplan.bundle.metadata import Performance, Trained
from autoplan.bundle.overlays import overlaid, read_template
from autoplan.bundle.render import render, render_all
from autoplan.bundle.templates import OVERLAYS
from autoplan.bundle.writing import relative_path, write
from autoplan.data import decathlon as dataset
from autoplan.data import fingerprint, stored
from autoplan.data.facts import Case
from autoplan.planning import plan
from autoplan.planning.values import ChannelNormalization, Decision
from autoplan.training import results

CONFIGS = ("train", "evaluate", "inference", "multi_gpu_train", "quick", "budget", "metadata")
OVERRIDES = (
    "dataset_dir", "fold", "patch_size", "batch_size", "target_spacing", "epoch_length", "max_epochs", "num_workers",
    "device", "amp", "cache_dir", "ckpt_dir", "output_dir",
)  # fmt: skip
"""Top-level keys of train.json that a user may set."""
EXAMPLE = PROJECT / "bundles" / "Task04_Hippocampus"


def files_of(folder):
    """Content and time of every file."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def config(bundle, name):
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def leaves(value, path=""):
    """(path, value) of everything in a config that is neither dict nor list."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{path}#{key}" if path else str(key))
    else:
        yield path, value


@pytest.fixture(params=NAMES)
def bundle(request, project):
    return project / "bundles" / "Task90_Tiny" / request.param


# What the files say.


def test_files_of_a_bundle(bundle) -> None:
    there = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file() and "__pycache__" not in str(p)}
    scripts = {f"scripts/{p.name}" for p in (PROJECT / "templates" / "scripts").glob("*.py")}
    configs = {f"configs/{name}.json" for name in (*CONFIGS, "datalist")}
    assert there == {".written.json", "LICENSE", "docs/README.md", "configs/logging.conf", *configs, *scripts}


B = {"c": {"d": 2, "e": [3]}, "f": 4}
BASE = {"a": 1, "b": B, "g": [5], "h": 6}
LAID = {
    "nothing": ({}, BASE),
    "a value replaced in its place": ({"b": 0}, {"a": 1, "b": 0, "g": [5], "h": 6}),
    "a value inside": ({"b#f": 0}, {"a": 1, "b": {"c": {"d": 2, "e": [3]}, "f": 0}, "g": [5], "h": 6}),
    "deeper": ({"b#c#d": 0}, {"a": 1, "b": {"c": {"d": 0, "e": [3]}, "f": 4}, "g": [5], "h": 6}),
    "a new value inside": ({"b#c#x": 0}, {"a": 1, "b": {"c": {"d": 2, "e": [3], "x": 0}, "f": 4}, "g": [5], "h": 6}),
    "added to a list": ({"+g": [7, 8]}, {**BASE, "g": [5, 7, 8]}),
    "added to a list inside": ({"+b#c#e": [7]}, {**BASE, "b": {"c": {"d": 2, "e": [3, 7]}, "f": 4}}),
    "added to a dictionary": ({"+b": {"f": 0, "x": 7}}, {**BASE, "b": {"c": {"d": 2, "e": [3]}, "f": 0, "x": 7}}),
    "added to a dictionary inside": ({"+b#c": {"x": 7}}, {**BASE, "b": {"c": {"d": 2, "e": [3], "x": 7}, "f": 4}}),
    "a list's entry changed inside": ({"g#0": 0}, {**BASE, "g": [0]}),
    "a list's entry changed deeper": ({"b#c#e#0": 0}, {**BASE, "b": {"c": {"d": 2, "e": [0]}, "f": 4}}),
    "a new key": ({"_after_": {"a": {"x": 7}}}, {"a": 1, "x": 7, "b": B, "g": [5], "h": 6}),
    "new keys": ({"_after_": {"a": {"x": 7, "y": 8}}}, {"a": 1, "x": 7, "y": 8, "b": B, "g": [5], "h": 6}),
    "a new key at the end": ({"_after_": {"h": {"x": 7}}}, {**BASE, "x": 7}),
    "a new key and a changed one": ({"_after_": {"a": {"x": 7}}, "a": 0}, {"a": 0, "x": 7, "b": B, "g": [5], "h": 6}),
}


@pytest.mark.parametrize(("overlay", "expected"), LAID.values(), ids=LAID)
def test_a_config_with_another_laid_over_it(overlay, expected) -> None:
    before = json.dumps([BASE, overlay])
    found = overlaid(BASE, overlay)
    assert found == expected
    assert list(found) == list(expected)
    assert json.dumps([BASE, overlay]) == before, "neither is changed"


def test_keys_that_stand_in_the_base_with_a_number_sign() -> None:
    """evaluate.json is itself laid over train.json and has such keys."""
    assert overlaid({"a#b": 1, "c": 2}, {"a#b": 3, "c": 4}) == {"a#b": 3, "c": 4}


@pytest.mark.parametrize(
    "overlay", [{"x#y": 1}, {"x": 1}, {"+x": [1]}, {"b#x#y": 1}, {"_after_": {"x": {"y": 1}}}], ids=str
)
def test_an_overlay_does_not_invent_a_place(overlay) -> None:
    with pytest.raises(KeyError):
        overlaid(BASE, overlay)


PART = {"size": "$len(@patch_size)", "other": ["@strides", "@slice_axis", 3], "_target_": "x"}
PARTS = {
    "as it is": ({"_part_": "p"}, PART),
    "with a key of its own": ({"_part_": "p", "size": 2, "new": 1}, {**PART, "size": 2, "new": 1}),
    "with a prefix": (
        {"_part_": "p", "_prefix_": "lowres_", "new": "@patch_size"},
        {
            "size": "$len(@lowres_patch_size)",
            "other": ["@lowres_strides", "@slice_axis", 3],
            "_target_": "x",
            "new": "@patch_size",
        },
    ),
}


@pytest.mark.parametrize(("use", "expected"), PARTS.values(), ids=PARTS)
def test_parts_that_templates_share(use, expected, tmp_path) -> None:
    configs = tmp_path / "configs"
    (configs / "parts").mkdir(parents=True)
    (configs / "parts" / "p.json").write_text(json.dumps(PART))
    (configs / "a.json").write_text(json.dumps({"deep": [{"er": use}]}))
    assert read_template(configs / "a.json") == {"deep": [{"er": expected}]}


@pytest.mark.parametrize(
    "overlay", sorted({o for files in OVERLAYS.values() for names in files.values() for o in names})
)
def test_overlays_have_the_same_form(overlay) -> None:
    path = PROJECT / "templates" / "configs" / overlay
    assert path.read_text() == format_json(json.loads(path.read_text()))


@pytest.mark.parametrize("name", ["3d_lowres", "3d_cascade_fullres"])
def test_the_stages_of_the_cascade_differ_from_the_3d_unet_where_they_must(name, project) -> None:
    """Everything that is no part of the cascade stays as it is in 3d_fullres."""
    bundles = project / "bundles" / "Task90_Tiny"
    of_cascade = {
        "3d_lowres": {"preprocessing", "lowres_spacing", "training_settings"},
        "3d_cascade_fullres": {
            "network_def", "network", "lowres", "train", "validate", "output_dir", "lowres_bundle", "lowres_spacing",
            "lowres_patch_size", "lowres_strides", "lowres_features", "lowres_networks", "cascade_networks", "inferer",
            "training_settings", "optimizer",
        },
    }[name]  # fmt: skip
    planned = {"bundle_root", "patch_size", "batch_size", "strides", "features", "batch_dice"}
    for config_name in ("train", "inference"):
        full, stage = config(bundles / "3d_fullres", config_name), config(bundles / name, config_name)
        differ = {key for key in {*full, *stage} if full.get(key) != stage.get(key)}
        assert differ - planned <= of_cascade, config_name


def test_the_second_stage_builds_both(project, parse) -> None:
    """One module with both stages; the trainer is given the second, under the names of both."""
    bundle = project / "bundles" / "Task90_Tiny" / "3d_cascade_fullres"
    for config_name in ("train", "inference"):
        parser = parse(bundle, config_name, device="cpu")
        module = parser.get_parsed_content("network_def")
        assert type(module).__name__ == "Composite"
        assert [len(module.slices), len(module.fullres), len(module.lowres), len(module.cascade)] == [0, 0, 1, 1]
        first, second = module.lowres[0], module.cascade[0]
        assert (first.in_channels, second.in_channels) == (2, 2 + 2)
        low = TINY_PLAN.configuration("3d_lowres")
        assert (tuple(map(tuple, first.strides)), tuple(first.filters)) == (low.strides, low.features)
        assert module.lowres_patch == list(low.patch_size)
        network = parser.get_parsed_content("network")
        assert dict(network.state_dict()).keys() == module.state_dict().keys()
        if config_name == "train":
            optimized = parser.get_parsed_content("optimizer").param_groups[0]["params"]
            assert [id(p) for p in optimized] == [id(p) for p in second.parameters()]
            patch = torch.rand(1, 4, *parser["patch_size"])
            assert torch.equal(network(patch), second(patch))


# The largest component of a class that is always one.


@pytest.mark.parametrize(("single", "classes"), [((2,), [1]), ((5,), [2]), ((2, 5), [1, 2]), ((), [])], ids=str)
@pytest.mark.parametrize("config_name", ["inference", "evaluate"])
def test_only_the_largest_component_of_such_a_class_is_kept(single, classes, config_name, parse, tmp_path) -> None:
    """Classes count up, label values do not: 2 is class 1, 5 is class 2. Components that touch at a corner are one."""
    planned = dataclasses.replace(TINY_PLAN, single_component=single)
    bundle = render_all(planned, dataset_of(planned, tmp_path / "data"), tmp_path / "bundles")[1]
    configs = ("train", "evaluate") if config_name == "evaluate" else ("inference",)
    id_ = "validate#postprocessing" if config_name == "evaluate" else "postprocessing"
    parser = parse(bundle, *configs, output_dir=str(tmp_path))
    transforms = parser.get_parsed_content(id_).flatten().transforms
    keep = [t for t in transforms if type(t).__name__ == "KeepLargestComponentd"]
    assert len(keep) == bool(single)
    labels = torch.zeros(1, 12, 6, 6, dtype=torch.uint8)
    small, corner = {}, {}
    for label, x in ((1, 0), (2, 6)):
        labels[0, x : x + 2, :2, :2] = label
        labels[0, x + 2, 2, 2] = label  # touches at a corner
        labels[0, x, 5, 5] = label
        small[label], corner[label] = (0, x, 5, 5), (0, x + 2, 2, 2)
    found = labels.clone()
    for transform in keep:
        found = transform({"pred": MetaTensor(found)})["pred"]
    for label in (1, 2):
        assert int(found[small[label]]) == (0 if label in classes else label)
        assert int(found[corner[label]]) == label
    assert int((found == labels).sum()) == labels.numel() - len(classes)


def test_planned_values_arrive(bundle) -> None:
    planned, train = TINY_PLAN.configuration(bundle.name), config(bundle, "train")
    expected = {
        "target_spacing": list(TINY_PLAN.configuration("3d_fullres").spacing),
        "patch_size": list(planned.patch_size),
        "batch_size": planned.batch_size,
        "strides": to_dict(planned.strides),
        "features": list(planned.features),
        "batch_dice": planned.batch_dice,
        "slice_axis": 2,
        "normalization": [None, {"lower": -50.0, "upper": 150.0, "mean": 40.5, "std": 30.25}],
        "nonzero_only": False,
        "class_names": ["background", "ball", "box"],
        "label_values": [0, 2, 5],
        "single_component": [2],
    }
    low = TINY_PLAN.configuration("3d_lowres")
    if bundle.name in (low.name, "3d_cascade_fullres"):
        expected["lowres_spacing"] = list(low.spacing)
    if bundle.name == "3d_cascade_fullres":
        expected["lowres_patch_size"] = list(low.patch_size)
        expected["lowres_strides"] = to_dict(low.strides)
        expected["lowres_features"] = list(low.features)
    assert {key: train[key] for key in expected} == expected


def test_training_and_inference_agree(bundle) -> None:
    train, inference = config(bundle, "train"), config(bundle, "inference")
    # The trainer of a cascade trains one of the networks of the module that infers.
    others = {"network"} if bundle.name == "3d_cascade_fullres" else set()
    shared = set(train) & set(inference) - {"run", "output_dir", "preprocessing", "num_workers"} - others
    assert {"patch_size", "strides", "features", "target_spacing", "normalization", "network_def"} <= shared
    assert {key: train[key] for key in shared} == {key: inference[key] for key in shared}


@pytest.mark.parametrize("augmentation", ["2d", "3d", "slicewise"])
def test_augmentation(augmentation, tmp_path) -> None:
    planned = dataclasses.replace(TINY_PLAN.configurations[1], augmentation=augmentation)
    files = render(dataclasses.replace(TINY_PLAN, slice_axis=1), planned, dataset_of(TINY_PLAN, Path()), "data")
    train = json.loads(files["configs/train.json"])
    assert train["warp_slice_axis"] == (2 if augmentation == "slicewise" else None)
    assert train["rotation_degrees"] == (15.0 if augmentation == "3d" else 180.0)


@pytest.mark.parametrize("name", NAMES[1:])
def test_no_planned_number_stands_twice(name) -> None:
    """A plan of numbers that no template holds: each is in a config once, or not at all."""
    spacing, patch, features = (1.1011, 1.2022, 1.3033), (272, 304, 336), (6007, 6011, 6029, 6037, 6043)
    full = dataclasses.replace(
        TINY_PLAN.configurations[1],
        spacing=spacing,
        patch_size=patch,
        batch_size=7919,
        strides=((1, 1, 1), *((2, 2, 2),) * 4),
        features=features,
    )
    low = dataclasses.replace(
        full,
        name="3d_lowres",
        spacing=(2.4111, 2.5222, 2.6333),
        patch_size=(400, 432, 464),
        batch_size=7907,
        features=(6101, 6113, 6121, 6131, 6133),
    )
    second = dataclasses.replace(full, name="3d_cascade_fullres")
    statistics = ChannelNormalization(lower=-123.25, upper=456.75, mean=78.125, std=31.375)
    labels = ((0, "background"), (171, "a"), (173, "b"))
    chosen = dataclasses.replace(
        TINY_PLAN,
        normalization=(statistics,),
        labels=labels,
        modalities=("CT",),
        single_component=(),
        configurations=(TINY_PLAN.configurations[0], full, low, second),
    )
    planned = chosen.configuration(name)
    numbers = [*spacing, *planned.patch_size, *planned.features, planned.batch_size, 171, 173]
    numbers += dataclasses.astuple(statistics)
    numbers += [] if name == "3d_fullres" else low.spacing
    numbers += [*low.patch_size, *low.features] if name == "3d_cascade_fullres" else []
    files = render(chosen, planned, dataset_of(chosen, Path()), "data")
    for config_name in ("train", "inference", "evaluate", "multi_gpu_train", "quick", "budget"):
        found = [value for _, value in leaves(json.loads(files[f"configs/{config_name}.json"]))]
        twice = {n: found.count(n) for n in numbers if found.count(n) > 1}
        assert not twice, config_name
        if config_name == "train":
            assert all(n in found for n in numbers)


def test_keys_that_a_user_may_set_exist_and_are_documented(bundle) -> None:
    train, readme = config(bundle, "train"), (bundle / "docs" / "README.md").read_text()
    assert set(OVERRIDES) <= set(train)
    assert all(f"`{key}`" in readme for key in OVERRIDES)


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("fold", 3, "$@cases[1][0]['image'][-13:]"),
        ("patch_size", [8, 8], "$@train#dataset.patch_size"),
        ("batch_size", 3, "$@train#sampler.batch_size"),
        (
            "target_spacing",
            [3.0, 3.0, 3.0],
            "$[t for t in @preprocessing.transforms if hasattr(t, 'transforms')][0].transforms[0].target_spacing",
        ),
        ("cache_dir", "elsewhere", "$str(@cache.folder.parent)"),
        ("max_epochs", 7, "$@train#trainer.state.max_epochs"),
        ("epoch_length", 9, "$@train#trainer.state.epoch_length"),
        ("ckpt_dir", "there", "$str(@train#checkpoint.ckpt_dir)"),
        ("num_workers", 0, "$@train#dataloader.num_workers"),
    ],
)
def test_a_key_that_is_set_takes_effect(key, value, where, project, parse, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = project / "bundles" / "Task90_Tiny" / "2d"
    settings = {"cache_dir": str(tmp_path / "cache"), "num_workers": 0, "device": "cpu", key: value, "_probe": where}
    found = parse(bundle, "train", **settings).get_parsed_content("_probe")
    if key == "fold":
        assert found in (f"{name}.nii.gz"[-13:] for name in TINY_PLAN.folds[3])
    elif key == "target_spacing":
        assert found == (3.0, 3.0, 3.0)
    else:
        assert list(found) == value if isinstance(value, list) else found == value


def test_every_target_exists(bundle) -> None:
    for name in ("train", "evaluate", "inference", "multi_gpu_train", "quick", "budget"):
        for path, value in leaves(config(bundle, name)):
            if path.endswith("_target_") and str(value).startswith("scripts."):
                module, _, attribute = value.rpartition(".")
                assert hasattr(importlib.import_module(module), attribute), value
            for attribute in re.findall(r"scripts\.(\w+)", str(value) if str(value).startswith("$") else ""):
                assert hasattr(importlib.import_module("scripts"), attribute), value


def test_no_absolute_path(project) -> None:
    bundles = project / "bundles"
    for name, (content, _) in files_of(bundles).items():
        assert str(project).encode() not in content, name
        if name.endswith(".json"):
            texts = [v for _, v in leaves(json.loads(content)) if isinstance(v, str)]
            assert not [t for t in texts if re.match(r"/|~|[A-Za-z]:\\|file:", t)], name


ODD_NAMES = (
    "with space",
    "imports",
    "a@b",
    "100%",
    "it's",
    'a "quote"',
    "back\\slash",
    "#1",
    "a$b",
    "@fold",
    "%fold#x",
)


@pytest.mark.parametrize("name", ["plain", *ODD_NAMES, "ümläut", "{x}"])
def test_any_dataset_folder(name, tmp_path, parse) -> None:
    data = tmp_path / name / "Task90_Tiny"
    bundle, *_ = render_all(TINY_PLAN, dataset_of(TINY_PLAN, data), tmp_path / "bundles")
    for config_name in ("train", "inference"):
        found = parse(bundle, config_name).get_parsed_content("dataset_dir")
        assert Path(os.path.normpath(found)) == data


HOSTILE = (
    "$import this", "$import", "$__import__('os').system('touch hacked')", "@network", "%train.json::max_epochs", "a#b",
    "x@#y", "x%#y", "::", "x%::y", "x@::::::::::::::::::y",
    "_target_", "it's \"x\"", r"back\slash", "größer als \u4e2d", r"$\frac{a}{b}$", "<b>", "a|b",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("configuration", NAMES)
def test_nothing_of_a_dataset_is_evaluated(name, configuration, tmp_path, parse, monkeypatch) -> None:
    """Names of classes and channels are text in every config, whatever they look like."""
    monkeypatch.chdir(tmp_path)
    hostile = dataclasses.replace(
        TINY_PLAN, labels=((0, "background"), (1, name), (2, "b")), modalities=(name, "CT"), single_component=()
    )
    render_all(hostile, dataset_of(hostile, tmp_path / "data"), tmp_path / "bundles")
    bundle = tmp_path / "bundles" / TINY_PLAN.name / configuration
    imported = {*sys.modules}
    for names in (
        ("train",),
        ("train", "evaluate"),
        ("train", "multi_gpu_train"),
        ("train", "quick"),
        ("train", "budget"),
        ("inference",),
    ):
        parser = parse(bundle, *names)
        assert parser.get_parsed_content("class_names") == ["background", name, "b"]
        described = parser.get_parsed_content("_meta_")
        image, pred = (described["network_data_format"][part] for part in ("inputs", "outputs"))
        # MONAI shows a number sign in metadata as the mark of its ids.
        marked = re.sub("([@%])(?=#|::)", r"\1 ", name).replace("#", "::")
        assert image["image"]["channel_def"]["0"].strip() == marked
        assert pred["pred"]["channel_def"]["1"].strip() == marked
        assert f"segments {marked}, b in" in described["description"]
    assert "this" not in sys.modules
    assert not (tmp_path / "hacked").exists()
    assert imported >= {module for module in sys.modules if module == "this"}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_of_a_dataset_is_evaluated_in_the_bundle_to_share(name, tmp_path, parse, monkeypatch) -> None:
    """There the scores stand in the metadata, too, by the names of the classes."""
    monkeypatch.chdir(tmp_path)
    hostile = dataclasses.replace(TINY_PLAN, labels=((0, "background"), (1, name), (2, "b")), modalities=(name, "CT"))
    trained = [Trained(TINY_PLAN.configuration(n), (0,)) for n in ("2d", "3d_lowres", "3d_cascade_fullres")]
    performance = Performance(5, (0,), (("mean foreground", 0.5), (name, 0.75), ("b", None)))
    options = {"name": "shared", "mirror": True, "overlap": 0.5, "performance": performance, "provenance": {}}
    write(tmp_path / "shared", render_shared(hostile, trained, "../data", **options))
    parser = parse(tmp_path / "shared", "inference")
    assert parser.get_parsed_content("class_names") == ["background", name, "b"]
    assert list(parser.get_parsed_content("_meta_")["eval_metrics"]["mean_dice"].values()) == [0.5, 0.75, None]
    assert "this" not in sys.modules
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", ["<script>", "a|b"])
def test_names_do_not_change_the_form_of_a_readme(name) -> None:
    planned = dataclasses.replace(TINY_PLAN, decisions=(Decision("", "x", name, "section 1", f"because of {name}"),))
    text = render(planned, planned.configurations[0], dataset_of(planned, Path()), "..")["docs/README.md"].decode()
    [row] = [line for line in text.splitlines() if line.startswith("| x |")]
    assert len(re.split(r"(?<!\\)\|", row)) == 6
    assert "<script>" not in text


ALLOWED = (
    ast.Expression, ast.Name, ast.Load, ast.Attribute, ast.Subscript, ast.Slice, ast.Constant, ast.Call, ast.BinOp,
    ast.Add, ast.Sub, ast.Mult, ast.List, ast.UnaryOp, ast.Not,
)  # fmt: skip
"""What an expression of a config may be made of: attributes, indices, sums, a list, calls; `not` of a value."""


def test_expressions_of_configs_hold_no_logic(bundle) -> None:
    """One call and no more, besides `len` and `str`: everything else is a tested function in scripts/."""
    seen = 0
    for name in ("train", "evaluate", "inference", "multi_gpu_train", "quick", "budget"):
        for path, value in leaves(config(bundle, name)):
            if not isinstance(value, str) or not value.startswith("$") or value.startswith("$import"):
                continue
            tree = ast.parse(re.sub(r"[@%]([\w#]+)", lambda m: "ref_" + m[1].replace("#", "_"), value[1:]), mode="eval")
            nodes = list(ast.walk(tree))
            assert {type(node) for node in nodes} <= {*ALLOWED}, f"{name}#{path}: {value}"
            calls = [node for node in nodes if isinstance(node, ast.Call)]
            called = [n for n in calls if not (isinstance(n.func, ast.Name) and n.func.id in ("len", "str", "range"))]
            assert len(called) <= 1, f"{name}#{path}: {value}"
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("number", [1, 40, 90])
def test_planning_that_was_interrupted_goes_on(number, tmp_path, monkeypatch) -> None:
    """A full disk at any file: the bundles are whole or not there, and planning again makes them without --force."""
    begun = []

    def full_disk(path, data):
        begun.append(path)
        if len(begun) == number + 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_text(data.decode("latin-1"), encoding="latin-1", newline="")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full_disk)
        with pytest.raises(OSError, match="No space left"):
            render_all(TINY_PLAN, dataset_of(TINY_PLAN, tmp_path / "data"), tmp_path / "bundles")
    folder = tmp_path / "bundles" / TINY_PLAN.name
    whole = {path.name for path in folder.iterdir()}
    assert whole == {name for name in NAMES if (folder / name / "configs" / "train.json").is_file()}
    assert len(whole) == number // 50
    render_all(TINY_PLAN, dataset_of(TINY_PLAN, tmp_path / "data"), tmp_path / "bundles")


@pytest.mark.parametrize(
    "name", ["plain", "two words", "import", "a@b", "@fold", "50% mix", "%fold", "tumor #1", "$1", 'it\'s "x"', "a::b"]
)
def test_any_class_name(name, tmp_path, parse) -> None:
    labels = ((0, "background"), (1, name))
    planned = dataclasses.replace(TINY_PLAN, labels=labels)
    bundle, *_ = render_all(planned, dataset_of(planned, tmp_path / "data"), tmp_path / "bundles")
    for config_name in ("train", "inference"):
        parser = parse(bundle, config_name)
        assert parser.get_parsed_content("class_names") == ["background", name]
        assert parser.get_parsed_content("network_def").out_channels == 2


def test_folds_are_the_same_for_all_configurations(project) -> None:
    found = [config(project / "bundles" / "Task90_Tiny" / name, "datalist") for name in NAMES]
    assert found == [found[0]] * len(NAMES)
    assert results.folds(project / "bundles" / "Task90_Tiny" / "2d") == to_dict(TINY_PLAN.folds)
    case = {"name": "case_0", "image": "imagesTr/case_0.nii.gz", "label": "labelsTr/case_0.nii.gz", "fold": 0}
    assert found[0]["training"][0] == case


def test_metadata_is_about_this_bundle(bundle) -> None:
    planned, metadata = TINY_PLAN.configuration(bundle.name), config(bundle, "metadata")
    assert metadata["name"] == f"Task90_Tiny_{bundle.name}"
    assert metadata["version"] in metadata["changelog"]
    image, pred = (metadata["network_data_format"][p] for p in ("inputs", "outputs"))
    assert image["image"]["num_channels"] == 2
    assert image["image"]["channel_def"] == {"0": "MRI", "1": "CT"}
    assert pred["pred"]["num_channels"] == 3
    assert pred["pred"]["channel_def"] == {"0": "background", "1": "ball", "2": "box"}
    assert image["image"]["spatial_shape"] == pred["pred"]["spatial_shape"] == list(planned.patch_size)


# The form.


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_json_to_be_read(name, bundle) -> None:
    text = (bundle / "configs" / f"{name}.json").read_text()
    assert format_json(json.loads(text)) == text
    assert max(map(len, text.splitlines())) <= 200
    for line in text.splitlines():
        assert not re.fullmatch(r"\s*-?[\d.e+-]+,?", line), "a list of numbers stands on one line"


@pytest.mark.parametrize("name", CONFIGS)
def test_templates_have_the_same_form(name) -> None:
    path = PROJECT / "templates" / "configs" / f"{name}.json"
    assert path.read_text() == format_json(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{\n\n}\n"),
        ({"a": 1, "b": [1, 2.5, [3]]}, '{\n "a": 1,\n "b": [1, 2.5, [3]]\n}\n'),
        ({"a": {"b": "c"}, "d": "e"}, '{\n "a": {"b": "c"},\n "d": "e"\n}\n'),
        ({"long": list(range(90))}, '{\n "long": ' + str(list(range(90))) + "\n}\n"),
        ({"a": 1, "b": ["x" * 70] * 2}, '{\n "a": 1,\n\n "b": [\n  "' + "x" * 70 + '",\n  "' + "x" * 70 + '"\n ]\n}\n'),
        ({"ä": None, "t": True}, '{\n "\\u00e4": null,\n "t": true\n}\n'),
    ],
    ids=["nothing", "numbers", "short", "many numbers", "a block", "other values"],
)
def test_format(value, text) -> None:
    assert format_json(value) == text
    assert json.loads(text) == value


# When files are written.


def test_rendering_again_changes_nothing(tmp_path) -> None:
    write_project(tmp_path)
    before = files_of(tmp_path)
    for force in (False, True):
        render_all(TINY_PLAN, dataset_of(TINY_PLAN, tmp_path / "data/Task90_Tiny"), tmp_path / "bundles", force=force)
        assert files_of(tmp_path) == before


def test_order_of_keys_and_bytes_do_not_depend_on_where_it_runs(project, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(Path("elsewhere"))
    here, there = (files_of(p / "bundles") for p in (project, tmp_path / "elsewhere"))
    assert {k: v[0] for k, v in here.items() if "__pycache__" not in k} == {k: v[0] for k, v in there.items()}


def another_plan():
    first, second, *others = TINY_PLAN.configurations
    return dataclasses.replace(TINY_PLAN, configurations=(first, dataclasses.replace(second, batch_size=3), *others))


def test_another_plan_is_refused_with_the_list_of_changes(tmp_path) -> None:
    write_project(tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(TemplateError) as error:
        render_all(another_plan(), dataset_of(another_plan(), tmp_path / "data/Task90_Tiny"), tmp_path / "bundles")
    lines = str(error.value).splitlines()
    train = tmp_path / "bundles/Task90_Tiny/3d_fullres/configs/train.json"
    assert f"  {train}: batch_size: 2 -> 3" in lines
    assert all("2d" not in line for line in lines[1:-1]), "2d has not changed"
    assert "--force" in lines[-1]
    assert "--bundles" in lines[-1]
    assert files_of(tmp_path) == before


def test_nothing_is_written_when_one_bundle_is_refused(tmp_path) -> None:
    """Also not the bundle that was not there."""
    write_project(tmp_path)
    shutil.rmtree(tmp_path / "bundles/Task90_Tiny/2d")
    before = files_of(tmp_path)
    with pytest.raises(TemplateError):
        render_all(another_plan(), dataset_of(another_plan(), tmp_path / "data/Task90_Tiny"), tmp_path / "bundles")
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("scripts/patches.py", r"differs \(changed by hand\)"),
        ("configs/logging.conf", r"differs \(changed by hand\)"),
        ("configs/train.json", r"mine: null -> null \(changed by hand\)"),
    ],
)
def test_what_a_user_changed_is_not_lost(file, said, tmp_path) -> None:
    bundle = write_project(tmp_path) / "bundles/Task90_Tiny/2d"
    mine = (bundle / file).read_bytes()
    mine = b'{"mine": 1,' + mine[1:] if file.endswith(".json") else b"# mine"
    (bundle / file).write_bytes(mine)
    dataset = dataset_of(TINY_PLAN, tmp_path / "data/Task90_Tiny")
    with pytest.raises(TemplateError, match=rf"{file}: {said}".replace("null -> null", "1 -> null")):
        render_all(TINY_PLAN, dataset, tmp_path / "bundles")
    assert (bundle / file).read_bytes() == mine
    for number, ending in enumerate(("before", "before-2")):
        (bundle / file).write_bytes(mine + b"\n" * number)
        kept = bundle.with_name(f"2d.{ending}")
        assert render_all(TINY_PLAN, dataset, tmp_path / "bundles", force=True)[-1] == kept
        assert [p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()] == [file]
        assert (kept / file).read_bytes() == mine + b"\n" * number
        assert (bundle / file).read_bytes() != mine


def test_files_of_a_user_s_own_stay_and_hinder_nothing(tmp_path) -> None:
    bundle = write_project(tmp_path) / "bundles/Task90_Tiny/3d_fullres"
    mine = [bundle / name for name in ("scripts/a.py", "configs/a.json", "docs/a.md", "models/fold_0/last.pt")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# mine")
    dataset = dataset_of(TINY_PLAN, tmp_path / "data/Task90_Tiny")
    for planned, force in ((TINY_PLAN, False), (another_plan(), True)):
        render_all(planned, dataset, tmp_path / "bundles", force=force)
        assert all(path.read_text() == "# mine" for path in mine)
    assert not list(bundle.parent.glob("*.before*"))


@pytest.mark.parametrize("file", ["train", "metadata", "datalist"])
def test_a_config_that_is_nested_too_deeply_differs(file, tmp_path) -> None:
    path = write_project(tmp_path) / f"bundles/Task90_Tiny/2d/configs/{file}.json"
    path.write_text("[" * 100_000)
    with pytest.raises(TemplateError, match=rf"{file}.json: differs"):
        render_all(TINY_PLAN, dataset_of(TINY_PLAN, tmp_path / "data/Task90_Tiny"), tmp_path / "bundles")


def test_force_rewrites_all_but_models(tmp_path) -> None:
    bundle = write_project(tmp_path) / "bundles/Task90_Tiny/3d_fullres"
    kept = ["models/model.pt", "models/fold_0/last.pt", "eval/test_0.nii.gz", "mine.txt", "../cache/x/case.npys"]
    for name in kept:
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(name)
    render_all(
        another_plan(), dataset_of(another_plan(), tmp_path / "data/Task90_Tiny"), tmp_path / "bundles", force=True
    )
    assert config(bundle, "train")["batch_size"] == 3
    assert all((bundle / name).read_text() == name for name in kept)
    fresh = write_project(tmp_path / "fresh", another_plan()) / "bundles/Task90_Tiny/3d_fullres"
    expected = {k: v[0] for k, v in files_of(fresh).items()}
    assert {k: v[0] for k, v in files_of(bundle).items() if k in expected} == expected


# The committed example.


def test_the_example_is_what_would_be_rendered_now(request) -> None:
    """One configuration: all bundles have the same scripts. `--rewrite-example` renders it from its fingerprint."""
    facts = stored.load_fingerprint(EXAMPLE / "fingerprint.json")
    planned = plan.plan(facts)
    folder = EXAMPLE / "3d_fullres"
    known = json.loads((folder / "configs/datalist.json").read_text())["test"]  # no fingerprint has the test images
    data = dataset_of(planned, PROJECT / "data" / EXAMPLE.name, [Case(e["name"], (e["image"],)) for e in known])
    files = render(planned, planned.configuration(folder.name), data, f"../../../data/{EXAMPLE.name}")
    if request.config.getoption("--rewrite-example"):
        for path in files:  # what git brought is as nobody has changed it
            (folder / path).unlink(missing_ok=True)
        write(folder, files)
        saved.save_plan(planned, EXAMPLE, fingerprint_key=facts.key)
    assert saved.load_plan(EXAMPLE) == planned
    for path, content in files.items():
        assert (folder / path).read_text() == content.decode(), path
    parts = [folder / part for part in ("configs", "scripts", "docs")]
    there = {p.relative_to(folder).as_posix() for part in parts for p in part.iterdir() if p.is_file()}
    assert there == set(files) - {"LICENSE"}


def test_the_example_s_fingerprint_is_that_of_the_data(real_data) -> None:
    facts = fingerprint.fingerprint(dataset.load(real_data(EXAMPLE.name)), progress=False)
    assert facts == stored.load_fingerprint(EXAMPLE / "fingerprint.json")


def test_planning_the_data_leaves_the_example_as_it_is(real_data, tmp_path) -> None:
    """As the first command of the README does it in a fresh clone."""
    data = real_data(EXAMPLE.name)
    project = tmp_path / "project"
    shutil.copytree(EXAMPLE, project / "bundles" / EXAMPLE.name)
    (project / "data").mkdir()
    (project / "data" / EXAMPLE.name).symlink_to(data)
    before = files_of(project / "bundles" / EXAMPLE.name / "3d_fullres")
    assert main([str(project / "data" / EXAMPLE.name), "--bundles", str(project / "bundles")]) == 0
    assert files_of(project / "bundles" / EXAMPLE.name / "3d_fullres") == before


def test_the_example_has_the_known_plan() -> None:
    """208 of the paper's 260 cases, so the batches are smaller than Table 1 has them: 9 and 366."""
    planned = plan.plan(stored.load_fingerprint(EXAMPLE / "fingerprint.json"))
    flat, volume = planned.configurations
    assert (flat.patch_size, flat.batch_size) == ((40, 56), 293)
    assert (volume.patch_size, volume.batch_size) == ((40, 56, 40), 7)


@pytest.mark.parametrize("linked", ["nothing", "bundles", "data", "bundles and data", "the whole project"])
def test_the_dataset_is_found_behind_links(linked, tmp_path) -> None:
    """From where the bundle really lies, which is where the system goes up from."""
    disk, project = tmp_path / "other" / "deep" / "disk", tmp_path / "project"
    disk.mkdir(parents=True)
    real = disk / "project" if linked == "the whole project" else project
    real.mkdir()
    if real != project:
        project.symlink_to(real)
    for name in ("bundles", "data"):
        if name in linked:
            (disk / name).mkdir()
            (project / name).symlink_to(disk / name)
    (project / "data" / "Task90_Tiny").mkdir(parents=True)
    folder = project / "bundles" / "Task90_Tiny" / "2d"
    path = relative_path(project / "data" / "Task90_Tiny", folder)
    folder.mkdir(parents=True)
    assert (folder.resolve() / path).resolve() == (project / "data" / "Task90_Tiny").resolve()
    if linked in ("nothing", "data", "the whole project"):
        assert path == "../../../data/Task90_Tiny", "the project can be moved"
