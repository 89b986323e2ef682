"""Exponential Adams methods for the reverse processes between the ODE and the SDE."""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import Parameterization
from cldfast.planner.solvers.exponential import Exponential
from cldfast.planner.solvers.multistep import adams, adams_order
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE


def _order(churn: float, order: int, correct: bool, **_: object) -> int:
    claimed = adams_order(order, correct)
    return min(claimed, 2) if churn > 0.0 else claimed


@solver("stochastic_multistep", order=_order)
def stochastic_multistep(
    sde: LinearPhaseSDE,
    grid: np.ndarray,
    parameterization: Parameterization,
    *,
    churn: float = 1.0,
    order: int = 2,
    correct: bool = False,
    variable: str = "t",
) -> tuple[Stage, ...]:
    """`multistep` in the x0 form with noise: churn 0 is the probability flow, 1 the reverse SDE.

    The law is exact for data that are a point at every churn. order, correct, variable: see
    `multistep`.

    Order as `multistep`, but at most 2 for churn > 0: what the noise of a step does to the
    prediction within that step arrives with the next one, in the right amount for order 2. One
    evaluation per step.
    Sources: Xue et al. (2023), SA-Solver, on a single noise level; the family is in
        `cldfast.planner.reverse`.
    """
    rule = Exponential(sde, grid, parameterization, "x0", churn, variable)
    return adams(rule, grid, order, correct)
