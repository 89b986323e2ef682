"""One writer of a folder at a time."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cldfast.files.opening import PathLike

fcntl: Any
try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None

LOCK = ".lock"
# Folders that are locked, and the threads that did it.
_held: set[tuple[str, int]] = set()


@contextmanager
def locked(folder: PathLike) -> Iterator[None]:
    """Keep others from writing an existing folder, until the block or this process ends.

    A thread may do so again inside the block. The system gives a dead process's lock back; where it
    has no locks, nothing is kept.

    Raises ValueError naming the process that writes the folder.
    """
    key = os.path.realpath(folder), threading.get_ident()
    if fcntl is None or key in _held:
        yield
        return
    path = Path(folder) / LOCK
    handle = _taken(path)
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        path.unlink(missing_ok=True)
        # Given back by name: a child of fork() may still have the file open.
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _taken(path: Path) -> int:
    """The locked file, open."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had the lock may have removed the file after it was opened here.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
                return handle
        except BlockingIOError:
            writer = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            raise ValueError(
                f"{path.parent}: expected a folder that nobody writes, but {writer} does; "
                "wait for it, or choose another folder"
            ) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
