"""The bundle to share: it holds all networks of the chosen model, and predicts what they predict together."""

import json
import os
import shutil

import nibabel
import numpy as np
import pytest
import torch
from conftest import NAMES, TINY_PLAN, write_finished
from made import chosen
from scripts.inferers import PatchInferer

from autoplan.base.errors import TemplateError
from autoplan.base.files import file_digest
from autoplan.bundle.ensemble import going_on
from autoplan.sharing import ensemble

TASK = TINY_PLAN.name
FOLDS = {"2d": (0, 2), "3d_fullres": (0, 1), "3d_lowres": (0, 1, 2, 3, 4), "3d_cascade_fullres": (1,)}
ON_ALL = ("2d", "3d_fullres", "3d_cascade_fullres")
MODELS = {
    "2d": ("2d",),
    "3d_fullres": ("3d_fullres",),
    "3d_lowres": ("3d_lowres",),
    "cascade": ("3d_cascade_fullres",),
    "2d and 3d": ("2d", "3d_fullres"),
    "2d and cascade": ("2d", "3d_cascade_fullres"),
    "3d and cascade": ("3d_fullres", "3d_cascade_fullres"),
}


def share(project, *members: str, name: str | None = None, force: bool = False):
    """The bundle's folder; with `force` also where copies are."""
    folder, options = project / "data" / TASK, {"name": name, "fingerprint_key": "abc", "force": force}
    made = ensemble.share(TINY_PLAN, chosen(*members), folder, project / "bundles", **options)
    return made if force else made[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, parse):
    """A project whose folds look finished, with random networks."""
    folds = {name: (*numbers, *["all"] * (name in ON_ALL)) for name, numbers in FOLDS.items()}
    return write_finished(tmp_path_factory.mktemp("shared"), parse, folds)


def predicted(parse, bundle, image, models=()):
    """Mean of the probabilities that a bundle's own inferer gives with each of some weights, its own if none."""
    found = []
    for model in models or [bundle / "models" / "model.pt"]:
        parser = parse(bundle, "inference", mirror=False, amp=False)
        network = parser.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(model, weights_only=True))
        with torch.inference_mode():
            found.append(parser.get_parsed_content("inferer")(image, network).float())
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("members", MODELS.values(), ids=MODELS)
def test_it_predicts_the_mean_of_its_networks(members, trained, parse) -> None:
    best = share(trained, *members)
    assert best == trained / "bundles" / TASK / "best"
    image = torch.randn(1, 2, 19, 17, 11)
    bundles = [trained / "bundles" / TASK / m for m in members]
    models = [[b / "models" / f"fold_{k}" / "model.pt" for k in FOLDS[b.name]] for b in bundles]
    alone = [predicted(parse, b, image, m) for b, m in zip(bundles, models, strict=True)]
    together = predicted(parse, best, image)
    torch.testing.assert_close(together, torch.stack(alone).mean(0), rtol=0, atol=2e-3)


@pytest.mark.parametrize("members", MODELS.values(), ids=MODELS)
def test_its_metadata_fit_its_network(members, trained, parse) -> None:
    best = share(trained, *members)
    metadata = json.loads((best / "configs" / "metadata.json").read_text())
    shape = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    network = parse(best, "inference").get_parsed_content("network_def").eval()
    with torch.inference_mode():
        pred = network(torch.randn(1, 2, *shape))
    assert list(pred.shape[2:]) == metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"]
    torch.testing.assert_close(pred.sum(1), torch.ones(1, *shape))
    assert metadata["eval_metrics"]["mean_dice"] == {"mean foreground": 0.75, "ball": 0.75, "box": None}
    assert metadata["autoplan"]["networks"] == {
        m: {
            f"fold_{k}": file_digest(trained / "bundles" / TASK / m / "models" / f"fold_{k}" / "model.pt")
            for k in FOLDS[m]
        }
        for m in members
    }
    for path in (best / "configs").glob("*.json"):
        assert "case_" not in path.read_text(), "no data of patients, not even their names"


# Networks that were trained on all cases.


def share_on_all(project, choice, *configurations: str):
    folder, bundles = project / "data" / TASK, project / "bundles"
    options = {"name": None, "fingerprint_key": "abc"}
    return ensemble.share_on_all(TINY_PLAN, choice, configurations, folder, bundles, **options)


SCORED = "trained on all cases; the scores are those of the"
UNSCORED = "trained on all cases; it has no cross-validated score."


