"""DICOM as scanners write it: what is read, with pydicom, highdicom and SimpleITK as witnesses, and what is refused."""

import logging
import shutil
from pathlib import Path

import dicoms
import gdcm
import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from dicoms import AXIAL, absent, enhanced, raw, series
from pydicom.data import get_testdata_file
from scripts import dicom, formats

from autoplan.base.errors import DatasetError
from autoplan.data import images

SAGITTAL, CORONAL = (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)
C, S = np.cos(0.3), np.sin(0.3)


def read(folder: Path):
    header, load = formats.open_image(folder)
    return header, load()


@pytest.fixture(autouse=True)
def _told_anew() -> None:
    dicom._tell.cache_clear()


# One series.


def test_a_series_is_sorted_by_place(tmp_path) -> None:
    header, array = read(series(tmp_path / "case"))
    assert (header.shape, array.dtype) == ((9, 6, 4), np.int32)
    np.testing.assert_array_equal(array[0, 0, :, 0], [-1000, -990, -980, -970])
    np.testing.assert_allclose(
        header.affine, formats.LPS @ [[0.75, 0, 0, 5], [0, 0.5, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]]
    )


PLANES = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": (C, S, 0, -S, C, 0)}


@pytest.mark.parametrize("orientation", PLANES.values(), ids=PLANES)
def test_itk_and_highdicom_put_the_voxels_there_too(orientation, tmp_path) -> None:
    folder = series(tmp_path / "case", orientation=orientation, **dicoms.PATIENT)
    header, array = read(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), array[..., 0])
    for index in ((0, 0, 0), (8, 5, 3), (2, 4, 1)):
        ours = (formats.LPS @ header.affine @ [*index, 1])[:3]
        np.testing.assert_allclose(ours, image.TransformIndexToPhysicalPoint(index), atol=1e-4)
    volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in sorted(folder.iterdir())])
    at = np.linalg.inv(volume.affine) @ formats.LPS @ header.affine @ [2, 4, 1, 1]
    assert volume.array[tuple(np.rint(at[:3]).astype(int))] == array[2, 4, 1, 0]


def test_a_tilted_gantry_leaves_each_slice_where_it_is(tmp_path) -> None:
    folder = series(tmp_path / "case", shear=(0, 0.7, 0))
    header, array = read(folder)
    for path in folder.iterdir():
        slice_ = pydicom.dcmread(path)
        k = slice_.InstanceNumber - 1
        np.testing.assert_allclose((formats.LPS @ header.affine @ [0, 0, k, 1])[:3], slice_.ImagePositionPatient)
        assert array[0, 0, k, 0] == 10 * k - 1000


EMPTY = {
    "no slope": ({"RescaleSlope": None, "RescaleIntercept": None}, 10),
    "absent slope": ({"RescaleSlope": absent, "RescaleIntercept": absent}, 10),
    "no number of samples": ({"SamplesPerPixel": None}, -990),
    "no kind of pixels": ({"PhotometricInterpretation": None, "PixelRepresentation": None, "BitsStored": None}, -990),
    "no number of frames": ({"NumberOfFrames": None}, -990),
    "no distance of slices": ({"SpacingBetweenSlices": None, "SliceThickness": None}, -990),
    "no numbers": ({"InstanceNumber": None, "SeriesNumber": None, "AcquisitionNumber": None}, -990),
    "no description": ({"SeriesDescription": None, "ImageType": None, "Modality": None}, -990),
    "real slope": ({"RescaleSlope": 0.5, "RescaleIntercept": 0.25}, 5.25),
    "odd slope that says nothing here": ({"EchoTime": raw(b"4,5"), "SliceThickness": raw(b"x")}, -990),
    "a private class": ({"SOPClassUID": "1.3.12.2.1107.5.9.1"}, -990),
    "12 of 16 bits": ({"BitsStored": 12, "HighBit": 11}, -990),
}


@pytest.mark.parametrize(("fields", "value"), EMPTY.values(), ids=EMPTY)
def test_what_is_empty_or_odd_and_does_not_matter(fields, value, tmp_path) -> None:
    header, array = read(series(tmp_path / "case", **fields))
    assert (header.shape, array[0, 0, 1, 0]) == ((9, 6, 4), value)


