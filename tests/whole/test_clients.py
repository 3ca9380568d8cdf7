"""What other programs do with a bundle: the workflows of MONAI, federations, MLflow, MONAI Label and MONAI Deploy.

The scripts in tools/clients/ run the real programs.
"""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY_PLAN, write_project
from ignite.engine import Events
from monai.bundle import ConfigWorkflow, load
from monai.data import MetaTensor
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from monai.handlers import mlflow_handler
from scripts.files import file_digest

TASK = TINY_PLAN.name
SMALL = {"epoch_length": 2, "val_batches": 1, "batch_size": 2, "num_workers": 0, "device": "cpu", "amp": False}


def workflow(bundle, *names, workflow_type="train", **values):
    """Configs of a bundle as MONAI opens them."""
    files = [str(bundle / "configs" / f"{name}.json") for name in names]
    opened = ConfigWorkflow(files, logging_file=False, workflow_type=workflow_type, bundle_root=str(bundle), **values)
    opened.initialize()
    return opened


@pytest.fixture(scope="module")
def settings(project, tmp_path_factory):
    """Of a short training on the tiny dataset."""
    return {
        **SMALL,
        "dataset_dir": str(project / "data" / TASK),
        "cache_dir": str(tmp_path_factory.mktemp("clients") / "cache"),
    }


@pytest.fixture(scope="module")
def trained(project, settings, tmp_path_factory):
    """The bundle of a fold that is trained without mirroring; its cases are not predicted."""
    bundle = tmp_path_factory.mktemp("clients") / "3d_fullres"
    shutil.copytree(project / "bundles" / TASK / "3d_fullres", bundle)
    workflow(bundle, "train", **settings, max_epochs=1, mirror_prob=0.0).run()
    return bundle


