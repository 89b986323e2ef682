"""The solver that `solver="auto"` stands for: the best one measured with learned networks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from cldfast.planner.grids import DEFAULT_STEPS, Grid

# With a learned score noise mends errors of the network, whatever the number of steps. Below 8
# steps the start of the quadratic grid is too coarse for images (docs/solvers.md, "What auto is").
SOLVER = "stochastic_multistep"
OPTIONS = {"order": 3, "churn": 0.5}
QUADRATIC_FROM = 8


def resolved(
    solver: str,
    steps: int | None,
    grid: Grid | None,
    options: Mapping[str, Any],
    known: Collection[str],
) -> tuple[str, Grid, dict[str, Any]]:
    """Solver, grid and options with those of "auto" filled in; "quadratic" for no other grid.

    known: the solvers of the process. Raises ValueError where "auto" is none of them.
    """
    if solver != "auto":
        return solver, "quadratic" if grid is None else grid, dict(options)
    if SOLVER in known and "unipc" in known:
        if grid is None:
            count = steps if isinstance(steps, int | np.integer) else DEFAULT_STEPS
            grid = "quadratic" if count >= QUADRATIC_FROM else "logistic"
        return SOLVER, grid, OPTIONS | dict(options)
    if "multistep" in known:
        # Of paths of `cldfast.classical`: order 3 is worse with 10 steps and fewer, and the clocks
        # of paths are too different for a grid in t.
        return "multistep", "logistic" if grid is None else grid, dict(options)
    raise ValueError(f"this process has no solver 'auto'; expected one of {', '.join(known)}")