ODD = {
    "one number": ({"PixelSpacing": raw(b"0.5")}, r"\.dcm: its PixelSpacing is '0.5', not 2 numbers"),
    "decimal comma": ({"PixelSpacing": raw(rb"0,5\0,5")}, r"its PixelSpacing is '0,5\\\\0,5', not 2 numbers"),
    "a comma in the slope": ({"RescaleSlope": raw(b"1,5")}, "its RescaleSlope is '1,5', not a number"),
    "a slope of 0": ({"RescaleSlope": 0}, "its RescaleSlope is 0"),
    "not finite": ({"RescaleIntercept": raw(b"nan")}, "its RescaleIntercept is 'nan', not a number"),
    "no spacing": ({"PixelSpacing": None}, "has no PixelSpacing, so its place is unknown"),
    "absent spacing": ({"PixelSpacing": absent}, "has no PixelSpacing, so its place is unknown"),
    "negative spacing": ({"PixelSpacing": [-1, 1]}, "its PixelSpacing is not positive"),
    "two numbers of a place": ({"ImagePositionPatient": raw(rb"1\2")}, "its ImagePositionPatient is .*, not 3 numbers"),
    "a gap in a place": ({"ImagePositionPatient": raw(rb"1\\3")}, "its ImagePositionPatient is .*, not 3 numbers"),
    "no orientation": ({"ImageOrientationPatient": None}, "has no ImageOrientationPatient"),
    "oblique axes": ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no pair of directions"),
    "null axes": ({"ImageOrientationPatient": [0] * 6}, "no pair of directions"),
    "frames without a place": ({"NumberOfFrames": 3}, "holds 3 frames, and does not say where each lies"),
    "all at one place": ({"ImagePositionPatient": [0, 0, 0]}, "lie at the same place"),
    "one image twice": ({"ImagePositionPatient": [0, 0, 0], "SOPInstanceUID": "1.2"}, "are one image twice"),
    "a missing slice": ({"leave_out": [2]}, "a slice is missing between .*; 7.dcm is number 2"),
    "a palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "holds the numbers of a palette"),
    "a segmentation": ({"Modality": "SEG"}, "is a DICOM Segmentation, which is not read"),
    "bits that are no number": ({"BitsStored": raw(b"x", "LO")}, "a number of its header is none"),
    "no rows": ({"Rows": None}, "has no Rows"),
}


@pytest.mark.parametrize(("fields", "message"), ODD.values(), ids=ODD)
def test_what_is_refused(fields, message, tmp_path) -> None:
    """In planning as in bundles, in words."""
    folder = series(tmp_path / "case", number=5, **fields)
    with pytest.raises(ValueError, match=message):
        read(folder)
    with pytest.raises(DatasetError, match=message):
        images.read_volume(folder)


def test_uneven_slices_are_refused(tmp_path) -> None:
    folder = series(tmp_path / "case")
    moved = pydicom.dcmread(folder / "7.dcm")
    moved.ImagePositionPatient = [5, 6, 9.6]
    moved.save_as(folder / "7.dcm")
    with pytest.raises(formats.UnsuitableError, match=r"not evenly spaced: one lies 0.6 mm from its place"):
        read(folder)


def test_one_class_of_errors() -> None:
    assert formats.UnsuitableError is dicom.UnsuitableError


@pytest.mark.parametrize("slope", [1, 0.5])
def test_values_above_2_31(slope, tmp_path) -> None:
    values = np.array([0, 2**31 - 1, 2**31, 2**32 - 1] * 9 + [7] * 18, np.uint32)
    folder = series(
        tmp_path / "case", BitsAllocated=32, BitsStored=32, HighBit=31, PixelData=values.tobytes(),
        RescaleIntercept=0, RescaleSlope=slope,
    )  # fmt: skip
    header, array = read(folder)
    np.testing.assert_array_equal(array[:, :, 0, 0].T.ravel(), values * float(slope))
    assert header.num_bytes == array.nbytes


def test_floats_stay_floats(tmp_path) -> None:
    values = np.linspace(-0.5, 0.5, 54, dtype=np.float32)
    folder = series(
        tmp_path / "case", BitsAllocated=32, BitsStored=32, HighBit=31, PixelData=absent,
        FloatPixelData=values.tobytes(), RescaleIntercept=absent, RescaleSlope=absent,
    )  # fmt: skip
    np.testing.assert_array_equal(read(folder)[1][:, :, 0, 0].T.ravel(), values)


# Files.


