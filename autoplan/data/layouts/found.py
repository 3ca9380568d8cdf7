"""What no file declares and is found in the files: channels and classes."""

from collections.abc import Sequence
from pathlib import Path

from autoplan.base.errors import DatasetError
from autoplan.base.scripts import formats
from autoplan.data import images, labels
from autoplan.data.facts import Case
from autoplan.data.layouts.common import check, some
from autoplan.data.layouts.record import Layout


def channel_names(folder: Path, layout: Layout, case: Case, known: Sequence[str]) -> tuple[str, ...]:
    """Names of the channels: those of --channels, or of the folders or columns; where one of these has several, as the
    first case has, they are numbered, and called by the colours of a picture."""
    if layout.channels:
        return tuple(name.strip() for name in layout.channels.split(","))
    names = tuple(Path(name).name or folder.name for name in known)
    if len(names) > 1:
        return names
    count = len(case.images)
    if count == 1:
        try:
            count = images.read_grid(folder / case.images[0]).channels
        except DatasetError as error:
            raise DatasetError(f"{folder.name}, {case.name}: {case.images[0]} {error}") from None
        if count == 3 and formats.format_of(folder / case.images[0]) in (formats.PICTURE, formats.TIFF):
            return ("red", "green", "blue")
    return names if count == 1 else tuple(f"{names[0]} {i}" for i in range(count))


def declared(layout: Layout, case: Case, known: Sequence[str]) -> str:
    """What says how many channels an image has, with its verb, for a message."""
    if layout.channels:
        return "--channels names"
    return "the folders or columns are" if len(known) > 1 else f"{case.name} has"


def undeclared(layout: Layout) -> str:
    """What to do about a label value that was not there when the classes were found, for a message."""
    flags = f"--table {layout.table}" if layout.table else f"--images {layout.images} --labels {layout.labels}"
    return (
        f"The classes were found when the dataset was planned first. Plan with {flags} again: they are then found "
        "anew, and --labels_are names them; or correct the label."
    )


def found_classes(folder: Path, cases: Sequence[Case], layout: Layout) -> tuple[tuple[int, str], ...]:
    """Values of the label files, with the names of --labels_are, or numbers. They are read for that once."""
    if layout.found:
        return layout.found
    values, faults = {0}, list[str]()
    for case in cases:
        path = folder / str(case.label)
        try:
            volume = images.read_volume(path)
        except DatasetError as error:
            faults.append(f"{case.name}: {case.label} {error}")
            continue
        wrong = labels.label_faults(path, volume)
        array, more = labels.whole_numbers(volume.array[..., 0])
        wrong = wrong or more
        if not wrong and not layout.labels_are and (fault := labels.blend_fault(array)):
            wrong = [f"{fault} If each value is a class, name them all with --labels_are."]
        faults += [f"{case.name}: {fault}" for fault in wrong]
        if not wrong:
            values |= {value for value, _ in labels.count_values(array)}
    check(folder.name, faults)
    numbers = sorted(values)
    if len(numbers) < 2:
        raise DatasetError(f"{folder.name}: the labels are 0 everywhere. Check that --labels names the right folder.")
    given = [name.strip() for name in layout.labels_are.split(",")] if layout.labels_are else []
    if given and len(given) != len(numbers):
        raise DatasetError(
            f"--labels_are names {len(given)} classes; the labels hold the values {some(list(map(str, numbers)))}. "
            f"Name {len(numbers)}, in this order, the background first."
        )
    names = given or ["background", *(f"class {number}" for number in numbers[1:])]
    return tuple(zip(numbers, names, strict=True))
