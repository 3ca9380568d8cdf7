"""What is written down of each prediction: predictions.json beside the segmentations."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from scripts.familiarity import UNLIKE
from scripts.files import write_text_atomically
from scripts.formats import case_name, segmentation_name
from scripts.memory import peak_bytes, reset_peak

logger = logging.getLogger(__name__)
NAME = "predictions.json"


class PredictionRecord:
    """Handler for an :class:`scripts.prediction.ImageEvaluator`: writes predictions.json after every image.

    For each image, by the name of its case: "image" and "segmentation", the files; "warnings", in what it is unlike
    those of the training; "seconds" of its "reading" and preprocessing, in the loader's process, of "waiting" for that,
    of the "network", and of the "export": all that becomes of the network's output before the next image begins, beside
    whose network the file is written; "peak_memory", bytes of this process meanwhile (null where the system does not
    tell), and on a GPU "peak_gpu_memory"; "voxels" and "ml" of each foreground class; of an ensemble the "agreement" of
    its networks, see :class:`scripts.agreement.Agreement`; "incomplete", why there is no DICOM Segmentation beside the
    segmentation, where one was asked for. An image that could not be predicted has its "error" instead. Images of
    earlier runs stay, while their segmentations are there.

    Args:
        output_dir: folder of the segmentations.
        class_names: names of all classes, background first.
        segmenter: the :class:`scripts.inversion.LabelInferer` that predicts.
    """

    def __init__(self, output_dir: str | Path, class_names: Sequence[str], segmenter: Any) -> None:
        self.path = Path(output_dir) / NAME
        self.classes = list(class_names)[1:]
        self.segmenter = segmenter
        self.images: dict[str, dict[str, Any]] = {}
        self._started = self._waited = 0.0

    def attach(self, engine: Engine) -> None:
        """Take the time of what happens to each image."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._wait)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _begin(self, _: Engine) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.images = {name: entry for name, entry in found.items() if self._is_there(entry)}
        except (OSError, ValueError, AttributeError):
            self.images = {}

    def _is_there(self, entry: Any) -> bool:
        """Whether the segmentation of an entry is still there."""
        name = entry.get("segmentation") if isinstance(entry, dict) else None
        return isinstance(name, str) and (self.path.parent / name).is_file()

    def _wait(self, _: Engine) -> None:
        self._waited = time.monotonic()

    def _start(self, _: Engine) -> None:
        self._started = time.monotonic()
        self._waited = self._started - self._waited
        reset_peak()

    def __call__(self, engine: Engine) -> None:
        """Write down what became of an image, and of the one before, whose segmentation was written meanwhile."""
        for item in engine.state.output:
            self._take(engine, item)
        for path, cause in engine.faults.items():
            self.images[case_name(path)] = {"image": engine.files.get(path, path), "error": cause}
        for path, cause in engine.incomplete.items():
            self.images[case_name(path)]["incomplete"] = cause
        self._write()

    def _take(self, engine: Engine, item: Any) -> None:
        meta = item["image"].meta
        subject, network = str(meta["filename_or_obj"]), self.segmenter.network_seconds
        seconds = {
            "reading": float(engine.state.batch[0]["reading_seconds"]),
            "waiting": self._waited,
            "network": network,
            "export": time.monotonic() - self._started - network,
        }
        entry = {
            "image": str(meta.get("file", subject)),
            "segmentation": segmentation_name(subject),
            "warnings": [text for text in meta.get(UNLIKE, "").split("; ") if text],
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "peak_memory": peak_bytes(),
            **self._volumes(item["pred"]),
        }
        if self.segmenter.agreement is not None:
            entry["agreement"] = round(self.segmenter.agreement, 4)
        if torch.cuda.is_available():
            entry["peak_gpu_memory"] = torch.cuda.max_memory_allocated()
        self.images[case_name(subject)] = entry

    def _volumes(self, classes: Any) -> dict[str, dict[str, float]]:
        """Voxels and volume of each class of a segmentation, class numbers (1, X, Y, Z)."""
        numbers = classes.as_tensor().flatten().to(torch.uint8)  # no copy: they are
        counts = torch.bincount(numbers, minlength=len(self.classes) + 1)[1:].tolist()
        ml = abs(float(np.linalg.det(np.asarray(classes.affine)[:3, :3]))) / 1000
        named = dict(zip(self.classes, counts, strict=True))
        return {"voxels": named, "ml": {name: float(f"{ml * count:.6g}") for name, count in named.items()}}

    def _write(self) -> None:
        try:
            write_text_atomically(self.path, json.dumps(self.images, indent=1) + "\n")
        except OSError as error:  # the disk is full, which the next segmentation will say, too
            logger.warning("%s cannot be written: %s", self.path, error)
