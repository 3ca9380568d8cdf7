"""The facts of a dataset, read case by case in parallel, each file once; saved as JSON and reused while nothing
changed. What was read of each case is kept too, so a dataset that grew, or a reading that was ended, costs the rest."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from autoplan.base.axes import Shape
from autoplan.base.codec import to_dict
from autoplan.base.errors import DatasetError
from autoplan.base.files import write_text_atomically
from autoplan.base.processes import MAX_PROCESSES, mapper
from autoplan.base.scripts import contents
from autoplan.base.scripts.intensities import profile
from autoplan.base.scripts.memory import processors
from autoplan.data.cases import read_case
from autoplan.data.facts import Case, CaseFacts, Dataset, Fingerprint, Intensities
from autoplan.data.geometry import bounding_box, orientation, ras_order, spacing
from autoplan.data.images import Volume, check_packages, files_of, names_of
from autoplan.data.labels import count_values
from autoplan.data.readings import Histogram, Reading, Readings
from autoplan.data.stored import load_fingerprint

FORMAT = 6
"""Version of the saved fingerprint, part of its key. To be raised whenever the meaning of a fact changes."""
CONNECTIVITY = 3
"""Voxels that share a corner are connected (26 neighbours in 3D): the default of MONAI's KeepLargestConnectedComponent,
which removes components from predictions. The paper is silent."""
SIGNIFICANT_BITS = 16
"""Precision at which CT intensities are counted, see `rounded`."""
PERCENTILES = (0.5, 99.5)
"""Source: section 2.2, "Normalization"."""
PROFILE_DIGITS = 4
"""Decimals of a percentile of the intensities."""
FORMS_DIGITS = 1
"""Decimals of a distance of the forms in mm: what is far below a voxel is rounding of the header."""
BYTES_PER_PROCESS = 2_000_000
"""Compressed bytes that are worth a process of their own; to start one takes half a second."""
Map = Callable[[Callable[[Case], Reading], Sequence[Case]], Iterator[Reading]]
"""A `map`: its results come in the order of the cases."""


def is_ct(modality: str) -> bool:
    """Whether a channel is CT, whose intensities are absolute: its name contains "ct", in upper or lower case.

    Source: arXiv:1809.10486, section 2.2, "Normalization" (so "SPECT" is CT too, as the paper has it).
    """
    return "ct" in modality.lower()


_known: contents.Known = {}
"""Digests of files that this process has needed. Each is checked against the state of its file."""


@dataclass(frozen=True)
class Keys:
    """Digests: of everything that a fingerprint depends on; of everything that the reading of each case does, in the
    order of the training cases and the test images; and of the content of each case's image and label."""

    dataset: str
    cases: tuple[str, ...]
    contents: tuple[tuple[str, ...], ...]


