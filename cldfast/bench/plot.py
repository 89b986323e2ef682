"""The picture of a run: effective bandwidth of each contestant, the copy bandwidth as ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cldfast.bench.cases import CASES, COPY, OPERATIONS
from cldfast.bench.contestants import COPY_CALL
from cldfast.bench.report import Results
from cldfast.bench.results import Environment, Row
from cldfast.bench.tables import COLUMNS
from cldfast.lab import plots


def bandwidth(where: Environment, rows: Sequence[Row], path: Path) -> None:
    """Draw GB/s of a stage (each input read once, each output written once) for every case.

    path: file to write; its directory must exist. Raises ValueError where no stage was measured,
    ImportError where matplotlib is missing.
    """
    results = Results(where, rows)
    found = {case: results.stage(case, COPY_CALL, COPY) for case in CASES}
    copies = {case: row for case, row in found.items() if row is not None}
    if not copies:
        raise ValueError("rows: expected at least one stage case")
    figure = plots.new_figure(9.0, 5.2)
    axes = figure.add_subplot()
    at = np.arange(len(copies))
    ceilings = [row.gb_per_s for row in copies.values()]
    axes.hlines(
        ceilings, at - 0.42, at + 0.42, color="0.25", linewidth=2.2, label="copy_ (ceiling)"
    )
    series = [column[1:] for column in COLUMNS if column[2] in OPERATIONS]
    for index, (contestant, operation) in enumerate(series):
        stages = [results.stage(case, contestant, operation) for case in copies]
        if any(stages):
            axes.plot(
                at + 0.08 * (index - len(series) // 2),
                [np.nan if row is None else row.gb_per_s for row in stages],
                linestyle="none", marker=plots.MARKERS[index], color=plots.COLOURS[index],
                label=f"{contestant}, {operation}",
            )  # fmt: skip
    axes.set_yscale("log")
    # In two lines: neighbours would touch.
    axes.set_xticks(at, [row.shape.replace("x", "\nx ", 1) for row in copies.values()])
    axes.set_xlabel("batch x shape")
    axes.set_ylabel("GB/s, each input read once, each output written once")
    axes.set_title(f"One sampler stage: {where.device}, {where.simd}, {results.threads} threads")
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    plots.save(figure, path)
