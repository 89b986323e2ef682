"""Shared fixtures: deterministic draws, and the backends that this installation has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cldfast import ops

BACKENDS = ["reference"] if ops.missing_core() else ["cpu", "reference"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that can run on this machine."""
    return str(request.param)


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
