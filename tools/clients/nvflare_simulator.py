"""A bundle in NVFlare: two sites train it for two rounds in its simulator; what they sent is checked, and the average
they end in is predicted as the bundle itself predicts it.

    python3.11 -m venv flare
    flare/bin/pip install torch==2.13.0 monai==1.6.1 pytorch-ignite==0.5.5 nibabel==5.4.2 scipy==1.17.1 tqdm fire \
        matplotlib nvflare==2.7.3 monai-nvflare==0.4.0 tensorboard
    flare/bin/python tools/clients/nvflare_simulator.py FOLDER [BUNDLE ...]

FOLDER is that of bundles.py. The job carries the bundle as its folder `custom`, which NVFlare puts on the path of its
processes. Each site draws patches of its own. The server sends models/model.pt first.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch

BUNDLES = ("3d_fullres", "3d_cascade_fullres", "phantom_mri_segmentation")
SITES = ("site-1", "site-2")
ROUNDS = 2
BUNDLE = "custom"
"""Its folder in an application."""
SHORT = {"epoch_length": 5, "val_batches": 2, "batch_size": 2, "num_workers": 0, "learning_rate": 0.003}
METRIC = re.compile(r"(site-\d) reported key metric val_mean_dice: (\S+)")


def server_config() -> dict[str, object]:
    """It averages what the sites send, and lets them score the result at the end."""
    common = "nvflare.app_common"
    aggregator = "aggregators.intime_accumulate_model_aggregator.InTimeAccumulateWeightedAggregator"
    generator = "shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator"
    return {
        "format_version": 2,
        "components": [
            {
                "id": "persistor",
                "path": "monai_nvflare.monai_bundle_persistor.MonaiBundlePersistor",
                "args": {"bundle_root": BUNDLE, "source_ckpt_filename": "models/model.pt"},
            },
            {
                "id": "generator",
                "path": f"{common}.{generator}",
                "args": {},
            },
            {
                "id": "aggregator",
                "path": f"{common}.{aggregator}",
                "args": {"expected_data_kind": "WEIGHTS"},
            },
            {
                "id": "locator",
                "path": "nvflare.app_opt.pt.file_model_locator.PTFileModelLocator",
                "args": {"pt_persistor_id": "persistor"},
            },
        ],
        "workflows": [
            {
                "id": "rounds",
                "path": f"{common}.workflows.scatter_and_gather.ScatterAndGather",
                "args": {
                    "min_clients": len(SITES),
                    "num_rounds": ROUNDS,
                    "wait_time_after_min_received": 0,
                    "aggregator_id": "aggregator",
                    "persistor_id": "persistor",
                    "shareable_generator_id": "generator",
                    "train_timeout": 0,
                },
            },
            {
                "id": "scores",
                "path": f"{common}.workflows.global_model_eval.GlobalModelEval",
                "args": {"model_locator_id": "locator"},
            },
        ],
    }


def site_config(values: dict[str, object]) -> dict[str, object]:
    """It trains and scores a bundle by MONAI's own client."""
    return {
        "format_version": 2,
        "executors": [
            {
                "tasks": ["train", "validate"],
                "executor": {
                    "path": "monai_nvflare.client_algo_executor.ClientAlgoExecutor",
                    "args": {"client_algo_id": "algo", "key_metric": "val_mean_dice"},
                },
            }
        ],
        "components": [
            {
                "id": "algo",
                "path": "monai.fl.client.MonaiAlgo",
                "args": {
                    "bundle_root": BUNDLE,
                    "local_epochs": 1,
                    "send_weight_diff": False,
                    "train_kwargs": values,
                    "eval_kwargs": values,
                },
            }
        ],
    }


def write_job(work: Path, source: Path, task: Path) -> Path:
    """The job's folder: an application with the bundle for the server and for each site."""
    job = work / "job"
    deploy = {}
    for number, name in enumerate(("server", *SITES)):
        values = {**SHORT, "seed": number, "dataset_dir": str(task), "cache_dir": str(work / "cache")}
        if source.name.startswith("3d_cascade"):
            values["lowres_bundle"] = str(source.parent / "3d_lowres")
        config = server_config() if name == "server" else site_config(values)
        app = job / f"app_{name}" / "config"
        app.mkdir(parents=True)
        kind = "server" if name == "server" else "client"
        shutil.copytree(source, app.parent / BUNDLE)
        (app / f"config_fed_{kind}.json").write_text(json.dumps(config, indent=1))
        deploy[app.parent.name] = [name]
    meta = {"name": source.name, "resource_spec": {}, "min_clients": len(SITES), "deploy_map": deploy}
    (job / "meta.json").write_text(json.dumps(meta))
    return job


