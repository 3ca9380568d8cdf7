"""What the page says of each case: its facts, what is odd in it, and a picture. Read once and kept, case by case, until
the files change."""

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoplan.base.axes import Shape, Spacing
from autoplan.base.codec import format_json, from_dict, to_dict
from autoplan.base.files import read_object, write_text_atomically
from autoplan.base.processes import mapper
from autoplan.base.scripts.intensities import sampled
from autoplan.data import fingerprint, pictures
from autoplan.data.cases import read_case
from autoplan.data.facts import Case, CaseFacts, Dataset
from autoplan.data.geometry import bounding_box
from autoplan.data.pictures import to_show

FORMAT = 3
"""Version of what is kept. To be raised whenever the meaning of a fact, or the picture, changes."""
KEPT = Path("cache") / "report"
"""Folder, in that of the task's bundles."""
THUMBNAIL = 12
"""Edge of the thumbnail of an image, voxels."""
T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """Facts of one image, in RAS order. Those of classes have an entry for each foreground class.

    Attributes:
        faults: why the files cannot be used; all other facts are then empty.
        orientation: of the file's axes, such as LPS.
        fraction_kept: part of the voxels inside the box of the nonzero ones.
        voxels, components: of each class.
        islands: voxels outside the largest component of the class.
        holes: background voxels that the class encloses on all sides.
        intensities: of each channel: least, percentiles 0.5, 50 and 99.5 of the nonzero voxels (of a sample where they
            are many), largest.
        foreground: median of each channel over the foreground; empty where there is none.
        empty_slices: slices of one value between others.
        labelled_empty: slices of one value that have a label.
        label_gaps: slices without label between labelled ones, along the coarsest axis.
        content: digest of the voxels.
        thumbnail: the first channel in few voxels, 8 bits, base64.
        picture: its address, with its bytes, and its size.
    """

    name: str
    is_test: bool
    faults: tuple[str, ...] = ()
    shape: Shape = ()
    spacing: Spacing = ()
    orientation: str = ""
    fraction_kept: float = 0.0
    voxels: tuple[int, ...] = ()
    components: tuple[int, ...] = ()
    islands: tuple[int, ...] = ()
    holes: tuple[int, ...] = ()
    intensities: tuple[tuple[float, ...], ...] = ()
    foreground: tuple[float, ...] = ()
    empty_slices: int = 0
    labelled_empty: int = 0
    label_gaps: int = 0
    content: str = ""
    thumbnail: str = ""
    picture: str = ""
    picture_size: tuple[int, ...] = ()

    @property
    def ml(self) -> tuple[float, ...]:
        """Volume of each class."""
        return tuple(count * math.prod(self.spacing) / 1000 for count in self.voxels)

    @property
    def extent_mm(self) -> tuple[float, ...]:
        """Size of the image."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))


def summaries(
    dataset: Dataset,
    folder: Path,
    *,
    num_processes: int | None = None,
    preload: Sequence[str] = (),
    progress: bool | None = None,
) -> list[Summary]:
    """Facts of all images, training cases first; those of unchanged files are taken from `folder`.

    Args:
        dataset: what dataset.json says.
        folder: of the task's bundles.
        num_processes: processes that read; None: as many as there are processors, fewer for little data.
        preload: modules that later work needs; processes share what the first ones of them have imported.
        progress: whether to show a progress bar on stderr; None: where stderr is a terminal.
    """
    cases = [*dataset.training, *dataset.test]
    bare, size = replace(dataset, training=(), test=()), pictures.size_for(len(cases))
    keys = {case.name: f"{FORMAT} {size} {dataset.labels} {fingerprint.case_key(dataset, case)}" for case in cases}
    found = kept(
        folder / KEPT / "cases.json",
        [(case.name, keys[case.name], case) for case in cases],
        partial(_measured, bare, size),
        Summary,
        num_processes=num_processes or fingerprint.suitable_processes(dataset),
        preload=("scipy.ndimage", "PIL.Image", "autoplan.report.summaries", *preload),
        title=f"{dataset.name}: looking at the images",
        progress=progress,
    )
    return [found[case.name] for case in cases]


def kept(
    path: Path,
    wanted: Sequence[tuple[str, str, Any]],
    make: Callable[[Any], T],
    kind: type[T],
    *,
    num_processes: int,
    preload: Sequence[str],
    title: str,
    progress: bool | None,
) -> dict[str, T]:
    """What `make` makes of each case, from a file as far as it was made before; the file is written again.

    Args:
        path: JSON file of what is kept.
        wanted: name, key and argument of `make` for each case; what is kept counts while its key is the same.
        make: must be picklable; returns a `kind`, a dataclass.
        kind: what is made.
        num_processes: at most.
        preload: modules that the processes need.
        title: of the progress bar.
        progress: whether to show it.
    """
    stored = read_object(path)
    found = {name: value for name, key, _ in wanted if (value := _stored(stored.get(name), key, kind)) is not None}
    todo = [(name, argument) for name, _, argument in wanted if name not in found]
    keys = {name: key for name, key, _ in wanted}
    if not todo:
        return found
    from tqdm import tqdm

    bar = {"total": len(todo), "unit": "case", "disable": None if progress is None else not progress}
    try:
        with mapper(min(num_processes, len(todo)), preload=preload) as each:
            made = each(make, [argument for _, argument in todo])
            for (name, _), value in zip(todo, tqdm(made, desc=title, **bar), strict=True):
                found[name] = value
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {name: {"key": keys[name], "value": to_dict(value)} for name, value in found.items()}
        write_text_atomically(path, format_json(content))
    return found


def _stored(entry: Any, key: str, kind: type[T]) -> T | None:
    """What was kept of a case, if it still holds."""
    try:
        value: T | None = from_dict(kind, entry["value"]) if entry["key"] == key else None
    except (KeyError, TypeError, ValueError):
        return None
    return value


def _measured(dataset: Dataset, size: tuple[int, int], case: Case) -> Summary:
    """Facts of one case, with a picture of at most that size; of one that cannot be read, why."""
    is_test = case.label is None
    volumes, faults = read_case(dataset, case)
    if volumes.image is None:
        said = tuple(line.removeprefix(f"{dataset.name}, {case.name}: ") for line in faults)
        return Summary(case.name, is_test, said or ("cannot be read",))
    image, label = volumes.image, volumes.label
    values = [value for value, _ in dataset.labels[1:]]
    array = to_show(image.array, image.affine, case.images[0])
    turned = None if label is None else to_show(label, image.affine, case.images[0])
    facts = fingerprint.case_facts(
        case.name, image, np.zeros(image.shape, np.uint8) if label is None else label, labels=dataset.labels
    )
    solid = [] if turned is None else [_solidity(turned, value) for value in values]
    empty, labelled = _empty_slices(array, turned)
    drawn = _picture(array, turned, values, facts, size, is_ct=fingerprint.is_ct(dataset.modalities[0]))
    return Summary(
        name=case.name,
        is_test=is_test,
        shape=facts.shape,
        spacing=facts.spacing,
        orientation=facts.orientation,
        fraction_kept=facts.fraction_kept,
        voxels=() if is_test else facts.class_voxels,
        components=() if is_test else facts.class_components,
        islands=tuple(islands for islands, _ in solid),
        holes=tuple(holes for _, holes in solid),
        intensities=tuple(_intensities(array[..., channel]) for channel in range(array.shape[3])),
        foreground=() if turned is None else _foreground(array, turned),
        empty_slices=empty,
        labelled_empty=labelled,
        label_gaps=0 if turned is None else _gaps(turned, facts.spacing),
        content=hashlib.blake2b(image.array.ravel(order="K").data, digest_size=16).hexdigest() + f" {image.shape}",
        thumbnail=_thumbnail(array[..., 0]),
        picture=drawn.data,
        picture_size=drawn.size,
    )


def _solidity(label: NDArray[Any], value: int) -> tuple[int, int]:
    """Voxels of a class outside its largest component, and background voxels that it encloses."""
    from scipy import ndimage

    mask = label == value
    if not mask.any():
        return 0, 0
    box = bounding_box(mask)
    mask = mask[box]
    parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3), dtype=bool))
    sizes = np.bincount(parts[mask])[1:] if count > 1 else np.array([mask.sum()])
    holes = ndimage.binary_fill_holes(mask) & ~mask & (label[box] == 0)
    return int(sizes.sum() - sizes.max()), int(holes.sum())


def _intensities(channel: NDArray[Any]) -> tuple[float, ...]:
    """Least value of one channel, percentiles 0.5, 50 and 99.5 of its nonzero voxels, and largest value."""
    some = sampled(channel)
    inside = some[some != 0]
    low, middle, high = np.percentile(inside if inside.size else some, [0.5, 50, 99.5])
    return tuple(float(v) for v in (channel.min(), low, middle, high, channel.max()))


def _foreground(array: NDArray[Any], label: NDArray[Any]) -> tuple[float, ...]:
    """Median of each channel over the labelled voxels."""
    inside = array[label > 0]
    return tuple(float(np.median(inside[:, channel])) for channel in range(array.shape[3])) if inside.size else ()


def _empty_slices(array: NDArray[Any], label: NDArray[Any] | None) -> tuple[int, int]:
    """Slices of one value between others, over all axes, and slices of one value that have a label."""
    inside, labelled = 0, 0
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        constant = (array.min(axis=others) == array.max(axis=others)).all(axis=-1)
        full = np.flatnonzero(~constant)
        if full.size:
            inside += int(constant[full[0] : full[-1]].sum())
        if label is not None and constant.any():
            labelled += int(((label > 0).any(axis=others) & constant).sum())
    return inside, labelled


def _gaps(label: NDArray[Any], mm: Spacing) -> int:
    """Slices without any label between labelled ones, along the coarsest axis."""
    axis = max(range(3), key=lambda a: (mm[a], a))
    there = np.flatnonzero((label > 0).any(axis=tuple(a for a in range(3) if a != axis)))
    return int(there[-1] - there[0] + 1 - there.size) if there.size else 0


def _thumbnail(channel: NDArray[Any]) -> str:
    """An image in few voxels: means of blocks, scaled to 8 bits."""
    steps = tuple(slice(None, None, max(1, n // (4 * THUMBNAIL))) for n in channel.shape)
    small = channel[steps].astype(np.float32)
    for axis in range(3):
        n = small.shape[axis]
        starts = np.arange(THUMBNAIL) * n // THUMBNAIL
        ends = np.maximum(starts + 1, (np.arange(THUMBNAIL) + 1) * n // THUMBNAIL)
        small = np.stack([small.take(range(a, b), axis).mean(axis) for a, b in zip(starts, ends, strict=True)], axis)
    low, high = float(small.min()), float(small.max())
    scaled = np.zeros_like(small) if high == low else (small - low) / (high - low) * 255
    return base64.b64encode(np.rint(scaled).astype(np.uint8).tobytes()).decode()


def _picture(
    array: NDArray[Any],
    label: NDArray[Any] | None,
    values: Sequence[int],
    facts: CaseFacts,
    size: tuple[int, int],
    *,
    is_ct: bool,
) -> pictures.Drawn:
    """Three planes through the largest class, with the outlines of all."""
    image = array[..., 0]
    value = pictures.largest(facts.class_voxels, values)
    inside = image[label > 0] if is_ct and label is not None else None
    return pictures.planes(
        image,
        [] if label is None else [label],
        values,
        spacing=facts.spacing,
        at=pictures.center(label, value, image.shape),
        grey=pictures.window(sampled(image), inside),
        width=size[0],
        height=size[1],
    )
