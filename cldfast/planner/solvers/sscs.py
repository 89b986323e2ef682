"""Symmetric splitting CLD sampler (SSCS)."""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import score_map
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE

ORDER = 1


def sscs(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: str, *, merge: bool = True
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
    noise = np.diag(sde.D)
    excess = noise @ sde.prior().precision
    score = score_map(sde, middle, parameterization)
    P = np.eye(2) + weight * (noise @ score.from_state + excess)
    E = weight * (noise @ score.from_output)
    times, ends = middle.tolist(), grid[1:].tolist()
    if not merge:
        return _published_sequence(sde, tau, tau_middle, times, ends, P, E)
    # From one kick to the next the process is free: one exact transition over the whole way.
    free = sde.reversed_transition(-np.diff(np.concatenate([tau[:1], tau_middle, tau[-1:]])))
    L = free.factor
    P, E = free.phi[1:] @ P, free.phi[1:] @ E
    start = Stage(t=None, t_next=times[0], P=free.phi[0], L=L[0])
    reached = [*times[1:], ends[-1]]
    return (
        start,
        *(
            Stage(t=t, t_next=reached[k], P=P[k], E=(E[k],), L=L[k + 1])
            for k, t in enumerate(times)
        ),
    )


def _published_sequence(
    sde: LinearPhaseSDE,
    tau: np.ndarray,
    tau_middle: np.ndarray,
    times: list[float],
    ends: list[float],
    P: np.ndarray,
    E: np.ndarray,
) -> tuple[Stage, ...]:
    first = sde.reversed_transition(tau[:-1] - tau_middle)
    second = sde.reversed_transition(tau_middle - tau[1:])
    first_factor, second_factor = first.factor, second.factor
    stages: list[Stage] = []
    for k, t in enumerate(times):
        stages += [
            Stage(t=None, t_next=t, P=first.phi[k], L=first_factor[k]),
            Stage(t=t, t_next=t, P=P[k], E=(E[k],)),
            Stage(t=None, t_next=ends[k], P=second.phi[k], L=second_factor[k]),
        ]
    return tuple(stages)
