"""Stack level of warnings: that of the line which called the package."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parent)


def at_caller() -> int:
    """Return the ``stacklevel`` at which a warning names the user's line, however many frames lie between."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(Path(frame.f_code.co_filename).resolve()).startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
