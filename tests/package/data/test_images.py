"""Image files: one geometry with MONAI, and files that promise one thing and hold another."""

import gzip
import io
import os
import struct
import time
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import pytest
import scipy.ndimage
import scipy.spatial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoplan.base.errors import DatasetError
from autoplan.data import images, labels


def header(shape=(4, 3, 2), **fields) -> nibabel.Nifti1Header:
    """A header of a float32 file; `sform` and `qform` are affines, all else is set as a field."""
    made = nibabel.Nifti1Header()
    made.set_data_dtype(np.float32)
    made.set_data_shape(shape)
    made["magic"], made["vox_offset"] = b"n+1", 352
    for form in ("sform", "qform"):
        if form in fields:
            getattr(made, f"set_{form}")(fields.pop(form), 1)
    for name, value in fields.items():
        made[name] = value
    return made


def write(path: Path, head: nibabel.Nifti1Header, content: bytes | None = None) -> Path:
    """A file with this header, followed by `content` or by as many voxels as the header promises."""
    voxels = bytes(4 * int(np.prod(head.get_data_shape()))) if content is None else content
    data = head.binaryblock + bytes(4) + voxels
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def loaded(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine that a bundle gives."""
    from scripts.readers import FormatReader

    array, meta = FormatReader().get_data([str(path)])
    return array.shape, meta["affine"]


AFFINE = np.array([[-1.5, 0, 0, 30], [0, 2, 0, -20], [0, 0, 3, 10], [0, 0, 0, 1.0]])
OTHER = AFFINE @ np.diag([2, 1, 1, 1])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        pytest.param(header(sform=AFFINE, qform=AFFINE), None, id="all agree"),
        pytest.param(header(sform=AFFINE, qform=AFFINE @ np.diag([-1, 1, -1, 1])), None, id="forms of equal sizes"),
        pytest.param(header(qform=AFFINE), None, id="qform alone"),
        pytest.param(header(), None, id="no form"),
        pytest.param(header(qform=AFFINE, sform=OTHER), "contradicts itself", id="sform against qform and pixdim"),
        pytest.param(header(sform=AFFINE), "contradicts itself", id="sform against pixdim, no qform"),
        pytest.param(header((4, 3, 2, 2), sform=AFFINE, qform=AFFINE), None, id="channels"),
        pytest.param(header((4, 3, 2, 2), qform=np.diag([1, 1, 1, 1.0])), None, id="channels, qform alone"),
        pytest.param(header(sform=AFFINE * [[1e-3], [1], [1], [1]]), "contradicts", id="a small row"),
        pytest.param(header(sform=np.diag([0, 0, 0, 1.0])), "singular", id="singular"),
    ],
)
def test_one_geometry_with_bundles(tmp_path, head, message) -> None:
    path = write(tmp_path / "image.nii.gz", head)
    if message:
        with pytest.raises(DatasetError, match=message):
            images.read_volume(path)
        return
    volume, (shape, affine) = images.read_volume(path), loaded(path)
    assert volume.array.shape == (shape if len(shape) == 4 else (*shape, 1))
    np.testing.assert_array_equal(volume.affine, affine)
    np.testing.assert_array_equal(images.read_grid(path).affine, affine)


NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 1e-30, 1e30, float("nan"), float("inf")]), st.floats(-9, 9, width=32)
)
FIELDS = {
    **dict.fromkeys(("sform_code", "qform_code"), st.integers(-1, 5)),
    **dict.fromkeys(("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "scl_slope"), NUMBERS),
    **dict.fromkeys(("srow_x", "srow_y", "srow_z"), st.lists(NUMBERS, min_size=4, max_size=4)),
    "pixdim": st.lists(NUMBERS, min_size=8, max_size=8),
    "dim": st.tuples(st.integers(0, 5), *[st.integers(-1, 4)] * 4, *[st.just(1)] * 3),
    "vox_offset": NUMBERS,
    "xyzt_units": st.integers(0, 63),
}


@st.composite
def headers(draw: st.DrawFn) -> nibabel.Nifti1Header:
    """A valid header of which up to three fields are replaced."""
    shape = draw(st.sampled_from([(4, 3, 2), (4, 3, 2, 2)]))
    forms = {
        form: draw(st.sampled_from([AFFINE, OTHER])) for form in draw(st.sets(st.sampled_from(["sform", "qform"])))
    }
    names = draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=3))
    return header(shape, **forms, **{name: draw(FIELDS[name]) for name in names})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(headers())
@pytest.mark.filterwarnings("ignore")
def test_any_header_is_read_as_nibabel_reads_it_or_refused(tmp_path, head) -> None:
    path = write(tmp_path / "image.nii", head, bytes(4 * 4**5))
    try:
        volume = images.read_volume(path)
    except DatasetError:
        return
    shape, affine = loaded(path)
    mm = np.diag([{1: 1000.0, 3: 0.001}.get(int(head["xyzt_units"]) & 7, 1.0)] * 3 + [1.0])
    assert volume.array.shape == (*shape, 1)[:4]
    np.testing.assert_array_equal(volume.affine, affine)
    np.testing.assert_array_equal(volume.affine, mm @ nibabel.load(path).affine)


@pytest.mark.parametrize(
    ("apart", "head"),
    [
        pytest.param(0.0, header(sform=AFFINE), id="one form"),
        pytest.param(5.0, header(sform=np.eye(4), qform=np.eye(4) + np.eye(4, k=3) * 5), id="two forms"),
    ],
)
def test_the_distance_of_the_forms(tmp_path, apart, head) -> None:
    head["pixdim"][1:4] = 1.5, 2, 3
    if apart:
        head["pixdim"][1:4] = 1
    assert images.read_grid(write(tmp_path / "image.nii", head)).forms_apart_mm == pytest.approx(apart)


def test_what_is_written_lies_where_the_image_lies(tmp_path) -> None:
    """The bundle's writer, on an image whose axes are turned and whose forms differ."""
    from monai.transforms import Compose, LoadImaged, SaveImaged
    from scripts.prediction import SegmentationWriter

    path = write(tmp_path / "image.nii.gz", header(sform=AFFINE, qform=AFFINE @ np.diag([-1, 1, -1, 1])))
    save = SaveImaged(
        "image",
        output_dir=tmp_path,
        output_postfix="out",
        separate_folder=False,
        writer=partial(SegmentationWriter, label_values=range(256)),
        resample=False,
    )
    Compose([LoadImaged("image", ensure_channel_first=True, dtype=np.uint8), save])({"image": str(path)})
    np.testing.assert_allclose(nibabel.load(tmp_path / "image_out.nii.gz").affine, nibabel.load(path).affine, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        pytest.param(header(sform=AFFINE, qform=AFFINE), None, id="all agree"),
        pytest.param(header(sform=AFFINE, qform=AFFINE @ np.diag([-1, 1, -1, 1])), None, id="forms of equal sizes"),
        pytest.param(header(qform=AFFINE, sform=OTHER), "header contradicts itself", id="sform against qform"),
        pytest.param(header(sform=AFFINE), "header contradicts itself", id="sform against pixdim"),
    ],
)
def test_prediction_refuses_the_headers_that_planning_refuses(tmp_path, head, fault) -> None:
    from monai.transforms import LoadImaged
    from scripts import prediction
    from scripts.readers import FormatReader

    path = write(tmp_path / "image.nii.gz", head)
    load = LoadImaged("image", FormatReader, ensure_channel_first=True)
    item = prediction.ImageDataset([{"image": str(path)}], load)[0]
    assert (fault in item[prediction.FAULT]) if fault else (prediction.FAULT not in item)


