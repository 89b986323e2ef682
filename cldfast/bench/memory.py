"""Memory that a call takes beyond what was there: two measures that do not share blind spots.

Allocated: bytes handed out by PyTorch's CPU allocator, exact, from its profiler; blind to memory
that C++ code takes by other means. Resident: the high-water mark of the process's resident set as
the kernel counts it, which sees everything that is touched; it counts in batches of pages, so its
resolution is about half a mebibyte.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity

_KIBI = 1024


class _SilentStderr:
    """Points the file descriptor elsewhere: the profiler's library writes to it, past Python."""

    def __init__(self) -> None:
        sys.stderr.flush()
        self._saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def restore(self) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)


class AllocationRecord:
    """What PyTorch's allocator did between `start` and `stop`.

    peak: most bytes held at one time beyond those at the start. total: bytes of all allocations,
    so that memory which is freed and taken again counts each time. The error stream is silent from
    `start` to `stop`; a `stop` without `start` does nothing.
    """

    def __init__(self) -> None:
        self.peak = self.total = 0
        self._silence: _SilentStderr | None = None
        self._profile = torch.profiler.profile(
            activities=[ProfilerActivity.CPU], profile_memory=True
        )

    def start(self) -> None:
        self._silence = _SilentStderr()
        self._profile.start()

    def stop(self) -> None:
        if self._silence is None:
            return
        try:
            self._profile.stop()
        finally:
            self._silence.restore()
            self._silence = None
        inner = self._profile.profiler
        assert inner is not None and inner.kineto_results is not None
        changes = [
            (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]
            for event in inner.kineto_results.events()
            if event.name() == "[memory]"
        ]
        held = 0
        for _, size in sorted(changes):
            held += size
            self.peak = max(self.peak, held)
            self.total += max(0, size)


def allocated_peak(call: Callable[[], object]) -> int:
    """Bytes of PyTorch's allocator that a call holds at its peak, its result included."""
    record = AllocationRecord()
    record.start()
    try:
        result = call()
    finally:
        record.stop()
    del result
    return record.peak


class ResidentRecord:
    """Growth of the resident set since `start`: `growth()` is the high-water mark above it.

    `available` is False where the kernel's counters cannot be reset (other than Linux).
    """

    def __init__(self) -> None:
        self.available = True
        self._before = 0

    def start(self) -> None:
        try:
            # Freed memory that the C library kept would hide what a call takes.
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the high-water mark becomes the present resident set
            self._before = _status("VmRSS")
        except (OSError, AttributeError):
            self.available = False

    def growth(self) -> int | None:
        """Bytes, or None where it cannot be measured."""
        if not self.available:
            return None
        return max(0, _status("VmHWM") - self._before)


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * _KIBI
    raise OSError(f"/proc/self/status has no {key}")


def resident_peak(call: Callable[[], object]) -> int | None:
    """Bytes by which a call raises the resident set at its peak, or None."""
    record = ResidentRecord()
    record.start()
    result = call()
    growth = record.growth()
    del result
    return growth
