"""The leapfrog scheme of the regularised CLD, with its times mended."""

from __future__ import annotations

from itertools import chain

import numpy as np

from cldfast.planner.parameterization import LinearMap, Parameterization, score_map
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage, affine_stages
from cldfast.process.sde import LinearPhaseSDE


@solver("leapfrog", order=1, evaluations_per_step=2, quadratic_from=0)
def leapfrog(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """Half a kick of v, half a drift of x, all of the step's noise, half a drift, half a kick.

    The score is asked at t before the first half and at the middle time before the second; each
    half has its own integral of beta, the noise that of the whole step. The published code asks the
    second score at `t + h/2`, outside the step (time runs down), and weighs by beta there and at t.

    Order 1 in law (drift and kick are Euler steps, both scores stale), two evaluations per step.
    Source: Strasman, Surendran et al. (2025) and its code.
    """
    t, s = grid[:-1], grid[1:]
    middle = 0.5 * (t + s)
    tau_t, tau_middle, tau_s = sde.tau(t), sde.tau(middle), sde.tau(s)
    first, second = tau_t - tau_middle, tau_middle - tau_s
    early = score_map(sde, t, parameterization)
    late = score_map(sde, middle, parameterization)
    kick, drift = _half(sde, 1, first), _half(sde, 0, first)
    one = _then(kick, drift, early)
    kick, drift = _half(sde, 1, second), _half(sde, 0, second)
    two = _then(drift, kick, late)
    noise = np.sqrt((tau_t - tau_s)[:, None, None] * np.diag(sde.D))
    halves = zip(
        affine_stages(t, middle, one.from_state, one.from_output, noise),
        affine_stages(middle, s, two.from_state, two.from_output, np.zeros_like(noise)),
        strict=True,
    )
    return tuple(chain.from_iterable(halves))


def _half(sde: LinearPhaseSDE, row: int, way: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks on state and score of `u_row += way (-A u + D s)_row`, (n, 2, 2) each."""
    only = np.diag([float(row == 0), float(row == 1)])
    weight = way[:, None, None]
    return np.eye(2) - weight * (only @ sde.A), weight * (only @ np.diag(sde.D))


def _then(
    one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray], score: LinearMap
) -> LinearMap:
    """Two half-steps that share a score, as a map of network output and state."""
    kick = score.then(two[0] @ one[1] + two[1])
    return LinearMap(kick.from_output, kick.from_state + two[0] @ one[0])
