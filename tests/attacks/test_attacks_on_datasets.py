"""Datasets that are wrong or hostile: dataset.json, the files that it names, and their headers."""

import gzip
import json
import os
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from attack import DAMAGED_JSON, check_nothing_half_written, command, refuse
from conftest import Tiny, write_tiny

from autoplan.base.errors import DatasetError
from autoplan.data import images

PLAN = ("--num_processes", "1")


@pytest.fixture
def small(tmp_path, monkeypatch) -> Tiny:
    """A dataset of two cases and a test image, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_tiny(tmp_path / "Task90_Tiny", num_cases=2)


# dataset.json.

LABELS = {"0": "background", "1": "a", "2": "b"}
PAIR = {"image": "./imagesTr/case_0.nii.gz", "label": "./labelsTr/case_0.nii.gz"}
BAD_FIELDS = [
    *(
        pytest.param({field: value}, field, id=f"{field} is {kind}")
        for field in ("modality", "labels", "training")
        for kind, value in {
            "missing": None,
            "a number": 7,
            "a text": "text",
            "a list of null": [None],
            "an object of lists": {"0": []},
            "true": True,
            "empty": {},
            "infinite": float("inf"),
        }.items()
    ),
    pytest.param({"test": 7}, "test", id="test is a number"),
    pytest.param({"test": {"image": "x"}}, "test", id="test is an object"),
    pytest.param({"test": [[["x"]]]}, "test", id="test is nested"),
    pytest.param({"test": ["./imagesTr/case_0.nii.gz"]}, "case_0", id="a test image that is a training image"),
    pytest.param({"training": [PAIR, PAIR]}, "case_0", id="a case twice"),
    pytest.param({"training": [{"image": "a"}]}, "training", id="no label"),
    pytest.param({"labels": {**LABELS, "65536": "c"}}, "65536", id="a value of 65,536"),
    pytest.param({"labels": {**LABELS, "9" * 400: "c"}}, "must map numbers to names", id="a value of 400 digits"),
    pytest.param({"labels": {**LABELS, "9" * 5000: "c"}}, "must map numbers to names", id="a value of 5,000 digits"),
    pytest.param({"labels": {**LABELS, "-1": "c"}}, "labels", id="a negative value"),
    pytest.param({"labels": {**LABELS, "1.5": "c"}}, "labels", id="a fraction"),
    pytest.param({"labels": {**LABELS, "01": "c"}}, "labels", id="a value twice"),
    pytest.param({"labels": {**LABELS, "²": "c"}}, "labels", id="a superscript digit"),
    pytest.param({"labels": {str(i): f"c{i}" for i in range(300)}}, "300 classes", id="300 classes"),
    pytest.param({"labels": {"0": "background", "1": "a", "2": "a "}}, "more than once", id="two classes of one name"),
    pytest.param({"labels": {"0": "background"}}, "labels", id="the background alone"),
    pytest.param({"labels": {**LABELS, "1": "a\nb"}}, "labels", id="a line break in a name"),
    pytest.param({"labels": {**LABELS, "1": "a\x1b[31m"}}, "labels", id="an escape sequence in a name"),
    pytest.param({"labels": {**LABELS, "1": "a\0"}}, "labels", id="NUL in a name"),
    pytest.param({"labels": {**LABELS, "1": ""}}, "labels", id="an empty name"),
    pytest.param({"labels": {**LABELS, "1": "a" * 100_000}}, "labels", id="a name of 100,000 characters"),
    pytest.param({"modality": {"1": "MRI"}}, "modality", id="channels from 1"),
    pytest.param({"modality": {str(i): "MRI" for i in range(1000)}}, "declares 1000", id="1,000 channels"),
    *(
        pytest.param({"training": [PAIR, {**PAIR, "image": path}]}, said, id=f"path {what}")
        for what, path, said in (
            ("outside", "../../etc/x.nii.gz", "leaves the dataset"),
            ("absolute", "/etc/x.nii.gz", "leaves the dataset"),
            ("of Windows", "C:\\x.nii.gz", "leaves the dataset"),
            ("with NUL", "imagesTr/a\0b.nii.gz", "no path"),
            ("with a line break", "imagesTr/a\nb.nii.gz", "no path"),
            ("of 5,000 characters", "a" * 5000 + ".nii.gz", "no path"),
            ("of one long name", "a" * 900 + ".nii.gz", "a{900}"),
            ("to no image", "dataset.json", "neither an image"),
            ("empty", "", "neither an image"),
            ("to a folder", "imagesTr", "neither an image"),
            ("of nothing but the ending", ".nii.gz", r"\.nii\.gz"),
        )
    ),
]


@pytest.mark.parametrize(("fields", "names"), BAD_FIELDS)
def test_wrong_fields(small, tmp_path, capsys, fields, names) -> None:
    small.describe(**fields)
    refuse([str(small.folder), *PLAN], capsys, names=names, folder=tmp_path)


@pytest.mark.parametrize("content", DAMAGED_JSON)
@pytest.mark.parametrize("words", [["plan"], ["select"], ["predict"], ["run"]], ids=lambda words: words[0])
def test_no_description(small, tmp_path, capsys, words, content) -> None:
    (small.folder / "dataset.json").write_bytes(content)
    refuse([*words, str(small.folder)], capsys, names="dataset.json|no bundle|plan.json", folder=tmp_path)


HOSTILE = [
    "$import this", "$import", "@bundle", "@modality", "%a::b", "%../x.json::y", "$\\frac$", "$__import__('os')",
    "_target_", "a#b", "a::b", "<b>&amp;</b>", "{0}", "%s%n", "'; rm -rf /", "../..", "a/b", "a\\b", "a|b", "a`b`",
    "**kwargs", "-1", "null", "True", "\u202egnp", "器官", "e\u0301", "a,b", 'a"b',
]  # fmt: skip


def test_hostile_names_are_taken_or_refused(small, tmp_path, capsys) -> None:
    """All at once, since a dataset has many classes. That nothing is evaluated is held where bundles are rendered."""
    small.describe(labels={"0": "background", **{str(i): n for i, n in enumerate(HOSTILE, 1)}}, modality={"0": "@x"})
    assert command([str(small.folder), *PLAN, "--explain"], capsys).status == 0
    for path in tmp_path.glob("bundles/*/*/configs/*.json"):
        json.loads(path.read_text())
    check_nothing_half_written(tmp_path)
    assert command(["status", small.folder.name], capsys).status == 0


# Files.

WHERE = [
    pytest.param("imagesTr", id="image"),
    pytest.param("labelsTr", id="label"),
    pytest.param("imagesTs", id="test"),
]


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


BAD_FILES = [
    pytest.param(_replaced(os.mkfifo), id="a pipe"),
    pytest.param(_replaced(lambda p: p.symlink_to("/dev/zero")), id="a device"),
    pytest.param(_replaced(Path.mkdir), id="a folder"),
    pytest.param(_replaced(lambda p: p.symlink_to("nowhere")), id="a broken link"),
    pytest.param(_replaced(lambda p: p.symlink_to(p.name)), id="a link to itself"),
    pytest.param(_replaced(Path.touch), id="empty"),
    pytest.param(lambda p: p.write_text("a text\n" * 99), id="a text"),
    pytest.param(lambda p: p.write_bytes(gzip.decompress(p.read_bytes())), id="not compressed"),
    pytest.param(lambda p: p.write_bytes(p.read_bytes()[:40]), id="the first bytes"),
    pytest.param(lambda p: p.write_bytes(p.read_bytes()[:-9]), id="without the last bytes"),
    pytest.param(lambda p: p.write_bytes(p.read_bytes()[:-4] + b"\0\0\0\0"), id="a wrong length at the end"),
    pytest.param(lambda p: p.write_bytes(gzip.compress(b"x" * 999)), id="another compressed file"),
    pytest.param(lambda p: p.write_bytes(gzip.compress(p.read_bytes())), id="compressed twice"),
    pytest.param(lambda p: p.write_bytes(p.read_bytes() + gzip.compress(bytes(20_000_000), 1)), id="a bomb behind it"),
    pytest.param(lambda p: p.write_bytes(gzip.compress(bytes(20_000_000), 1)), id="a bomb of zeros"),
]


@pytest.mark.parametrize("part", WHERE)
@pytest.mark.parametrize("damage", BAD_FILES)
def test_files_that_are_no_images(small, tmp_path, capsys, part, damage) -> None:
    case = "test_0" if part == "imagesTs" else "case_1"
    damage(small.image(case, part))
    refuse([str(small.folder), *PLAN], capsys, names=f"{case}: {part}/{case}.nii.gz", folder=tmp_path)


# Headers.

OFFSETS = {"sizeof_hdr": 0, "dim": 40, "datatype": 70, "bitpix": 72, "pixdim": 76, "vox_offset": 108}
OFFSETS |= {"scl_slope": 112, "scl_inter": 116, "xyzt_units": 123, "qform_code": 252, "sform_code": 254}
OFFSETS |= {"quatern": 256, "srow": 280, "magic": 344, "extension": 348}
"""Where a field stands in a NIfTI-1 header."""
NAN, INF = float("nan"), float("inf")
BAD_HEADERS = [
    *(
        pytest.param("sizeof_hdr", struct.pack("<i", n), id=f"sizeof_hdr {n}")
        for n in (0, -1, 347, 349, 540, 1543569408)
    ),
    *(
        pytest.param("dim", struct.pack("<8h", *dim), id=f"dim {dim}")
        for dim in (
            (0, 12, 10, 8, 1, 1, 1, 1),
            (-1, 12, 10, 8, 1, 1, 1, 1),
            (2, 12, 10, 8, 1, 1, 1, 1),
            (7, 12, 10, 8, 1, 1, 1, 1),
            (8, 12, 10, 8, 1, 1, 1, 1),
            (3, 0, 10, 8, 1, 1, 1, 1),
            (3, -12, 10, 8, 1, 1, 1, 1),
            (3, 12, 10, 9, 1, 1, 1, 1),
            (4, 12, 10, 8, 2, 1, 1, 1),
            (3, 32767, 32767, 32767, 1, 1, 1, 1),
            (7, *[32767] * 7),
            (5, 12, 10, 8, 1, 3, 1, 1),
        )
    ),
    *(
        pytest.param("datatype", struct.pack("<h", n), id=f"datatype {n}")
        for n in (0, -1, 1, 32, 128, 1280, 1792, 2304, 9999)
    ),
    *(
        pytest.param("pixdim", struct.pack("<8f", *pixdim), id=f"pixdim {pixdim[1:4]}")
        for pixdim in ((1, 2, 2, 2, 0, 0, 0, 0), (1, NAN, 1, 2, 0, 0, 0, 0), (1, 1, 1, INF, 0, 0, 0, 0))
    ),
    *(
        pytest.param("vox_offset", struct.pack("<f", v), id=f"vox_offset {v}")
        for v in (-1, -352, 3e9, 1e30, NAN, INF, -INF)
    ),
    *(pytest.param("scl_slope", struct.pack("<f", v), id=f"scl_slope {v}") for v in (1e38, -1e38)),
    pytest.param("scl_slope", struct.pack("<2f", 1, 1e38), id="scl_inter 1e38"),
    pytest.param("srow", struct.pack("<12f", *[0] * 12), id="sform of zeros"),
    pytest.param("srow", struct.pack("<12f", *[NAN] * 12), id="sform of NaN"),
    pytest.param("srow", struct.pack("<12f", *[1] * 12), id="singular sform"),
    pytest.param("srow", struct.pack("<12f", *[1e38] * 12), id="sform of 1e38"),
    pytest.param("magic", b"ni1\0", id="magic of two files"),
    pytest.param("magic", b"xxxx", id="another magic"),
    pytest.param("extension", b"\1\0\0\0" + struct.pack("<2i", -16, 6), id="extension of negative length"),
    pytest.param("extension", b"\1\0\0\0" + struct.pack("<2i", 2**31 - 1, 6), id="extension of 2 GB"),
]


def set_bytes(path: Path, at: int, content: bytes) -> None:
    """Replaces bytes of an image file, which may be compressed."""
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))


@pytest.mark.parametrize(("field", "content"), BAD_HEADERS)
@pytest.mark.filterwarnings("ignore")
def test_wrong_headers(small, tmp_path, capsys, field, content) -> None:
    """Refused by name, or taken as bundles take it."""
    path = small.image("case_1")
    set_bytes(path, OFFSETS[field], content)
    if command([str(small.folder), *PLAN, "--bundles", "first"], capsys).status:
        refuse([str(small.folder), *PLAN], capsys, names="case_1", folder=tmp_path)
        assert {p.name for p in (tmp_path / "first").rglob("*") if p.is_file()} <= {"contents.json", "readings.jsonl"}
    else:
        check_as_monai(path)


def check_as_monai(path: Path) -> bool:
    """Whether a file is read; if so, its voxels and its geometry must be those that training and prediction see."""
    from monai.transforms import LoadImage
    from scripts.readers import FormatReader

    try:
        volume = images.read_volume(path)
    except DatasetError:
        return False
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        loaded = LoadImage(FormatReader, image_only=True)(path)
    assert volume.array.shape == (*loaded.shape, 1)[:4]
    np.testing.assert_allclose(volume.affine, loaded.affine.numpy(), atol=1e-3)
    np.testing.assert_allclose(volume.array.reshape(loaded.shape), loaded.numpy(), rtol=1e-5)
    return True


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """An uncompressed image with both forms and an extension."""
    path = tmp_path_factory.mktemp("image") / "image.nii"
    made = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.diag([-1.5, 2, 3, 1]))
    made.set_qform(made.affine, 1)
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"an extension"))
    nibabel.save(made, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.filterwarnings("ignore")
def test_bytes_at_random(image, tmp_path, suffix) -> None:
    """1 to 4 bytes of the header are replaced, 100 times each: the file is read as bundles read it, or refused."""
    rng, content, path = random.Random(0), image.read_bytes(), tmp_path / f"image{suffix}"
    read = 0
    for i in range(400):
        data = bytearray(content)
        for _ in range(1 + i % 4):
            data[rng.randrange(352)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        path.write_bytes(gzip.compress(bytes(data), 1) if suffix == ".nii.gz" else bytes(data))
        read += check_as_monai(path)
    assert 0 < read < 400


@pytest.mark.filterwarnings("ignore")
def test_bytes_of_a_compressed_file_at_random(image, tmp_path) -> None:
    rng, path = random.Random(1), tmp_path / "image.nii.gz"
    content = gzip.compress(image.read_bytes())
    for _ in range(200):
        data = bytearray(content)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]))
        check_as_monai(path)
