"""fingerprint.json, the facts of a dataset as planning leaves them beside the bundles."""

from pathlib import Path

from autoplan.base.codec import DAMAGED, from_dict, said, to_dict, write_json
from autoplan.base.errors import DatasetError
from autoplan.base.files import read_json
from autoplan.data.facts import Fingerprint

FINGERPRINT = "fingerprint.json"


def save_fingerprint(fingerprint: Fingerprint, path: Path) -> None:
    """Write a fingerprint as JSON; its folder is made where it is missing."""
    write_json(path, to_dict(fingerprint))


def load_fingerprint(path: Path) -> Fingerprint:
    """The fingerprint that was saved.

    Raises:
        DatasetError: there is none, it is damaged, or an older version wrote it.
    """
    try:
        loaded: Fingerprint = from_dict(Fingerprint, read_json(path))
    except DAMAGED as error:
        raise DatasetError(
            f"{path} holds no fingerprint ({said(error)}). Remove the file; planning writes it again."
        ) from error
    return loaded
