"""DICOM Segmentations lie where their series lies, whatever the order, direction and numbers of its slices."""

from pathlib import Path

import dicoms
import highdicom
import numpy as np
import pydicom
import pytest
from dicoms import PATIENT, absent, enhanced, raw
from monai.data import MetaTensor
from scripts import formats
from scripts.dicom_seg import write_segmentation
from scripts.prediction import SegmentationWriter

from autoplan.__main__ import main
from autoplan.base.errors import DatasetError
from autoplan.data.facts import Case
from autoplan.prediction.predict import _check_dicom

NAMES = ["background", "left", "right"]
TILT = (np.cos(0.3), np.sin(0.3), 0, -np.sin(0.3), np.cos(0.3), 0)


def segmented(folder: Path) -> np.ndarray:
    """Class numbers on the grid of a series, which are the same in no mirroring."""
    header, _ = formats.open_image(folder)
    classes = np.zeros(header.shape, np.uint8)
    classes[1:4, 2:5, 0], classes[5:7, 1:3, 1:3] = 1, 2
    return classes


def in_world(affine: np.ndarray, mask: np.ndarray) -> list[list[float]]:
    """Places of the voxels of a mask in mm, in order."""
    found = np.argwhere(mask)
    return sorted((np.c_[found, np.ones(len(found))] @ affine.T)[:, :3].round(3).tolist())


def series(folder: Path, **options: object) -> Path:
    """A series with what a scanner says of its patient."""
    return dicoms.series(folder, **{**PATIENT, **options})


@pytest.mark.parametrize(
    "options", [{}, {"orientation": TILT}, {"orientation": (0, 1, 0, 0, 0, -1)}], ids=["axial", "oblique", "sagittal"]
)
def test_it_lies_on_its_series(options, tmp_path) -> None:
    folder = series(tmp_path / "case", **options)
    classes = segmented(folder)
    write_segmentation(tmp_path / "case.dcm", folder, classes, NAMES)
    found = highdicom.seg.segread(tmp_path / "case.dcm")
    assert [found.get_segment_description(n).segment_label for n in found.segment_numbers] == NAMES[1:]
    series_uids = {pydicom.dcmread(p).SeriesInstanceUID for p in folder.iterdir()}
    assert {str(found.ReferencedSeriesSequence[0].SeriesInstanceUID)} == series_uids
    volume = found.get_volume(combine_segments=True)
    header, _ = formats.open_image(folder)
    for number in (1, 2):
        ours = in_world(formats.LPS @ header.affine, classes == number)
        np.testing.assert_allclose(ours, in_world(volume.affine, volume.array == number), atol=2e-3)


def test_nothing_found_is_an_empty_object(tmp_path) -> None:
    folder = series(tmp_path / "case")
    write_segmentation(tmp_path / "case.dcm", folder, np.zeros_like(segmented(folder)), NAMES)
    assert not highdicom.seg.segread(tmp_path / "case.dcm").get_volume(combine_segments=True).array.any()


def test_the_writer_of_a_bundle(tmp_path) -> None:
    """Beside the NIfTI file, with class numbers where that has the values of the labels."""
    folder = series(tmp_path / "case")
    classes, (header, _) = segmented(folder), formats.open_image(folder)
    writer = SegmentationWriter([0, 3, 9], dicom_seg=True, class_names=NAMES)
    meta = {"filename_or_obj": str(folder), "affine": header.affine, "original_affine": header.affine}

    def write() -> None:
        writer.set_data_array(MetaTensor(classes[None]))
        writer.set_metadata(meta, resample=False)
        writer.write(tmp_path / "out" / "case")

    (tmp_path / "out").mkdir()
    write()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".written.json", "case.dcm", "case.nii.gz"]
    assert highdicom.seg.segread(tmp_path / "out" / "case.dcm").get_volume(combine_segments=True).array.max() == 2
    made = (tmp_path / "out" / "case.dcm").read_bytes()
    write()
    assert (tmp_path / "out" / "case.dcm").read_bytes() != made, "nobody has changed it"
    (tmp_path / "out" / "case.dcm").write_bytes(b"corrected")
    write()
    assert (tmp_path / "out" / "case.dcm").read_bytes() == b"corrected"


