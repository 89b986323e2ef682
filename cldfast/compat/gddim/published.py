"""R_t of gDDIM as its code computes it: a table, in float64 as with its `x64` option."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

# Entries of the table that the interpolation reads, and points of the sums over a step.
TABLE_ENTRIES = 100_000
SUM_POINTS = 10_000
ORDER0_SUM_POINTS = 1_000

Entries = tuple[float, ...]


@lru_cache(maxsize=8)
def factor_table(
    mass_inv: float,
    beta_0: float,
    beta_1: float,
    start_x: float,
    start_v: float,
    runge_kutta: bool,
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Times (n,) and R (n, 2, 2) on [0, 1] from `R_0 = diag(start_x, start_v)`.

    runge_kutta: the classical method of order 4 instead of Euler's with averaged coefficients.
    The number of entries is rounded down from 1/step, which stretches the times by up to `step`
    while the integration goes on with `step` itself; both as in the code. About a second per
    100,000 entries.
    """
    count = int(1.0 / step)
    times = np.linspace(0.0, 1.0 + step, count + 1, endpoint=False)
    friction = 2.0 / math.sqrt(mass_inv)
    rows = np.empty((count + 1, 4))
    R: Entries = (start_x, 0.0, 0.0, start_v)
    for k, t in enumerate(times.tolist()):
        rows[k] = R
        here, ahead = beta_0 + beta_1 * t, beta_0 + beta_1 * (t + step)
        if runge_kutta:
            middle = beta_0 + beta_1 * (t + 0.5 * step)
            k1 = _slope(R, here, here, mass_inv, friction)
            k2 = _slope(_ahead(R, k1, 0.5 * step), middle, middle, mass_inv, friction)
            k3 = _slope(_ahead(R, k2, 0.5 * step), middle, middle, mass_inv, friction)
            k4 = _slope(_ahead(R, k3, step), ahead, ahead, mass_inv, friction)
            total = tuple(
                a + 2.0 * b + 2.0 * c + d for a, b, c, d in zip(k1, k2, k3, k4, strict=True)
            )
            R = _ahead(R, total, step / 6.0)
        else:
            # The noise amplitude, not its square, is averaged.
            spread = (0.5 * (math.sqrt(here) + math.sqrt(ahead))) ** 2
            slope = _slope(R, 0.5 * (here + ahead), spread, mass_inv, friction)
            R = _ahead(R, slope, step)
    index = np.linspace(0, count, TABLE_ENTRIES, dtype=int)
    return times[index], rows.reshape(-1, 2, 2)[index]


def _slope(R: Entries, drift: float, spread: float, mass_inv: float, friction: float) -> Entries:
    """`F R + G G^T R^-T / 2`, row by row; beta enters the drift and the noise separately."""
    a, b, c, d = R
    pull = spread * friction / (a * d - b * c)
    return (
        drift * mass_inv * c,
        drift * mass_inv * d,
        -drift * (a + friction * mass_inv * c) - pull * b,
        -drift * (b + friction * mass_inv * d) + pull * a,
    )


def _ahead(R: Entries, slope: Entries, way: float) -> Entries:
    return tuple(r + way * s for r, s in zip(R, slope, strict=True))


def interpolate(t: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Linear between the entries of a table, (..., 2, 2), and on with the last ones' slope."""
    index = np.clip(np.searchsorted(times, t, side="right"), 1, len(times) - 1)
    share = (t - times[index - 1]) / (times[index] - times[index - 1])
    low, high = values[index - 1], values[index]
    return low + share[..., None, None] * (high - low)
