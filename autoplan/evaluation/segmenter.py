"""Segmentations from stored probabilities, by the code of the bundle that stored them."""

import pickle
import sys
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autoplan.base.errors import TemplateError
from autoplan.bundle.commands import planning_command

UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
    zlib.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
"""What the code of a bundle, whatever its version, raises over a file that is damaged."""


class Segmenter(Protocol):
    """Turns the probabilities of one case into segmentations on the grid of its image, with the dataset's labels."""

    def __call__(self, members: Sequence[Path], bundle: Path) -> tuple[NDArray[Any], NDArray[Any]]:
        """The segmentation with and without postprocessing, both (X, Y, Z) as the label's file has them, best as uint8;
        the same array twice where nothing is postprocessed.

        Args:
            members: the case's file of probabilities, one of each member; they are averaged.
            bundle: folder of the first member's bundle, whose code and configs are used.
        """


def segmentations(members: Sequence[Path], bundle: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """The `Segmenter` of the bundles: the mean of the members' probabilities, through the bundle's own postprocessing.

    Raises:
        TemplateError: the bundle has no code for it.
    """
    segment, invert, clean, finish = _bundle_code(bundle)
    data = invert(segment(members))
    # Cleaning makes a new tensor, so the one without it is not changed.
    plain = finish(data)
    return (plain if clean is None else finish(clean(data))), plain


def stored(path: Path, bundle: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The probabilities of a case, as the bundle's own code reads them.

    Args:
        path: the file.
        bundle: folder of the bundle that wrote it.

    Returns:
        Those of the foreground classes in steps of 1/255, (classes, X, Y, Z), and the affine of their grid.

    Raises:
        TemplateError: a bundle of another version was used before.
        ValueError: the file is damaged.
    """
    _import_scripts(bundle.resolve())
    from scripts.probabilities import LEVELS, Stored

    found = Stored(path)
    parts = [rows[1:].mul(LEVELS).round().byte().numpy() for rows in found.rows()]
    foreground: NDArray[np.uint8] = np.moveaxis(np.concatenate(parts, axis=1), 1, found.axis + 1)
    return foreground, np.asarray(found.image.affine, dtype=np.float64)


@lru_cache(maxsize=8)
def _bundle_code(bundle: Path) -> tuple[Any, Any, Any, Any]:
    """Functions of a bundle: from files of probabilities to class numbers; from those to ones on the image's own grid;
    from those to ones with largest components only (None where no class has that); from class numbers to an array
    (X, Y, Z) of the dataset's labels."""
    from monai.bundle import ConfigParser
    from monai.transforms import Compose, MapLabelValued, SaveImaged

    root = bundle.resolve()
    _import_scripts(root)
    try:
        from scripts.components import KeepLargestComponentd
        from scripts.inversion import labels_of_files
    except ImportError as error:
        raise TemplateError(
            f"{bundle}: scripts/ is of an older version, which makes segmentations of predictions otherwise. "
            "Write the bundle anew, by python -m autoplan DATASET --force (models/ stays)."
        ) from error
    parser = ConfigParser()
    parser.read_config([root / "configs" / name for name in ("train.json", "evaluate.json")])
    parser["bundle_root"] = str(root)
    steps = parser.get_parsed_content("validate#postprocessing").flatten().transforms
    invert, *rest = (s for s in steps if not isinstance(s, SaveImaged))
    clean = next((s for s in rest if isinstance(s, KeepLargestComponentd)), None)
    last = [s for s in rest if s is not clean]
    # Bundles of older versions map class numbers themselves, and not as they are written.
    mapped = any(isinstance(s, MapLabelValued) for s in last)
    values = np.array(parser["label_values"])
    dtype = np.uint8 if values.max() < 256 else np.uint16

    def finish(data: dict[str, Any]) -> NDArray[Any]:
        found: NDArray[Any] = Compose(last)(data)["pred"][0].numpy()
        labels: NDArray[Any] = found if mapped else values[found]
        return labels.astype(dtype)

    return labels_of_files, invert, clean, finish


def _import_scripts(bundle: Path) -> None:
    """Make `scripts` the package of the bundle. A process imports one package of that name, so it serves other bundles
    only where theirs is the same.

    Raises:
        TemplateError: a package of other content was imported before.
    """
    imported = sys.modules.get("scripts")
    if imported is None:
        sys.path.insert(0, str(bundle))
        return
    check_same_code([bundle], Path(str(imported.__file__)).parent)


def check_same_code(bundles: Sequence[Path], used: Path | None = None) -> None:
    """Refuses bundles whose packages `scripts` differ, for those of one serve all of them.

    Args:
        bundles: their folders.
        used: the package that serves; None: that of the first bundle.

    Raises:
        TemplateError: one has other code.
    """
    used = used or bundles[0] / "scripts"
    for bundle in bundles:
        if _sources(bundle / "scripts") != _sources(used):
            raise TemplateError(
                f"{bundle / 'scripts'} and {used} are of different versions of autoplan, so their predictions cannot "
                f"be compared. Write the bundles anew, by {planning_command(bundle)} --force (models/ stays)."
            )


def _sources(folder: Path) -> dict[str, bytes]:
    """The modules of a package."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}
