"""The exact law that stages make on Gaussian data: a float64 recursion, no sampling.

With data `N(mu, s^2)` per coordinate the score is linear in the state, so every stage is an affine
map of (u, history) plus Gaussian noise, and its mean and covariance follow exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cldfast.planner.parameterization import Parameterization, data_form, score_map
from cldfast.planner.path_forms import pair_network
from cldfast.planner.stage import Stage
from cldfast.process.path import Path, Process
from cldfast.process.prior_gap import covariance_distance


@dataclass(frozen=True)
class GaussianLaw:
    """A normal law of (x, v) per coordinate: `mean` (2,), `cov` (2, 2), float64."""

    mean: np.ndarray
    cov: np.ndarray


def wasserstein2(a: GaussianLaw, b: GaussianLaw, over: str = "x") -> float:
    """Wasserstein-2 distance per coordinate (not squared), between the laws of x or of (x, v).

    over: "x" or "phase". Raises ValueError for another.
    Source: Dowson and Landau (1982).
    """
    shift = b.mean - a.mean
    if over == "x":
        return math.hypot(shift[0], math.sqrt(b.cov[0, 0]) - math.sqrt(a.cov[0, 0]))
    if over != "phase":
        raise ValueError(f"over must be 'x' or 'phase', got {over!r}")
    squared = covariance_distance(a.cov, b.cov) ** 2
    return math.sqrt(float(shift @ shift) + squared)


def marginal_law(
    sde: Process, t: float, data_mean: float = 0.0, data_var: float = 1.0
) -> GaussianLaw:
    """The exact law of U_t for data `N(data_mean, data_var)` per coordinate."""
    if isinstance(sde, Path):
        law = sde.gaussian(t, data_var)
        return GaussianLaw(law.mean * data_mean, law.cov)
    marginal = sde.marginal(t)
    return GaussianLaw(
        marginal.mean * data_mean, marginal.cov + data_var * np.outer(marginal.mean, marginal.mean)
    )


def exact_network(
    sde: Process,
    t: Sequence[float] | np.ndarray,
    parameterization: Parameterization,
    data_mean: float,
    data_var: float,
    score_bias: Sequence[float] | np.ndarray = (0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """What a perfect network returns at times t of the state u: `gain @ u + shift`.

    gain: (n, r, 2). shift: (n, r). score_bias: (2,) or (n, 2), added to the rows of its score; of
    an output of one plane the velocity row decides. Of a path (2,), of which the first number is
    added to the score of each coordinate.
    """
    t = np.asarray(t, dtype=np.float64)
    if isinstance(sde, Path) and sde.paired:
        bias = float(np.ravel(score_bias)[0])
        return pair_network(sde, t, parameterization, data_mean, data_var, bias)
    if isinstance(sde, Path):
        law, error = sde.gaussian(t, data_var), np.asarray(score_bias)
        return _of_score(sde, t, parameterization, law.precision, law.mean * data_mean, error)
    marginal = sde.marginal(t)
    mean = marginal.mean
    form = data_form(parameterization)
    if form is not None:
        # `E[x0 | y] = (data_var y + sigma^2 data_mean) / (data_var + sigma^2)`.
        made, unsure = form.coefficients(marginal.sigma_y), marginal.det / marginal.signal
        unsure = unsure / (data_var + unsure)
        # The velocity score is `-Sigma^-1 u + w_v E[x0 | u]` with `w_v = (adj(Sigma) m)_v / det`.
        along_v = marginal.statistic[:, 1] * marginal.signal
        bias = np.broadcast_to(score_bias, mean.shape)[:, 1] * marginal.det
        # Where x and v do not interact w_v is 0, and there is no velocity score to be wrong.
        off = np.divide(bias, along_v, out=np.zeros_like(bias), where=bias != 0.0)
        return (
            ((made.drop - unsure) / made.gain)[:, None, None] * marginal.statistic[:, None, :],
            ((unsure * data_mean + off) / made.gain)[:, None],
        )
    precision = marginal.covariance.plus_outer(data_var, mean[..., 0], mean[..., 1]).inverse
    error = np.asarray(score_bias)
    return _of_score(sde, t, parameterization, precision, mean * data_mean, error)


def _of_score(
    sde: Process, t: np.ndarray, parameterization: Parameterization, precision: np.ndarray,
    mean: np.ndarray, error: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """What a network returns whose score is `-precision (u - mean) + error`."""
    to_score = score_map(sde, t, parameterization)
    back = to_score.left_inverse()
    gain = back @ (-precision - to_score.from_state)
    return gain, (back @ (precision @ mean[..., None] + error[..., None]))[..., 0]


def gaussian_law(
    stages: Sequence[Stage],
    sde: Process,
    parameterization: Parameterization,
    mean0: np.ndarray | None = None,
    var0: np.ndarray | None = None,
    data_mean: float = 0.0,
    data_var: float = 1.0,
    score_bias: Sequence[float] | np.ndarray = (0.0, 0.0),
) -> GaussianLaw:
    """The law that stages make with a perfect network for data `N(data_mean, data_var)`.

    mean0 (2,), var0 (2, 2): the law before the first stage; None is the stationary law.
    score_bias: (2,), or a row for each evaluation, added to both rows of the score.
    """
    mean = np.zeros(2) if mean0 is None else np.asarray(mean0, dtype=np.float64)
    cov = sde.prior().cov if var0 is None else np.asarray(var0, dtype=np.float64)
    if mean.shape != (2,) or cov.shape != (2, 2):
        raise ValueError(f"mean0 must be (2,) and var0 (2, 2), got {mean.shape} and {cov.shape}")
    if not data_var >= 0.0:
        raise ValueError(f"data_var must be >= 0, got {data_var}")
    times = [stage.t for stage in stages if stage.t is not None]
    gains, shifts = exact_network(sde, times, parameterization, data_mean, data_var, score_bias)
    kept = 2 * max(len(stage.H) for stage in stages)
    outputs = iter(zip(gains, shifts, strict=True))
    for stage in stages:
        rows = stage.matrix()[:, :-2]
        made, size = len(rows), len(mean)
        # Of the state, u and then the history rows, newest first.
        step, offset = np.zeros((made + size - 2, size)), np.zeros(made + size - 2)
        step[:made, :2] = rows[:, :2]
        step[made:, 2:] = np.eye(size - 2)
        first = 2
        if stage.evaluates:
            gain, shift = next(outputs)
            first += len(stage.E) * len(gain)
            # All outputs are those of the one perfect network.
            weight = rows[:, 2:first].reshape(made, len(stage.E), len(gain)).sum(1)
            step[:made, :2] += weight @ gain
            offset[:made] = weight @ shift
        step[:made, 2 : 2 + rows.shape[1] - first] = rows[:, first:]
        mean, cov = step @ mean + offset, step @ cov @ step.T
        cov[:2, :2] += stage.L @ stage.L.T
        mean, cov = mean[: 2 + kept], cov[: 2 + kept, : 2 + kept]
    return GaussianLaw(mean[:2], cov[:2, :2])
