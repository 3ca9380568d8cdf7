"""The formats of image files: a bundle's `scripts/formats.py`, which autoplan reads from its templates.

One text, so planning, training and prediction see the same voxels at the same place.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING

from autoplan.overlays import templates_folder

if TYPE_CHECKING:
    from scripts.formats import *  # noqa: F403
else:
    _spec = spec_from_file_location(__name__, templates_folder() / "scripts" / "formats.py")
    sys.modules[__name__] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
