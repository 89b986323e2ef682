"""A million points in the plane: one stage."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from cldfast.bench import cases
from cldfast.bench.contestants import Contestant

CASE = cases.POINTS


def test_stage(benchmark: BenchmarkFixture, contestant: Contestant) -> None:
    """A call, in place where the contestant can."""
    contestant.call()  # compilation and first touch
    benchmark(contestant.call)
