"""Memory that a call takes beyond what was there, by two measures: see benchmarks/README.md."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.profiler import ProfilerActivity

_KIBI = 1024


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send the error stream nowhere: the profiler's library writes to it without Python's help."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class AllocationRecord:
    """What PyTorch's allocator did between `start` and `stop`.

    peak: most bytes held at one time beyond those at the start. total: bytes of all allocations,
    so that memory which is freed and taken again counts each time. The error stream is silent from
    `start` to `stop`; a `stop` without `start` does nothing.
    """

    def __init__(self) -> None:
        self.peak = self.total = 0
        self._open = ExitStack()

    def start(self) -> None:
        self._open.enter_context(_silent_stderr())
        profile = torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        profile.start()
        self._open.callback(self._stop, profile)

    def stop(self) -> None:
        self._open.close()

    def _stop(self, profile: torch.profiler.profile) -> None:
        profile.stop()
        assert profile.profiler is not None and profile.profiler.kineto_results is not None
        changes = [
            (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]
            for event in profile.profiler.kineto_results.events()
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
    """Growth of the resident set since `start`."""

    def __init__(self) -> None:
        self._before: int | None = None

    def start(self) -> None:
        try:
            # Freed memory that the C library kept would hide what a call takes.
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the high-water mark becomes the present resident set
            self._before = _status("VmRSS")
        except (OSError, AttributeError):
            self._before = None

    def growth(self) -> int | None:
        """Bytes of the high-water mark above the start; None where they cannot be measured.

        They can be measured on Linux, whose kernel resets the mark when asked to.
        """
        return None if self._before is None else max(0, _status("VmHWM") - self._before)


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
