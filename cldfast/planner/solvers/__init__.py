"""Solvers: each turns an SDE and a time grid into the stages of a plan.

A solver, or a family that shares its stages, is one file that registers itself with the decorator
`solver`; docs/architecture.md shows how to add one.
"""

# The order is that of lists for users, simple solvers first.
from cldfast.planner.solvers import (  # noqa: F401, I001
    em, sscs, sscs2, leapfrog, splitting, multistep, single_step,
)  # fmt: skip
from cldfast.planner.solvers.registry import SOLVERS, Solver, solver

__all__ = ["SOLVERS", "Solver", "solver"]
