"""Time grids: descending arrays of `steps + 1` times from T to t_min, float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cldfast.process.noise_level import Levels

GRIDS = ("linear", "quadratic", "power")
# Grids that follow the noise level of a process.
NOISE_GRIDS = ("log_snr", "logistic")
DEFAULT_STEPS = 20
# A plan takes 1 to 4 KiB of memory for each step, while it is made: the most steps take a gibibyte.
MOST_STEPS = (1 << 30) // (4 << 10)
# Karras et al. (2022), appendix D.1 find exponents around 7 best for their grids.
DEFAULT_RHO = 7.0
# Centre and scale of the logistic grid in log sigma, for data of unit variance: the best of a scan
# over 25 Gaussians, from 8 to 50 evaluations (docs/solvers.md). Where the prediction of x0 moves,
# sigma is near e^-0.5 = 0.6 standard deviations of the data, whatever the process.
LOGISTIC_CENTRE = -0.5
LOGISTIC_SCALE = 1.2

Grid = str | Sequence[float] | np.ndarray


def make_grid(
    grid: Grid,
    *,
    T: float,
    t_min: float,
    steps: int | None = None,
    rho: float = DEFAULT_RHO,
    noise: Levels | None = None,
) -> np.ndarray:
    """The times of a sampler, (steps + 1,), descending.

    grid: "linear"; "quadratic", `t_min + (T - t_min) s^2` for s from 1 to 0 (Dockhorn, Vahdat,
        Kreis 2022); "power", linear in `t^(1/rho)` (Karras et al. 2022, eq. 5); or a descending
        array of times in [0, T], which brings its own end points. With `noise`: "log_snr", uniform
        in the log of the noise level (t_min > 0; Lu et al. 2022, DPM-Solver); "logistic", quantiles
        of a logistic law of that log, which asks most often where the prediction moves most.
    steps: intervals >= 1; None means 20, or what a given array holds.

    Raises ValueError for unknown names, `steps < 1` or above 262,144, `t_min` outside [0, T), or an
    array that is not finite, one-dimensional and strictly descending.
    """
    if not isinstance(grid, str):
        return _custom(grid, T, steps)
    if steps is None:
        steps = DEFAULT_STEPS
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise TypeError(f"steps must be an integer, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    _check_count(int(steps))
    if not (math.isfinite(t_min) and 0.0 <= t_min < T):
        raise ValueError(f"t_min must lie in [0, T) with T = {T}, got {t_min}")
    s = np.linspace(1.0, 0.0, int(steps) + 1)
    if grid == "linear":
        times = t_min + (T - t_min) * s
    elif grid == "quadratic":
        times = t_min + (T - t_min) * s**2
    elif grid == "power":
        if not (math.isfinite(rho) and rho > 0.0):
            raise ValueError(f"rho must be finite and > 0, got {rho}")
        low, high = t_min ** (1.0 / rho), T ** (1.0 / rho)
        times = (low + (high - low) * s) ** rho
    elif noise is not None and grid in NOISE_GRIDS:
        times = _by_noise(grid, T, t_min, s, noise)
    else:
        names = GRIDS if noise is None else (*GRIDS, *NOISE_GRIDS, "auto")
        raise ValueError(
            f"unknown grid {grid!r}; expected {', '.join(names)}, or a descending array of times"
        )
    # The end points exactly, whatever the power has rounded.
    times[0], times[-1] = T, t_min
    if not np.all(np.diff(times) < 0.0):
        raise ValueError(
            f"{steps} steps of the {grid} grid are closer together than float64 resolves"
        )
    return times


def _by_noise(grid: str, T: float, t_min: float, s: np.ndarray, noise: Levels) -> np.ndarray:
    low, high = noise.log_sigma(np.array([t_min, T]))
    if grid == "log_snr":
        if t_min == 0.0:
            raise ValueError("the log_snr grid needs t_min > 0: log(SNR) is infinite at t = 0")
        if high == np.inf:
            raise ValueError(f"the log_snr grid needs T < {T}: no signal is left there")
        return noise.time(low + (high - low) * s)
    lower, upper = (
        1.0 / (1.0 + np.exp((LOGISTIC_CENTRE - e) / LOGISTIC_SCALE)) for e in (low, high)
    )
    share = lower + (upper - lower) * s[1:-1]
    inner = noise.time(LOGISTIC_CENTRE + LOGISTIC_SCALE * np.log(share / (1.0 - share)))
    return np.concatenate([[T], inner, [t_min]])


def _check_count(steps: int) -> None:
    if steps > MOST_STEPS:
        raise ValueError(
            f"steps must be at most {MOST_STEPS}, got {steps}: a plan of so many takes more than "
            "a gibibyte; take fewer, or a solver of higher order"
        )


def _custom(grid: Sequence[float] | np.ndarray, T: float, steps: int | None) -> np.ndarray:
    times = np.array(grid, dtype=np.float64)
    _check_count(times.size - 1)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(
            f"a grid must be a flat array of at least 2 times, got shape {times.shape}"
        )
    if not np.all(np.isfinite(times)):
        raise ValueError("a grid must be finite, got NaN or infinity")
    if not np.all(np.diff(times) < 0.0):
        raise ValueError(
            "a grid must descend strictly from T to t_min (time runs forward, sampling backward), "
            f"got {times[0]} ... {times[-1]}"
        )
    if times[0] > T or times[-1] < 0.0:
        raise ValueError(f"grid times must lie in [0, T = {T}], got [{times[-1]}, {times[0]}]")
    if steps is not None and steps != times.size - 1:
        raise ValueError(f"steps = {steps}, but the grid given has {times.size - 1} intervals")
    return times
