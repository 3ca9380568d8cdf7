"""kill -9 in the middle of an image: what was done stays, nothing is half there, and the next run does the rest."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import TINY_PLAN
from scripts.record import NAME

SETTINGS = {"num_workers": 0, "device": "cpu", "amp": False, "mirror": False}
KILLED = """
import os, runpy, signal, sys
from scripts.inferers import _Sums
finish = _Sums.finish
def stop(self, *given):
    if not os.path.exists("out/b.nii.gz") and os.path.exists("out/a.nii.gz"):
        print("in the middle", flush=True)
        signal.pause()
    yield from finish(self, *given)
_Sums.finish = stop
sys.argv = ["monai.bundle", *sys.argv[1:]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""
"""Waits for its end in the middle of the second image, when a row of it is finished."""


@pytest.fixture
def bundle(project):
    return project / "bundles" / TINY_PLAN.name / "3d_fullres"


def test_killed_in_the_middle_of_an_image_and_again(bundle, project, parse, tmp_path) -> None:
    images, output, model_file = tmp_path / "images", tmp_path / "out", tmp_path / "model.pt"
    images.mkdir()
    for name in "ab":
        shutil.copy(project / "data" / TINY_PLAN.name / "imagesTs" / "test_1.nii.gz", images / f"{name}.nii.gz")
    given = {**SETTINGS, "dataset_dir": str(images), "output_dir": str(output), "model_file": str(model_file)}
    parser = parse(bundle, "inference", **given, skip_existing=True)
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), model_file)
    command = ["run", "inference", "--config_file", str(bundle / "configs" / "inference.json")]
    command += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, *command],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(bundle), "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert any("in the middle" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert sorted(p.name for p in output.iterdir()) == [".written.json", "a.nii.gz", NAME]
    before = json.loads((output / NAME).read_text())
    assert list(before) == ["a"]
    parser.get_parsed_content("evaluator").run()
    after = json.loads((output / NAME).read_text())
    assert list(after) == ["a", "b"]
    assert after["a"] == before["a"], "it was not predicted again"
    assert sorted(p.name for p in output.iterdir()) == [".written.json", "a.nii.gz", "b.nii.gz", NAME]
