"""Steps of the codebases as stages for a network that returns the full score; `fold` and `Flow`.

Published steps are affine too, so each step is a stage. The steps are written down once, for all
codebases: a codebase that does something differently passes other times, rates and laws. `fold`
then replaces the score by what the network of the codebase returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch

from cldfast.compat.laws import checked, jittered, naive
from cldfast.network import Network
from cldfast.planner.parameterization import LinearMap
from cldfast.planner.stage import Stage, affine_stages
from cldfast.process.linear_flow import Covariance, Transition
from cldfast.process.sde import LinearPhaseSDE
from cldfast.sampling import probability_flow

# Times (n,) -> how to make the score of a network's output there.
OutputMap = Callable[[np.ndarray], LinearMap]


def euler(
    process: LinearPhaseSDE,
    t: np.ndarray,
    t_next: np.ndarray,
    way: np.ndarray,
    *,
    pull: float = 1.0,
    spread: float = 1.0,
) -> list[Stage]:
    """`u' = u - way A u + pull way D score + spread sqrt(way D) z` from times t to t_next.

    way: step times rate. All (n,).
    """
    weight, D = way[:, None, None], np.diag(process.D)
    P = np.eye(2) - weight * process.A
    return affine_stages(t, t_next, P, pull * (weight * D), spread * np.sqrt(weight * D))


def denoising(process: LinearPhaseSDE, t: float, length: float) -> list[Stage]:
    """Euler's step of this length from t to 0, without its noise."""
    at = np.array([t])
    return euler(process, at, np.zeros(1), length * process.beta(at), spread=0.0)


def splitting(
    process: LinearPhaseSDE,
    times: tuple[np.ndarray, np.ndarray, np.ndarray],
    halves: tuple[Transition, Transition],
    asked: np.ndarray,
    way: np.ndarray,
) -> list[Stage]:
    """Two stages a step: half a step of the free process; the score's kick and the other half.

    times: start, middle and end of each step. halves: the free process from start to middle and
    from there to the end. asked: time of the score. way: integrated rate of the kick. All (n,).
    """
    _, middle, end = times
    first, second = halves
    E = way[:, None, None] * np.diag(process.D)
    P = np.eye(2) + E @ process.prior().precision
    free = [
        Stage(t=None, t_next=float(t), P=phi, L=L)
        for t, phi, L in zip(middle, first.phi, first.factor, strict=True)
    ]
    kicks = affine_stages(asked, end, second.phi @ P, second.phi @ E, second.factor)
    return list(chain.from_iterable(zip(free, kicks, strict=True)))


def published_splitting(
    process: LinearPhaseSDE, ts: torch.Tensor, jitter: float, options: str
) -> tuple[list[Stage], Transition]:
    """The splitting of CLD-SGM and PSLD, and its first halves.

    Both codebases slip alike: the second half takes the first half's integral of beta, and the kick
    takes score and rate at the start of the step.
    ts: the sampler's times, which run up from 0, float64, with the codebase's rounding, because the
    covariance over a short half is what is left of terms of order 1. jitter: added to the
    variances. options: see `checked`.
    """
    dt, start = ts[1:] - ts[:-1], process.T - ts[:-1]
    middle = process.T - (ts[:-1] + dt / 2)
    law = naive(process, process.tau(start) - process.tau(middle), reverse=True)
    own = checked(jittered(law.covariance, jitter), options)
    x_x, x_v, v_x, v_v = (entry.numpy() for entry in law.entries)
    xx, xv, vv, det = (entry.numpy() for entry in (own.xx, own.xv, own.vv, own.det))
    half = Transition((x_x, x_v, v_x, v_v), Covariance(xx, xv, vv, det))
    times = (start.numpy(), middle.numpy(), (process.T - ts[1:]).numpy())
    way = (dt * process.beta(start)).numpy()
    return splitting(process, times, (half, half), times[0], way), half


def fold(
    stages: Sequence[Stage], output_map: OutputMap, guidance: float | None = None
) -> list[Stage]:
    """Stages for the full score, rewritten for a network whose output `output_map` explains.

    stages: without history, E one (2, 2) block on the full score. guidance: the network returns a
    second output, a term that is added to the score with this weight.
    """
    asked = [k for k, stage in enumerate(stages) if stage.t is not None]
    result = list(stages)
    if not asked:
        return result
    score = output_map(np.array([stages[k].t for k in asked]))
    for k, from_output, from_state in zip(asked, score.from_output, score.from_state, strict=True):
        (E,), P = stages[k].E, stages[k].P
        added = () if guidance is None else (guidance * E,)
        result[k] = replace(stages[k], P=P + E @ from_state, E=(E @ from_output, *added))
    return result


class Flow(probability_flow.Flow):
    """`cldfast.sampling.probability_flow.Flow` for networks whose outputs `output_map` explains."""

    def __init__(self, net: Network, sde: LinearPhaseSDE, output_map: OutputMap) -> None:
        super().__init__(net, sde, "full_score")  # which `score` takes from the map
        self.output_map = output_map

    def score(self, times: np.ndarray) -> LinearMap:
        return self.output_map(times)


def rows_of_score(rows: np.ndarray) -> OutputMap:
    """The map of a network that returns some rows of the score, the others being 0; rows (2, r)."""

    def output_map(times: np.ndarray) -> LinearMap:
        n = len(times)
        return LinearMap(np.broadcast_to(rows, (n, *rows.shape)), np.zeros((n, 2, 2)))

    return output_map
