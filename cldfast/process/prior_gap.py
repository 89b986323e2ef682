"""How far the law at time T is from the one that sampling starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PriorGap:
    """Upper bounds on the distances of the two laws, over all data of one second moment.

    kl: the Kullback-Leibler divergence of the law at T from the start, infinite where that has no
        density. w2: the Wasserstein-2 distance in all coordinates, not squared. total_variation:
        by Pinsker's inequality, at most 1.
    """

    kl: float
    w2: float
    total_variation: float


def prior_gap(
    mean: np.ndarray, cov: np.ndarray, prior: np.ndarray, second_moment: float, dim: float
) -> PriorGap:
    """The gap of the mixture of `N(m x0, S)` over the data to `N(0, S_prior)`.

    mean: (2,), of a pair for x0 = 1. cov, prior: (2, 2), of a pair. second_moment: `E |x0|^2` over
    all coordinates. dim: number of pairs.

    Both the divergence and the squared distance are convex in the first law, so they are at most
    the means over x0 of those of two Gaussians; for data in one point that is what they are.

    Raises ValueError for a second moment < 0 or dim <= 0.
    """
    if not (math.isfinite(second_moment) and second_moment >= 0.0):
        raise ValueError(f"second_moment: expected a finite number >= 0, got {second_moment}")
    if not dim > 0:
        raise ValueError(f"dim: expected a number of coordinates >= 1, got {dim!r}")
    w2 = math.sqrt(float(mean @ mean) * second_moment + dim * covariance_distance(cov, prior) ** 2)
    if np.linalg.det(prior) <= 0.0 or np.linalg.det(cov) <= 0.0:
        return PriorGap(math.inf, w2, 1.0)
    inverse = np.linalg.inv(prior)
    # Twice the divergence of the covariances is the sum of e - log(1 + e) over these eigenvalues.
    excess = np.linalg.eigvals(inverse @ (cov - prior)).real
    kl = 0.5 * (float(mean @ inverse @ mean) * second_moment + dim * _gap(excess))
    return PriorGap(kl, w2, min(1.0, math.sqrt(kl / 2.0)))


def _gap(excess: np.ndarray) -> float:
    """The sum of `e - log(1 + e)`, whose two terms cancel for small e: there by its series."""
    # The next term of the series is below 1e-3^6/6 of 1, which float64 does not see beside e^2/2.
    series = excess**2 * (1 / 2 - excess * (1 / 3 - excess * (1 / 4 - excess / 5)))
    return float(np.where(np.abs(excess) < 1e-3, series, excess - np.log1p(excess)).sum())


def covariance_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-2 distance of `N(0, a)` and `N(0, b)` in two dimensions, not squared.

    With T the optimal map from a to b it is the root of `E |T(U) - U|^2`; unlike the trace formula
    of Bures, that does not cancel for laws that are close.

    Source: for T in two dimensions, a geometric mean, Bhatia (2007), "Positive definite matrices",
    section 4.1.
    """
    first, second = sorted((a, b), key=np.linalg.det, reverse=True)
    det_first, det_second = (max(float(np.linalg.det(c)), 0.0) for c in (first, second))
    size = math.sqrt(np.sum(first * second) + 2.0 * math.sqrt(det_first * det_second))
    if det_first == 0.0 or size == 0.0:
        return math.sqrt(max(float(np.trace(first) + np.trace(second)) - 2.0 * size, 0.0))
    adjugate = np.array([[first[1, 1], -first[0, 1]], [-first[1, 0], first[0, 0]]])
    move = (second + math.sqrt(det_second / det_first) * adjugate) / size - np.eye(2)
    return math.sqrt(max(float(np.trace(move @ first @ move.T)), 0.0))