def fingerprint(
    dataset: Dataset,
    *,
    num_processes: int | None = None,
    progress: bool | None = None,
    keys: Keys | None = None,
    readings: Readings | None = None,
    workers: AbstractContextManager[Map] | None = None,
) -> Fingerprint:
    """The facts of a dataset. Each file is read once, in parallel, and checked; test images are checked only.

    Args:
        dataset: what dataset.json says.
        num_processes: processes that read; None: as many as there are processors, fewer for little data.
        progress: whether to show a progress bar on stderr; None: where stderr is a terminal.
        keys: of the dataset as it is now; found if not given.
        readings: what was read before and is not read again; what is read is added.
        workers: gives a `map` that reads in place of processes here, results in order.

    Raises:
        DatasetError: anything wrong with any case, one line each.
        OSError: a reading cannot be kept.

    Source: arXiv:1809.10486, sections 2.2 (cropping, resampling, normalization) and 2.5 (connected components).
    """
    check_packages(dataset.root / path for path in _paths(dataset))
    keys, kept = keys or keys_of(dataset), Readings(None) if readings is None else readings
    faults: list[str] = []
    facts: list[CaseFacts] = []
    histograms: list[Histogram | None] = [None] * len(dataset.modalities)
    unread = [case for case, known in zip(_cases(dataset), keys.cases, strict=True) if known not in kept]
    processes = num_processes or suitable_processes(dataset, unread)
    preload = ("scipy.ndimage", "autoplan.data.fingerprint")
    bar = {"total": len(keys.cases), "unit": "case", "disable": None if progress is None else not progress}
    with workers or mapper(processes, preload=preload, chunksize=2) as each:
        fresh = each(partial(_read, _bare(dataset)), unread)
        for reading in tqdm(_in_order(keys.cases, kept, fresh), desc=f"{dataset.name}: reading", **bar):
            faults += reading.faults
            facts += [reading.facts] if reading.facts else []
            if reading.histograms:
                histograms = [merged(*pair) for pair in zip(histograms, reading.histograms, strict=True)]
    if not faults and not any(count for c in facts for count in c.class_voxels):
        faults = [f'{dataset.name}: no label has a foreground voxel. Check that "training" names the right labels.']
    if faults:
        raise DatasetError("\n".join(faults))
    Readings(kept.path).keep_only(keys.cases)
    return Fingerprint(
        key=keys.dataset,
        name=dataset.name,
        modalities=dataset.modalities,
        labels=dataset.labels,
        cases=tuple(facts),
        intensities=tuple(None if histogram is None else intensities(histogram) for histogram in histograms),
        formats=names_of(dataset.root / path for path in _paths(dataset)),
        ignore=dataset.ignore,
        contents=keys.contents[: len(dataset.training)],
    )


def _in_order(keys: Sequence[str], kept: Readings, fresh: Iterator[Reading]) -> Iterator[Reading]:
    """The readings of all cases: those that were kept, and those that are made now, which are kept as they come."""
    for known in keys:
        if known in kept:
            yield kept[known]
            continue
        reading = next(fresh)
        if not reading.faults:
            kept.add(known, reading)
        yield reading


def _bare(dataset: Dataset) -> Dataset:
    """What goes with each case to whoever reads it."""
    return replace(dataset, root=dataset.root.absolute(), training=(), test=())


def suitable_processes(dataset: Dataset, cases: Sequence[Case] | None = None) -> int:
    """As many processes as processors, fewer where there is little to read: of these cases, all if not given."""
    read = _cases(dataset) if cases is None else cases
    num_bytes = sum(_size(dataset.root / path) for case in read for path in _case_paths(case))
    return max(1, min(processors(), MAX_PROCESSES, num_bytes // BYTES_PER_PROCESS))


def _size(path: Path) -> int:
    """Bytes of the files of an image, 0 where there is none."""
    return sum(file.stat().st_size for file in files_of(path) if file.is_file())


def _read(dataset: Dataset, case: Case) -> Reading:
    """Faults, or facts and intensities, of one case."""
    volumes, faults = read_case(dataset, case)
    if volumes.image is None or volumes.label is None:
        return Reading(tuple(faults))
    histograms = tuple(
        _histogram(volumes.image.array[..., channel], volumes.label) if is_ct(modality) else None
        for channel, modality in enumerate(dataset.modalities)
    )
    facts = case_facts(case.name, volumes.image, volumes.label, labels=dataset.labels, modalities=dataset.modalities)
    return Reading((), facts, histograms)


def case_facts(
    name: str,
    image: Volume,
    label: NDArray[Any],
    *,
    labels: Sequence[tuple[int, str]],
    modalities: Sequence[str] = (),
) -> CaseFacts:
    """Facts of one case: shape and spacing in RAS order, cropped shape, voxels and components of each foreground class,
    intensities of the channels whose modalities are given.

    Source: arXiv:1809.10486, sections 2.2 ("Cropping") and 2.5.
    """
    counts = dict(count_values(label))
    return CaseFacts(
        name=name,
        shape=ras_order(image.shape, image.affine),
        spacing=ras_order(spacing(image.affine), image.affine),
        cropped_shape=ras_order(cropped_shape(image.array), image.affine),
        class_voxels=tuple(counts.get(value, 0) for value, _ in labels[1:]),
        class_components=num_components(label, [value for value, _ in labels[1:]]),
        forms_apart_mm=round(image.grid.forms_apart_mm, FORMS_DIGITS),
        orientation=orientation(image.affine),
        intensities=tuple(_profile(image.array[..., c], modality) for c, modality in enumerate(modalities)),
    )


def _profile(channel: NDArray[Any], modality: str) -> tuple[float, ...]:
    return tuple(round(value, PROFILE_DIGITS) for value in profile(channel, absolute=is_ct(modality)))


def cropped_shape(array: NDArray[Any]) -> Shape:
    """Shape of the bounding box of the voxels of an (X, Y, Z, C) image that are not zero in every channel.

    Source: arXiv:1809.10486, section 2.2, "Cropping".
    """
    return tuple(s.stop - s.start for s in bounding_box((array != 0).any(axis=3)))


def num_components(label: NDArray[Any], values: Sequence[int]) -> tuple[int, ...]:
    """Number of connected components of each of `values` in an (X, Y, Z) label; see `CONNECTIVITY`.

    Source: arXiv:1809.10486, section 2.5.
    """
    foreground = label > 0
    if not foreground.any():
        return (0,) * len(values)
    inside = label[bounding_box(foreground)]
    return tuple(_num_components(inside == value) for value in values)


def _num_components(mask: NDArray[np.bool_]) -> int:
    """Number of connected components of the true voxels."""
    from scipy import ndimage  # a third of a second, which the process that only waits does not need

    if not mask.any():
        return 0
    structure = ndimage.generate_binary_structure(mask.ndim, CONNECTIVITY)
    return int(ndimage.label(mask[bounding_box(mask)], structure=structure)[1])


def rounded(values: NDArray[Any]) -> NDArray[np.float64]:
    """Values to `SIGNIFICANT_BITS` binary digits: whole numbers up to 2^16 = 65536 in magnitude stay as they are, any
    other value changes by at most 2^-16 of its magnitude."""
    fraction, exponent = np.frexp(values.astype(np.float64))
    return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, SIGNIFICANT_BITS)), exponent - SIGNIFICANT_BITS))


