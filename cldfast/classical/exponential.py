"""Solvers that move x exactly as long as the prediction of x0 is what a polynomial says."""

from __future__ import annotations

import numpy as np

from cldfast.classical.paths import GaussianPath, solver
from cldfast.planner.solvers.multistep import adams, adams_order
from cldfast.planner.solvers.path_exponential import PathExponential
from cldfast.planner.stage import Stage


@solver("ddim", order=1)
def ddim(path: GaussianPath, grid: np.ndarray, parameterization: str) -> tuple[Stage, ...]:
    """`x' = alpha' x0 + sigma' eps` with both predictions of the step's start.

    Order 1 in law, one evaluation per step. Source: Song, Meng, Ermon (2021), eq. 12 at eta = 0.
    """
    return adams(PathExponential(path, grid, parameterization, 0.0), grid, 1, False)


@solver("ancestral", order=1)
def ancestral(path: GaussianPath, grid: np.ndarray, parameterization: str) -> tuple[Stage, ...]:
    """A draw from `p(x_s | x_t, x0)` with the prediction x0.

    Order 1 in law, one evaluation per step. Source: Ho, Jain, Abbeel (2020), eq. 6.
    """
    return adams(PathExponential(path, grid, parameterization, 1.0), grid, 1, False)


@solver("multistep", order=adams_order)
def multistep(
    path: GaussianPath, grid: np.ndarray, parameterization: str, *, order: int = 2,
    correct: bool = False, variable: str = "auto",
) -> tuple[Stage, ...]:  # fmt: skip
    """DPM-Solver++ of order 1 to 4 on the probability flow.

    order, correct: as for the `multistep` of CLD, which corrects its first steps. variable: see
    `PathExponential`. Order `order`, plus 1 with `correct`; one evaluation per step.
    Source: Lu et al. (2022), DPM-Solver++ (2M, 3M); Zhao et al. (2023), UniPC, for `correct`.
    """
    rule = PathExponential(path, grid, parameterization, 0.0, variable)
    return adams(rule, grid, order, correct)


@solver(
    "stochastic_multistep", order=lambda churn, order, **_: min(order, 2) if churn > 0.0 else order
)
def stochastic_multistep(
    path: GaussianPath, grid: np.ndarray, parameterization: str, *, churn: float = 1.0,
    order: int = 2, variable: str = "auto",
) -> tuple[Stage, ...]:  # fmt: skip
    """SDE-DPM-Solver++: `multistep` with noise, for churn 1 on the reverse SDE.

    Order `order`, at most 2 for churn > 0; one evaluation per step. Source: Lu et al. (2022),
    DPM-Solver++, section 4.3; Xue et al. (2023), SA-Solver.
    """
    return adams(PathExponential(path, grid, parameterization, churn, variable), grid, order, False)
