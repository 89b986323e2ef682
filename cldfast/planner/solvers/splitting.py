"""Splittings of the reverse SDE into friction with noise (O), position (A) and score kick (B).

With P the inverse of the stationary covariance and `A~ = -A - D P` the reversed stationary drift,
time running down,

    O:  dU = diag(A~) U dtau + D^(1/2) dB                 exact, coordinate by coordinate
    A:  dx = (A~_xv v + D_x (s + P u)_x) dtau
    B:  dv = (A~_vx x + D_v (s + P u)_v) dtau

All three solvers ask the network once per step and use its output in A and in B: the "reduced"
form of Pandey, Rudolph, Mandt (2023), whose parts for PSLD these are. Unlike the force in molecular
dynamics the score depends on v and on the noise of the step, so symmetric sequences gain no order:
each solver has order 1 in law.
"""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import Parameterization, score_map
from cldfast.planner.reverse import lower_factor
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage, affine_stages
from cldfast.process.sde import LinearPhaseSDE


@solver("aboba", order=1)
def aboba(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """A and B for half a step, O for all of it, B and A again; score at the middle time.

    Neighbouring A halves are one stage. The score is asked after the first A; the x part of its
    drift (`x_noise` > 0) enters in B. Order 1 in law, one evaluation per step.
    Source: Leimkuhler and Matthews (2013), ABOBA; Pandey, Rudolph, Mandt (2023) for diffusions.
    """
    parts = _Parts(sde, parameterization, 0.5 * (grid[:-1] + grid[1:]))
    way = sde.tau(grid[:-1]) - sde.tau(grid[1:])
    half = 0.5 * way[:, None, None]
    friction, noise = parts.friction(way)
    # u -> O (u + half g) + half g with g = B u + score part, all linear in (u, o).
    state = friction + (friction * half + half * np.eye(2)) @ parts.kick_state
    output = (friction * half + half * np.eye(2)) @ parts.kick_output
    before = np.eye(2) + half * parts.position
    after = np.concatenate([before[1:] @ before[:-1], before[-1:]])
    L = lower_factor(after @ noise, np.linalg.det(noise))
    stages = affine_stages(parts.times, parts.ends(grid), after @ state, after @ output, L)
    return (Stage(t=None, t_next=float(parts.times[0]), P=before[0]), *stages)


@solver("obab", order=1)
def obab(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """O for a step, B for half of it, A, and B again, the score of a step's end used twice.

    The score after A closes its own step and opens the next. No evaluation closes the last step, so
    a whole B opens that step. Order 1 in law, one evaluation per step.
    Source: Bussi and Parrinello (2007), with O on one side; Pandey, Rudolph, Mandt (2023).
    """
    parts = _Parts(sde, parameterization, grid[:-1])
    way = sde.tau(grid[:-1]) - sde.tau(grid[1:])
    half = 0.5 * way[:, None, None]
    closing = np.concatenate([np.zeros((1, 1, 1)), half[:-1]])
    opening = np.concatenate([half[:-1], 2.0 * half[-1:]])
    friction, noise = parts.friction(way)
    move = np.eye(2) + way[:, None, None] * parts.position
    gain = move @ (friction * closing + opening * np.eye(2))
    state = move @ friction + gain @ parts.kick_state
    L = lower_factor(move @ noise, np.linalg.det(noise))
    return tuple(affine_stages(parts.times, grid[1:], state, gain @ parts.kick_output, L))


@solver("roba", order=1, quadratic_from=0)
def roba(
    sde: LinearPhaseSDE, grid: np.ndarray, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """O, B, A in this order with one score, asked after O at the end of the step (reduced OBA).

    A step that ends at t = 0 asks at its start. A step that ends just above 0 must be short, since
    the score at its end kicks for the whole step. O of the next step joins the stage. The noise
    control of the paper is left at 1, the exact law. Order 1 in law, one evaluation per step.
    Source: Pandey, Rudolph, Mandt (2023), "Efficient integrators for diffusion generative models",
        section 4.
    """
    parts = _Parts(sde, parameterization, np.where(grid[1:] > 0.0, grid[1:], grid[:-1]))
    way = sde.tau(grid[:-1]) - sde.tau(grid[1:])
    weight = way[:, None, None]
    friction, noise = parts.friction(way)
    # B first, then A with the new velocity and the same score.
    rows = np.diag([0.0, 1.0])
    kick = np.eye(2) + weight * (rows @ parts.kick_state)
    onward = np.eye(2) + weight * parts.position
    rest = weight * ((np.eye(2) - rows) @ parts.kick_state)
    state = onward @ kick + rest
    output = onward @ (weight * (rows @ parts.kick_output))
    output = output + weight * ((np.eye(2) - rows) @ parts.kick_output)
    after = np.concatenate([friction[1:], np.eye(2)[None]])
    L = np.concatenate([noise[1:], np.zeros((1, 2, 2))])
    stages = affine_stages(parts.times, parts.ends(grid), after @ state, after @ output, L)
    return (Stage(t=None, t_next=float(parts.times[0]), P=friction[0], L=noise[0]), *stages)


class _Parts:
    """The three parts with the score of given times."""

    def __init__(
        self, sde: LinearPhaseSDE, parameterization: Parameterization, times: np.ndarray
    ) -> None:
        drift = sde.reversed_drift
        self.sde, self.times = sde, times
        self.position = np.array([[0.0, drift[0, 1]], [0.0, 0.0]])
        force = np.array([[0.0, 0.0], [drift[1, 0], 0.0]])
        noise = np.diag(sde.D)
        score = score_map(sde, times, parameterization).then(noise)
        self.kick_state = force + (score.from_state + noise @ sde.prior().precision)
        self.kick_output = score.from_output

    def ends(self, grid: np.ndarray) -> np.ndarray:
        """The times of the states that stages make which begin with an evaluation."""
        return np.append(self.times[1:], grid[-1])

    def friction(self, way: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """O over integrated rates (n,): diagonal propagators and noise factors, (n, 2, 2)."""
        rate = np.diag(self.sde.reversed_drift)
        moving = np.where(rate == 0.0, 1.0, rate)
        growth = np.expm1(2.0 * way[:, None] * moving) / (2.0 * moving)
        variance = self.sde.D * np.where(rate == 0.0, way[:, None], growth)
        eye = np.eye(2)
        return np.exp(way[:, None] * rate)[:, :, None] * eye, np.sqrt(variance)[:, :, None] * eye