def _histogram(channel: NDArray[Any], label: NDArray[Any]) -> Histogram | None:
    """Intensities of one image inside its foreground; None where it has none."""
    inside = channel[label > 0].astype(np.float64)
    if not inside.size:
        return None
    values, counts = np.unique(rounded(inside), return_counts=True)
    mean = float(inside.mean())
    return Histogram(values, counts.astype(np.int64), mean, float(np.square(inside - mean).sum()))


def merged(first: Histogram | None, second: Histogram | None) -> Histogram | None:
    """Two histograms as one. Moments are joined by the formula of Chan, Golub and LeVeque, without loss of digits."""
    if first is None or second is None:
        return first or second
    values, position = np.unique(np.concatenate([first.values, second.values]), return_inverse=True)
    counts = np.zeros(len(values), dtype=np.int64)
    np.add.at(counts, position, np.concatenate([first.counts, second.counts]))
    one, two = int(first.counts.sum()), int(second.counts.sum())
    difference = second.mean - first.mean
    mean = first.mean + difference * two / (one + two)
    deviation = first.deviation + second.deviation + difference**2 * one * two / (one + two)
    return Histogram(values, counts, mean, deviation)


def intensities(histogram: Histogram) -> Intensities:
    """Statistics of pooled intensities. Mean and (population) standard deviation are those of the unrounded values; a
    percentile, interpolated linearly as numpy does, is off by at most 2^-16 of the larger of its two neighbours, and
    exact where intensities are whole numbers up to 65536.

    Source: arXiv:1809.10486, section 2.2, "Normalization".
    """
    count = int(histogram.counts.sum())
    low, high = (percentile(histogram, q) for q in PERCENTILES)
    return Intensities(count, histogram.mean, (histogram.deviation / count) ** 0.5, low, high)


def percentile(histogram: Histogram, q: float) -> float:
    """The q-th percentile (q to three decimals), interpolated linearly between the two neighbours in rank."""
    last = np.cumsum(histogram.counts)  # rank after the last occurrence of each value
    highest = int(last[-1]) - 1
    below, remainder = divmod(highest * round(q * 1000), 100_000)  # whole numbers, so that the rank is exact
    lower, upper = histogram.values[np.searchsorted(last, [below, min(below + 1, highest)], side="right")]
    return float(lower + (upper - lower) * remainder / 100_000)