def deployed(work: Path, name: str) -> Path:
    """The bundle of the server or a site, after the simulation."""
    [found] = (work / "simulation").rglob(f"app_{name}/{BUNDLE}")
    return found


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Of a file with a flat state dict, or with one below "model"."""
    found = torch.load(path, map_location="cpu", weights_only=False)
    return {name: torch.as_tensor(value) for name, value in found.get("model", found).items()}


def check_average(work: Path, source: Path) -> str:
    """Whether the server's last network is the mean of what the sites left, and each site has trained."""
    [path] = (work / "simulation").rglob("FL_global_model.pt")
    average, start = weights(path), weights(source / "models" / "model.pt")
    left = [weights(deployed(work, site) / "models" / "model.pt") for site in SITES]
    if any(all(torch.equal(network[n], start[n]) for n in start) for network in left):
        return "a site did not train"
    if all(torch.equal(left[0][n], left[1][n]) for n in start):
        return "the sites ended in the same network"
    far = max(float((average[n] - (left[0][n] + left[1][n]) / 2).abs().max()) for n in start)
    return (
        f"equal within {far:.1g}: the mean of both sites" if far < 1e-5 else f"up to {far} from the mean of both sites"
    )


def check_first_score(work: Path, source: Path) -> str:
    """Whether the first site's first score is that of the fold's validation, which the same network has."""
    scores = json.loads((source / "models" / "fold_0" / "validation" / "dice.json").read_text())
    values = [value for case in scores["cases"].values() for value in case.values() if value is not None]
    log = (work / "simulation" / SITES[0] / "log.txt").read_text()
    found = [float(score) for site, score in METRIC.findall(log) if site == SITES[0]]
    if len(found) != ROUNDS:
        return f"{len(found)} scores of {ROUNDS} rounds"
    own = float(np.mean(values))
    return f"{'equal' if abs(found[0] - own) < 1e-6 else 'differs'}: {found[0]:.6f} sent, {own:.6f} in the fold"


def check_voxels(work: Path, task: Path) -> str:
    """Whether the first site's segmentations of the server's last network are those that the bundle's inference gives
    with it."""
    bundle, output = deployed(work, "server"), work / "expected"
    [path] = (work / "simulation").rglob("FL_global_model.pt")
    torch.save(weights(path), bundle / "models" / "model.pt")
    folder = deployed(work, SITES[0]) / "models" / "fold_0_continued" / "validation"
    found = sorted(folder.glob("*.nii.gz"))
    if not found:
        return f"no segmentation in {folder}"
    images = work / "images.json"
    images.write_text(json.dumps([str(task / "imagesTr" / case.name) for case in found]))
    flags = [f"--config_file={bundle / 'configs' / 'inference.json'}", f"--images={images}", f"--output_dir={output}"]
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", *flags]
    subprocess.run(command, check=True, cwd=work, capture_output=True)
    pairs = [
        (np.asanyarray(nibabel.load(p).dataobj), np.asanyarray(nibabel.load(output / p.name).dataobj)) for p in found
    ]
    differ = sum(int((first != second).sum()) for first, second in pairs)
    size = sum(first.size for first, _ in pairs)
    foreground = sum(int((second > 0).sum()) for _, second in pairs)
    return f"{differ} of {size} voxels differ" if differ else f"equal, {foreground} voxels of foreground"


def main(folder: Path, names: Sequence[str]) -> int:
    """Check bundles; 1 when something differs."""
    task = next((folder / "data").iterdir())
    failed = False
    for name in names:
        shared = folder / "shared" / name
        source = shared if shared.is_dir() else folder / "bundles" / task.name / name
        work = folder / "nvflare" / name
        shutil.rmtree(work, ignore_errors=True)
        job = write_job(work, source, task)
        command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(job)]
        command += ["-w", str(work / "simulation"), "-c", ",".join(SITES), "-t", str(len(SITES))]
        run = subprocess.run(command, cwd=work, capture_output=True, text=True)
        (work / "log.txt").write_text(run.stdout + run.stderr)
        checks = {
            "first score": lambda: check_first_score(work, source),  # noqa: B023 (called at once)
            "average": lambda: check_average(work, source),  # noqa: B023
            "prediction": lambda: check_voxels(work, task),  # noqa: B023
        }
        if not (source / "models" / "fold_0").is_dir():
            del checks["first score"]
        for what, check in checks.items():
            try:
                said = check()
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                said = f"failed: {error}; see {work / 'log.txt'}"
            failed |= not said.startswith("equal")
            print(f"{name}  {what}  {said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), sys.argv[2:] or BUNDLES))
