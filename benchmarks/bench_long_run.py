"""A long run on a million points: the steps after the first take no memory."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from cldfast.bench.cases import CASES, POINTS
from cldfast.bench.runs import measure_steady

STEPS = 100


def test_steady(benchmark: BenchmarkFixture) -> None:
    """Two runs of 100 steps, one watched by the allocator's profiler, one by the kernel."""
    row = benchmark.pedantic(measure_steady, args=(CASES[POINTS].shape, STEPS), rounds=1)
    assert row.allocated_bytes == 0
