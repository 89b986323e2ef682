"""Writing files whole or not at all: beside their target, then renamed."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from typing import Any

from cldfast.files.opening import PathLike


def write_atomic(path: PathLike, data: bytes) -> None:
    """Write a file so that its readers see the old content or the new, also after a crash."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _remove_those_of_the_dead(target)
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    if os.name == "posix":
        # The new name is on disk only when its folder is.
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_those_of_the_dead(target: Path) -> None:
    """Remove what killed writers of the same file have left beside it."""
    if os.name != "posix":
        return
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        process = leftover.name.split(".")[-2]
        if process.isdecimal() and not _lives(int(process)):
            leftover.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # somebody else's
    return True


def remove_stale(folder: PathLike) -> None:
    """Remove what killed writers have left beside their targets in a folder."""
    for leftover in Path(folder).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_json(path: PathLike, value: Any) -> None:
    """Write plain values as JSON, atomically; ValueError for NaN, infinity or other objects."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be written as JSON: {error}") from error
    write_atomic(path, (text + "\n").encode())
