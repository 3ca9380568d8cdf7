"""Predicting many images: one that cannot be predicted does not stop the others, and files are whole or not there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import Dataset, MetaTensor, NibabelWriter
from monai.engines import SupervisedEvaluator
from monai.utils import convert_to_numpy, ensure_tuple

from scripts.beside import Beside
from scripts.dicom_seg import write_segmentation
from scripts.familiarity import UNLIKE
from scripts.files import FULL, is_changed, write_noted
from scripts.formats import PALETTE, case_name, segmentation_name, subject_of, write_image
from scripts.readers import COLOURS

logger = logging.getLogger(__name__)
FAULT = "fault"
FILE = "file"
DICOM_SEG = "DICOM Segmentation"
MAX_CAUSE = 600
"""Characters of a cause that are told."""


class SideProductError(RuntimeError):
    """What is written beside a segmentation could not be made, and the segmentation was. Its cause is the reason."""


class SegmentationWriter(NibabelWriter):
    """Writer for `SaveImaged` that writes class numbers as the dataset's label values, and atomically: a file that
    exists is whole.

    It never resamples. MONAI 1.6.1 goes through its resampling even where that is switched off, and fails there on an
    image whose axes are stored in another order than right, anterior, superior.

    Args:
        label_values: value of each class in the file.
        output_dtype: type of the file's values.
        dicom_seg: whether a DICOM Segmentation, <case>.dcm, is written beside each file; of DICOM series only.
        class_names: names of all classes, for that.
        writing: writes the files while the network sees the next image; None: they are written at once.
    """

    def __init__(
        self,
        label_values: Sequence[int],
        output_dtype: Any = np.uint8,
        dicom_seg: bool = False,
        class_names: Sequence[str] = (),
        writing: Beside | None = None,
        **options: Any,
    ) -> None:
        super().__init__(output_dtype=output_dtype, **options)
        self.label_values, self.writing = np.asarray(label_values), writing
        self.dicom_seg, self.class_names = dicom_seg, class_names

    @classmethod
    def resample_if_needed(cls, data_array: Any, affine: Any = None, **_: Any) -> tuple[Any, Any]:
        """The array and its affine as they are."""
        return data_array, affine

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **_: Any) -> None:
        """Take class numbers (1, X, Y, Z), of any device. MONAI would also drop trailing axes of one voxel."""
        classes = convert_to_numpy(data_array if channel_dim is None else data_array.squeeze(channel_dim))
        self.classes, self.data_obj = classes, self.label_values.astype(self.output_dtype)[classes]

    def write(self, filename: str | Path, verbose: bool = False, **_: Any) -> None:
        """Write the image that was set, with the suffix of its image's format in place of `filename`'s."""
        work = partial(self._write, self._target(Path(filename)))
        if self.writing is None:
            work()
        else:
            self.writing.do(self.subject, work)

    def _write(self, path: Path) -> None:
        fault = self._write_dicom_seg(path) if self.dicom_seg else None  # first: where the other file is, all is done
        values, affine = self._values(), np.asarray(self.affine, dtype=np.float64)
        write_noted(path, lambda temporary: write_image(temporary, values, affine, self.file))
        if fault is not None:
            raise SideProductError(f"{path.name} is written, but no {DICOM_SEG}: {_cause(fault)}") from fault

    def _write_dicom_seg(self, path: Path) -> Exception | None:
        """Write the DICOM Segmentation beside a file; what keeps it from that keeps the file from nothing."""
        target = path.with_name(f"{case_name(path)}.dcm")
        if is_changed(target):
            logger.warning("%s was changed by hand, so it stays", target)
            return None
        try:
            write_segmentation(target, self.file, np.asarray(self.classes), self.class_names)
        except Exception as error:  # pydicom and highdicom raise of many kinds
            return error
        return None

    def _target(self, path: Path) -> Path:
        """The path of the segmentation. MONAI takes the last part of any name for its suffix, and no other but ".gz"
        behind it."""
        name, whole = case_name(self.subject), segmentation_name(self.subject)
        without = Path(Path(self.subject).name.removesuffix(".gz")).stem
        return path.with_name(name + case_name(path).removeprefix(without) + whole.removeprefix(name))

    def _values(self) -> np.ndarray:
        """The segmentation as numbers of the file's type."""
        return np.asarray(self.data_obj).astype(self.output_dtype)

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any) -> None:
        """Take the affine of the image, and its name."""
        super().set_metadata(meta_dict, resample, **options)
        meta = meta_dict or {}
        self.subject = str(meta["filename_or_obj"])
        self.file = str(meta.get("file", self.subject))


