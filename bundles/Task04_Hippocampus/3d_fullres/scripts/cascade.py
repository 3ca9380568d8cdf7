"""Training the second stage of a cascade on the segmentations of the first.

Source: arXiv:1809.10486, section 2.1, "U-Net Cascade". The segmentation of a case comes from the fold of the first
stage that did not train on it; otherwise the second stage would learn to trust a first stage that is better than it is
on new images.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from tqdm import tqdm

from scripts.cache import CaseCache, read_arrays, read_case, remove_damaged, settings_digest, write_arrays
from scripts.datalists import read_folds
from scripts.formats import name_of
from scripts.inversion import labels_of
from scripts.networks import append_one_hot
from scripts.probabilities import Stored
from scripts.resampling import resample


class LowresSegmentations:
    """Segmentations of the first stage on the grid of the preprocessed cases, in files of which a patch is read without
    reading the case.

    Args:
        bundle: folder of the first stage's bundle, whose `evaluating` leaves the predictions of the validation cases.
        datalist: MONAI datalist with folds.
        cache: the preprocessed cases; the segmentations lie beside them.
    """

    def __init__(self, bundle: str | Path, datalist: str | Path, cache: CaseCache) -> None:
        self.bundle, self.cache = Path(bundle).resolve(), cache
        self.fold_of = {case["name"]: fold for fold, cases in enumerate(read_folds(datalist)) for case in cases}

    def source(self, name: str) -> Path:
        """File with the prediction of a case by the network that did not train on it.

        Raises:
            FileNotFoundError: it is not there, or by a network that was trained on since then; the message has the
                command that makes it.
            ValueError: no fold has the case, as with images that another program adds; or the network was trained on
                it, before the folds changed.
        """
        if name not in self.fold_of:
            raise ValueError(
                f"The case {name} is in no fold of the datalist, so the first stage has not segmented it. Train the "
                "second stage on cases of the datalist, or a bundle that is no cascade."
            )
        fold = self.fold_of[name]
        folder = self.bundle / "models" / f"fold_{fold}"
        path = folder / "validation" / "probabilities" / f"{name}.npz"
        seen = _read(folder / "finished.json").get("cases")
        if isinstance(seen, dict) and name in seen:
            raise ValueError(
                f"The network of fold {fold} of {self.bundle} was trained on the case {name}, which it has to segment: "
                f"the folds have changed since. Remove {folder} and train it anew."
            )
        if path.is_file() and not self._is_outdated(folder):
            return path
        what = (
            f"{path} is by another network than {folder / 'model.pt'}" if path.is_file() else f"{path} does not exist"
        )
        raise FileNotFoundError(
            f"The first stage has not segmented the case {name} of fold {fold}: {what}. {self._remedy(fold)}"
        )

    def _remedy(self, fold: int) -> str:
        """What predicts the cases of a fold."""
        configs = ",".join(f"'{self.bundle / 'configs' / config}.json'" for config in ("train", "evaluate"))
        return (
            f"Train fold {fold} of {self.bundle} and predict its cases, with the settings of its training: "
            f'python -m monai.bundle run evaluating --config_file "[{configs}]" --fold {fold}'
        )

    @staticmethod
    def _is_outdated(folder: Path) -> bool:
        """Whether the fold's training has ended with another network than that of the predictions."""
        files = (folder / "finished.json", folder / "validation" / "dice.json")
        models = {_model(file) for file in files} - {None}
        return len(models) > 1

    def fill(self, items: Sequence[Mapping[str, Any]]) -> list[Path]:
        """Files with the segmentations of the cases, after making those that are missing or older than the prediction.

        Args:
            items: {"name", "image", "label"} of each case; preprocessed if they are not.
        """
        sources = [self.source(name_of(item)) for item in items]
        # Cases that are there were checked when the cache was filled.
        cases = [self.cache.write(item) for item in items]
        targets = [self._target(case, source) for case, source in zip(cases, sources, strict=True)]
        remove_damaged(targets)
        missing = [t for t in zip(cases, sources, targets, strict=True) if not t[2].exists()]
        for case, source, target in tqdm(missing, desc="first stage", unit="case", disable=None):
            shape = read_case(case, self.cache.slice_axis).label.shape[1:]
            try:
                stored = Stored(source)
                low = labels_of(stored.rows(), [stored.shape], stored.axis)
            except ValueError as error:
                raise ValueError(f"{error}. Delete it. {self._remedy(self.fold_of[source.stem])}") from None
            labels = resample(low[None], shape, "nearest")
            write_arrays(target, [np.moveaxis(labels[0].numpy(), self.cache.slice_axis, 0)])
        return targets

    def _target(self, case: Path, source: Path) -> Path:
        stat = source.stat()
        stamp = settings_digest([stat.st_size, stat.st_mtime_ns], 8)
        return case.parent / "lowres" / f"{case.stem}-{stamp}.npys"

    def read(self, path: str | Path) -> np.ndarray:
        """The segmentation in a file that `fill` gave: uint8 (1, *spatial), memory-mapped."""
        [labels] = read_arrays(Path(path))
        return np.moveaxis(labels, 0, self.cache.slice_axis)[None]


def _read(path: Path) -> dict[str, Any]:
    """What finished.json or dice.json says; nothing where it says nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _model(path: Path) -> str | None:
    """The network that finished.json or dice.json names; None where it names none."""
    found = _read(path).get("model")
    return found if isinstance(found, str) else None


class SecondStage(torch.nn.Module):
    """The second stage of a cascade, to be trained. Its state dict is that of both stages, as in models/model.pt.

    Args:
        networks: both stages, a :class:`scripts.networks.Composite`.
    """

    def __init__(self, networks: Any) -> None:
        super().__init__()
        self.lowres, self.cascade = networks.lowres, networks.cascade

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of patches that have the one-hot channels of the first stage."""
        return self.cascade[0](x)


class AppendOneHotd(Transform):
    """Append the previous segmentation (1, X, Y, Z) to the image (C, X, Y, Z) as one-hot channels, one for each
    foreground class, and drop it.

    Args:
        num_classes: classes, background included.
        image_key: the image.
        lowres_key: the segmentation, class numbers.
    """

    def __init__(self, num_classes: int, image_key: Hashable = "image", lowres_key: Hashable = "lowres") -> None:
        self.num_classes = int(num_classes)
        self.image_key, self.lowres_key = image_key, lowres_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        lowres: torch.Tensor = d.pop(self.lowres_key)
        d[self.image_key] = append_one_hot(d[self.image_key][None], lowres[None], self.num_classes)[0]
        return d
