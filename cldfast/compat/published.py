"""The two modes of every codebase served here.

"exact" has the right times, no jitter and addressed noise. "published" repeats the arithmetic of
the codebase, slips included. The codebases share laws (`laws.py`), steps (`steps.py`), losses and
installation; the package of each holds what differs: names, times, constants, network outputs.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

MODES = ("exact", "published")


def check_mode(mode: object) -> str:
    """The mode itself, or ValueError."""
    return check_name("mode", mode, MODES)


def check_name(option: str, value: Any, known: tuple[str, ...]) -> str:
    """The value of an option, or ValueError where it is none of the known ones."""
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {value!r}")
    return str(value)


def numbers_of(sde: Any, kind: str, names: tuple[str, ...]) -> tuple[float, ...]:
    """These attributes of a codebase's process, "beta.a" for one inside another.

    Raises TypeError where one is missing.
    """
    try:
        return tuple(float(attrgetter(name)(sde)) for name in names)
    except AttributeError as error:
        raise TypeError(
            f"sde must be a {kind} with {', '.join(names)}, got {type(sde).__name__}: {error}"
        ) from None
