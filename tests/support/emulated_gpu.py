"""The CPU in a GPU's place: `cuda` is its sources on the host, `triton` its interpreter.

As a pytest plugin, `-p emulated_gpu`, it lets tests of backends find both on any machine; as a
program it rehearses the scripts that a GPU's first run depends on: `check`, or `bench FOLDER`, at
small sizes. Its figures mean nothing. Run with TRITON_INTERPRET=1, in a process of its own.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from pathlib import Path

import cuda_on_host
import torch

import cldfast
import cldfast.sampling.graphs
from cldfast import kernels
from cldfast.kernels import native
from cldfast.kernels.backends.triton.backend import TritonBackend


def install() -> None:
    """Both backends serve tensors on the CPU from now on."""
    with tempfile.TemporaryDirectory() as folder:  # a loaded module needs its file no more
        cuda = cuda_on_host.backend(Path(folder))
    native.cuda = cuda.kernels
    for backend in (cuda, TritonBackend()):
        kernels.unregister_backend(backend.name)
        kernels.register_backend(backend.name, lambda found=backend: found, ("cuda", "cpu"))


class Event:
    """A device event, for work that is done when it is asked for."""

    def __init__(self, enable_timing: bool) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.time - self.time)


def rehearse(arguments: list[str]) -> int:
    """Runs one of the scripts; what would be captured is run again."""
    sys.path.insert(0, str(cuda_on_host.ROOT / "benchmarks"))
    torch.cuda.Event = Event  # type: ignore[assignment, misc]
    torch.cuda.synchronize = lambda: None  # type: ignore[assignment]
    torch.cuda.mem_get_info = lambda: (0, 0)  # type: ignore[assignment]
    torch.cuda.get_device_name = lambda: "Rehearsal (CPU)"  # type: ignore[assignment]
    torch.compile = lambda function: function  # type: ignore[assignment]
    cldfast.sampling.graphs.obstacle = lambda *arguments: ""
    cldfast.sampling.graphs.CudaGraphs = lambda device: lambda body: body  # type: ignore[assignment, misc]
    if arguments == ["check"]:
        gpu_check = importlib.import_module("gpu_check")
        gpu_check.DEVICE = "cpu"
        # The interpreter would take minutes; it has tests of its own.
        gpu_check.BACKENDS = ("cuda",)
        gpu_check.LONG, gpu_check.REPEATS = [(2, 3000), (70, 1028)], 2
        gpu_check.run_checks()
        return 0
    gpu_bench = importlib.import_module("gpu_bench")
    gpu_bench.DEVICE, gpu_bench.RESULTS = "cpu", Path(arguments[1])
    gpu_bench.PAIRS, gpu_bench._SETS_BYTES = (2**11, 2**12), 0
    gpu_bench._ROUNDS = gpu_bench._RUN_ROUNDS = 1
    gpu_bench.STEPS, gpu_bench.BATCHES = 3, (2, 1)
    return int(gpu_bench.measure())


install()
if __name__ == "__main__":
    sys.exit(rehearse(sys.argv[1:]))
