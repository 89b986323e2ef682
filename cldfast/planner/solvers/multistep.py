"""Exponential Adams methods: one evaluation per step, earlier ones reused."""

from __future__ import annotations

import math

import numpy as np

from cldfast.planner.parameterization import Parameterization
from cldfast.planner.solvers.exponential import Exponential, add_weights, interpolation
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE

MAX_ORDER = 4


def adams_order(order: int, correct: bool, **_: object) -> int:
    """Order in law of `adams` without noise: a corrector adds one."""
    return order + bool(correct)


# The last step of a logistic grid is a leap, which the "L" form does not survive.
@solver(
    "multistep", order=adams_order, quadratic_from=lambda form, **_: 0 if form == "L" else math.inf
)
def multistep(
    sde: LinearPhaseSDE,
    grid: np.ndarray,
    parameterization: Parameterization,
    *,
    order: int = 2,
    form: str = "x0",
    correct: bool = False,
    variable: str = "t",
) -> tuple[Stage, ...]:
    """Exponential Adams-Bashforth of order 1 to 4 on the probability flow.

    form: what is interpolated through the last `order` evaluations: "x0" (exact for data that are a
        point), "R" or "L" noise; see `cldfast.planner.solvers.exponential`.
    correct: correct each state with the evaluation made there before it is used (a corrector in
        PEC mode as in UniPC): one order more for the same evaluations.
    variable: of the polynomials, "t", "tau", "log_snr" or "sigma" (`snr^-1/2`).

    Order `order`, plus 1 with `correct` (up to 4 together); one evaluation per step. The first
    steps have lower order and are corrected in any case; order 4 in a noise form takes one short
    step, and one evaluation, more at the start. In the x0 form the first step's error of third
    order is left: its factor, how far the prediction follows the state at T, is next to nothing.
    The noise forms see the state in every evaluation, as any explicit method for a linear system
    does: with few steps "L" diverges (hundreds serve), and "R" amplifies roundings from order 4 or
    with `correct`. The x0 form has neither trouble: where steps are long, the prediction of x0
    hardly depends on the state.
    Sources: Zhang, Chen (2022), DEIS; Zhang, Tao, Chen (2022), gDDIM, for phase space; the x0 form
        on a single noise level is Lu et al. (2022), DPM-Solver++; Zhao et al. (2023), UniPC.
    """
    rule = Exponential(sde, grid, parameterization, form, 0.0, variable)
    if order + correct > 3 and form != "x0":
        # A first step of h^2/T has the local error h^4 at order 1, and the second is corrected.
        first = grid[0] - grid[1]
        grid = np.insert(grid, 1, grid[0] - first * min(first / grid[0], 0.5))
    return adams(rule, grid, order, correct)


def adams(rule: Exponential, grid: np.ndarray, order: int, correct: bool) -> tuple[Stage, ...]:
    """The stages of an exponential Adams method.

    With q the quantity of `rule` and u~ the predicted state, stage i makes

        u = u~ + sum_j (c_j - p_j) q_j          if `correct`: the last step again, with q_i known
        u~' = F u + sum_j w_j q_j

    all in one row of coefficients, since q_i is a linear map of the output and of u~.

    Raises ValueError for an order that is not from 1 to 4, or 3 if `correct`.
    """
    highest = MAX_ORDER - bool(correct)
    if not 1 <= order <= highest:
        raise ValueError(f"order must be an integer from 1 to {highest}, got {order!r}")
    t, s = grid[:-1], grid[1:]
    n = len(t)
    q = rule.quantity(t)
    F, L = rule.move(s, t), rule.noise(s, t)
    predicted = _weights(rule, s, t, grid, order, ahead=0)
    # Entry i corrects the step into grid[i + 1], with the node grid[i + 1] in front. Without
    # `correct` only the first steps are corrected: their low order would limit the whole method.
    until = n if correct else min(order, n)
    corrected = _weights(rule, t[1:until], t[: until - 1], grid, order + 1, ahead=1)
    stages = []
    for i in range(n):
        weights = predicted[i]
        if 0 < i < until:
            # Corrected less predicted weights of the last step; its newest node had no weight.
            change = np.array(corrected[i - 1])
            change[1:] -= predicted[i - 1][: len(change) - 1]
            weights = add_weights(F[i] @ change, weights)
        keep = i + 1 < n and (order > 1 or correct)
        stages.append(interpolation(q, i, (t[i], s[i]), F[i], weights, L[i], keep))
    return tuple(stages)


def _weights(
    rule: Exponential, s: np.ndarray, t: np.ndarray, grid: np.ndarray, order: int, ahead: int
) -> list[np.ndarray]:
    """Weights (k, 2, planes) per step from t to s through the k last nodes, newest first.

    Step i has the nodes grid[i + ahead], ..., grid[0] to choose from, and takes at most `order`.
    """
    n = len(s)
    result: list[np.ndarray] = []
    for i in range(min(order - 1 - ahead, n)):
        nodes = grid[i + ahead :: -1][None]
        result.append(rule.weights(s[i : i + 1], t[i : i + 1], nodes)[0])
    rest = np.arange(len(result), n)
    if len(rest):
        nodes = np.stack([grid[rest + ahead - j] for j in range(order)], axis=1)
        result.extend(rule.weights(s[rest], t[rest], nodes))
    return result


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


def _order(churn: float, order: int, correct: bool, **_: object) -> int:
    claimed = adams_order(order, correct)
    return min(claimed, 2) if churn > 0.0 else claimed


@solver("stochastic_multistep", order=_order)
def stochastic_multistep(
    sde: LinearPhaseSDE,
    grid: np.ndarray,
    parameterization: Parameterization,
    *,
    churn: float = 1.0,
    order: int = 2,
    correct: bool = False,
    variable: str = "t",
) -> tuple[Stage, ...]:
    """`multistep` in the x0 form with noise: churn 0 is the probability flow, 1 the reverse SDE.

    The law is exact for data that are a point at every churn. order, correct, variable: see
    `multistep`.

    Order as `multistep`, but at most 2 for churn > 0: what the noise of a step does to the
    prediction within that step arrives with the next one, in the right amount for order 2. One
    evaluation per step.
    Sources: Xue et al. (2023), SA-Solver, on a single noise level; the family is in
        `cldfast.planner.reverse`.
    """
    rule = Exponential(sde, grid, parameterization, "x0", churn, variable)
    return adams(rule, grid, order, correct)


@solver(
    "unipc",
    order=lambda order, **_: adams_order(order, correct=True),
    quadratic_from=lambda form, **_: 0 if form == "L" else 25,
)
def unipc(
    sde: LinearPhaseSDE,
    grid: np.ndarray,
    parameterization: Parameterization,
    *,
    order: int = 2,
    form: str = "x0",
    variable: str = "t",
) -> tuple[Stage, ...]:
    """`multistep` whose states are corrected by the evaluation made there, before it is used on.

    order: 1 to 3. form, variable: see `multistep`; the corrector has one node more.

    Order `order + 1` in law (3 by default), one evaluation per step: the correction of a step and
    the next prediction are one row of coefficients.
    Source: Zhao et al. (2023), UniPC, on a single noise level.
    """
    return multistep(
        sde, grid, parameterization, order=order, form=form, correct=True, variable=variable
    )
