"""Measuring: one stage by all contestants, whole runs, and memory after a run's first step."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.bench.cases import COPY, SSCS, STEADY_CASE, TRAFFIC, Case, Inputs, Network, RunCase
from cldfast.bench.contestants import FUSED, REFERENCE, best_level, contestants, loops
from cldfast.bench.memory import AllocationRecord, ResidentRecord, allocated_peak, resident_peak
from cldfast.bench.results import SAMPLING, STAGE, STEADY, Row, measured_row
from cldfast.bench.timing import FULL, QUICK, Effort, Timing, interleaved, threads_set
from cldfast.planner.make_plan import make_plan
from cldfast.process.sde import CLD
from cldfast.sampling import run as sampling


def measure_case(
    case: Case, threads: Sequence[int], *, quick: bool, effort: Effort | None = None
) -> list[Row]:
    """Rows of one stage, a row per contestant and thread count.

    threads: ascending; memory is measured at the last. quick: the smaller size, without
    `torch.compile`, and less effort if none is given.
    """
    inputs = Inputs(case.quick if quick else case.shape)
    entrants = contestants(inputs, compiled=not quick)
    calls = [contestant.call for contestant in entrants]
    timings = interleaved(calls, threads, effort or (QUICK if quick else FULL), inputs.reset)

    def rate(operation: str, timing: Timing) -> float:
        return TRAFFIC[operation] * inputs.pairs / timing.median / 1e9

    copying = timings[[contestant.operation for contestant in entrants].index(COPY)]
    ceilings = [rate(COPY, timing) for timing in copying]
    rows: list[Row] = []
    gc.collect()  # memory freed during a measurement would hide what a call takes
    for contestant, per_count in zip(entrants, timings, strict=True):
        with threads_set(threads[-1]):
            inputs.reset()
            taken: dict[str, Any] = {"allocated_bytes": allocated_peak(contestant.call)}
            taken["resident_bytes"] = resident_peak(contestant.call)
        for timing, ceiling in zip(per_count, ceilings, strict=True):
            speed = rate(contestant.operation, timing)
            row = measured_row(
                STAGE, case.name, inputs.shape, timing, quick=quick, contestant=contestant.name,
                operation=contestant.operation, level=contestant.level, gb_per_s=speed,
                copy_share=speed / ceiling, **(taken if timing.threads == threads[-1] else {}),
            )  # fmt: skip
            rows.append(row)
    return rows


class TimedNetwork:
    """A network that adds up the seconds spent in it."""

    def __init__(self, net: Network) -> None:
        self.net, self.seconds = net, 0.0

    def __call__(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        output = self.net(u, t)
        self.seconds += time.perf_counter() - start
        return output


def measure_run(case: RunCase, *, quick: bool) -> list[Row]:
    """Rows of one run case, a row per loop, round-robin, at PyTorch's present thread count.

    Integrator seconds are those of the run less those inside the network: initial states, noise,
    coefficient tables and the Python of the loop all count.
    """
    shape, steps, rounds = (
        (case.quick_shape, case.quick_steps, 2) if quick else (case.shape, case.steps, 5)
    )
    torch.manual_seed(0)
    net = case.network(shape)
    runs = loops(shape, steps)
    for run in loops(shape, 2).values():
        run(net)  # warm
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            timed = TimedNetwork(net)
            start = time.perf_counter()
            run(timed)
            spent[name].append((time.perf_counter() - start, timed.seconds))
    rows = []
    for name, seconds in spent.items():
        total, inside = np.transpose(seconds)
        integrator = float(np.median(total - inside))
        timing = Timing(torch.get_num_threads(), 1, rounds, total.tolist())
        rows.append(
            measured_row(
                SAMPLING, case.name, shape, timing, quick=quick, operation=SSCS, contestant=name,
                level=best_level() if name == FUSED else "", evaluations=steps,
                ns_per_pair=integrator * 1e9 / math.prod(shape) / steps,
                network_seconds=float(np.median(inside)), integrator_seconds=integrator,
            )
        )  # fmt: skip
    return rows


def measure_steady(shape: tuple[int, ...], steps: int, *, quick: bool = False) -> Row:
    """Memory that `cldfast.run` takes between the second network call of a run and its end.

    The run is made twice, for the profiler's own memory would count as resident. In the row
    `allocated_bytes` are all bytes that PyTorch's allocator hands out, peak or not; seconds are per
    step. Runs on the compiled core, where there is one, at PyTorch's present thread count.
    """
    plan = make_plan(CLD(), SSCS, steps=steps, parameterization="x0")
    generator = torch.Generator().manual_seed(2)
    u = torch.randn((shape[0], 2 * shape[1], *shape[2:]), generator=generator, device="cpu")
    output = torch.randn(shape, generator=generator, device="cpu")
    allocations, resident = AllocationRecord(), ResidentRecord()

    def calling_after_a_step(mark: Callable[[], None]) -> Network:
        calls = itertools.count(1)

        def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            if next(calls) == 2:
                mark()
            return output

        return net

    try:
        sampling.run(plan, calling_after_a_step(allocations.start), u, nonfinite="return")
    finally:
        allocations.stop()

    started: list[float] = []
    gc.collect()

    def mark() -> None:
        resident.start()
        started.append(time.perf_counter())

    sampling.run(plan, calling_after_a_step(mark), u, nonfinite="return")
    seconds = (time.perf_counter() - started[0]) / (steps - 1)
    timing = Timing(torch.get_num_threads(), steps - 1, 1, [seconds])
    return measured_row(
        STEADY, STEADY_CASE, shape, timing, quick=quick, operation=SSCS,
        contestant=REFERENCE if kernels.missing_backend("cpu") else FUSED, level=best_level(),
        allocated_bytes=allocations.total, resident_bytes=resident.growth(), evaluations=steps,
    )  # fmt: skip