# The file.


def keys_of(dataset: Dataset, folder: Path | None = None) -> Keys:
    """What tells a dataset from another: what it is, `FORMAT`, and of each case the paths in the dataset and the
    content of the files. A copy of the same files has the same keys on every machine.

    Args:
        dataset: what its folder says.
        folder: of the task's bundles; where there is one, digests of files are kept there.
    """
    found = _contents(dataset, folder)
    digest = hashlib.sha256(f"autoplan fingerprint {FORMAT}\n".encode())
    digest.update(json.dumps(to_dict((dataset.name, dataset.modalities, dataset.labels, dataset.ignore))).encode())
    read_by = json.dumps(to_dict((FORMAT, dataset.modalities, dataset.labels, dataset.ignore)))
    cases = []
    for case, content in zip(_cases(dataset), found, strict=True):
        state = _key(case, content)
        digest.update(state.encode())
        cases.append(hashlib.sha256(f"{read_by}{case.label is None}{state}".encode()).hexdigest()[:32])
    return Keys(digest.hexdigest(), tuple(cases), found)


def key(dataset: Dataset, folder: Path | None = None) -> str:
    """The key of a fingerprint of the dataset as it is now; see `keys_of`."""
    return keys_of(dataset, folder).dataset


def case_key(dataset: Dataset, case: Case) -> str:
    """What `keys_of` says of the files of one case."""
    return _key(case, _contents(replace(dataset, training=(case,), test=()), None)[0])


def _key(case: Case, content: Sequence[str]) -> str:
    return f"\n{case.name}" + "".join(f"\n{path}" for path in _case_paths(case)) + "".join(f" {c}" for c in content)


def _contents(dataset: Dataset, folder: Path | None) -> tuple[tuple[str, ...], ...]:
    """Digests of the content of each case: of its image, all channels together, and of its label, if it has one."""
    kept = None if folder is None or not folder.is_dir() else folder / "cache" / contents.NAME
    before = {} if kept is None else contents.read_known(kept)
    for name, entry in before.items():
        _known.setdefault(name, entry)
    parts = [part for case in _cases(dataset) for part in (case.images, *([(case.label,)] if case.label else []))]
    groups = [[file for path in part for file in files_of(dataset.root / path)] for part in parts]
    digests = iter(contents.digests(groups, _known))
    found = tuple(tuple(next(digests) for _ in range(1 + bool(case.label))) for case in _cases(dataset))
    now = {name: _known[name] for name in contents.names(groups) if name in _known}
    if kept is not None and {**before, **now} != before:
        with contextlib.suppress(OSError):  # without it, the files are read again
            kept.parent.mkdir(exist_ok=True)
            write_text_atomically(kept, json.dumps({**before, **now}))
    return found


def _cases(dataset: Dataset) -> tuple[Case, ...]:
    """All cases: those of training, then the test images."""
    return (*dataset.training, *dataset.test)


def _paths(dataset: Dataset) -> list[str]:
    """All files of the dataset, in the order of dataset.json."""
    return [path for case in _cases(dataset) for path in _case_paths(case)]


def _case_paths(case: Case) -> list[str]:
    """The files of a case."""
    return [path for path in (*case.images, case.label) if path]


def reusable(path: Path, dataset: Dataset, keys: Keys | None = None) -> Fingerprint | None:
    """The fingerprint saved at `path` if it is still that of `dataset`, else None. `keys` are those of the dataset."""
    try:
        saved = load_fingerprint(path)
    except DatasetError:
        return None
    wanted = (
        (keys or keys_of(dataset)).dataset,
        dataset.name,
        dataset.modalities,
        dataset.labels,
        dataset.ignore,
        len(dataset.modalities),
    )
    facts = (saved.key, saved.name, saved.modalities, saved.labels, saved.ignore, len(saved.intensities))
    same = facts == wanted
    return saved if same and [c.name for c in saved.cases] == [c.name for c in dataset.training] else None
