"""Real CT cases as DICOM series: planned, predicted, and their DICOM Segmentations read back by highdicom.

    python benchmarks/dicom.py [--task data/Task61_STSCT]

Three cases are written slice by slice: plainly, numbered from the other end, and turned by 0.3 radians. They are
planned, and predicted by an untrained network with --dicom_seg. A fourth lacks a slice and is refused.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "templates"))

import highdicom
import torch
from monai.bundle import ConfigParser

from autoplan.__main__ import main as autoplan
from autoplan.data import images

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(angle: float) -> np.ndarray:
    """A rotation about the first axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])


def write_series(folder: Path, image: nibabel.Nifti1Image, affine: np.ndarray, *, backwards: bool = False) -> None:
    """A CT series, a file a slice; `backwards`: numbers and names of files count against the places."""
    folder.mkdir(parents=True)
    array, world = np.asanyarray(image.dataobj).astype(np.int16), LPS @ affine
    steps = np.linalg.norm(world[:3, :3], axis=0)
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    texts = dict.fromkeys(
        ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName"), ""
    )
    for k in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        number = array.shape[2] - k if backwards else k + 1
        fields = {
            **uids, **texts, "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "Modality": "CT", "PatientID": "1", "PatientName": folder.name, "StudyDate": "20200101",
            "StudyTime": "101010", "SeriesNumber": 1, "InstanceNumber": number, "SamplesPerPixel": 1,
            "Rows": array.shape[1], "Columns": array.shape[0], "PhotometricInterpretation": "MONOCHROME2",
            "PixelRepresentation": 1, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "RescaleSlope": 1,
            "RescaleIntercept": 0, "SliceThickness": round(float(steps[2]), 4),
            "PixelSpacing": [round(float(steps[1]), 6), round(float(steps[0]), 6)],
            "ImageOrientationPatient": np.round((world[:3, :2] / steps[:2]).T.ravel(), 8).tolist(),
            "ImagePositionPatient": np.round(world[:3, 3] + k * world[:3, 2], 5).tolist(),
            "PixelData": np.ascontiguousarray(array[..., k].T).tobytes(),
        }  # fmt: skip
        made = FileDataset("slice", {}, file_meta=meta, preamble=b"\0" * 128)
        for name, value in fields.items():
            setattr(made, name, value)
        made.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)


def in_world(affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Places of the voxels of a mask in mm, in one order."""
    found = np.argwhere(mask)
    places = (np.c_[found, np.ones(len(found))] @ affine.T)[:, :3]
    return places[np.lexsort(places.round(1).T)]


def untrained(bundle: Path) -> None:
    """A network with random weights, which predicts without mirroring and overlap, for speed."""
    path = bundle / "configs" / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mirror": False, "overlap": 0.1}))
    parser = ConfigParser(json.loads(path.read_text()))
    parser["bundle_root"] = str(bundle)
    torch.manual_seed(0)
    (bundle / "models").mkdir(exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").state_dict(), bundle / "models" / "model.pt")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--task", type=Path, default=Path("data/Task61_STSCT"))
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "ct"
        sources = sorted((given.task / "imagesTr").glob("*.nii.gz"))[:3]
        for path, kind in zip(sources, ("plain", "backwards", "oblique"), strict=True):
            image, label = nibabel.load(path), nibabel.load(given.task / "labelsTr" / path.name)
            affine = turned(0.3 if kind == "oblique" else 0.0) @ image.affine
            write_series(folder / "series" / kind, image, affine, backwards=kind == "backwards")
            (folder / "masks").mkdir(exist_ok=True)
            mask = np.asanyarray(label.dataobj)
            if np.linalg.det(LPS[:3, :3] @ affine[:3, :3]) < 0:
                mask, affine = mask[..., ::-1], affine @ _flip(mask.shape[2])
            nibabel.save(nibabel.Nifti1Image(mask, affine), folder / "masks" / f"{kind}.nii.gz")
        words = ["--bundles", str(Path(name) / "bundles")]
        flags = ["--images", "series", "--labels", "masks", "--channels", "CT", "--labels_are", "rest,GTV"]
        assert autoplan([str(folder), *words, *flags]) == 0
        untrained(Path(name) / "bundles" / "ct" / "3d_fullres")
        predict = ["predict", str(folder), *words, "--name", "3d_fullres", "--images", str(folder / "series")]
        assert autoplan([*predict, "--output", str(Path(name) / "out"), "--device", "cpu", "--dicom_seg"]) == 0
        for kind in ("plain", "backwards", "oblique"):
            compare(Path(name) / "out", kind, folder / "series" / kind)
        shutil.copytree(folder / "series" / "plain", folder / "series" / "gap")
        (folder / "series" / "gap" / "020.dcm").unlink()
        shutil.copy(folder / "masks" / "plain.nii.gz", folder / "masks" / "gap.nii.gz")
        print("exit status", autoplan([str(folder), *words, *flags]))


def _flip(count: int) -> np.ndarray:
    """The affine that counts slices from the other end."""
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = count - 1
    return flip


def compare(output: Path, kind: str, series: Path) -> None:
    """How far the DICOM Segmentation lies from the NIfTI file, and whether it refers to the series."""
    made = highdicom.seg.segread(output / f"{kind}.dcm")
    volume, written = made.get_volume(combine_segments=True), images.read_volume(output / f"{kind}.nii.gz")
    ours = in_world(LPS @ written.affine, written.array[..., 0] == 1)
    theirs = in_world(np.asarray(volume.affine), volume.array == 1)
    uids = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in series.iterdir()}
    named = {str(i.ReferencedSOPInstanceUID) for i in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    apart = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("nan")
    print(f"{kind}: {len(ours)} voxels, {apart:.4f} mm apart at most, refers to the series: {named <= uids}")


if __name__ == "__main__":
    main()