@pytest.fixture
def bundle(trained, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(trained, tmp_path / "3d_fullres")


def weights(path):
    return torch.load(path, weights_only=True)


def digests(folder):
    return {path: file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# MONAI's own workflows.


@pytest.mark.parametrize(
    ("names", "workflow_type"),
    [(("train",), "train"), (("train", "evaluate"), "train"), (("inference",), "inference")],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else None,
)
def test_all_properties_are_found(names, workflow_type, trained, settings) -> None:
    opened = workflow(trained, *names, workflow_type=workflow_type, **settings)
    assert opened.check_properties() == []


def test_every_handler_has_a_target(trained) -> None:
    """MONAI Label and the checks of the Model Zoo read it."""
    for name in ("train", "evaluate", "inference"):
        config = json.loads((trained / "configs" / f"{name}.json").read_text())
        lists = [config.get("handlers", []), config.get("validate#handlers", [])]
        lists += [config.get(part, {}).get("handlers", []) for part in ("train", "validate")]
        assert all("_target_" in handler for handlers in lists for handler in handlers)


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_load_gives_the_trained_network(trained) -> None:
    network = load(trained.name, bundle_dir=trained.parent, workflow_type="inference", device="cpu")
    assert_equal(dict(network.state_dict()), weights(trained / "models" / "model.pt"))


def test_inference_alone_predicts_as_the_network_was_trained(trained, parse) -> None:
    """Every other program reads inference.json and models/model.pt, and no record of a training but the one beside."""
    assert parse(trained, "inference").get_parsed_content("mirror") is False
    assert parse(trained, "inference").get_parsed_content("inferer").mirror is False


# Federations: a server sends weights, and other programs go on from a model.pt.


def federated(bundle, settings):
    """MONAI's client, and a list that gets the weights of the first iteration of each round."""
    algo = MonaiAlgo(
        str(bundle),
        send_weight_diff=False,
        train_kwargs={**settings, "mirror_prob": 0.0},
        eval_kwargs={**settings, "mirror_prob": 0.0},
    )
    algo.initialize()
    seen = []
    every = settings["epoch_length"]
    algo.trainer.add_event_handler(
        Events.ITERATION_STARTED(lambda _, iteration: iteration % every == 1),
        lambda engine: seen.append({k: v.clone() for k, v in engine.network.state_dict().items()}),
    )
    return algo, seen


@pytest.mark.filterwarnings("ignore:executing the bundle config")
@pytest.mark.parametrize("finished", [True, False], ids=["beside a finished fold", "without a fold"])
def test_a_federation_trains_on_what_the_server_sends(finished, bundle, trained, settings) -> None:
    if not finished:
        shutil.rmtree(bundle / "models")
    fold = bundle / "models" / "fold_0"
    before = digests(fold)
    algo, seen = federated(bundle, settings)
    start = weights(trained / "models" / "model.pt")
    for rounds, scale in enumerate((0.5, 0.25), 1):
        sent = {name: value * scale for name, value in start.items()}
        metrics = algo.evaluate(ExchangeObject(weights=dict(sent))).metrics
        assert {"val_mean_dice", "val_dice_ball", "val_dice_box"} <= metrics.keys()
        algo.train(ExchangeObject(weights=dict(sent)))
        assert len(seen) == rounds
        assert_equal(seen[-1], sent)
        assert_equal(weights(bundle / "models" / "model.pt"), algo.get_weights().weights)
    # The fold is as it was; all that a client wrote lies beside it.
    assert digests(fold) == before
    written = {path.name for path in (bundle / "models" / "fold_0_continued").iterdir()}
    assert {"last.pt", "curve.csv", "progress.png", "validation"} <= written
    scores = json.loads((bundle / "models" / "fold_0_continued" / "validation" / "dice.json").read_text())
    assert (scores["model"], scores["settings"]["mirror"]) == (None, False)
    record = json.loads((bundle / "models" / "model.json").read_text())
    assert record["model"] == file_digest(bundle / "models" / "model.pt")
    assert record["settings"]["mirror_prob"] == 0.0


def test_monai_label_goes_on_from_the_network_that_is_there(bundle, settings) -> None:
    """It puts a loader before the handlers, and names the cases itself."""
    handlers = json.loads((bundle / "configs" / "train.json").read_text())["train"]["handlers"]
    model = bundle / "models" / "model.pt"
    changed = {name: value * 0.5 for name, value in weights(model).items()}
    torch.save(changed, model)
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(model),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    folder = settings["dataset_dir"]
    cases = [{key: f"{folder}/{key}sTr/case_{i}.nii.gz" for key in ("image", "label")} for i in range(3)]
    values = {"train#handlers": [loader, *handlers], "train#trainer#max_epochs": 1}
    values |= {"train#dataset#data": cases[:2], "validate#dataset#data": cases[2:]}
    opened = workflow(bundle, "train", **settings, **values)
    seen = []
    opened.trainer.add_event_handler(
        Events.ITERATION_STARTED(once=1),
        lambda engine: seen.append({k: v.clone() for k, v in engine.network.state_dict().items()}),
    )
    before = digests(bundle / "models" / "fold_0")
    opened.run()
    assert_equal(seen[0], changed)
    assert digests(bundle / "models" / "fold_0") == before
    assert_equal(weights(model), weights(bundle / "models" / "fold_0_continued" / "model.pt"))


def test_a_second_start_goes_on_with_the_network_as_it_is(bundle, settings) -> None:
    """Of one that the training itself left; it stays the training of the fold."""
    opened = workflow(bundle, "train", **settings, max_epochs=2, mirror_prob=0.0)
    opened.trainer.run()
    left = {name: value.clone() for name, value in opened.trainer.network.state_dict().items()}
    opened.trainer.state.max_epochs = 3
    seen = []
    opened.trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: seen.append({k: v.clone() for k, v in engine.network.state_dict().items()}),
    )
    opened.trainer.run()
    assert_equal(seen[0], left)
    assert opened.trainer.state.epoch == 3
    assert not (bundle / "models" / "fold_0_continued").exists()


# MLflow.


class Mlflow:
    """Keeps what is logged, and refuses what MLflow refuses."""

    def __init__(self) -> None:
        self.logged: dict[str, list[float]] = {}
        self.entities = SimpleNamespace(
            Metric=lambda key, value, *_: (key, value),
            Param=lambda key, value: (key, value),
            RunStatus=SimpleNamespace(to_string=str, FINISHED="FINISHED"),
            LifecycleStage=SimpleNamespace(ACTIVE="active"),
        )
        info = SimpleNamespace(run_id="1", run_name="a run", status="RUNNING")
        of_run = SimpleNamespace(info=info, data=SimpleNamespace(params={}))
        self.MlflowClient = lambda **_: SimpleNamespace(
            get_experiment_by_name=lambda _: SimpleNamespace(experiment_id="0", lifecycle_stage="active"),
            search_runs=lambda _: [],
            create_run=lambda **_: of_run,
            get_run=lambda _: of_run,
            log_batch=self.log,
            log_artifact=lambda *_: None,
            set_terminated=lambda *_, **__: None,
        )

    def log(self, run_id, metrics, params, tags):
        for name, value in metrics:
            assert re.fullmatch(r"[\w ./-]+", name)
            assert isinstance(value, float), name
            self.logged.setdefault(name, []).append(value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train",), {"train_loss", "val_loss", "val_patch_dice_ball", "val_patch_dice_box", "lr", "lr_group_0"}),
        (("train", "evaluate"), {"val_mean_dice", "val_dice_ball", "val_dice_box"}),
    ],
    ids=["training", "evaluating"],
)
def test_mlflow_tracks(names, expected, bundle, settings, monkeypatch) -> None:
    mlflow = Mlflow()
    monkeypatch.setattr(mlflow_handler, "mlflow", mlflow)
    workflow(bundle, *names, **settings, max_epochs=3, mirror_prob=0.0, tracking="mlflow").run()
    assert expected <= mlflow.logged.keys()


