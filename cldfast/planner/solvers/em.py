"""Euler-Maruyama on the reverse SDE."""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import score_map
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE

ORDER = 1


def em(sde: LinearPhaseSDE, grid: np.ndarray, parameterization: str) -> tuple[Stage, ...]:
    """`u' = u + h beta (-A u + D s(u, t)) + sqrt(h beta) D^(1/2) z` from t to t - h, beta at t.

    Order 1 in law, one evaluation per step.
    Source: Maruyama (1955); for CLD Dockhorn, Vahdat, Kreis (2022), appendix B.
    """
    t = grid[:-1]
    weight = (-np.diff(grid) * sde.beta(t))[:, None, None]
    score = score_map(sde, t, parameterization)
    noise = np.diag(sde.D)
    P = np.eye(2) + weight * (noise @ score.from_state - sde.A)
    E = weight * (noise @ score.from_output)
    L = np.sqrt(weight * noise)
    return tuple(
        Stage(t=float(t[k]), t_next=float(grid[k + 1]), P=P[k], E=(E[k],), L=L[k])
        for k in range(len(t))
    )
