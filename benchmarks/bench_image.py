"""One image, 3x256x256: one stage."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from cldfast.bench import cases
from cldfast.bench.contestants import Contestant

CASE = cases.IMAGE


def test_stage(benchmark: BenchmarkFixture, contestant: Contestant) -> None:
    """A call, in place where the contestant can."""
    contestant.call()  # compilation and first touch
    benchmark(contestant.call)