@pytest.mark.parametrize("file", ["configs/inference.json", "docs/README.md", "models/model.pt"])
def test_a_bundle_that_somebody_changed(file, trained) -> None:
    """It is named, and nothing is written; with `force` a copy is kept. Files of their own stay."""
    best = share(trained, "2d", name="mine")
    (best / "configs" / "mine.json").write_text("{}")
    (best / file).write_bytes(b"mine")
    with pytest.raises(TemplateError, match=f"{file} was changed by hand"):
        share(trained, "2d", name="mine")
    assert (best / file).read_bytes() == b"mine"
    _, kept = share(trained, "2d", name="mine", force=True)
    assert ((kept / file).read_bytes(), (best / file).read_bytes() == b"mine") == (b"mine", False)
    assert (best / "configs" / "mine.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("choice", "configurations", "members", "said"),
    [
        pytest.param(("2d",), (), ("2d",), f"was {SCORED} one network of the cross-validation.", id="the chosen one"),
        pytest.param(("2d", "3d_fullres"), (), ("2d", "3d_fullres"), f"were {SCORED} two networks of", id="a pair"),
        pytest.param(
            ("3d_cascade_fullres",), (), ("3d_cascade_fullres",), f"were {SCORED} one network of", id="the cascade"
        ),
        pytest.param(("2d",), ("2d", "3d_fullres"), ("2d",), f"was {SCORED} one network of", id="the best of these"),
        pytest.param(("2d",), ("3d_fullres",), ("3d_fullres",), f"was {UNSCORED}", id="one that was not compared"),
        pytest.param(None, ("3d_fullres",), ("3d_fullres",), f"was {UNSCORED}", id="no fold, a name"),
    ],
)
def test_networks_of_all_cases(choice, configurations, members, said, trained, parse) -> None:
    best, told = share_on_all(trained, None if choice is None else chosen(*choice), *configurations)
    assert said in told
    bundles = [trained / "bundles" / TASK / m for m in members]
    image = torch.randn(1, 2, 19, 17, 11)
    alone = [predicted(parse, b, image, [b / "models" / "fold_all" / "model.pt"]) for b in bundles]
    torch.testing.assert_close(predicted(parse, best, image), torch.stack(alone).mean(0), rtol=0, atol=2e-3)
    metadata = json.loads((best / "configs" / "metadata.json").read_text())
    readme = (best / "docs" / "README.md").read_text()
    name, _, about = told.partition(". ")
    assert name == " + ".join(members)
    assert about in readme
    assert about in metadata["description"]
    assert "(trained on all cases)" in readme
    is_scored = SCORED in said
    assert bool(metadata["eval_metrics"]) == is_scored == ("0.7500" in readme)
    assert not is_scored or metadata["eval_metrics"]["networks"].startswith("those of the cross-validation")
    assert metadata["autoplan"]["choice"] == ("cross-validation" if choice == members else "by hand")
    assert [*metadata["autoplan"]["networks"]] == [*members]
    assert all([*folds] == ["fold_all"] for folds in metadata["autoplan"]["networks"].values())
    inference = json.loads((best / "configs" / "inference.json").read_text())
    assert (inference["mirror"], inference["overlap"]) == (True, 0.5)


@pytest.mark.parametrize(
    ("choice", "configurations", "said"),
    [
        pytest.param(("3d_lowres",), (), "3d_lowres: fold all has not finished training. Train it: ", id="not trained"),
        pytest.param(None, ("3d_lowres",), "--configurations 3d_lowres --folds all", id="named, and not trained"),
        pytest.param(None, (), "Name one: --configurations 2d", id="several"),
        pytest.param(None, ("3d_lowres", "other"), "no network is trained on all cases to its end", id="none of these"),
    ],
)
def test_networks_of_all_cases_that_are_not_there(choice, configurations, said, trained) -> None:
    with pytest.raises(TemplateError) as raised:
        share_on_all(trained, None if choice is None else chosen(*choice), *configurations)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_are_flat_and_belong_to_their_folds(trained) -> None:
    weights = torch.load(share(trained, "2d", "3d_fullres") / "models" / "model.pt", weights_only=True)
    assert {key.rsplit(".", 1)[0].split(".")[0] for key in weights} == {"slices", "fullres"}
    for name, member in (("2d", "slices"), ("3d_fullres", "fullres")):
        for number, k in enumerate(FOLDS[name]):
            fold = torch.load(
                trained / "bundles" / TASK / name / "models" / f"fold_{k}" / "model.pt", weights_only=True
            )
            for key, value in fold.items():
                assert torch.equal(weights[f"{member}.{number}.{key}"], value)


def test_folds_with_different_settings_are_refused(trained) -> None:
    path = trained / "bundles" / TASK / "2d" / "models" / "fold_2" / "validation" / "dice.json"
    before = path.read_text()
    changed = json.loads(before)
    changed["settings"]["mirror"] = True
    path.write_text(json.dumps(changed))
    try:
        with pytest.raises(TemplateError, match="different settings \\(mirror: false and true\\)"):
            share(trained, "2d")
    finally:
        path.write_text(before)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_s_bundle_is_not_overwritten(name, trained) -> None:
    with pytest.raises(TemplateError, match="Take another --name"):
        share(trained, "2d", name=name)


