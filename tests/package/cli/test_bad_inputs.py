"""Bad inputs through the command: exit status 1, one clear message, no traceback, nothing written but what was read of
sound cases."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoplan.__main__ import main
from autoplan.base.scripts import contents
from autoplan.data import readings

LABEL, IMAGE = "labelsTr", "imagesTr"


@dataclass(frozen=True)
class ExpectFail:
    """A way to spoil the dataset, and what the message says."""

    id: str
    spoil: Callable
    message: str
    flags: tuple[str, ...] = ()


def _change(part: str, change: Callable, case: str = "case_3") -> Callable:
    """Replaces the voxels of a file by `change(voxels)`."""

    def spoil(tiny) -> None:
        path = tiny.image(case, part)
        tiny.write(path, change(tiny.read(path)))

    return spoil


def _with(value: float) -> Callable:
    """Voxels as float32 with one replaced by `value`."""

    def change(array):
        array = array.astype(np.float32)
        array[1, 1, 1] = value
        return array

    return change


def _truncate(part: str, case: str = "case_3") -> Callable:
    def spoil(tiny) -> None:
        path = tiny.image(case, part)
        path.write_bytes(path.read_bytes()[:-200])

    return spoil


def _shift_affine(tiny) -> None:
    path = tiny.image("case_3", LABEL)
    affine = nibabel.load(path).affine
    affine[0, 3] += 5
    tiny.write(path, tiny.read(path), affine)


def _no_foreground(tiny) -> None:
    for i in range(5):
        _change(LABEL, np.zeros_like, f"case_{i}")(tiny)


def _singular(tiny) -> None:
    path = tiny.image("case_3")
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[280:328] = bytes(48)  # the rows of the affine, of a file whose sform is in use
    path.write_bytes(gzip.compress(bytes(data)))


def _keep_training(count: int) -> Callable:
    return lambda tiny: tiny.describe(training=tiny.description["training"][:count])


def _climb(tiny) -> None:
    outside = tiny.folder.parent / "outside.nii.gz"
    outside.write_bytes(tiny.image("case_3").read_bytes())
    tiny.describe(test=["./imagesTs/../../outside.nii.gz"])


def _nothing(tiny) -> None:
    """The dataset is sound; the arguments are not."""


EXPECT = [
    ExpectFail("no dataset.json", lambda t: (t.folder / "dataset.json").unlink(), "there is no dataset.json"),
    ExpectFail("missing image", lambda t: t.image("case_3").unlink(), "imagesTr/case_3.nii.gz does not exist"),
    ExpectFail("missing label", lambda t: t.image("case_3", LABEL).unlink(), "labelsTr/case_3.nii.gz does not exist"),
    ExpectFail(
        "missing test image", lambda t: t.image("test_0", "imagesTs").unlink(), "test_0: imagesTs/test_0.nii.gz does"
    ),
    ExpectFail("truncated image", _truncate(IMAGE), "case_3: imagesTr/case_3.nii.gz cannot be read"),
    ExpectFail("truncated label", lambda t: _truncate(LABEL)(t), "case_3: labelsTr/case_3.nii.gz cannot be read"),
    ExpectFail(
        "truncated test image", _truncate("imagesTs", "test_0"), "test_0: imagesTs/test_0.nii.gz cannot be read"
    ),
    ExpectFail("empty file", lambda t: t.image("case_3").write_bytes(b""), "imagesTr/case_3.nii.gz cannot be read"),
    ExpectFail("no NIfTI", lambda t: t.image("case_3").write_bytes(gzip.compress(b"x" * 999)), "cannot be read"),
    ExpectFail("singular affine", _singular, "its affine is singular"),
    ExpectFail(
        "shapes differ", _change(LABEL, lambda a: a[:-1]), "label shape (11, 10, 8) differs from image shape (12,"
    ),
    ExpectFail("affine off by 5 mm", _shift_affine, "put a corner of the volume 5 mm apart"),
    ExpectFail(
        "channel count", _change(IMAGE, lambda a: np.stack([a, a], -1)), "has 2 channels, dataset.json declares 1 (MRI)"
    ),
    ExpectFail("five axes", _change(IMAGE, lambda a: np.stack([a, a], -1)[..., None, :]), "it has 5 axes, not 3 or 4"),
    ExpectFail("label channels", _change(LABEL, lambda a: np.stack([a, a], -1)), "the label has 2 channels"),
    ExpectFail(
        "NaN in an image", _change(IMAGE, _with(np.nan)), "case_3: the image has values that are NaN or infinite"
    ),
    ExpectFail("infinity in an image", _change(IMAGE, _with(np.inf)), "the image has values that are NaN or infinite"),
    ExpectFail(
        "NaN in a test image", _change("imagesTs", _with(np.nan), "test_0"), "test_0: the image has values that"
    ),
    ExpectFail("NaN in a label", _change(LABEL, _with(np.nan)), "the label has values that are NaN or infinite"),
    ExpectFail("undeclared value", _change(LABEL, lambda a: a * 2), "undeclared value 4"),
    ExpectFail("negative value", _change(LABEL, lambda a: a.astype(np.int16) - 1), "undeclared value -1"),
    ExpectFail("fraction in a label", _change(LABEL, _with(0.5)), "the value 0.5, no whole number"),
    ExpectFail("huge label", _change(LABEL, _with(1e20)), "2^31 or more"),
    ExpectFail("CT of 1e200", lambda t: _huge_ct(t), "case_3: the image has values up to 1e+200"),
    ExpectFail("a value of -1e20", _change(IMAGE, _with(-1e20)), "case_3: the image has values up to 1e+20"),
    ExpectFail("a huge scale", lambda t: _huge_scale(t), "case_3: the image has values that are NaN or infinite"),
    ExpectFail("a pipe for an image", lambda t: _pipe(t, IMAGE), "imagesTr/case_3.nii.gz is not a regular file"),
    ExpectFail("a pipe for a label", lambda t: _pipe(t, LABEL), "labelsTr/case_3.nii.gz is not a regular file"),
    ExpectFail("a gzip bomb", lambda t: _bomb(t), "it is longer than"),
    ExpectFail("image of zeros", _change(IMAGE, np.zeros_like), "case_3: the image is zero everywhere"),
    ExpectFail("no foreground", _no_foreground, "no label has a foreground voxel"),
    ExpectFail("path climbs out", _climb, "leaves the dataset's folder"),
    ExpectFail("one case", _keep_training(1), "only one training case"),
    ExpectFail("no case", _keep_training(0), "no training case"),
    ExpectFail("constant CT", lambda t: _constant_ct(t), "a z-score is undefined"),
    ExpectFail("unknown flag", _nothing, "plan: there is no flag --epochs", ("--epochs", "5")),
    ExpectFail("a word too many", _nothing, "one argument too many, 'again'", ("again",)),
    ExpectFail(
        "unknown cascade", _nothing, "--cascade takes auto, never or always, not 'perhaps'", ("--cascade", "perhaps")
    ),
    ExpectFail("switch with a value", _nothing, "--explain takes no value, not 'yes'", ("--explain=yes",)),
    ExpectFail("no number", _nothing, "--num_processes takes a number of processes", ("--num_processes", "0")),
]


def _constant_ct(tiny) -> None:
    tiny.describe(modality={"0": "CT"})
    for i in range(5):
        _change(IMAGE, np.ones_like, f"case_{i}")(tiny)


def _huge_ct(tiny) -> None:
    tiny.describe(modality={"0": "CT"})
    _change(IMAGE, lambda a: a * 1e200 / a.max())(tiny)


def _huge_scale(tiny) -> None:
    path = tiny.image("case_3")
    image = nibabel.Nifti1Image(tiny.read(path), nibabel.load(path).affine)
    image.header.set_slope_inter(1e38, 0)
    nibabel.save(image, path)


def _pipe(tiny, part: str) -> None:
    tiny.image("case_3", part).unlink()
    os.mkfifo(tiny.image("case_3", part))


def _bomb(tiny) -> None:
    path = tiny.image("case_3")
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(50_000_000), compresslevel=1))


def _tree(folder: Path) -> dict[Path, bytes]:
    """All files below a folder, but what is kept of the cases that are sound."""
    return {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in (readings.NAME, contents.NAME)
    }


@pytest.mark.parametrize("expect", EXPECT, ids=lambda e: e.id)
def test_bad_input(tiny, tmp_path, capsys, monkeypatch, expect) -> None:
    monkeypatch.chdir(tmp_path)
    expect.spoil(tiny)
    before = _tree(tmp_path)
    status = main([str(tiny.folder), "--bundles", str(tmp_path / "bundles"), *expect.flags])
    written = capsys.readouterr()
    assert status == 1
    assert expect.message in written.err
    assert len(written.err.splitlines()) == 1
    assert "Traceback" not in written.err
    assert _tree(tmp_path) == before


def test_all_faults_are_reported_together(tiny, tmp_path, capsys) -> None:
    for spoil in (
        _change(IMAGE, np.zeros_like, "case_0"),
        _truncate(LABEL, "case_1"),
        _change(LABEL, _with(9), "case_2"),
        _truncate("imagesTs", "test_0"),
    ):
        spoil(tiny)
    assert main([str(tiny.folder), "--bundles", str(tmp_path / "bundles")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("Error: ").split(": ")[0] for line in lines] == [
        f"Task90_Tiny, {case}" for case in ("case_0", "case_1", "case_2", "test_0")
    ]


@pytest.mark.parametrize("flags", [("--explian",), ("--root", "nowhere")], ids=["unknown flag", "dataset not found"])
def test_bad_input_in_a_process_of_its_own(tmp_path, flags) -> None:
    project = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-m", "autoplan", "Hippocampus", "--bundles", str(tmp_path / "bundles"), *flags]
    result = subprocess.run(command, capture_output=True, text=True, cwd=project, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_dead_process_is_an_error(tiny, tmp_path, capsys, monkeypatch) -> None:
    from concurrent.futures.process import BrokenProcessPool

    def broken(*args, **kwargs):
        raise BrokenProcessPool

    monkeypatch.setattr("autoplan.base.processes.ProcessPoolExecutor.map", broken)
    assert main([str(tiny.folder), "--bundles", str(tmp_path / "bundles"), "--num_processes", "2"]) == 1
    assert "want of memory" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(tiny, capsys, monkeypatch) -> None:
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("autoplan.data.decathlon.load", interrupted)
    assert main([str(tiny.folder)]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