# Masks that are none.


def drawn(values=(255,), size=256, seed=0) -> PIL.Image.Image:
    """A picture of some ellipses and a star, each of one value."""
    rng, picture = np.random.default_rng(seed), PIL.Image.new("L", (size, size))
    draw = PIL.ImageDraw.Draw(picture)
    for k in range(6):
        (x, y), (a, b) = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0.05, 0.2, 2) * size
        draw.ellipse((x - a, y - b, x + a, y + b), fill=values[k % len(values)])
    angles = np.linspace(0, 2 * np.pi, 11)[:-1]
    draw.polygon([(size / 2 + (9 + 50 * (k % 2)) * np.cos(t), size / 2 + (9 + 50 * (k % 2)) * np.sin(t))
                  for k, t in enumerate(angles)], fill=values[0])  # fmt: skip
    return picture


def stored_as_jpeg(picture, quality) -> PIL.Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return PIL.Image.open(file)


def as_label(picture) -> np.ndarray:
    return np.asarray(picture).T[:, :, None]


def regions(shape, values) -> np.ndarray:
    """Each voxel has the value of the nearest of some random points."""
    points = np.random.default_rng(0).uniform(0, 1, (len(values), len(shape))) * shape
    grid = np.stack(np.indices(shape), -1)
    return np.asarray(values)[scipy.spatial.cKDTree(points).query(grid)[1]]


