"""Segmentations of DICOM series as DICOM Segmentation objects, by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai import __version__ as monai_version
from numpy.typing import NDArray

from scripts.dicom import Slice, read_file, slices_of
from scripts.files import write_noted
from scripts.formats import open_image

MAX_LABEL = 64
"""Characters of a segment's name that DICOM allows."""
_REFERRED_TO = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def write_segmentation(
    path: str | Path, series: str | Path, classes: NDArray[np.uint8], class_names: Sequence[str]
) -> None:
    """Write class numbers as a DICOM Segmentation that refers to the series: a segment for each class, with its number.

    The segments' meaning is not coded, for a dataset has names of classes only; each is a tissue, called by its name.

    Args:
        path: the file to be written.
        series: folder of the DICOM series.
        classes: (X, Y, Z) on the grid of the series as `scripts.formats` reads it; 0 is the background.
        class_names: names of all classes, background first.

    Raises:
        ImportError: highdicom is not installed; the message has the command that installs it.
        ValueError: the image is no DICOM series.
    """
    if not Path(series).is_dir():
        raise ValueError("it is no folder of DICOM files, which a DICOM Segmentation refers to: leave out dicom_seg")
    try:
        import highdicom
    except ImportError:
        raise ImportError("dicom_seg needs a package that is not installed: pip install highdicom") from None
    slices = slices_of(series)
    sources, planes = _sources(slices), classes.transpose(2, 1, 0).astype(np.uint8)
    planes = planes[np.argsort([s.frame or 0 for s in slices], kind="stable")]  # as a file has its frames
    step = float(np.linalg.norm(open_image(series)[0].affine[:3, 2]))
    for source in sources:
        _complete(source, step)
    made = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(planes),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_segments(class_names),
        series_instance_uid=highdicom.UID(),
        series_number=1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="autoplan",
        manufacturer_model_name="U-Net",
        software_versions=f"MONAI {monai_version}",
        device_serial_number="0",
        omit_empty_frames=bool(classes.any()),
    )
    write_noted(path, lambda temporary: made.save_as(temporary))


def _sources(slices: Sequence[Slice]) -> list[Any]:
    """The headers of slices, in their order; the one of a file of many frames."""
    paths = list(dict.fromkeys(s.path for s in slices))
    sources = [read_file(path, stop_before_pixels=True) for path in paths]
    if slices[0].frame is not None and (len(paths) > 1 or len(slices) != sources[0].NumberOfFrames):
        raise ValueError("a DICOM Segmentation refers to all frames of one file, and the image has others")
    return sources


def _complete(source: Any, step: float) -> None:
    """Give a header what highdicom asks for and anonymized files lack. Empty is what DICOM asks for where such a value
    is not known; one that is none of its kind counts as not known.

    Raises:
        ValueError: it lacks what a DICOM Segmentation refers to.
    """
    from highdicom import PatientSexValues
    from pydicom.valuerep import DA, TM

    for name in _REFERRED_TO:
        if not source.get(name):
            raise ValueError(f"its files have no {name}, which a DICOM Segmentation refers to")
    kinds = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM, "PatientSex": PatientSexValues}
    for name in _MAY_BE_EMPTY:
        try:
            if value := source.get(name):
                kinds.get(name, str)(value)
        except (TypeError, ValueError, OverflowError):
            value = ""
        _put(source, name, value or "")
    source.Modality = source.get("Modality") or "OT"
    if "SharedFunctionalGroupsSequence" not in source:
        try:
            thickness = float(source.get("SliceThickness") or step)
        except (TypeError, ValueError):
            thickness = step
        _put(source, "SliceThickness", thickness)


def _put(source: Any, name: str, value: object) -> None:
    """Set an attribute; what was there may be no value of its kind, which pydicom would look at first."""
    source.pop(name, None)
    setattr(source, name, value)


def _segments(class_names: Sequence[str]) -> list[object]:
    """What each segment is."""
    from highdicom import AlgorithmIdentificationSequence, seg
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name="U-Net", version=monai_version, family=codes.DCM.ArtificialIntelligence
    )
    return [
        seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:MAX_LABEL].replace("\\", "/"),
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(class_names[1:], 1)
    ]
