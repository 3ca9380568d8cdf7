"""The formats of image files: a bundle's `scripts/formats.py`, which autoplan reads from its templates.

One text, so planning, training and prediction see the same voxels at the same place.
"""

import sys
from typing import TYPE_CHECKING

from autoplan.base.scripts import load_script

if TYPE_CHECKING:
    from scripts.formats import *  # noqa: F403
else:
    sys.modules[__name__] = load_script("formats", __name__)