@pytest.mark.slow
def test_it_stands_alone(trained, tmp_path, forks) -> None:
    """Copied to an empty folder, without autoplan, it predicts the same bits, and is exported and checked by MONAI."""
    best = share(trained, "2d", "3d_cascade_fullres", name="ball_mri_segmentation")
    copy = tmp_path / "elsewhere" / best.name
    shutil.copytree(best, copy)
    images = str(trained / "data" / TASK / "imagesTs")
    here = ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    for bundle, checks in ((best, []), (copy, ["verify_net_in_out", "ckpt_export"])):
        config = str(bundle / "configs" / "inference.json")
        output = str(tmp_path / f"by {bundle.parent.name}")
        run = ["run", "--config_file", config, "--dataset_dir", images, "--output_dir", output, "--num_workers", "0"]
        commands = [run]
        for check in checks:
            export = ["--filepath", "models/model.ts", "--ckpt_file", "models/model.pt"]
            more = export if check == "ckpt_export" else []
            commands.append((bundle, [check, "--net_id", "network_def", *more, *here]))
        forks.start(*commands, folder=tmp_path, log=tmp_path / "log").succeed()
    for name in ("test_0", "test_1"):
        a, b = (nibabel.load(tmp_path / f"by {f}" / f"{name}.nii.gz") for f in (TASK, "elsewhere"))
        np.testing.assert_array_equal(a.dataobj, b.dataobj)
        assert np.array_equal(a.affine, b.affine)
    exported = torch.jit.load(copy / "models" / "model.ts")
    assert sorted(name for name, child in exported.named_children() if list(child.children())) == [
        "cascade", "lowres", "slices",
    ]  # fmt: skip


def test_the_same_networks_make_the_same_bytes(trained, monkeypatch) -> None:
    """Whoever writes them: predictions are made anew when they change."""
    first = (share(trained, "2d") / "models" / "model.pt").read_bytes()
    monkeypatch.setattr(os, "getpid", lambda: 123456)
    assert (share(trained, "2d") / "models" / "model.pt").read_bytes() == first


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param({"target_spacing": [2.0, 2.0, 2.0]}, "trained with target_spacing", id="spacing"),
        pytest.param({"features": [4, 9, 12]}, "is of another network than validation/dice.json says", id="features"),
        pytest.param(
            {"strides": [[1, 1, 1], [2, 1, 1], [2, 2, 1]]},
            "is of another network than validation/dice.json says",
            id="strides",
        ),
    ],
)
def test_predictions_by_settings_that_are_not_the_network_s_are_refused(settings, said, trained) -> None:
    folders = [trained / "bundles" / TASK / "3d_lowres" / "models" / f"fold_{k}" for k in FOLDS["3d_lowres"]]
    files = [folder / "validation" / "dice.json" for folder in folders]
    before = [f.read_text() for f in files]
    model = trained / "bundles" / TASK / "best" / "models" / "model.pt"
    model.unlink(missing_ok=True)
    try:
        for file, text in zip(files, before, strict=True):
            scored = json.loads(text)
            scored["settings"] |= settings
            file.write_text(json.dumps(scored))
        with pytest.raises(TemplateError, match=said):
            share(trained, "3d_lowres")
        assert not model.exists()
    finally:
        for file, text in zip(files, before, strict=True):
            file.write_text(text)


@pytest.mark.parametrize("name", ["x@y", "a/b", ".", "cache", "100%", "with space", "../up"])
def test_names_that_a_bundle_cannot_have(name, trained) -> None:
    with pytest.raises(TemplateError, match="a bundle cannot be called"):
        share(trained, "2d", name=name)


# Going on with the training of the bundle.


@pytest.mark.parametrize("name", ["2d", "3d_lowres", "2d and cascade"])
def test_its_networks_are_trained_on_together(name, trained, parse, tmp_path) -> None:
    """From the weights that it has; every network learns, but for a cascade's first stage, which is not differentiable;
    the result is scored."""
    members = MODELS[name]
    best = shutil.copytree(share(trained, *members), tmp_path / "best")
    inference = json.loads((best / "configs" / "inference.json").read_text())
    for file, config in going_on(TINY_PLAN, inference).items():
        (best / "configs" / file).write_text(json.dumps(config))
    values = {
        "dataset_dir": str(trained / "data" / TASK), "cache_dir": str(tmp_path / "cache"), "epoch_length": 1,
        "val_batches": 1, "max_epochs": 1, "num_workers": 0, "device": "cpu", "amp": False, "batch_size": 2,
    }  # fmt: skip
    before = torch.load(best / "models" / "model.pt", weights_only=True)
    parser = parse(best, "train", **values)
    assert not (best / "configs" / "datalist.json").exists()
    parser.get_parsed_content("train#trainer").run()
    after = torch.load(best / "models" / "model.pt", weights_only=True)
    assert before.keys() == after.keys()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    same = {name.partition(".")[0] for name in before} - changed
    assert same == ({"lowres"} if "3d_cascade_fullres" in members else set())
    evaluation = parse(best, "train", "evaluate", **values)
    evaluation.get_parsed_content("validate#evaluator").run()
    scored = json.loads((best / "models" / "fold_0" / "validation" / "dice.json").read_text())
    assert len(scored["cases"]) == 1


def test_patches_give_the_logarithms_of_mean_probabilities(trained, parse) -> None:
    best = share(trained, "2d", "3d_fullres")
    network = parse(best, "inference").get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(best / "models" / "model.pt", weights_only=True))
    patch = torch.randn(1, 2, 16, 16, 8)
    found = PatchInferer(amp=False, slice_axis=2)(patch, network)
    torch.testing.assert_close(found.softmax(1), network(patch))
