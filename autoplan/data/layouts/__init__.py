"""Layouts of datasets: each is a function from a folder to the `Dataset` that the rest knows.

`decathlon` reads the Decathlon's. Here are nnU-Net's raw folders, pairs of folders, and tables; what lies in the
folder, and the flags that were given, say which of them it is. The flags are kept beside plan.json, so that no other
command needs them.
"""

import os
from pathlib import Path

from autoplan.base.errors import DatasetError
from autoplan.base.files import read_object
from autoplan.data import decathlon as datasets
from autoplan.data.facts import Dataset
from autoplan.data.layouts import folders, groups, nnunet, table
from autoplan.data.layouts.common import naming
from autoplan.data.layouts.groups import PATIENT, same_patient, suspicion
from autoplan.data.layouts.nnunet import SPLITS, nnunet_classes
from autoplan.data.layouts.record import RECORD, Layout, complete, notes, read, save

__all__ = [
    "PATIENT",
    "RECORD",
    "SPLITS",
    "Layout",
    "complete",
    "load",
    "nnunet_classes",
    "notes",
    "read",
    "same_patient",
    "save",
    "suspicion",
]


def load(folder: Path, layout: Layout) -> Dataset:
    """The dataset in a folder.

    Args:
        folder: of the dataset, whose name it gets.
        layout: flags.

    Raises:
        DatasetError: what is wrong with it, a line for each fault.
    """
    folder = Path(os.path.abspath(folder))
    if layout.table:
        dataset = table.load(folder, layout)
    elif layout.images or layout.labels:
        dataset = folders.load(folder, layout)
    else:
        dataset = _described(folder)
    return groups.grouped(dataset, layout) if layout.group_by and not layout.table else dataset


def _described(folder: Path) -> Dataset:
    """A dataset with a dataset.json: nnU-Net's, of either version, or the Decathlon's."""
    content = read_object(folder / datasets.DESCRIPTION)
    if "channel_names" in content:
        return nnunet.load(folder, content)
    if nnunet.is_version_1(folder, content):
        return nnunet.load(folder, content)
    if not (folder / datasets.DESCRIPTION).is_file():
        there = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
        raise DatasetError(
            f"{folder}: there is no {datasets.DESCRIPTION}. Write one, as the Decathlon's datasets have, or name the "
            f"folders of images and labels (--images DIR --labels DIR{naming('; there are ', there)}), or a table "
            "(--table FILE.csv)."
        )
    return datasets.load(folder)
