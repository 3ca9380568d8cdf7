"""How much memory there is: a bundle's `scripts/memory.py`, so that planning and prediction count in one way."""

import sys
from typing import TYPE_CHECKING

from autoplan.base.scripts import load_script

if TYPE_CHECKING:
    from scripts.memory import *  # noqa: F403
else:
    sys.modules[__name__] = load_script("memory", __name__)
