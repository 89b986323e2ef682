"""The solver that `solver="auto"` stands for: the best one measured for a number of steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from cldfast.planner.grids import DEFAULT_STEPS, Grid

# Up to this many steps the deterministic solver is the better one, from then on noise mends errors
# of the network (docs/solvers.md, "Which solver auto is").
MOST_DETERMINISTIC = 15


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
    count = steps if isinstance(steps, int | np.integer) else DEFAULT_STEPS
    if grid is not None and not isinstance(grid, str):
        count = len(grid) - 1
    name, best_grid, best = _best(int(count), known)
    return name, best_grid if grid is None else grid, best | dict(options)


def _best(steps: int, known: Collection[str]) -> tuple[str, str, dict[str, Any]]:
    """Solver, grid and options for so many steps."""
    choices: list[tuple[str, str, dict[str, Any]]] = [
        ("stochastic_multistep", "quadratic", {"order": 3, "churn": 0.5}),
    ]
    if "unipc" not in known:
        # Of paths of `cldfast.classical`: order 3 is worse with 10 steps and fewer, and the clocks
        # of paths are too different for a grid in t.
        choices = [("multistep", "logistic", {})]
    elif steps <= MOST_DETERMINISTIC:
        choices = [("unipc", "logistic", {})]
    for choice in choices:
        if choice[0] in known:
            return choice
    raise ValueError(f"this process has no solver 'auto'; expected one of {', '.join(known)}")
