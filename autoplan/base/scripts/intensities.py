"""What the intensities of an image are like: a bundle's `scripts/intensities.py`, so that the images of the training
and those to predict are looked at in one way."""

import sys
from typing import TYPE_CHECKING

from autoplan.base.scripts import load_script

if TYPE_CHECKING:
    from scripts.intensities import *  # noqa: F403
else:
    sys.modules[__name__] = load_script("intensities", __name__)
