"""The solver that `solver="auto"` stands for: the best one measured for a number of steps."""

from __future__ import annotations

from typing import Any

# Up to this many steps the deterministic solver is the better one, from then on noise mends errors
# of the network (docs/solvers.md, "Which solver auto is").
MOST_DETERMINISTIC = 15


def automatic(steps: int) -> tuple[str, str, dict[str, Any]]:
    """Solver, grid and options for so many steps of one evaluation each."""
    if steps <= MOST_DETERMINISTIC:
        return "unipc", "logistic", {}
    return "stochastic_multistep", "quadratic", {"order": 3, "churn": 0.5}
