"""Planes through a volume as a picture."""

import numpy as np
import pytest
from PIL import Image

from autoplan.data import pictures
from autoplan.data.images import read_volume
from autoplan.data.pictures import to_show

GREY = (0.0, 100.0)


def sheet(image: np.ndarray, **how) -> np.ndarray:
    at = tuple(n // 2 for n in image.shape)
    return pictures.sheet(image, [], [], spacing=(1, 1, 1), at=at, grey=GREY, width=64, height=20, **how)[..., 0]


@pytest.mark.parametrize(
    ("axis", "plane", "corner"),
    [
        pytest.param(0, 0, "left", id="the patient's right, axial"),
        pytest.param(1, 0, "top", id="front, axial"),
        pytest.param(0, 1, "left", id="the patient's right, coronal"),
        pytest.param(2, 1, "top", id="head, coronal"),
        pytest.param(1, 2, "left", id="front, sagittal"),
        pytest.param(2, 2, "top", id="head, sagittal"),
    ],
)
def test_directions_are_those_of_radiology(axis, plane, corner) -> None:
    """A bright end of an axis in RAS order lies where 3D Slicer shows it."""
    image = np.zeros((20, 20, 20), np.float32)
    image.swapaxes(0, axis)[15:] = 100
    tile = sheet(image)[:, plane * 22 : plane * 22 + 20]
    side = {"left": tile[:, :3], "top": tile[:3]}[corner]
    assert side.mean() > 200
    assert tile[-3:, -3:].mean() < 50


def test_a_drawing_is_shown_as_it_is(tmp_path) -> None:
    """One slice is one plane, neither mirrored nor upside down."""
    drawing = np.zeros((20, 30), np.uint8)
    drawing[:5, :5] = 100
    Image.fromarray(drawing).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    shown = sheet(to_show(volume.array[..., 0], volume.affine, tmp_path / "a.png"))
    assert shown.shape == (20, 30)
    assert shown[1:4, 1:4].min() > 200
    assert shown[10:].max() < 50
    assert shown[:, 10:].max() < 50


@pytest.mark.parametrize(
    ("images", "size"), [(1, (696, 256)), (120, (696, 256)), (121, (348, 128)), (5000, (348, 128))]
)
def test_pictures_are_larger_where_they_are_few(images, size) -> None:
    assert pictures.size_for(images) == size
