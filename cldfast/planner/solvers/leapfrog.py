"""The leapfrog scheme of the regularised CLD, with its times mended."""

from __future__ import annotations

from itertools import chain

import numpy as np

from cldfast.planner.parameterization import Parameterization, score_map
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
    blocks = half_steps(sde, tau_t - tau_middle, tau_middle - tau_s)
    (P, one), (Q, two) = (
        (state, score_map(sde, at, parameterization).then(pull))
        for at, (state, pull) in zip((t, middle), blocks, strict=True)
    )
    noise = np.sqrt((tau_t - tau_s)[:, None, None] * np.diag(sde.D))
    halves = zip(
        affine_stages(t, middle, P + one.from_state, one.from_output, noise),
        affine_stages(middle, s, Q + two.from_state, two.from_output, np.zeros_like(noise)),
        strict=True,
    )
    return tuple(chain.from_iterable(halves))


def half_steps(
    sde: LinearPhaseSDE, first: np.ndarray, second: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blocks on state and score, (n, 2, 2) each, of both halves over integrated rates (n,).

    The first half moves v, then x by the new v; the second half x, then v, by Euler steps
    `u_row += way (-A u + D s)_row`.
    """
    blocks = []
    for way, rows in ((first, (1, 0)), (second, (0, 1))):
        state, pull = np.eye(2), np.zeros((2, 2))
        for row in rows:
            weight = way[:, None, None] * np.diag(np.eye(2)[row])
            move = np.eye(2) - weight @ sde.A
            state, pull = move @ state, move @ pull + weight @ np.diag(sde.D)
        blocks.append((state, pull))
    return blocks
