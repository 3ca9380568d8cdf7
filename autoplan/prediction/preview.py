"""A PNG of each predicted image: three planes with the outlines of the classes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoplan.base import written
from autoplan.base.errors import AutoplanError, one_line
from autoplan.base.files import file_digest, read_object, write_atomically
from autoplan.data import pictures
from autoplan.data.facts import Case
from autoplan.data.geometry import ras_order, spacing
from autoplan.data.images import read_volume, segmentation_name
from autoplan.data.labels import read_classes
from autoplan.data.pictures import to_show

FOLDER = "previews"
"""Inside the folder of the segmentations, whose files may be pictures themselves."""
WIDTH, HEIGHT = 1200, 480
"""Pixels at most."""


def write(
    bundle: Path, folder: Path, cases: Sequence[Case], output: Path, *, force: bool = False
) -> tuple[list[Path], list[str], list[str]]:
    """Writes previews/<case>.png for each segmentation; one that is newer than its segmentation stays, and one that was
    changed by hand.

    Args:
        bundle: that predicted; its classes have the colours of the report, in their order.
        folder: that the images' paths are relative to.
        cases: what was to be predicted; those without a segmentation have no preview.
        output: where the segmentations are.
        force: draw those anew that were changed by hand, where their segmentations are newer.

    Returns:
        The paths, one line for each preview that stays since it was changed by hand, and one for each that could not be
        drawn.
    """
    known = read_object(bundle / "configs" / "inference.json").get("label_values", [])
    done: list[Path] = []
    stay: list[str] = []
    faults: list[str] = []
    for case in cases:
        source, target = output / segmentation_name(case.images[0], case.name), output / FOLDER / f"{case.name}.png"
        if not source.is_file():
            continue
        try:
            is_old = target.is_file() and target.stat().st_mtime_ns < source.stat().st_mtime_ns
            name = target.relative_to(output).as_posix()
            if is_old and not force and written.foreign(output, [name]):
                stay.append(f"{target}: not as it was drawn, so it stays. --force draws it anew.")
            elif is_old or not target.is_file():
                drawn = _drawn(folder / case.images[0], source, list(known)[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                write_atomically(target, partial(_save, drawn, output, name))
            done.append(target)
        except (AutoplanError, OSError, ValueError, MemoryError) as error:
            faults.append(f"{case.name}: no preview: {one_line(error)}")
    return done, stay, faults


def _save(drawn: NDArray[np.uint8], output: Path, name: str, path: Path) -> None:
    """Write a picture to a temporary path, and note that it is autoplan's under its name."""
    from PIL import Image

    Image.fromarray(drawn).save(path, format="PNG")
    written.note(output, {name: file_digest(path)})


def _drawn(image: Path, segmentation: Path, values: Sequence[int]) -> NDArray[np.uint8]:
    """The picture of one case, through the largest class; the window of grey values is that of the whole image."""
    volume, (label, affine) = read_volume(image), read_classes(segmentation, what="segmentation")
    array, turned = to_show(volume.array[..., 0], volume.affine, image), to_show(label, affine, image)
    largest = pictures.largest([int((turned == value).sum()) for value in values], values)
    return pictures.sheet(
        array,
        [turned],
        values,
        spacing=ras_order(spacing(volume.affine), volume.affine),
        at=pictures.center(turned, largest, array.shape),
        grey=pictures.window(array),
        width=WIDTH,
        height=HEIGHT,
    )
