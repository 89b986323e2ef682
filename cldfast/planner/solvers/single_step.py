"""Exponential Runge-Kutta methods in the x0 form: several evaluations per step, none older."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cldfast.planner.parameterization import Parameterization
from cldfast.planner.solvers.exponential import Exponential, interpolation
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE

# A row per state within a step: its time as a fraction of the step, and the evaluations (newest
# first) whose interpolating polynomial leads there. The network is asked at the start and at each
# state but the last.
Tableau = Sequence[tuple[float, tuple[int, ...]]]


def runge_kutta(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization, tableau: Tableau
) -> tuple[Stage, ...]:
    """The stages of an exponential Runge-Kutta method on the probability flow.

    Every state of a step is `y = F(c, t) u_t + sum_j w_j q_j`; the next one is reached from it by
    taking out the w_j and putting in others, so u_t itself need not be kept.
    """
    rule = Exponential(sde, grid, parameterization)
    t, s = grid[:-1], grid[1:]
    times = [t] + [np.where(c == 1.0, s, t + c * (s - t)) for c, _ in tableau]
    count = len(tableau)
    asked, moves, weights = [], [], []
    for m, (_, used) in enumerate(tableau):
        early, late = times[m], times[m + 1]
        # There is no network at t = 0: what would ask it there is left out below.
        safe = np.where(early > 0.0, early, t)
        asked.append(rule.quantity(safe))
        # A state is also computed again at its own time.
        same = (early == late)[:, None, None]
        moves.append(np.where(same, np.eye(2), rule.move(late, safe)))
        nodes = np.stack([np.where(times[j] > 0.0, times[j], t) for j in used], axis=1)
        row = np.zeros((len(t), count, 2, 1))
        ok = early > 0.0
        row[np.ix_(np.flatnonzero(ok), np.array(used))] = rule.weights(late[ok], t[ok], nodes[ok])
        weights.append(row)
    stages = []
    for i in range(len(t)):
        taken = np.zeros((count, 2, 1))
        for m in range(count):
            if times[m][i] == 0.0:
                break
            F, span = moves[m][i], (times[m][i], times[m + 1][i])
            change = weights[m][i] - F @ taken
            taken = weights[m][i]
            newest_first = change[m::-1]
            stages.append(
                interpolation(asked[m], i, span, F, newest_first, np.zeros((2, 2)), m + 1 < count)
            )
    return tuple(stages)


@solver("heun", order=2, evaluations_per_step=2)
def heun(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """To the end of the step with x0 of its start, again with the line through both predictions.

    Order 2 in law, two evaluations per step (one for a last step that ends at t = 0).
    Sources: Karras et al. (2022), algorithm 1; exponential: Hochbruck and Ostermann (2010).
    """
    return runge_kutta(sde, grid, parameterization, [(1.0, (0,)), (1.0, (1, 0))])


@solver("dpm2", order=2, evaluations_per_step=2)
def dpm2(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """The exponential midpoint rule: x0 of the middle of the step for all of it.

    Order 2 in law, two evaluations per step.
    Source: Lu et al. (2022), DPM-Solver-2 and its x0 form in DPM-Solver++ (2S).
    """
    return runge_kutta(sde, grid, parameterization, [(0.5, (0,)), (1.0, (1,))])


@solver("dpm3", order=3, evaluations_per_step=3)
def dpm3(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """Heun's third-order rule: to 1/3 with x0 of the start, to 2/3 with a line, to the end with the
    line through the start and 2/3 (Radau's rule, exact for parabolas).

    Order 3 in law, three evaluations per step.
    Source: Lu et al. (2022), DPM-Solver-3; the tableau is Heun (1900).
    """
    third = 1.0 / 3.0
    tableau = [(third, (0,)), (2.0 * third, (1, 0)), (1.0, (2, 0))]
    return runge_kutta(sde, grid, parameterization, tableau)
