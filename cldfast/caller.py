"""Where the user's code called the library: what a warning should point at."""

from __future__ import annotations

import sys


def caller_level() -> int:
    """The `stacklevel` by which whoever calls this warns at the first frame outside the package."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("cldfast"):
        level, frame = level + 1, frame.f_back
    return level
