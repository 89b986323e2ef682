"""Writing files whole or not at all: beside their target, then renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cldfast.files.opening import PathLike


def write_atomic(path: PathLike, data: bytes) -> None:
    """Write a file so that its readers see the old content or the new, also after a crash."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
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
