"""Euler-Maruyama on the reverse SDE."""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import Parameterization, score_map
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage, affine_stages
from cldfast.process.sde import LinearPhaseSDE


@solver("em", order=1)
def em(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """`u' = u + h beta (-A u + D s(u, t)) + sqrt(h beta) D^(1/2) z` from t to t - h, beta at t.

    Order 1 in law, one evaluation per step.
    Source: Maruyama (1955); for CLD Dockhorn, Vahdat, Kreis (2022), appendix B.
    """
    t = grid[:-1]
    weight = (-np.diff(grid) * sde.beta(t))[:, None, None]
    noise = weight * np.diag(sde.D)
    kick = score_map(sde, t, parameterization).then(noise)
    P = np.eye(2) - weight * sde.A + kick.from_state
    return tuple(affine_stages(t, grid[1:], P, kick.from_output, np.sqrt(noise)))
