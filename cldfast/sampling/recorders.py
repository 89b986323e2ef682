"""What turns a step into something that repeats it: a CUDA graph."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import cache

import torch

Body = Callable[[], None]
# Captures share a stream, which takes one at a time.
_capturing = threading.Lock()


class CaptureError(RuntimeError):
    """A step could not be captured."""


class Recorder:
    """Makes the repetition of a step, here the step itself. A recording has one of its own.

    bytes: memory of the device that the repetitions hold.
    """

    bytes = 0

    def __call__(self, body: Body) -> Body:
        """The repetition of a step that has run before; CaptureError where that cannot be."""
        return body

    def begin(self) -> None:
        """What comes next on the current stream follows the last run's work on any stream."""

    def end(self) -> None:
        """A run's work is on the current stream."""


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which all captures are made."""
    return torch.cuda.Stream(device)


class CudaGraphs(Recorder):
    """Records steps as CUDA graphs that share one memory pool.

    Like `torch.cuda.graph`, but without its collection of garbage and emptying of caches, which
    cost more than the steps of a small network.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = _stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.last = torch.cuda.Event()
        self.bytes = 0

    def begin(self) -> None:
        torch.cuda.current_stream(self.stream.device).wait_event(self.last)

    def end(self) -> None:
        self.last.record(torch.cuda.current_stream(self.stream.device))

    def __call__(self, body: Body) -> Body:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        before = torch.cuda.memory_reserved(self.stream.device)
        collecting = gc.isenabled()
        gc.disable()  # what a collection frees could end the capture
        try:
            with _capturing, torch.cuda.stream(self.stream):
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    body()
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            raise CaptureError(str(cause).splitlines()[0]) from error
        finally:
            if collecting:
                gc.enable()
        current.wait_stream(self.stream)
        self.bytes += max(0, torch.cuda.memory_reserved(self.stream.device) - before)
        return graph.replay