EMPTIED = [n for n in PATIENT if n not in ("StudyInstanceUID", "FrameOfReferenceUID")]
ANONYMIZED = {
    "absent": dict.fromkeys(EMPTIED, absent),
    "empty": dict.fromkeys(EMPTIED),
    "no values of their kind": {"PatientSex": "X", "PatientBirthDate": raw(b"anonymous", "DA"),
                                "StudyDate": raw(b"?", "DA"), "StudyTime": raw(b"noon", "TM")},
    "a thickness that is no number": {"SliceThickness": raw(b"thin")},
}  # fmt: skip


@pytest.mark.parametrize("fields", ANONYMIZED.values(), ids=ANONYMIZED)
def test_anonymized_series(fields, tmp_path) -> None:
    """Values that are not known are empty, which DICOM asks for."""
    folder = series(tmp_path / "case", **fields)
    classes = segmented(folder)
    write_segmentation(tmp_path / "case.dcm", folder, classes, NAMES)
    found = pydicom.dcmread(tmp_path / "case.dcm")
    for name in set(fields) - {"Modality", "SeriesNumber", "SliceThickness"}:
        assert found[name].value in ("", None)
    volume = highdicom.seg.segread(tmp_path / "case.dcm").get_volume(combine_segments=True)
    assert (volume.array == 2).sum() == (classes == 2).sum()


@pytest.mark.parametrize("name", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_what_a_segmentation_refers_to_must_be_there(name, tmp_path) -> None:
    folder = series(tmp_path / "case", **{name: absent})
    with pytest.raises(ValueError, match=f"its files have no {name}, which a DICOM Segmentation refers to"):
        write_segmentation(tmp_path / "case.dcm", folder, segmented(folder), NAMES)
    assert not (tmp_path / "case.dcm").exists()


def test_enhanced_series(tmp_path) -> None:
    """Its frames lie in another order than their places."""
    folder = enhanced(tmp_path / "case", places=(2, 0, 3, 1))
    classes, (header, _) = segmented(folder), formats.open_image(folder)
    write_segmentation(tmp_path / "case.dcm", folder, classes, NAMES)
    volume = highdicom.seg.segread(tmp_path / "case.dcm").get_volume(combine_segments=True)
    ours = in_world(formats.LPS @ header.affine, classes == 2)
    np.testing.assert_allclose(ours, in_world(volume.affine, volume.array == 2), atol=2e-3)


def test_a_tilted_gantry(tmp_path) -> None:
    folder = series(tmp_path / "case", shear=(0, 0.7, 0))
    classes, (header, _) = segmented(folder), formats.open_image(folder)
    write_segmentation(tmp_path / "case.dcm", folder, classes, NAMES)
    found = pydicom.dcmread(tmp_path / "case.dcm")
    places = {tuple(f.PlanePositionSequence[0].ImagePositionPatient) for f in found.PerFrameFunctionalGroupsSequence}
    ours = {tuple((formats.LPS @ header.affine @ [0, 0, k, 1])[:3].round(4)) for k in range(3)}
    assert {tuple(round(float(v), 4) for v in place) for place in places} == ours


def test_what_is_no_series_is_refused(tmp_path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text('{"dicom_seg": false}')
    with pytest.raises(DatasetError, match=r"--dicom_seg: a.nii.gz is no folder of DICOM files"):
        _check_dicom([Case("a", ("a.nii.gz",))])
    with pytest.raises(ValueError, match="no folder of DICOM files"):
        write_segmentation(tmp_path / "a.dcm", tmp_path / "a.nii.gz", np.zeros((1, 1, 1), np.uint8), NAMES)
    assert main(["predict", "nothing", "--dicom_seg", "yes"]) == 1
