"""DICOM series: a bundle's `scripts/dicom.py`, which autoplan reads from its templates.

One text, so planning, training and prediction see the same voxels at the same place.
"""

import sys
from typing import TYPE_CHECKING

from autoplan.base.scripts import load_script

if TYPE_CHECKING:
    from scripts.dicom import *  # noqa: F403
else:
    sys.modules[__name__] = load_script("dicom", __name__)
