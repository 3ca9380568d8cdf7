"""Segmentations of DICOM series as DICOM Segmentation objects, by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai import __version__ as monai_version
from numpy.typing import NDArray

from scripts.dicom import series_files
from scripts.files import write_noted
from scripts.formats import open_image

MAX_LABEL = 64
"""Characters of a segment's name that DICOM allows."""


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
        import pydicom
    except ImportError:
        raise ImportError("dicom_seg needs a package that is not installed: pip install highdicom") from None
    slices = [pydicom.dcmread(file) for file in series_files(series)]
    step = float(np.linalg.norm(open_image(series)[0].affine[:3, 2]))
    for slice_ in slices:
        slice_.SliceThickness = slice_.get("SliceThickness") or step  # highdicom wants one, files may lack it
    try:
        made = highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=np.ascontiguousarray(classes.transpose(2, 1, 0).astype(np.uint8)),
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
    except AttributeError as error:
        raise ValueError(f"its DICOM files lack what a DICOM Segmentation needs: {error}") from error
    write_noted(path, lambda temporary: made.save_as(temporary))


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
