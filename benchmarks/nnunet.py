"""Prediction by a bundle beside nnU-Net's, with networks of the same layers: time, processor time, memory.

    python benchmarks/nnunet.py [--environment DIR] [--only hippocampus|large] [--repeats 2]

nnU-Net runs in an environment of its own, which is made where DIR has none (from the package index, some minutes). Both
get networks of one topology with random weights, in windows with half overlap and Gaussian weights, in turn:

- hippocampus: 12 test images of Task04_Hippocampus with the planned 3D network, mirrored.
- large: a random CT of 300x400x400 voxels at 0.8 mm with 25 foreground classes, planned at 1 mm, small windows and few
  features, not mirrored.

nnU-Net reads and exports beside the network with as many processes as `--processes` says (its default is 3 and 3); all
of these are tried and the fastest counts. The memory is the peak of all processes together, shared pages counted once,
looked at five times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

from inference_memory import memory, write_large
from predictions import random_weights, words

from autoplan.__main__ import main as autoplan
from autoplan.bundle.saved import load_plan
from autoplan.data import decathlon as datasets
from autoplan.planning.values import Configuration, Plan

HERE = Path(__file__).resolve().parent.parent
DATA = HERE / "data" / "Task04_Hippocampus"
PINS = ("nnunetv2==2.8.1", "torch==2.13.0")
SHAPE, CLASSES, SPACING = (300, 400, 400), 25, 0.8
NUM_IMAGES = 12
WEIGHTS = """
import json, sys, torch
from pathlib import Path
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
folder, channels, classes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
made = json.loads((folder / "plans.json").read_text())["configurations"]["3d_fullres"]["architecture"]
network = get_network_from_plans(
    made["network_class_name"], made["arch_kwargs"], made["_kw_requires_import"], channels, classes,
    deep_supervision=False,
)
(folder / "fold_0").mkdir()
torch.save(
    {"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer",
     "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": (0, 1, 2)},
    folder / "fold_0" / "checkpoint_final.pth",
)
print(sum(p.numel() for p in network.parameters()))
"""


def model_folder(folder: Path, plan: Plan, c: Configuration) -> None:
    """What nnU-Net predicts with: its dataset.json and plans.json with the topology of a configuration. Its axes run
    the other way round."""
    ct = plan.normalization[0]
    statistics = {"mean": 0.0, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0}
    if ct is not None:
        statistics = {"mean": ct.mean, "std": ct.std, "percentile_00_5": ct.lower, "percentile_99_5": ct.upper}
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    stages = len(c.features)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages, "features_per_stage": list(c.features), "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages, "strides": [s[::-1] for s in c.strides],
            "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": c.patch_size[::-1], "median_image_size_in_voxels": c.median_shape[::-1],
        "spacing": c.spacing[::-1], "use_mask_for_norm": [False], "batch_dice": False, "architecture": architecture,
        "normalization_schemes": ["ZScoreNormalization" if ct is None else "CTNormalization"],
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        "resampling_fn_data_kwargs": resampling, "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
    }  # fmt: skip
    plans = {
        "dataset_name": plan.name, "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": c.spacing[::-1],
        "original_median_shape_after_transp": c.median_shape[::-1], "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager", "foreground_intensity_properties_per_channel": {"0": statistics},
        "configurations": {"3d_fullres": configuration},
    }  # fmt: skip
    described = {
        "channel_names": {"0": plan.modalities[0]},
        "labels": {name if value else "background": value for value, name in plan.labels},
        "numTraining": plan.num_training, "file_ending": ".nii.gz",
    }  # fmt: skip
    folder.mkdir()
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(described))


def measured(command: Sequence[str], folder: Path, **environment: str) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak bytes of a command and all its processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.2)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{(folder / 'log').read_text()[-3000:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak


def compare(folder: Path, plan: Plan, bundle: Path, images: Path, python: Path, given: argparse.Namespace) -> None:
    """Predict the images with both in turn, and print the best of each."""
    mirror = given.what == "hippocampus"
    c = next(c for c in plan.configurations if c.name == "3d_fullres")
    model = folder / "model"
    model_folder(model, plan, c)
    theirs = subprocess.run(
        [python, "-c", WEIGHTS, model, str(len(plan.modalities)), str(len(plan.labels))],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    print(f"{given.what}: parameters {random_weights(bundle):,} (bundle), {int(theirs.split()[-1]):,} (nnU-Net)")
    raw = folder / "raw"
    raw.mkdir()
    for path in images.iterdir():
        shutil.copy(path, raw / path.name.replace(".nii.gz", "_0000.nii.gz"))
    ours = words(bundle, mirror=mirror, dataset_dir=images)
    commands = {"bundle": [sys.executable, "-m", "monai.bundle", *ours]}
    for number in given.processes:
        commands[f"nnU-Net, {number} and {number} processes"] = [
            str(python.with_name("nnUNetv2_predict_from_modelfolder")), "-i", str(raw), "-m", str(model), "-f", "0",
            "-device", "cpu", "-npp", str(number), "-nps", str(number), *([] if mirror else ["--disable_tta"]),
        ]  # fmt: skip
    paths = {"nnUNet_raw": str(folder), "nnUNet_preprocessed": str(folder), "nnUNet_results": str(folder)}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(given.repeats):
        for name, command in commands.items():
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            flag = "--output_dir" if name == "bundle" else "-o"
            found[name].append(measured([*command, flag, str(out)], folder, **paths))
            made = len(list(out.glob("*.nii.gz")))
            assert made == len(list(images.iterdir())), f"{name} has made {made} segmentations"
    print("\n| | seconds | processor seconds | peak memory |\n|--|--|--|--|")
    for name, runs in found.items():
        seconds, busy, peak = (min(values) for values in zip(*runs, strict=True))
        print(f"| {name} | {seconds:.1f} | {busy:.1f} | {peak / 1e6:,.0f} MB |", flush=True)


def hippocampus(folder: Path) -> tuple[Plan, Path, Path]:
    """Plan, bundle and images."""
    images = folder / "images"
    images.mkdir()
    for path in sorted(DATA.glob("imagesTs/*.nii.gz"))[:NUM_IMAGES]:
        shutil.copy(path, images)
    assert autoplan([str(DATA), "--bundles", str(folder / "bundles")]) == 0
    task = folder / "bundles" / datasets.load(DATA).name
    return load_plan(task), task / "3d_fullres", images


def large(folder: Path) -> tuple[Plan, Path, Path]:
    """Plan, bundle and images."""
    plan, bundles, images = write_large(folder, SHAPE, CLASSES, SPACING)
    return plan, bundles / plan.name / "3d_fullres", images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--only", choices=("hippocampus", "large"))
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 3))
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        environment = given.environment or Path(name) / "environment"
        python = environment / "bin" / "python"
        if not python.exists():
            venv.create(environment, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "-c", HERE / "constraints.txt", *PINS], check=True)
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {', '.join(PINS)}")
        for given.what, prepare in (("hippocampus", hippocampus), ("large", large)):
            if given.only in (None, given.what):
                folder = Path(name) / given.what
                folder.mkdir()
                compare(folder, *prepare(folder), python, given)


if __name__ == "__main__":
    main()
