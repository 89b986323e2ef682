"""Symmetric splitting of second order: the linear part exact, one kick per step by x0."""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import Parameterization
from cldfast.planner.solvers.exponential import Exponential, add_weights, interpolation
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE


@solver("sscs2", order=2, quadratic_from=25)
def sscs2(
    sde: LinearPhaseSDE,
    grid: np.ndarray,
    parameterization: Parameterization,
    *,
    extrapolate: bool = True,
) -> tuple[Stage, ...]:
    """The reverse SDE by the exponential midpoint rule, the midpoint reached with an older x0.

    As in SSCS a half-step of an exactly solved linear SDE leads to the middle time r, where the
    network is asked, and another one on. But the linear part is the whole posterior given x0, not
    that of the stationary law, so the kick is `(m_s - F(s, t) m_t) x0(u_r)`, exact for data that
    are a point. The way to r needs a prediction: the line through the last two (or the last one
    itself, `extrapolate=False`), which is taken out again once x0(u_r) is known:

        u_s = F(s, r) (u_r - (m_r - F(r, t) m_t) x0_old) + (m_s - F(s, t) m_t) x0(u_r) + noise.

    The middle of the first step has no older prediction, so the network is asked at the start of
    that step. (A second evaluation at the start of every step would serve too. On 25 Gaussians,
    with 12 evaluations in all, sliced W2 is then 0.094, with the line 0.021, by chance 0.022.)

    Order 2 in law: the midpoint carries half of the step's noise, so the covariance of prediction
    and noise is right to second order. One evaluation per step.
    Sources: Dockhorn, Vahdat, Kreis (2022), algorithm 1, for the splitting; the stochastic midpoint
        rule is Milstein and Tretyakov (2004), section 2.2.
    """
    rule = Exponential(sde, grid, parameterization, churn=1.0)
    n = len(grid) - 1
    asked = np.concatenate([grid[:1], 0.5 * (grid[1:-1] + grid[2:])])
    q = rule.quantity(asked)
    whole = rule.weights(grid[1:], grid[:-1], asked[:, None])[:, 0]
    out = rule.move(grid[1:], asked)
    into = rule.move(asked[1:], grid[1:-1])
    L = rule.noise(np.append(asked[1:], grid[-1]), asked)
    # Entry i leads from grid[i + 1] to asked[i + 1] by the predictions made so far.
    old = [rule.weights(asked[1:], grid[1:-1], asked[:-1, None])] if n > 1 else []
    if extrapolate and n > 2:
        pairs = np.stack([asked[1:-1], asked[:-2]], axis=1)
        old = [old[0][:1], rule.weights(asked[2:], grid[2:-1], pairs)]
    behind = [weights for block in old for weights in block]
    stages = []
    for i in range(n):
        # u at grid[i + 1] = out u~ + whole q_i - out (behind q_(i - 1), ...)
        weights, F = whole[i : i + 1], out[i]
        if i > 0:
            weights = np.concatenate([weights, -F @ behind[i - 1]])
        keep = i + 1 < n
        if keep:
            weights = add_weights(into[i] @ weights, behind[i])
            F = into[i] @ F
        reached = asked[i + 1] if keep else grid[-1]
        stages.append(interpolation(q, i, (asked[i], reached), F, weights, L[i], keep))
    return tuple(stages)
