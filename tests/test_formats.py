"""Images of every format: the array and the place in space that were written."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scripts import formats

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 200, (5, 4, 3)).astype(np.uint8)
AFFINE = np.array([[0, 2.0, 0, -7], [1.5, 0, 0, 3], [0, 0, -3.0, 11], [0, 0, 0, 1]])


def read(path):
    header, load = formats.open_image(path)
    return header, load()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_volumes_come_back_where_they_were(suffix, tmp_path) -> None:
    path = tmp_path / f"case{suffix}"
    formats.write_image(path, VOLUME, AFFINE)
    header, array = read(path)
    assert (header.shape, header.channels) == ((5, 4, 3), 1)
    np.testing.assert_array_equal(array[..., 0], VOLUME)
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_components_of_a_voxel_are_channels(suffix, tmp_path) -> None:
    array = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / f"case{suffix}"))
    header, found = read(tmp_path / f"case{suffix}")
    assert (header.shape, header.channels) == ((5, 4, 3), 2)
    np.testing.assert_array_equal(found, array.transpose(2, 1, 0, 3))


@pytest.mark.parametrize(("suffix", "mode", "channels"), [(".png", "L", 1), (".bmp", "RGB", 3), (".png", "RGB", 3)])
def test_pictures(suffix, mode, channels, tmp_path) -> None:
    pixels = RNG.integers(0, 255, (6, 9, channels)).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode).save(tmp_path / f"case{suffix}")
    header, array = read(tmp_path / f"case{suffix}")
    assert (header.shape, header.channels) == ((9, 6, 1), channels)
    np.testing.assert_array_equal(array[:, :, 0], pixels.swapaxes(0, 1))


def test_an_alpha_channel_that_says_nothing_is_dropped(tmp_path) -> None:
    pixels = RNG.integers(0, 255, (6, 9, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "case.png")
    assert read(tmp_path / "case.png")[1].shape == (9, 6, 1, 3)
    pixels[0, 0, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "case.png")
    with pytest.raises(ValueError, match="parts of it are transparent"):
        read(tmp_path / "case.png")


@pytest.mark.parametrize("shape", [(6, 9), (3, 6, 9)], ids=["plane", "stack"])
def test_tiff(shape, tmp_path) -> None:
    planes = RNG.integers(0, 60_000, shape).astype(np.uint16)
    tifffile.imwrite(tmp_path / "case.tif", planes, photometric="minisblack")
    header, array = read(tmp_path / "case.tif")
    assert header.shape == (9, 6, 1 if len(shape) == 2 else 3)
    np.testing.assert_array_equal(array[..., 0], planes.reshape(-1, 6, 9).transpose(2, 1, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_segmentations_of_planes_come_back(suffix, tmp_path) -> None:
    formats.write_image(tmp_path / f"case{suffix}", VOLUME[:, :, :1], np.eye(4))
    np.testing.assert_array_equal(read(tmp_path / f"case{suffix}")[1][..., 0], VOLUME[:, :, :1])


def series(folder, *, number=4, orientation=(1, 0, 0, 0, 1, 0), leave_out=(), **fields):
    """Writes slices of 2 mm in any order of files; slice k holds the values 10 k - 1000."""
    folder.mkdir()
    uid, normal = generate_uid(), np.cross(orientation[:3], orientation[3:])
    for k in set(range(number)) - set(leave_out):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = FileDataset("slice", {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.InstanceNumber = uid, k + 1
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 6, 9, 1
        slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.RescaleSlope, slice_.RescaleIntercept = 15, 1, -1000
        slice_.PixelSpacing, slice_.ImageOrientationPatient = [0.5, 0.75], list(orientation)
        slice_.ImagePositionPatient = [float(v) for v in np.array([5.0, 6.0, 7.0]) + 2.0 * k * normal]
        slice_.PixelData = np.full((6, 9), 10 * k, np.uint16).tobytes()
        for name, value in fields.items():
            setattr(slice_, name, value)
        slice_.save_as(folder / f"{(7 * k) % 10}.dcm", enforce_file_format=True)
    return folder


def test_a_series_is_sorted_by_place(tmp_path) -> None:
    header, array = read(series(tmp_path / "case"))
    assert (header.shape, array.dtype) == ((9, 6, 4), np.int32)
    np.testing.assert_array_equal(array[0, 0, :, 0], [-1000, -990, -980, -970])
    np.testing.assert_allclose(
        header.affine, formats.LPS @ [[0.75, 0, 0, 5], [0, 0.5, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]]
    )


def test_an_oblique_series_keeps_its_directions(tmp_path) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    header, _ = read(series(tmp_path / "case", orientation=(c, s, 0, -s, c, 0)))
    np.testing.assert_allclose((formats.LPS @ header.affine)[:3, 0], [0.75 * c, 0.75 * s, 0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"leave_out": (2,)}, "a slice is missing between"),
        ({"NumberOfFrames": 3}, "many frames"),
        ({"ImagePositionPatient": [0.0, 0.0, 0.0]}, "lie at the same place"),
        ({"PixelSpacing": None}, "has no PixelSpacing"),
    ],
)
def test_series_that_are_refused(fields, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        formats.open_image(series(tmp_path / "case", number=5, **fields))


def test_two_series_in_one_folder_are_refused(tmp_path) -> None:
    series(tmp_path / "case")
    for path in series(tmp_path / "other").iterdir():
        header = pydicom.dcmread(path)
        header.save_as(tmp_path / "case" / f"other_{path.name}")
    with pytest.raises(ValueError, match="holds 2 series"):
        formats.open_image(tmp_path / "case")


def test_files_of_no_known_format_are_refused(tmp_path) -> None:
    (tmp_path / "case.txt").write_text("text")
    with pytest.raises(ValueError, match="no image of a known format"):
        formats.open_image(tmp_path / "case.txt")
