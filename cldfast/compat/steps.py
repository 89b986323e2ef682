"""Steps of the codebases as stages for a network that returns the full score, and `fold`.

Published steps are affine too, so they are stages like any other. They are written down once, for
all codebases; what one of them does differently are the times, rates and laws that it passes.
`fold` then replaces the score by what the network of the codebase returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from cldfast.compat.laws import checked, jittered, naive
from cldfast.planner.parameterization import ScoreMap
from cldfast.planner.stage import Stage
from cldfast.process.linear_flow import Covariance, Transition
from cldfast.process.sde import LinearPhaseSDE

# Times (n,) -> how to make the score of a network's output there.
OutputMap = Callable[[np.ndarray], ScoreMap]


def euler(
    process: LinearPhaseSDE,
    t: np.ndarray,
    t_next: np.ndarray,
    way: np.ndarray,
    *,
    pull: float = 1.0,
    spread: float = 1.0,
) -> tuple[Stage, ...]:
    """`u' = u - way A u + pull way D score + spread sqrt(way D) z` from times t to t_next.

    way: step times rate. All (n,).
    """
    P, E = euler_blocks(process, way, pull)
    L = spread * np.sqrt(way[:, None, None] * np.diag(process.D))
    return tuple(
        Stage(t=float(t[k]), t_next=float(t_next[k]), P=P[k], E=(E[k],), L=L[k])
        for k in range(len(t))
    )


def euler_blocks(
    process: LinearPhaseSDE,
    way: np.ndarray,
    pull: float = 1.0,
    rows: tuple[float, float] = (1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks on state and score of the step, (n, 2, 2) each; rows: those that it moves."""
    weight = way[:, None, None] * np.diag(rows)
    return np.eye(2) - weight @ process.A, pull * (weight @ np.diag(process.D))


def denoising(process: LinearPhaseSDE, t: float, length: float | None = None) -> Stage:
    """Euler's step from t to 0 without its noise; length: of the step, if it is not t."""
    at = np.array([t])
    way = (t if length is None else length) * process.beta(at)
    return euler(process, at, np.zeros(1), way, spread=0.0)[0]


def splitting(
    process: LinearPhaseSDE,
    times: tuple[np.ndarray, np.ndarray, np.ndarray],
    halves: tuple[Transition, Transition],
    asked: np.ndarray,
    way: np.ndarray,
) -> tuple[Stage, ...]:
    """Two stages a step: half a step of the free process; the score's kick and the other half.

    times: start, middle and end of each step. halves: the free process from start to middle and
    from there to the end. asked: time of the score. way: integrated rate of the kick. All (n,).
    """
    _, middle, end = times
    first, second = halves
    D = np.diag(process.D)
    weight = way[:, None, None]
    kick = np.eye(2) + weight * (D @ process.prior().precision)
    P, E = second.phi @ kick, second.phi @ (weight * D)
    free, L, M = first.phi, first.factor, second.factor
    stages: list[Stage] = []
    for k in range(len(end)):
        stages += [
            Stage(t=None, t_next=float(middle[k]), P=free[k], L=L[k]),
            Stage(t=float(asked[k]), t_next=float(end[k]), P=P[k], E=(E[k],), L=M[k]),
        ]
    return tuple(stages)


def published_splitting(
    process: LinearPhaseSDE, ts: torch.Tensor, jitter: float, options: str
) -> tuple[tuple[Stage, ...], Transition]:
    """The splitting of CLD-SGM and PSLD, and its first halves.

    ts: the sampler's times, which run up from 0, float64, in the codebase's rounding: a covariance
    over a short half is what is left of terms of order 1. jitter: added to the variances. options:
    see `checked`. Both slip alike: the second half takes the first one's integral of beta, and the
    kick takes score and rate at the start of the step.
    """
    dt, start = ts[1:] - ts[:-1], process.T - ts[:-1]
    middle = process.T - (ts[:-1] + dt / 2)
    law = naive(process, process.tau(start) - process.tau(middle), reverse=True)
    own = checked(jittered(law.covariance, jitter), options)
    half = Transition(
        tuple(entry.numpy() for entry in law.entries),  # type: ignore[arg-type]
        Covariance(own.xx.numpy(), own.xv.numpy(), own.vv.numpy(), own.det.numpy()),
    )
    times = tuple(t.numpy() for t in (start, middle, process.T - ts[1:]))
    way = (dt * process.beta(start)).numpy()
    return splitting(process, times, (half, half), times[0], way), half


def fold(
    stages: Sequence[Stage], output_map: OutputMap, guidance: float | None = None
) -> tuple[Stage, ...]:
    """Stages for the full score, rewritten for a network whose output `output_map` explains.

    stages: without history, E one (2, 2) block on the full score. guidance: the network returns a
    second output, a term that is added to the score with this weight.
    """
    times = np.array([stage.t for stage in stages if stage.t is not None], dtype=np.float64)
    if not times.size:
        return tuple(stages)
    score = output_map(times)
    maps = iter(zip(score.from_output, score.from_state, strict=True))
    result = []
    for stage in stages:
        if stage.t is not None:
            from_output, from_state = next(maps)
            (E,) = stage.E
            added = () if guidance is None else (guidance * E,)
            stage = replace(stage, P=stage.P + E @ from_state, E=(E @ from_output, *added))
        result.append(stage)
    return tuple(result)


def rows_of_score(rows: np.ndarray) -> OutputMap:
    """The map of a network that returns some rows of the score, the others being 0; rows (2, r)."""

    def output_map(times: np.ndarray) -> ScoreMap:
        n = len(times)
        return ScoreMap(np.broadcast_to(rows, (n, *rows.shape)), np.zeros((n, 2, 2)))

    return output_map
