"""Exponential Runge-Kutta methods in the x0 form: several evaluations per step, none older."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cldfast.plan import Stage
from cldfast.sde import LinearPhaseSDE
from cldfast.solvers.exponential import Exponential

# A row per state within a step: its time as a fraction of the step, and the evaluations (newest
# first) whose interpolating polynomial leads there. The network is asked at the start and at each
# state but the last.
Tableau = Sequence[tuple[float, tuple[int, ...]]]


def runge_kutta(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: str, tableau: Tableau
) -> tuple[Stage, ...]:
    """The stages of an exponential Runge-Kutta method on the probability flow.

    Every state of a step is `y = F(c, t) u_t + sum_j w_j q_j`; the next one is reached from it by
    taking out the w_j and putting in others, so u_t itself need not be kept.
    """
    rule = Exponential(sde, grid, parameterization)
    t, s = grid[:-1], grid[1:]
    times = [t] + [np.where(c == 1.0, s, t + c * (s - t)) for c, _ in tableau]
    stages_per_step = len(tableau)
    asked = [rule.quantity(np.where(when > 0.0, when, t)) for when in times[:-1]]
    rows: list[np.ndarray] = []
    for m, (_, used) in enumerate(tableau):
        weights = np.zeros((len(t), stages_per_step, 2, 1))
        nodes = np.stack([times[j] for j in used], axis=1)
        if np.any(nodes[-1] == 0.0):
            # No network at t = 0: the last step keeps what brought it there.
            weights[:-1, list(used)] = rule.weights(s[:-1], t[:-1], nodes[:-1])
            weights[-1] = rows[m - 1][-1]
        else:
            weights[:, list(used)] = rule.weights(times[m + 1], t, nodes)
        rows.append(weights)
    stages = []
    for i in range(len(t)):
        taken = np.zeros((stages_per_step, 2, 1))
        for m in range(stages_per_step):
            if times[m][i] == 0.0:
                break
            F = rule_move(rule, float(times[m + 1][i]), float(times[m][i]))
            weights = rows[m][i] - F @ taken
            taken = rows[m][i]
            q = asked[m]
            keep = m + 1 < stages_per_step
            stages.append(
                Stage(
                    t=float(times[m][i]),
                    t_next=float(times[m + 1][i]),
                    P=F + weights[m] @ q.from_state[i],
                    E=(weights[m] @ q.from_output[i],),
                    H=tuple(weights[m - 1 :: -1][:m]) if m else (),
                    A=(q.from_output[i],) if keep else None,
                    B=q.from_state[i] if keep else None,
                )
            )
    return tuple(stages)


def rule_move(rule: Exponential, s: float, t: float) -> np.ndarray:
    """F(s, t), the identity where s = t."""
    return np.eye(2) if s == t else rule.move(np.float64(s), np.float64(t))
