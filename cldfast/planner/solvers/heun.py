"""Heun's method in the x0 form."""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import Parameterization
from cldfast.planner.solvers.registry import solver
from cldfast.planner.solvers.single_step import runge_kutta
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE


@solver("heun", order=2, evaluations_per_step=2)
def heun(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """To the end of the step with x0 of its start, again with the line through both predictions.

    Order 2 in law, two evaluations per step (one for a last step that ends at t = 0).
    Sources: Karras et al. (2022), algorithm 1; exponential: Hochbruck and Ostermann (2010).
    """
    return runge_kutta(sde, grid, parameterization, [(1.0, (0,)), (1.0, (1, 0))])
