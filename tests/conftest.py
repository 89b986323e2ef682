"""Shared fixtures: deterministic draws, and the backends that this installation has."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from cldfast import kernels

# What "cuda-fast-normals" makes is not the reference's to the last places; it has tests of its own.
BACKENDS = [
    name
    for name in kernels.backend_names()
    if name not in ("auto", "cuda-fast-normals") and not kernels.missing_backend(name)
]
GPU_BACKENDS = ("cuda", "triton")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each backend that can run on this machine, with new tensors on a device that it serves."""
    name = str(request.param)
    if name not in GPU_BACKENDS:
        yield name
        return
    # A matrix of all rows belongs to the host, also where a test makes everything on the device.
    module = sys.modules["cldfast.kernels.stage"]
    check = module.check_weights

    def on_host(weights, rows, *more):  # type: ignore[no-untyped-def]
        shared = isinstance(weights, torch.Tensor) and weights.dim() == 3 and len(weights) == 1
        moved = weights.cpu() if shared and rows > 1 else weights
        return check(moved, rows, *more)

    monkeypatch.setattr(module, "check_weights", on_host)
    torch.set_default_device("cuda")
    yield name
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def _fixed_draws() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many calls on few rows: threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