# MONAI Deploy: voxels in memory, with the affine, in place of the loader; the network perhaps in an object.


@pytest.fixture(scope="module")
def one_channel(tmp_path_factory):
    """Bundles for images of one channel."""
    plan = replace(TINY_PLAN, modalities=("MRI",), normalization=(None,))
    return write_project(tmp_path_factory.mktemp("one_channel"), plan) / "bundles" / TASK


def deployed(parser, image, network, loaded):
    """Class numbers of an image as the operator for bundles computes them, or with the loader of the bundle."""
    steps = {name: parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing")}
    first = [t for t in steps["preprocessing"].transforms if loaded or "LoadImage" not in type(t).__name__]
    last = [t for t in steps["postprocessing"].transforms if "SaveImage" not in type(t).__name__]
    data = {"image": str(image)}
    if not loaded:
        file = nibabel.load(image)
        meta = {"original_affine": file.affine, "affine": file.affine, "original_channel_dim": "no_channel"}
        meta |= {"spatial_shape": np.array(file.shape)}
        data = {"image": MetaTensor.ensure_torch_and_prune_meta(torch.from_numpy(file.get_fdata()), meta)}
    for transform in first:
        data = transform(data)
    with torch.no_grad():
        pred = parser.get_parsed_content("inferer")(inputs=data["image"][None].float(), network=network)
    data["pred"] = pred[0]
    for transform in last:
        data = transform(data)
    return data["pred"]


@pytest.mark.parametrize("name", ["2d", "3d_fullres", "3d_cascade_fullres"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "bare"])
def test_deploy_gives_what_the_bundle_gives(name, wrapped, one_channel, parse, tmp_path) -> None:
    rng = np.random.default_rng(0)
    affine = np.array([[-1.25, 0, 0, 40], [0, 1.0, 0, -20], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    image = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(rng.normal(50, 9, (18, 25, 9)).astype(np.float32), affine), image)
    torch.manual_seed(0)
    parser = parse(one_channel / name, "inference", mirror=False, device="cpu")
    network = parser.get_parsed_content("network").eval()
    own = deployed(parser, image, network, loaded=True)
    given = SimpleNamespace(predictor=network) if wrapped and name == "3d_cascade_fullres" else network
    found = deployed(parse(one_channel / name, "inference", mirror=False, device="cpu"), image, given, loaded=False)
    assert found.dtype == torch.uint8
    assert found.shape == (1, 18, 25, 9)
    assert len(found.unique()) > 1
    assert set(found.unique().tolist()) <= {0, 1, 2}
    torch.testing.assert_close(found.as_tensor(), own.as_tensor(), rtol=0, atol=0)
