"""DICOM series that tests write: plain, enhanced, and as scanners and anonymizers leave them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = (1, 0, 0, 0, 1, 0)
PATIENT = {
    "StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4", "Modality": "CT", "PatientID": "1",
    "PatientName": "A^B", "PatientBirthDate": "", "PatientSex": "", "StudyDate": "20200101", "StudyTime": "101010",
    "StudyID": "", "AccessionNumber": "", "ReferringPhysicianName": "", "SeriesNumber": 1,
}  # fmt: skip
"""What a scanner says of its patient."""


def raw(value: bytes, kind: str = "DS") -> Callable[[Dataset, str], None]:
    """What puts bytes into an attribute as they are, whatever it may hold."""

    def put(dataset: Dataset, name: str) -> None:
        tag = Tag(tag_for_keyword(name))
        padded = value + b" " * (len(value) % 2)
        dataset[tag] = RawDataElement(tag, kind, len(padded), padded, 0, False, True)

    return put


def absent(dataset: Dataset, name: str) -> None:
    """Removes an attribute."""
    if name in dataset:
        delattr(dataset, name)


def slice_of(uid: str, sop: str = CTImageStorage, shape: tuple[int, int] = (6, 9)) -> FileDataset:
    """A slice of a series without place and values."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    found = FileDataset("slice", {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID, found.SeriesInstanceUID = sop, meta.MediaStorageSOPInstanceUID, uid
    found.Rows, found.Columns = shape
    found.SamplesPerPixel, found.PhotometricInterpretation, found.PixelRepresentation = 1, "MONOCHROME2", 0
    found.BitsAllocated = found.BitsStored = 16
    found.HighBit = 15
    return found


def series(
    folder: Path,
    *,
    number: int = 4,
    orientation: Sequence[float] = AXIAL,
    leave_out: Iterable[int] = (),
    shear: Sequence[float] = (0, 0, 0),
    name: str = "{}.dcm",
    uid: str = "",
    **fields: object,
) -> Path:
    """Writes slices of 2 mm in any order of files; slice k holds the values 10 k - 1000.

    Args:
        folder: of the files, which may have others.
        number: of slices.
        orientation: of the rows and columns.
        leave_out: slices that are not written.
        shear: mm by which each slice is shifted against the one before.
        name: of the files.
        uid: of the series; a new one if empty.
        fields: attributes with their values, or with what is called with the slice and the attribute's name.
    """
    folder.mkdir(exist_ok=True, parents=True)
    uid, normal = uid or generate_uid(), np.cross(orientation[:3], orientation[3:])
    for k in set(range(number)) - set(leave_out):
        slice_ = slice_of(uid)
        slice_.InstanceNumber, slice_.RescaleSlope, slice_.RescaleIntercept = k + 1, 1, -1000
        slice_.PixelSpacing, slice_.ImageOrientationPatient = [0.5, 0.75], list(orientation)
        place = np.array([5.0, 6.0, 7.0]) + 2.0 * k * normal + k * np.array(shear)
        slice_.ImagePositionPatient = [f"{v:.8g}" for v in place]
        slice_.PixelData = np.full((6, 9), 10 * k, np.uint16).tobytes()
        for field, value in fields.items():
            if callable(value):
                value(slice_, field)
            else:
                setattr(slice_, field, value)
        slice_.save_as(folder / name.format((7 * k) % 10 if number <= 10 else f"{7 * k % number:03}"))
    return folder


def enhanced(
    folder: Path,
    *,
    places: Sequence[int] = (2, 0, 1),
    echoes: Sequence[float] = (),
    slope: float = 1.0,
    **fields: object,
) -> Path:
    """Writes one file of many frames; the frame at place k holds the values 10 k + 1, in each echo 1000 more."""
    folder.mkdir(parents=True, exist_ok=True)
    found = slice_of(generate_uid(), EnhancedMRImageStorage)
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Items([Dataset()]), Items([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(AXIAL)
    measures = shared.PixelMeasuresSequence[0]
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2.0
    frames, planes = [], []
    for number, echo in enumerate(echoes or (0.0,)):
        for k in places:
            frame = Dataset()
            frame.PlanePositionSequence, frame.FrameContentSequence = Items([Dataset()]), Items([Dataset()])
            frame.PlanePositionSequence[0].ImagePositionPatient = [5.0, 6.0, 7.0 + 2.0 * k]
            frame.FrameContentSequence[0].StackID = "1"
            frame.FrameContentSequence[0].InStackPositionNumber = k + 1
            frame.PixelValueTransformationSequence = Items([Dataset()])
            change = frame.PixelValueTransformationSequence[0]
            change.RescaleSlope, change.RescaleIntercept, change.RescaleType = slope, 0, "US"
            if echoes:
                frame.MREchoSequence = Items([Dataset()])
                frame.MREchoSequence[0].EffectiveEchoTime = echo
            frames.append(frame)
            planes.append(np.full((6, 9), 10 * k + 1 + 1000 * number, np.uint16))
    found.SharedFunctionalGroupsSequence, found.PerFrameFunctionalGroupsSequence = Items([shared]), Items(frames)
    found.NumberOfFrames, found.PixelData = len(frames), np.stack(planes).tobytes()
    for field, value in {**PATIENT, "Modality": "MR", **fields}.items():
        setattr(found, field, value)
    found.save_as(folder / "frames.dcm", enforce_file_format=True)
    return folder
