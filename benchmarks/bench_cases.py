"""The cases of `cldfast.bench` on pytest-benchmark, for looking at one: `-k toy`, `-k unet`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cldfast.bench import cases
from cldfast.bench.cases import CASES, RUN_CASES, Inputs
from cldfast.bench.contestants import Contestant, contestants, loops
from cldfast.bench.measure import measure_steady

STAGES = {
    "image": cases.IMAGE, "toy": cases.TOY, "small_images": cases.SMALL_IMAGES,
    "large": cases.LARGE, "wide": cases.WIDE, "points": cases.POINTS,
}  # fmt: skip
RUNS = {"integrator": cases.INTEGRATOR, "mlp": cases.MLP, "unet": cases.UNET}
LONG_RUN_STEPS = 100


def by_name(shape: tuple[int, ...]) -> dict[str, Contestant]:
    """All contestants on data of a shape; what is compiled is compiled at its first call."""
    return {
        " ".join(filter(None, (c.name, c.operation, c.level))): c
        for c in contestants(Inputs(shape))
    }


@pytest.fixture(scope="module", params=STAGES)
def entrants(request: pytest.FixtureRequest) -> dict[str, Contestant]:
    """The contestants of one case, made when its turn comes."""
    return by_name(CASES[STAGES[request.param]].shape)


@pytest.mark.parametrize("contestant", by_name((2, 2)))
def test_stage(
    benchmark: BenchmarkFixture, entrants: dict[str, Contestant], contestant: str
) -> None:
    """One stage, in place where the contestant can."""
    call = entrants[contestant].call
    call()  # compilation and first touch
    benchmark(call)


@pytest.mark.parametrize("loop", loops((2, 2), 1))
@pytest.mark.parametrize("network", RUNS)
def test_sampling(benchmark: BenchmarkFixture, network: str, loop: str) -> None:
    """A whole run, noise and coefficient tables included."""
    case = RUN_CASES[RUNS[network]]
    net = case.network(case.shape)
    run = loops(case.shape, case.steps)[loop]
    benchmark.pedantic(run, args=(net,), rounds=3, warmup_rounds=1)


def test_long_run(benchmark: BenchmarkFixture) -> None:
    """A long run on a million points: the steps after the first take no memory."""
    arguments = (CASES[cases.POINTS].shape, LONG_RUN_STEPS)
    row = benchmark.pedantic(measure_steady, args=arguments, rounds=1)
    assert row.allocated_bytes == 0