class ImageDataset(Dataset):
    """Preprocessed images; one that cannot be read or preprocessed becomes an item that says why.

    Args:
        data: {"name", "image"} of each image; the image is a path, or a list of paths, one a channel.
        transform: the preprocessing.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        super().__init__(data, transform)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = time.monotonic()
        try:
            item = super().__getitem__(index)
            if isinstance(item["image"], MetaTensor) and item["image"].meta.get(COLOURS):
                raise ValueError(PALETTE)
            return {**item, "reading_seconds": time.monotonic() - start}
        except Exception as error:
            file = str(ensure_tuple(self.data[index]["image"])[0])
            return {FAULT: _cause(error), "image": subject_of(file, self.data[index].get("name")), FILE: file}


class ImageEvaluator(SupervisedEvaluator):
    """Evaluator of batches of one image that goes on when an image fails, unless the disk is full, names those that did
    in the end and then leaves with exit status 1. So it does for segmentations whose side product failed, which count
    as predicted.

    Attributes:
        faults: why images could not be predicted, by the path of the case.
        incomplete: why segmentations have no side product, likewise.
        files: the files of images, likewise: a case may have another name than its file.

    Args:
        writing: what writes the segmentations beside the network.
        args, kwargs: of `SupervisedEvaluator`.
    """

    def __init__(self, *args: Any, writing: Beside, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.writing, writing.is_on = writing, True
        self.faults: dict[str, str] = {}
        self.incomplete: dict[str, str] = {}
        self.files: dict[str, str] = {}

    def run(self, global_epoch: int = 1) -> None:
        """Predict all images."""
        if not self.state.epoch_length:
            logger.info("every image has its segmentation, nothing is left to predict")
            return
        super().run(global_epoch)
        # Not in a handler, where the engine would log the exit as an error of its own, below the list.
        verdicts = (f"segmentations were written without their {DICOM_SEG}", "images could not be predicted")
        for found, verdict in zip((self.incomplete, self.faults), verdicts, strict=True):
            if found:
                lines = "\n".join(f"  {self.files.get(path, path)}: {cause}" for path, cause in found.items())
                logger.error("%d of %d %s:\n%s", len(found), self.state.iteration, verdict, lines)
        if self.faults or self.incomplete:
            raise SystemExit(1)

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> Any:
        self.state.output = []
        self._look_at_writing(wait=False)
        if not self.should_terminate:
            self._predict(engine, batchdata)
        self._look_at_writing(wait=self.state.iteration >= self.state.epoch_length)
        return self.state.output

    def _look_at_writing(self, *, wait: bool) -> None:
        for path, error in self.writing.errors(wait=wait).items():
            if isinstance(error, SideProductError):
                logger.error("%s", error)
                self.incomplete[str(path)] = _cause(error)
            else:
                self._fail(path, _cause(error))

    def _predict(self, engine: Engine, batchdata: dict[str, Any]) -> None:
        image = batchdata["image"]
        if FAULT in batchdata:
            self.files[image[0]] = batchdata[FILE][0]
            self._fail(image[0], batchdata[FAULT][0])
            return
        name = image.meta["filename_or_obj"][0]
        self.files[name] = image.meta.get(FILE, [name])[0]
        if unlike := image.meta.get(UNLIKE, [""])[0]:
            logger.warning("%s is unlike the images of the training: %s", case_name(name), unlike)
        try:
            super()._iteration(engine, batchdata)
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            self.state.output = []
            self._fail(name, _cause(error))

    def _fail(self, path: str, cause: str) -> None:
        logger.error("%s could not be predicted: %s", case_name(path), cause)
        self.faults[str(path)] = cause
        if FULL in cause:  # the others would be predicted in vain
            self.terminate()


def _cause(error: BaseException) -> str:
    """First line of the innermost error: MONAI wraps it in one that names the transform, and puts the errors of writers
    as text into its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, torch.OutOfMemoryError):
        return "the memory of the GPU does not suffice; try --device cpu"
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[-1 if "Traceback (most recent call last):" in lines else 0][:MAX_CAUSE]
