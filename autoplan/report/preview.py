"""A PNG of each predicted image: three planes with the outlines of the classes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from autoplan.errors import AutoplanError, one_line
from autoplan.evaluation import read_classes
from autoplan.facts import Case
from autoplan.files import read_object, write_atomically
from autoplan.images import ras_order, read_volume, segmentation_name, spacing
from autoplan.report import pictures
from autoplan.report.cases import to_show

FOLDER = "previews"
"""Inside the folder of the segmentations, whose files may be pictures themselves."""
WIDTH, HEIGHT = 1200, 480
"""Pixels at most."""


def write(bundle: Path, folder: Path, cases: Sequence[Case], output: Path) -> tuple[list[Path], list[str]]:
    """Writes previews/<case>.png for each segmentation; one that is newer than its segmentation stays.

    Args:
        bundle: that predicted; its classes have the colours of the report, in their order.
        folder: that the images' paths are relative to.
        cases: what was to be predicted; those without a segmentation have no preview.
        output: where the segmentations are.

    Returns:
        The paths, and one line for each preview that could not be drawn.
    """
    known = read_object(bundle / "configs" / "inference.json").get("label_values", [])
    written: list[Path] = []
    faults: list[str] = []
    for case in cases:
        source, target = output / segmentation_name(case.images[0], case.name), output / FOLDER / f"{case.name}.png"
        if not source.is_file():
            continue
        try:
            if not target.is_file() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
                _draw(folder / case.images[0], source, target, list(known)[1:])
            written.append(target)
        except AutoplanError as error:
            faults.append(f"{case.name}: no preview: {one_line(error)}")
    return written, faults


def _draw(image: Path, segmentation: Path, target: Path, values: Sequence[int]) -> None:
    """The PNG of one case, through the largest class; the window of grey values is that of the whole image."""
    from PIL import Image

    volume, (label, affine) = read_volume(image), read_classes(segmentation, what="segmentation")
    array, turned = to_show(volume.array[..., 0], volume.affine, image), to_show(label, affine, image)
    largest = pictures.largest([int((turned == value).sum()) for value in values], values)
    drawn = pictures.sheet(
        array,
        [turned],
        values,
        spacing=ras_order(spacing(volume.affine), volume.affine),
        at=pictures.center(turned, largest, array.shape),
        grey=pictures.window(array),
        width=WIDTH,
        height=HEIGHT,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, partial(Image.fromarray(drawn).save, format="PNG"))
