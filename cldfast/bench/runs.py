"""Whole runs: where the time goes with a real network, and memory after the first step."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cldfast import kernels
from cldfast.bench.baselines import PublishedSteps, published_sample
from cldfast.bench.cases import SSCS
from cldfast.bench.contestants import FUSED, PUBLISHED, REFERENCE, best_level
from cldfast.bench.memory import AllocationRecord, ResidentRecord
from cldfast.bench.results import SAMPLING, STEADY, Row, measured_row
from cldfast.bench.timing import Timing
from cldfast.lab.models import MLPScore, UNetScore
from cldfast.planner.make_plan import make_plan
from cldfast.process.sde import CLD
from cldfast.sampling import run as sampling

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class RunCase:
    """Sampling with a network: steps of SSCS on the quadratic grid.

    network: makes the network for a data shape. quick_shape, quick_steps: in a quick run.
    """

    name: str
    shape: tuple[int, ...]
    steps: int
    quick_shape: tuple[int, ...]
    quick_steps: int
    network: Callable[[tuple[int, ...]], Network]
    about: str


def _constant(shape: tuple[int, ...]) -> Network:
    output = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return lambda u, t: output


def _mlp(shape: tuple[int, ...]) -> Network:
    return _scaled(MLPScore(dim=shape[1], width=512))


def _unet(shape: tuple[int, ...]) -> Network:
    return _scaled(UNetScore(channels=shape[1]))


def _scaled(model: MLPScore | UNetScore) -> Network:
    """An untrained model returns zero; small weights in the last layer make its output random."""
    torch.nn.init.normal_(model.last.weight, std=0.01)
    return model.eval()


INTEGRATOR, MLP, UNET = "sample-1024x64", "mlp-1024x100", "unet-64x3x32x32"
RUN_CASES: dict[str, RunCase] = {
    case.name: case
    for case in (
        RunCase(INTEGRATOR, (1024, 64), 50, (1024, 64), 10, _constant, "a free network"),
        RunCase(MLP, (1024, 100), 50, (256, 100), 10, _mlp, "MLP, width 512"),
        RunCase(UNET, (64, 3, 32, 32), 20, (4, 3, 32, 32), 2, _unet, "U-Net, width 32"),
    )
}  # fmt: skip

STEADY_CASE = "run-1000000x2"
# Shape and steps of a full run and of a quick one.
_STEADY, _STEADY_QUICK = ((1_000_000, 2), 1000), ((100_000, 2), 50)


class TimedNetwork:
    """A network that adds up the seconds spent in it."""

    def __init__(self, net: Network) -> None:
        self.net, self.seconds = net, 0.0

    def __call__(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        output = self.net(u, t)
        self.seconds += time.perf_counter() - start
        return output


def loops(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[Network], object]]:
    """The sampling loops by contestant: each takes a velocity score and returns samples."""
    sde = CLD()
    grid = make_plan(sde, SSCS, steps=steps).grid.tolist()
    ours = partial(
        sampling.sample, sde=sde, shape=shape, solver=SSCS, steps=steps, device="cpu"
    )  # fmt: skip
    found: dict[str, Callable[[Network], object]] = {}
    if not kernels.missing_backend("cpu"):
        found[FUSED] = partial(ours, backend="cpu")
    found[REFERENCE] = partial(ours, backend="reference")
    found[PUBLISHED] = partial(published_sample, PublishedSteps(sde), shape=shape, grid=grid)
    return found


def measure_run(case: RunCase, rounds: int, *, quick: bool) -> list[Row]:
    """Rows of one run case, a row per loop, round-robin, at PyTorch's present thread count.

    Integrator seconds are those of the run less those inside the network: initial states, noise,
    coefficient tables and the Python of the loop all count.
    """
    shape = case.quick_shape if quick else case.shape
    steps = case.quick_steps if quick else case.steps
    torch.manual_seed(0)
    net = case.network(shape)
    runs = loops(shape, steps)
    for run in loops(shape, 2).values():
        run(net)  # warm
    totals: dict[str, list[float]] = {name: [] for name in runs}
    networks: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            timed = TimedNetwork(net)
            start = time.perf_counter()
            run(timed)
            totals[name].append(time.perf_counter() - start)
            networks[name].append(timed.seconds)
    rows = []
    for name, total in totals.items():
        integrator = float(np.median(np.subtract(total, networks[name])))
        timing = Timing(torch.get_num_threads(), 1, rounds, total)
        rows.append(
            measured_row(
                SAMPLING, case.name, shape, timing, quick=quick, operation=SSCS, contestant=name,
                level=best_level() if name == FUSED else "", evaluations=steps,
                ns_per_pair=integrator * 1e9 / math.prod(shape) / steps,
                network_seconds=float(np.median(networks[name])), integrator_seconds=integrator,
            )
        )  # fmt: skip
    return rows


class _Marker:
    """A constant network that calls `mark` once, when the first step lies behind."""

    def __init__(self, output: torch.Tensor, mark: Callable[[], None]) -> None:
        self.output, self.mark, self.count = output, mark, 0

    def __call__(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.count += 1
        if self.count == 2:
            self.mark()
        return self.output


def measure_steady(shape: tuple[int, ...], steps: int, *, quick: bool = False) -> Row:
    """Memory that `cldfast.run` takes between the second network call of a run and its end.

    The run is made twice, for the profiler's own memory would count as resident. In the row
    `allocated_bytes` are all bytes that PyTorch's allocator hands out, peak or not; seconds are per
    step. Runs on the compiled core, where there is one, at PyTorch's present thread count.
    """
    plan = make_plan(CLD(), SSCS, steps=steps, parameterization="x0")
    generator = torch.Generator().manual_seed(2)
    u = torch.randn((shape[0], 2 * shape[1], *shape[2:]), generator=generator)
    output = torch.randn(shape, generator=generator)
    allocations, resident = AllocationRecord(), ResidentRecord()
    try:
        sampling.run(plan, _Marker(output, allocations.start), u)
    finally:
        allocations.stop()

    start = 0.0
    gc.collect()

    def mark() -> None:
        nonlocal start
        resident.start()
        start = time.perf_counter()

    sampling.run(plan, _Marker(output, mark), u)
    seconds = (time.perf_counter() - start) / (steps - 1)
    timing = Timing(torch.get_num_threads(), steps - 1, 1, [seconds])
    return measured_row(
        STEADY, STEADY_CASE, shape, timing, quick=quick, operation=SSCS,
        contestant=REFERENCE if kernels.missing_backend("cpu") else FUSED, level=best_level(),
        allocated_bytes=allocations.total, resident_bytes=resident.growth(), evaluations=steps,
    )  # fmt: skip


def measure_steady_case(*, quick: bool) -> list[Row]:
    """The row of the steady case: 1,000 steps at (1,000,000, 2), less in a quick run."""
    return [measure_steady(*(_STEADY_QUICK if quick else _STEADY), quick=quick)]
