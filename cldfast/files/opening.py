"""Opening what a stranger wrote: a regular file of limited size, in its folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

# The characters of an error that a file may have a say in.
_MOST_CHARACTERS = 400


def member(folder: PathLike, *names: str) -> Path:
    """The path of a file in a folder; ValueError for one that leads out of it, as a link may."""
    path = Path(folder, *names)
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{path}: leads out of its folder; copy the file into the folder")
    return path


def read_bytes(path: PathLike, most: int) -> bytes:
    """The bytes of a regular file, at most so many; ValueError in one line otherwise."""
    with opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path}: expected at most {most} bytes, got more")
    return data


def opened(path: PathLike) -> Any:
    """A regular file to read from; ValueError, in one line, for none."""
    try:
        # A pipe that nobody writes to would be waited for.
        more = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, os.O_RDONLY | more)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path}: {reason.lower()}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path}: expected a file, found a folder or a device")
    return os.fdopen(handle, "rb")


def located(path: Path, error: Exception, what: str = "") -> ValueError:
    """The error as one line that starts with the file, unless it already does.

    What the file says of itself may be long, or meant for the terminal that shows it.
    """
    text = " ".join(str(error).split())
    text = text if text.startswith(str(path)) else f"{path}: {what}{text}"
    most = len(str(path)) + _MOST_CHARACTERS
    text = text if len(text) <= most else f"{text[:most]} ..."
    return ValueError("".join(c if c.isprintable() else "?" for c in text))