def test_files_without_extension_and_without_a_mark(tmp_path) -> None:
    folder = series(tmp_path / "case", name="IM{}")
    wanted = read(folder)[1]
    for path in folder.iterdir():
        slice_ = pydicom.dcmread(path)
        del slice_.file_meta
        pydicom.dcmwrite(path, slice_, implicit_vr=path.name != "IM0", little_endian=True, enforce_file_format=False)
        content = path.read_bytes()
        path.write_bytes(content[132:] if content[128:132] == b"DICM" else content)
    assert all(path.read_bytes()[128:132] != b"DICM" for path in folder.iterdir())
    np.testing.assert_array_equal(read(folder)[1], wanted)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\x08\x00", np.array([8, 0, 4, 0, 7, 7] * 40, np.uint16).tobytes(), b"\x5c\x01\x00\x00" * 99],
    ids=["empty", "text", "short", "numbers", "NIfTI"],
)
def test_what_is_no_dicom_file(content, tmp_path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert not formats.is_series(tmp_path)


def test_pydicoms_own_files_without_a_mark(tmp_path) -> None:
    shutil.copy(get_testdata_file("rtstruct.dcm"), tmp_path / "rtstruct")
    assert formats.is_series(tmp_path)
    with pytest.raises(ValueError, match="holds no DICOM image"):
        read(tmp_path)


COMPRESSED = ("RLE", "jp2klossless", "jpeg_ls_lossless", "implicit", "bigendian")


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_files(name, tmp_path) -> None:
    """pydicom's own example, as it is and compressed."""
    for folder, file in (("plain", "MR_small.dcm"), ("case", f"MR_small_{name}.dcm")):
        (tmp_path / folder).mkdir()
        shutil.copy(get_testdata_file(file), tmp_path / folder / file)
    np.testing.assert_array_equal(read(tmp_path / "case")[1], read(tmp_path / "plain")[1])


@pytest.mark.parametrize("name", ["JPEGLosslessProcess14_1", "deflated"])
def test_compressed_series(name, tmp_path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (6, 9)).astype(np.uint16)
    folder = series(tmp_path / "case", PixelData=values.tobytes())
    wanted = read(folder)[1]
    for path in folder.iterdir():
        if name == "deflated":
            slice_ = pydicom.dcmread(path)
            slice_.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
            slice_.save_as(path)
            continue
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
    np.testing.assert_array_equal(read(folder)[1], wanted)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (pydicom.uid.HTJ2KLossless, r"High-Throughput JPEG 2000 .* needs pylibjpeg.*pylibjpeg-openjpeg"),
        (pydicom.uid.MPEG2MPML, "MPEG2 Main Profile .* which pydicom does not read"),
        ("1.2.3.4.5", "compressed as 1.2.3.4.5, which pydicom does not read"),
    ],
    ids=["no decoder here", "video", "private"],
)
def test_compressed_files_that_nothing_decodes(syntax, message, tmp_path) -> None:
    folder = series(tmp_path / "case", number=1)
    slice_ = pydicom.dcmread(folder / "0.dcm")
    slice_.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    slice_["PixelData"].is_undefined_length = True
    slice_.file_meta.TransferSyntaxUID = syntax
    slice_.save_as(folder / "0.dcm", implicit_vr=False, little_endian=True)
    with pytest.raises(formats.UnsuitableError, match=message):
        formats.open_image(folder)


# Many frames.


def test_enhanced_files(tmp_path) -> None:
    folder = enhanced(tmp_path / "case", places=(2, 0, 3, 1), slope=2.0)
    header, array = read(folder)
    assert header.shape == (9, 6, 4)
    np.testing.assert_array_equal(array[0, 0, :, 0], [2, 22, 42, 62])
    np.testing.assert_allclose(
        header.affine, formats.LPS @ [[0.75, 0, 0, 5], [0, 0.5, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]]
    )


def test_highdicom_reads_the_same_of_enhanced_files(tmp_path) -> None:
    folder = enhanced(tmp_path / "case", places=(0, 1, 2))
    header, array = read(folder)
    volume = highdicom.imread(folder / "frames.dcm").get_volume()
    for index in ((0, 0, 0), (8, 5, 2), (3, 1, 1)):
        at = np.linalg.inv(volume.affine) @ formats.LPS @ header.affine @ [*index, 1]
        assert volume.array[tuple(np.rint(at[:3]).astype(int))] == array[(*index, 0)]


def test_echoes_of_an_enhanced_file_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(formats.UnsuitableError, match=r"holds 2 images: .*echo time 4.*echo time 9.*file of its own"):
        read(enhanced(tmp_path / "case", echoes=(4.0, 9.0)))


def test_an_enhanced_file_with_a_missing_frame(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"missing between frame 2 of frames.dcm and frame 3 of frames.dcm"):
        read(enhanced(tmp_path / "case", places=(0, 1, 3, 4)))


# Several images in a folder.


def several(folder: Path, **kinds: dict[str, object]) -> Path:
    """Series in one folder, each with the name of its files and its options."""
    for number, (name, options) in enumerate(kinds.items(), 1):
        series(folder, name=name + "_{}", **{"SeriesDescription": name, "SeriesNumber": number, **options})
    return folder


