"""Where the error of a sampler comes from, in exact numbers, on Gaussian data.

With W2 the Wasserstein-2 distance per coordinate and four laws of the plan's output,

    exact        p_t at the time t of the last state (0, hence the data, for a plan that denoises)
    ideal        the plan started from the exact law at `grid[0]`
    started      the plan started from the stationary law, as every sampler is
    perturbed    the same with an error of size M in the score

the budget is the length of each leg of the way from what a sampler makes to what it should make,

    score = W2(perturbed, started)
    initialisation = W2(started, ideal)
    discretisation = W2(ideal, exact)

and `total = W2(perturbed, exact)`, at most their sum by the triangle inequality. That is the
decomposition of the W2 analyses (Strasman, Surendran et al. 2025), with numbers for their bounds.
Stopping at t > 0 instead of 0 is not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cldfast.planner.law import gaussian_law, marginal_law, wasserstein2
from cldfast.planner.parameterization import Parameterization, output_planes
from cldfast.planner.stage import Stage
from cldfast.process.path import Path, Process


@dataclass(frozen=True)
class ErrorBudget:
    """Wasserstein-2 distances per coordinate, not squared; `total` <= the sum of the rest."""

    initialisation: float
    discretisation: float
    score: float
    total: float


def error_budget(
    stages: Sequence[Stage],
    sde: Process,
    parameterization: Parameterization,
    start: float,
    data_mean: float = 0.0,
    data_var: float = 1.0,
    score_error: float = 0.0,
    over: str = "x",
    of: str = "velocity",
) -> ErrorBudget:
    """Split the exact error on data `N(data_mean, data_var)` per coordinate by its source.

    stages: of a plan whose first time is `start`; sde, parameterization: what it was made from.

    score_error: size M >= 0 of the score's error: a constant that is added at every evaluation, so
        its L2 size is M, and it never averages out.
    of: "velocity" adds M to the velocity score. "full" adds a vector of length M to the score in
        (x, v), which is that of the renormalised score too and the M of the theorem (Strasman,
        Surendran et al. 2025): for a network of one plane the vector along `Sigma^-1 m`, as an
        error of its data prediction makes it, else the constant one that does most harm. The score
        of a path has one row, to which M is added.
    over: "x" compares the laws of x, "phase" those of (x, v). A plan that denoises makes the mean
        of the initial velocity, not its law: "phase" then counts the missing variance as
        discretisation.

    Raises ValueError for a negative variance or error, or another `over` or `of`.
    """
    if not (math.isfinite(score_error) and score_error >= 0.0):
        raise ValueError(f"score_error must be finite and >= 0, got {score_error}")
    if of not in ("velocity", "full"):
        raise ValueError(f"of must be 'velocity' or 'full', got {of!r}")
    data = (data_mean, data_var)
    law = partial(gaussian_law, stages, sde, parameterization)

    def direction(over: str) -> np.ndarray:
        if isinstance(sde, Path):
            return np.array([1.0, 0.0])
        if of == "velocity" or score_error == 0.0:
            return np.array([0.0, 1.0])
        if output_planes(parameterization) == 1:
            times = np.array([stage.t for stage in stages if stage.t is not None])
            rows = sde.marginal(times).statistic  # along Sigma^-1 m
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)
        # A bias moves the mean alone, and linearly.
        moved = [law(None, None, *data, score_bias=unit).mean - started.mean for unit in np.eye(2)]
        to_mean = np.stack(moved, axis=1)[: 1 if over == "x" else 2]
        worst: np.ndarray = np.linalg.svd(to_mean)[2][0]
        return worst

    begin = marginal_law(sde, start, *data)
    exact = marginal_law(sde, stages[-1].t_next, *data)
    ideal = law(begin.mean, begin.cov, *data)
    started = law(None, None, *data)
    perturbed = law(None, None, *data, score_bias=score_error * direction(over))
    return ErrorBudget(
        initialisation=wasserstein2(started, ideal, over),
        discretisation=wasserstein2(ideal, exact, over),
        score=wasserstein2(perturbed, started, over),
        total=wasserstein2(perturbed, exact, over),
    )