def layers(thickness) -> np.ndarray:
    """Nine layers that follow a curve, in the order of their numbers."""
    x, y = np.indices((200, 100))
    return np.clip((y - 20 - 10 * np.sin(x / 15)) // thickness, 0, 10).astype(int)[:, :, None] % 10


def points(number) -> np.ndarray:
    """Single voxels of a class each."""
    label = np.zeros((60, 60, 20), int)
    for k in range(1, number + 1):
        label[tuple(np.random.default_rng(k).integers(0, label.shape))] = k
    return label


FILTERS = {f.name: f for f in PIL.Image.Resampling if f.name in ("BILINEAR", "BICUBIC", "LANCZOS", "HAMMING")}


@pytest.mark.parametrize(
    "label",
    [
        *(pytest.param(as_label(drawn().resize((s, s), f)), id=f"{name} to {s}")
          for name, f in FILTERS.items() for s in (37, 100, 200, 400)),
        *(pytest.param(as_label(drawn((80, 160, 240)).resize((190, 190), f)), id=f"{name}, three classes")
          for name, f in FILTERS.items()),
        pytest.param(as_label(drawn((1,)).point(lambda v: 200 * v).resize((99, 99))), id="scaled, then resized"),
        pytest.param(as_label(drawn().filter(PIL.ImageFilter.GaussianBlur(2))), id="blurred"),
        *(pytest.param(as_label(stored_as_jpeg(drawn(), q)), id=f"JPEG of quality {q}") for q in (40, 75, 95)),
        pytest.param(as_label(stored_as_jpeg(drawn((80, 160, 240)), 90)), id="JPEG, three classes"),
        pytest.param(scipy.ndimage.zoom(np.pad(np.full((20, 18, 9), 255, np.uint8), 9)[::-1] *
                     (np.indices((38, 36, 27)).sum(0) > 40), (0.7, 0.8, 1.3), order=1), id="a volume"),
    ],
)  # fmt: skip
def test_blends_are_no_classes(label) -> None:
    assert labels.blended_values(label) > 0.5 * len(labels.count_values(label))
    assert "Threshold it" in labels.blend_fault(label)


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(regions((40, 40, 40), range(118)), id="117 classes"),
        pytest.param(regions((16, 16, 16), range(118)), id="117 classes, coarse"),
        pytest.param(regions((90, 80, 1), range(50)), id="50 classes of a plane"),
        pytest.param(regions((40, 40, 30), [*range(0, 900, 17), 4000]), id="values with gaps"),
        pytest.param(regions((40, 40, 30), range(118))[::3, ::3, ::3], id="resized by nearest neighbour"),
        pytest.param(layers(3), id="layers"),
        pytest.param(layers(1), id="layers of one voxel"),
        pytest.param(points(29), id="points"),
        pytest.param(as_label(drawn(range(1, 7))), id="six classes"),
        pytest.param(as_label(drawn((40, 120, 254)).resize((91, 77), PIL.Image.NEAREST)), id="nearest neighbour"),
        pytest.param(as_label(drawn((255,))), id="a mask"),
        pytest.param(np.zeros((5, 4, 3), np.uint8), id="nothing"),
    ],
)
def test_classes_are_no_blends(label) -> None:
    assert labels.blended_values(label) == 0
    assert labels.blend_fault(label) == ""


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.integers(2, 30), st.integers(0, 2**32 - 1), st.booleans())
def test_regions_of_any_values_are_no_blends(size, num_classes, seed, flat) -> None:
    values = np.random.default_rng(seed).choice(2**16, num_classes, replace=False)
    assert labels.blended_values(regions((size, size, 1) if flat else (size, size // 2, size // 4), values)) == 0


# Files that are not what they promise.


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind, suffix) -> None:
    path = tmp_path / f"image{suffix}"
    {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}[kind](path)
    with pytest.raises(DatasetError, match="not a regular file"):
        images.read_volume(path)


def test_a_link_to_a_file_is_read(tmp_path) -> None:
    target = write(tmp_path / "target.nii", header(sform=AFFINE, qform=AFFINE))
    (tmp_path / "image.nii").symlink_to(target)
    assert images.read_volume(tmp_path / "image.nii").shape == (4, 3, 2)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [
        pytest.param(96, None, id="as promised"),
        pytest.param(1000, None, id="padded"),
        pytest.param(95, "truncated", id="a byte less"),
        pytest.param(2**21, "longer than the 448 bytes", id="more"),
    ],
)
def test_a_file_holds_what_its_header_promises(tmp_path, suffix, num_bytes, message) -> None:
    path = write(tmp_path / f"image{suffix}", header(qform=AFFINE), bytes(num_bytes))
    if message is None:
        assert images.read_volume(path).shape == (4, 3, 2)
        return
    with pytest.raises(DatasetError, match=message):
        images.read_volume(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("size", "sound"), [(32, True), (0, False), (-16, False), (10**6, False)])
def test_damaged_extensions_of_a_header(tmp_path, suffix, size, sound) -> None:
    extension = b"\1\0\0\0" + struct.pack("<ii", size, 4) + bytes(24)
    data = header(qform=AFFINE, vox_offset=384).binaryblock + extension + bytes(96)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == ".nii.gz" else data)
    if sound:
        assert images.read_volume(path).shape == loaded(path)[0]
        return
    with pytest.raises(DatasetError, match="cannot be read"):
        images.read_volume(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path) -> None:
    import tracemalloc

    path = tmp_path / "image.nii.gz"
    start = gzip.compress(header(qform=AFFINE).binaryblock + bytes(100))
    path.write_bytes(start + gzip.compress(bytes(200_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(DatasetError, match="longer than"):
        images.read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_asks_for_more_than_the_memory(tmp_path, suffix) -> None:
    path = write(tmp_path / f"image{suffix}", header((30000, 30000, 30000), qform=AFFINE), bytes(9))
    began = time.monotonic()
    with pytest.raises(DatasetError, match=r"needs 2\.16e\+05 GB of memory by its header, and there are"):
        images.read_volume(path)
    assert time.monotonic() - began < 1


def test_a_header_whose_voxels_start_far_away(tmp_path) -> None:
    path = write(tmp_path / "image.nii.gz", header(qform=AFFINE, vox_offset=1e13))
    with pytest.raises(DatasetError, match=r"needs 2e\+04 GB of memory by its header"):
        images.read_volume(path)


def test_many_empty_gzip_members_take_no_time(tmp_path) -> None:
    path = write(tmp_path / "image.nii.gz", header(qform=AFFINE))
    path.write_bytes(path.read_bytes() + gzip.compress(b"") * 20_000)
    began = time.monotonic()
    assert images.read_volume(path).shape == (4, 3, 2)
    assert time.monotonic() - began < 2


def test_a_file_of_several_gzip_members(tmp_path) -> None:
    path = write(tmp_path / "image.nii.gz", header(qform=AFFINE))
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]) + bytes(7))
    assert images.read_volume(path).shape == (4, 3, 2)
