"""Time grids fitted to a solver: the exact error of its output law on Gaussian data, minimised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cldfast.planner.law import GaussianLaw, marginal_law, wasserstein2
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import Parameterization
from cldfast.process.noise_level import Levels, noise_level
from cldfast.process.path import Process

# Knots of the log density of grid points over log sigma, between the ends.
DEFAULT_KNOTS = 4
# Each mode of a real data set is a narrow Gaussian, and all modes together are a wide one. The
# default therefore covers every scale from that of the whole data set down to 3 % of it.
DEFAULT_VARIANCES = (1.0, 0.1, 0.01, 0.001)
_FINE = 512


def optimise_grid(
    sde: Process,
    solver: str,
    steps: int,
    data_var: float | tuple[float, ...] = DEFAULT_VARIANCES,
    *,
    t_min: float = 1e-3,
    knots: int = DEFAULT_KNOTS,
    parameterization: Parameterization | None = None,
    max_evaluations: int = 400,
    **options: Any,
) -> np.ndarray:
    """A grid (steps + 1,) on which the solver's exact law error on Gaussian data is least.

    sde, solver, steps, t_min, parameterization, options: as for `cldfast.make_plan`.
    data_var: variance(s) of the Gaussian data; of several, the sum of squared relative errors in
        the standard deviation of x counts.
    knots: free parameters; the log density of grid points is the line through them over log sigma.
    max_evaluations: of the objective; each makes a plan and its law in closed form, without
        sampling and without a network.

    Nelder-Mead from the solver's automatic grid and from one that is even in log sigma; the best of
    all grids seen is returned, so the result is never worse than "auto".

    Raises ValueError for variances that are not > 0, `knots < 1`, or what `make_plan` refuses.
    """
    variances = np.atleast_1d(np.asarray(data_var, dtype=np.float64))
    if variances.ndim != 1 or not np.all(np.isfinite(variances) & (variances > 0.0)):
        raise ValueError(f"data_var must hold finite variances > 0, got {data_var!r}")
    if isinstance(knots, bool) or not isinstance(knots, int) or knots < 1:
        raise ValueError(f"knots must be an integer >= 1, got {knots!r}")
    from scipy.optimize import minimize

    best_grid = make_plan(sde, solver, steps, "auto", t_min, parameterization, **options).grid
    shape = _Shape(noise_level(sde), sde.T, t_min, steps, knots)

    def error(grid: np.ndarray) -> float:
        try:
            plan = make_plan(sde, solver, None, grid, t_min, parameterization, **options)
        except ValueError:
            return math.inf
        return sum(_relative_error(plan, float(var)) for var in variances)

    best = error(best_grid)

    def objective(parameters: np.ndarray) -> float:
        nonlocal best, best_grid
        grid = shape.grid(parameters)
        value = error(grid)
        if value < best:
            best, best_grid = value, grid
        # Nelder-Mead compares values, so a grid that overflows gets a large finite one.
        return math.log(value) if 0.0 < value < math.inf else 700.0

    for start in (shape.fit(best_grid), np.zeros(knots)):
        simplex = np.vstack([start, start + np.eye(knots)])
        limits = {"maxfev": max_evaluations // 2, "initial_simplex": simplex, "fatol": 1e-3}
        minimize(objective, start, method="Nelder-Mead", options=limits)
    return best_grid


def _relative_error(plan: Any, var: float) -> float:
    """Squared W2 error of x, from the stationary law at T, over the data's variance."""
    got = plan.gaussian_law(data_var=var)
    if not np.all(np.isfinite(got.cov)):
        return math.inf
    t = float(plan.stages[-1].t_next)
    exact = marginal_law(plan.sde, t, 0.0, var)
    x = GaussianLaw(got.mean, np.maximum(got.cov, 0.0))
    return wasserstein2(x, exact) ** 2 / var


class _Shape:
    """Grids as quantiles of a density over log sigma, log-linear between equidistant knots."""

    def __init__(self, noise: Levels, T: float, t_min: float, steps: int, knots: int) -> None:
        self.noise, self.T, self.t_min, self.steps = noise, T, t_min, steps
        # A grid that ends at 0 makes its last step from a noise level below any data scale of
        # interest: here that of 1e-3 T.
        self.inner = steps if t_min > 0.0 else steps - 1
        low, high = noise.log_sigma(np.array([t_min if t_min > 0.0 else 1e-3 * T, T]))
        self.fine = np.linspace(float(low), float(high), _FINE)
        self.knots = np.linspace(float(low), float(high), knots + 1)

    def grid(self, parameters: np.ndarray) -> np.ndarray:
        """Times (steps + 1,); parameters: log densities at the knots relative to the first."""
        log_density = np.interp(self.fine, self.knots, np.concatenate([[0.0], parameters]))
        density = np.exp(np.clip(log_density, -30.0, 30.0))
        mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
        levels = np.interp(np.linspace(1.0, 0.0, self.inner + 1), mass / mass[-1], self.fine)
        times = self.noise.time(levels)
        times[0] = self.T
        if self.t_min > 0.0:
            times[-1] = self.t_min
            return times
        return np.append(times, 0.0)

    def fit(self, grid: np.ndarray) -> np.ndarray:
        """Parameters of a grid like the given one, by its spacing near the knots."""
        inside = grid[grid > 0.0]
        if len(inside) < 3:
            return np.zeros(len(self.knots) - 1)
        levels = self.noise.log_sigma(inside[::-1])
        density = -np.log(np.maximum(np.diff(levels), 1e-12))
        middle = 0.5 * (levels[1:] + levels[:-1])
        at = np.interp(self.knots, middle, density)
        return at[1:] - at[0]
