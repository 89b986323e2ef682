"""Whole sampling with a U-Net, every loop of `cldfast.bench`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cldfast.bench.runs import RUN_CASES, UNET, loops

CASE = RUN_CASES[UNET]


@pytest.mark.parametrize("loop", loops(CASE.shape, CASE.steps))
def test_sampling(benchmark: BenchmarkFixture, loop: str) -> None:
    """A whole run, noise and coefficient tables included."""
    net = CASE.network(CASE.shape)
    run = loops(CASE.shape, CASE.steps)[loop]
    benchmark.pedantic(run, args=(net,), rounds=3, warmup_rounds=1)
