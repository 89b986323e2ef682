"""One stage, all contestants: the rows of the section "stage"."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace

from cldfast.bench.cases import COPY, TRAFFIC, Case, Inputs
from cldfast.bench.contestants import Contestant, contestants
from cldfast.bench.memory import allocated_peak, resident_peak
from cldfast.bench.results import STAGE, Row, measured_row
from cldfast.bench.timing import Effort, Timing, interleaved, threads_set


def measure_case(
    case: Case, threads: Sequence[int], effort: Effort, *, quick: bool, compiled: bool
) -> list[Row]:
    """Rows of one case, a row per contestant and thread count.

    threads: ascending; memory is measured at the last. compiled: include `torch.compile`.
    """
    inputs = Inputs(case.quick if quick else case.shape)
    entrants = contestants(inputs, compiled)
    timings = interleaved([c.call for c in entrants], threads, effort, inputs.reset)
    rows: list[Row] = []
    gc.collect()  # what dies during a memory measurement would hide what is taken
    for contestant, per_count in zip(entrants, timings, strict=True):
        allocated, resident = _memory(contestant, inputs, threads[-1])
        for timing in per_count:
            row = _row(case, inputs, quick, contestant, timing)
            if timing.threads == threads[-1]:
                row = replace(row, allocated_bytes=allocated, resident_bytes=resident)
            rows.append(row)
    return with_copy_share(rows)


def _memory(contestant: Contestant, inputs: Inputs, threads: int) -> tuple[int, int | None]:
    with threads_set(threads):
        inputs.reset()
        return allocated_peak(contestant.call), resident_peak(contestant.call)


def _row(case: Case, inputs: Inputs, quick: bool, contestant: Contestant, timing: Timing) -> Row:
    moved = TRAFFIC[contestant.operation] * inputs.pairs
    return measured_row(
        STAGE, case.name, inputs.shape, timing, quick=quick, operation=contestant.operation,
        contestant=contestant.name, level=contestant.level, gb_per_s=moved / timing.median / 1e9,
    )  # fmt: skip


def with_copy_share(rows: Sequence[Row]) -> list[Row]:
    """The rows of one case with `copy_share`: bandwidth over that of `copy_` with equal threads."""
    copies = {row.threads: row.gb_per_s for row in rows if row.operation == COPY}
    shared = []
    for row in rows:
        copy = copies.get(row.threads)
        known = copy is not None and row.gb_per_s is not None
        shared.append(replace(row, copy_share=row.gb_per_s / copy) if known else row)  # type: ignore[operator]
    return shared
