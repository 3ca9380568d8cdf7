"""A bundle in MONAI Deploy: a DICOM series in, a DICOM segmentation out, compared with the project's own prediction.

    python3.11 -m venv deploy
    deploy/bin/pip install torch==2.13.0 monai==1.6.1 pytorch-ignite==0.5.5 nibabel==5.4.2 scipy==1.17.1 tqdm fire \
        matplotlib monai-deploy-app-sdk==4.0.0 highdicom==0.28.2 pydicom==3.0.2 SimpleITK==2.5.7
    deploy/bin/python tools/clients/monai_deploy.py FOLDER

FOLDER is that of bundles.py. Each bundle is used as a folder, and as a model.ts with its folder on PYTHONPATH.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

BUNDLES = ("3d_fullres", "3d_cascade_fullres", "phantom_mri_segmentation")
SLICES_FIRST = [2, 1, 0]


def volume_of(path: Path) -> highdicom.Volume:
    """A NIfTI image as slices, rows and columns."""
    return highdicom.Volume.from_nibabel(nibabel.load(path)).permute_spatial_axes(SLICES_FIRST)


def write_series(path: Path, folder: Path) -> None:
    """The slices of a NIfTI image of whole numbers as a DICOM series."""
    volume = volume_of(path)
    folder.mkdir(parents=True)
    uids = {name: highdicom.UID() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    columns = volume.get_plane_orientation()[0].ImageOrientationPatient
    for number, plane in enumerate(volume.array):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, highdicom.UID()
        for name, uid in uids.items():
            setattr(slice_, name, uid)
        slice_.Modality, slice_.PatientID, slice_.PatientName = "MR", path.name[:10], "Phantom"
        slice_.PatientBirthDate = slice_.PatientSex = slice_.AccessionNumber = slice_.ReferringPhysicianName = ""
        slice_.StudyDate = slice_.SeriesDate = "20240101"
        slice_.StudyTime = slice_.SeriesTime = "120000"
        slice_.StudyID, slice_.SeriesNumber, slice_.InstanceNumber = "1", 1, number + 1
        slice_.SeriesDescription, slice_.ImageType = "phantom", ["ORIGINAL", "PRIMARY"]
        slice_.ImageOrientationPatient = columns
        slice_.ImagePositionPatient = volume.get_plane_position(number)[0].ImagePositionPatient
        slice_.PixelSpacing, slice_.SliceThickness = list(volume.pixel_spacing), volume.spacing_between_slices
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.Rows, slice_.Columns = plane.shape
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 1
        slice_.PixelData = plane.astype("<i2").tobytes()
        slice_.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)


def run_app(bundle: Path, classes: list[str], series: Path, output: Path, model: Path | None) -> None:
    """The application: from the series in a folder to a segmentation in another."""
    from monai.deploy.conditions import CountCondition
    from monai.deploy.core import AppContext, Application
    from monai.deploy.core.domain import Image
    from monai.deploy.core.io_type import IOType
    from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
    from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
    from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
    from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
    from monai.deploy.operators.monai_bundle_inference_operator import (
        BundleConfigNames,
        IOMapping,
        MonaiBundleInferenceOperator,
    )

    class App(Application):
        def compose(self) -> None:
            context: AppContext = Application.init_app_context(self.argv)
            loader = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=series, name="loader")
            selector = DICOMSeriesSelectorOperator(self, name="selector")
            to_volume = DICOMSeriesToVolumeOperator(self, name="to_volume")
            inference = MonaiBundleInferenceOperator(
                self,
                input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
                output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
                app_context=context,
                bundle_config_names=BundleConfigNames(config_names=["inference"]),
                bundle_path=None if model else bundle,
                name="inference",
            )
            described = [
                SegmentDescription(
                    segment_label=name,
                    segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                    segmented_property_type=codes.SCT.Lesion,
                    algorithm_name=bundle.name,
                    algorithm_version="1.0.0",
                )
                for name in classes
            ]
            writer = DICOMSegmentationWriterOperator(
                self, segment_descriptions=described, output_folder=output, name="writer"
            )
            self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
            self.add_flow(selector, to_volume, {("study_selected_series_list", "study_selected_series_list")})
            self.add_flow(to_volume, inference, {("image", "image")})
            self.add_flow(selector, writer, {("study_selected_series_list", "study_selected_series_list")})
            self.add_flow(inference, writer, {("pred", "seg_image")})

    arguments = [sys.argv[0], f"--input={series}", f"--output={output}", *([f"--model={model}"] if model else [])]
    App(argv=arguments).run()


def difference(output: Path, image: Path, expected: Path, values: list[int]) -> str:
    """What differs between a segmentation and the project's own, in words; "equal" when nothing does."""
    [path] = output.glob("*.dcm")
    volume = volume_of(image)
    found = highdicom.seg.segread(path).get_volume(combine_segments=True).match_geometry(volume)
    own = np.asanyarray(nibabel.load(expected).dataobj).transpose(SLICES_FIRST)
    labels = np.array(values)[found.array]
    differ = int((labels != own).sum())
    return f"{differ} of {own.size} voxels differ" if differ else f"equal, {int((own > 0).sum())} voxels of foreground"


def main(folder: Path) -> int:
    """Compare all; 1 when something differs."""
    task = next((folder / "data").iterdir())
    images = sorted((task / "imagesTs").glob("*.nii.gz"))
    outcomes = []
    for image in images:
        series = folder / "dicom" / image.name[:-7]
        if not series.is_dir():
            write_series(image, series)
    for name in BUNDLES:
        bundle = folder / "bundles" / task.name / name
        config = json.loads((bundle / "configs" / "inference.json").read_text())
        model = folder / "deploy" / name / "model.ts"
        model.parent.mkdir(parents=True, exist_ok=True)
        export = ["ckpt_export", "network_def", f"--filepath={model}", "--ckpt_file=models/model.pt"]
        export += ["--meta_file=configs/metadata.json", "--config_file=configs/inference.json"]
        subprocess.run([sys.executable, "-m", "monai.bundle", *export], check=True, cwd=bundle, capture_output=True)
        for way in ("folder", "model.ts"):
            for image in images:
                output = folder / "deploy" / name / way.replace(".", "_") / image.name[:-7]
                for old in output.glob("*.dcm"):
                    old.unlink()
                arguments = [str(bundle), ",".join(config["class_names"][1:]), str(folder / "dicom" / image.name[:-7])]
                arguments += [str(output), *([str(model)] if way == "model.ts" else [])]
                # The application finds the bundle's scripts by itself when it is given the folder.
                paths = {"PYTHONPATH": str(bundle)} if way == "model.ts" else {}
                run = subprocess.run(
                    [sys.executable, __file__, "--app", *arguments],
                    cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True,
                )  # fmt: skip
                if run.returncode or not list(output.glob("*.dcm")):
                    said = (run.stderr + run.stdout).strip().splitlines()[-12:]
                    outcomes.append((name, way, image.name, "failed: " + "\n".join(said)))
                else:
                    expected = folder / "expected" / name / image.name
                    said = difference(output, image, expected, config["label_values"])
                    outcomes.append((name, way, image.name, said))
                print("  ".join(outcomes[-1]), flush=True)
    return int(any(not outcome[-1].startswith("equal") for outcome in outcomes))


if __name__ == "__main__":
    if sys.argv[1] == "--app":
        bundle, classes, series, output, *model = sys.argv[2:]
        run_app(Path(bundle), classes.split(","), Path(series), Path(output), Path(model[0]) if model else None)
    else:
        sys.exit(main(Path(sys.argv[1]).absolute()))
