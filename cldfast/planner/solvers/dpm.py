"""Single-step methods of second and third order in the x0 form (DPM-Solver)."""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import Parameterization
from cldfast.planner.solvers.registry import solver
from cldfast.planner.solvers.single_step import runge_kutta
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE


@solver("dpm2", order=2, evaluations_per_step=2)
def dpm2(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """The exponential midpoint rule: x0 of the middle of the step for all of it.

    Order 2 in law, two evaluations per step.
    Source: Lu et al. (2022), DPM-Solver-2 and its x0 form in DPM-Solver++ (2S).
    """
    return runge_kutta(sde, grid, parameterization, [(0.5, (0,)), (1.0, (1,))])


@solver("dpm3", order=3, evaluations_per_step=3)
def dpm3(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """Heun's third-order rule: to 1/3 with x0 of the start, to 2/3 with a line, to the end with the
    line through the start and 2/3 (Radau's rule, exact for parabolas).

    Order 3 in law, three evaluations per step.
    Source: Lu et al. (2022), DPM-Solver-3; the tableau is Heun (1900).
    """
    third = 1.0 / 3.0
    tableau = [(third, (0,)), (2.0 * third, (1, 0)), (1.0, (2, 0))]
    return runge_kutta(sde, grid, parameterization, tableau)
