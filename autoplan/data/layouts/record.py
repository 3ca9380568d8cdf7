"""How a dataset lies, as the user said by flags, which are kept beside plan.json."""

from dataclasses import dataclass, replace
from pathlib import Path

from autoplan.base.codec import format_json, from_dict, to_dict
from autoplan.base.errors import DatasetError, one_line, shortened
from autoplan.base.files import read_json, write_text_atomically
from autoplan.data.facts import Dataset

RECORD = "layout.json"
"""File beside plan.json with the flags that a dataset was planned with."""


@dataclass(frozen=True)
class Layout:
    """How a dataset lies, as the user said by flags; what is empty was not said. `found` are the values and names of
    the classes that were found in the labels, where no file declares them."""

    images: str = ""
    labels: str = ""
    labels_are: str = ""
    channels: str = ""
    table: str = ""
    group_by: str = ""
    found: tuple[tuple[int, str], ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether any flag was given."""
        return self != Layout()

    @property
    def flags(self) -> dict[str, str]:
        """The flags that were given, by name."""
        return {name: value for name, value in to_dict(self).items() if name != "found" and value}


def read(task: Path) -> Layout:
    """The flags that a task was planned with; none where it was planned without, or not yet."""
    try:
        layout: Layout = from_dict(Layout, read_json(task / RECORD))
    except FileNotFoundError:
        return Layout()
    except OSError as error:  # a name that is too long, or a file in place of a folder
        shown = shortened(str(task / RECORD))
        raise DatasetError(f"{shown}: cannot be read ({error.strerror}). Name another task.") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{task / RECORD} is damaged ({one_line(error)[:100]}). Remove it, and plan again with the flags of the "
            "dataset (--images, --labels, --table)."
        ) from None
    return layout


def notes(dataset: Dataset, layout: Layout) -> list[str]:
    """What was found that no file says, to be looked at: which files belong together, channels and classes."""
    if not layout.images and not layout.table:
        return []
    first = dataset.training[0]
    classes = ", ".join(f"{value} {name}" for value, name in dataset.labels)
    found = [
        f"{dataset.name}: {len(dataset.training)} cases, such as {first.name}: {', '.join(first.images)} with "
        f"{first.label}",
        f"channels: {', '.join(dataset.modalities)} (other names: --channels; one with ct gets the rules for CT)",
        f"classes: {classes}",
    ]
    if [value for value, _ in dataset.labels] == [0, 255]:
        found.append("The labels hold 0 and 255: 255 is class 1, and segmentations have 255 as the labels do.")
    return found


def save(layout: Layout, task: Path) -> None:
    """Keep the flags of a task; nothing is written where there are none."""
    if layout.is_given or (task / RECORD).exists():
        task.mkdir(parents=True, exist_ok=True)
        write_text_atomically(task / RECORD, format_json(to_dict(layout)))


def complete(dataset: Dataset, layout: Layout) -> Layout:
    """The flags, with the classes that were found, so that the labels are read for them only once."""
    return replace(layout, found=dataset.labels) if layout.images or layout.table else layout
