"""Symmetric splitting CLD sampler (SSCS)."""

from __future__ import annotations

from itertools import chain

import numpy as np

from cldfast.planner.parameterization import Parameterization, score_map
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage, affine_stages
from cldfast.process.sde import LinearPhaseSDE


@solver("sscs", order=1)
def sscs(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization, *, merge: bool = True
) -> tuple[Stage, ...]:
    """Half a step of the reversed stationary process, a score kick, another half, each step.

    The half-steps are exact (an Ornstein-Uhlenbeck transition over their own integral of beta,
    split at the middle time); the kick adds `dtau D (s + Sigma_inf^-1 u)`, the excess of the score
    over the stationary one, at the middle time. `merge` joins neighbouring half-steps into one
    exact transition, `merge=False` keeps the published sequence; the law is the same.

    Order 1 in law (the Euler kick limits it), one evaluation per step.
    Source: Dockhorn, Vahdat, Kreis (2022), algorithm 1, which takes time and beta at the step's
        start.
    """
    middle = 0.5 * (grid[:-1] + grid[1:])
    tau, tau_middle = sde.tau(grid), sde.tau(middle)
    weight = (tau[:-1] - tau[1:])[:, None, None]
    kick = weight * np.diag(sde.D)
    score = score_map(sde, middle, parameterization).then(kick)
    P = np.eye(2) + (score.from_state + kick @ sde.prior().precision)
    E = score.from_output
    if not merge:
        stages = zip(
            _free(sde, tau[:-1] - tau_middle, middle),
            affine_stages(middle, middle, P, E, np.zeros_like(P)),
            _free(sde, tau_middle - tau[1:], grid[1:]),
            strict=True,
        )
        return tuple(chain.from_iterable(stages))
    # From one kick to the next the process is free: one exact transition over the whole way.
    free = sde.reversed_transition(-np.diff([tau[0], *tau_middle, tau[-1]]))
    phi, L, ends = free.phi, free.factor, np.append(middle[1:], grid[-1])
    first = Stage(t=None, t_next=float(middle[0]), P=phi[0], L=L[0])
    return (first, *affine_stages(middle, ends, phi[1:] @ P, phi[1:] @ E, L[1:]))


def _free(sde: LinearPhaseSDE, way: np.ndarray, ends: np.ndarray) -> list[Stage]:
    """The reversed stationary process over integrated rates, each as a stage without network."""
    step = sde.reversed_transition(way)
    rows = zip(ends, step.phi, step.factor, strict=True)
    return [Stage(t=None, t_next=float(end), P=phi, L=factor) for end, phi, factor in rows]