LOCALIZERS = {
    "by its image type": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "number": 5, "orientation": SAGITTAL},
    "few slices": {"number": 1, "orientation": CORONAL},
    "a picture without a place": {"number": 1, "ImagePositionPatient": absent, "PixelSpacing": absent},
    "a segmentation": {"number": 5, "Modality": "SEG"},
    "in the same series": {"uid": "1.2.5", "number": 1, "orientation": SAGITTAL, "ImageType": ["A", "B", "LOCALIZER"]},
}


@pytest.mark.parametrize("options", LOCALIZERS.values(), ids=LOCALIZERS)
def test_a_localizer_is_left_out_and_told(options, tmp_path, caplog) -> None:
    folder = several(tmp_path / "case", scout=options, abdomen={"number": 13, "uid": "1.2.5"})
    with caplog.at_level(logging.WARNING):
        header, _ = read(folder)
        formats.open_image(folder)
    assert header.shape == (9, 6, 13)
    [told] = caplog.messages
    assert told.startswith('case: "abdomen" (series 2, 13 slices, such as abdomen_000) is read, and left out: "scout"')


def test_a_localizer_of_three_planes(tmp_path, caplog) -> None:
    folder = tmp_path / "case"
    for name, orientation in (("a", AXIAL), ("s", SAGITTAL), ("c", CORONAL)):
        series(folder, name=name + "{}", orientation=orientation, uid="1.2.9", SeriesDescription="planes")
    series(folder, number=9, SeriesDescription="brain")
    assert read(folder)[0].shape == (9, 6, 9)
    assert [f"orientation {plane}" in caplog.text for plane in ("axial", "sagittal", "coronal")] == [True] * 3
    for path in folder.glob("*.dcm"):
        path.unlink()
    with pytest.raises(formats.UnsuitableError, match=r"holds 3 images: .*axial.*coronal.*sagittal"):
        read(folder)


def test_a_localizer_alone_is_read(tmp_path, caplog) -> None:
    assert read(series(tmp_path / "case", ImageType=["A", "B", "LOCALIZER"]))[0].shape == (9, 6, 4)
    assert not caplog.messages


ECHO = {"SeriesDescription": "T2", "SeriesNumber": 4, "uid": "1.2.7"}
SEVERAL = {
    "series": ({"T1": {}, "T2": {"number": 5}},
               r'"T1" \(series 1, 4 slices, such as T1_0\); "T2" \(series 2, 5 slices'),
    "echoes": ({"a": {**ECHO, "EchoNumbers": 1}, "b": {**ECHO, "EchoNumbers": 2}},
               r'"T2" \(series 4, echo 1, 4 slices, such as a_0\); "T2" \(series 4, echo 2, 4 slices, such as b_0\)'),
    "acquisitions": ({"a": {**ECHO, "AcquisitionNumber": 1}, "b": {**ECHO, "AcquisitionNumber": 2}},
                     "acquisition 1, 4 slices.*acquisition 2, 4 slices"),
    "echoes of magnitude and phase": (
        {f"{kind}{echo}": {**ECHO, "EchoNumbers": echo, "ImageType": ["ORIGINAL", "PRIMARY", kind]}
         for echo in (1, 2) for kind in "MP"},
        "holds 4 images: .*'M'.*echo 1.*'P'.*echo 2"),
    "orientations": ({"a": {**ECHO}, "b": {**ECHO, "orientation": SAGITTAL}},
                     "orientation axial.*orientation sagittal"),
    "sizes": ({"a": {**ECHO}, "b": {**ECHO, "Rows": 3, "PixelData": np.zeros(27, np.uint16).tobytes()}},
              "size 9 x 6.*size 9 x 3"),
}  # fmt: skip


@pytest.mark.parametrize(("kinds", "message"), SEVERAL.values(), ids=SEVERAL)
def test_several_images_are_refused_by_name(kinds, message, tmp_path) -> None:
    folder = several(tmp_path / "case", **kinds)
    with pytest.raises(DatasetError, match=message) as caught:
        images.read_grid(folder)
    assert "Put the files of each into a folder of its own" in str(caught.value)


def test_one_acquisition_with_a_missing_slice_is_one_image(tmp_path) -> None:
    """Attributes that differ from slice to slice tell no images apart."""
    folder = series(tmp_path / "case", number=9, leave_out=[4])
    for number, path in enumerate(sorted(folder.iterdir())):
        slice_ = pydicom.dcmread(path)
        slice_.AcquisitionNumber, slice_.AcquisitionTime = number, f"1010{number:02}"
        slice_.save_as(path)
    with pytest.raises(ValueError, match="a slice is missing between"):
        read(folder)
