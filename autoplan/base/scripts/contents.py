"""Digests of the content of files: a bundle's `scripts/contents.py`, so that planning and training agree on them."""

import sys
from typing import TYPE_CHECKING

from autoplan.base.scripts import load_script

if TYPE_CHECKING:
    from scripts.contents import *  # noqa: F403
else:
    sys.modules[__name__] = load_script("contents", __name__)
