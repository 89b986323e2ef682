"""Exponential Runge-Kutta methods in the x0 form: several evaluations per step, none older."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cldfast.planner.parameterization import Parameterization
from cldfast.planner.solvers.exponential import Exponential, interpolation
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
