"""Ancestral sampling: the exact posterior given the predicted data."""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import Parameterization
from cldfast.planner.solvers.exponential import Exponential
from cldfast.planner.solvers.multistep import adams
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE


@solver("ancestral", order=1)
def ancestral(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """Draw u_s from `p(u_s | u_t, x0 = E[x0 | u_t])`, the phase-space form of DDPM.

    The posterior of u_s is normal, with mean `m_s x0 + Sigma_s Phi^T Sigma_t^-1 (u_t - m_t x0)` and
    covariance `(Sigma_s^-1 + Phi^T Q^-1 Phi)^-1`; a grid may end at 0, where x is x0.

    Order 1 in law, one evaluation per step.
    Source: Ho, Jain, Abbeel (2020), eq. 6, with 2x2 blocks for numbers.
    """
    return adams(Exponential(sde, grid, parameterization, churn=1.0), grid, 1, False)
