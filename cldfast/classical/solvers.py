"""Solvers of Gaussian paths by the names of those of CLD; `form` is what the network returns."""

from __future__ import annotations

from itertools import chain

import numpy as np

from cldfast.classical.paths import SOLVERS, GaussianPath, solver
from cldfast.planner.path_forms import blocks, pair_map
from cldfast.planner.solvers.multistep import adams, adams_order
from cldfast.planner.solvers.path_exponential import PathExponential
from cldfast.planner.stage import Stage, affine_stages

Grid = np.ndarray
Stages = tuple[Stage, ...]


@solver("em", order=1)
def em(path: GaussianPath, grid: Grid, form: str) -> Stages:
    """`x' = x + h (-f x + g^2 s(x, t)) + sqrt(h) g z` from t to t - h, rates at t.

    Order 1 in law, one evaluation per step. Source: Song et al. (2021), appendix D.
    """
    h, t = -np.diff(grid), grid[:-1]
    weight = h * _squared_noise(path, t)
    return kicks(path, grid, t, form, 1.0 - h * path.drift(t), weight, weight)


@solver("frozen_langevin", order=0)
def time_inhomogeneous_langevin(path: GaussianPath, grid: Grid, form: str) -> Stages:
    """`x' = x + h g^2 s(x, t)/2 + sqrt(h) g z`: Langevin dynamics whose target moves with t.

    No time reversal: its law lags behind the targets, and stays too wide however fine the grid
    (order 0). Kept to show that. One evaluation per step.
    """
    h, t = -np.diff(grid), grid[:-1]
    weight = h * _squared_noise(path, t)
    return kicks(path, grid, t, form, 1.0, 0.5 * weight, weight)


@solver("euler", order=1)
def euler(path: GaussianPath, grid: Grid, form: str) -> Stages:
    """Euler's method on the probability flow in t, as flow matching is sampled.

    Order 1 in law, one evaluation per step. Source: Lipman et al. (2023), section 2.
    """
    slope = pair_map(path, grid[:-1], form, "flow").then(blocks(np.diff(grid)))
    P = np.eye(2) + slope.from_state
    return tuple(affine_stages(grid[:-1], grid[1:], P, slope.from_output, 0.0 * P))


@solver("heun", order=2, evaluations_per_step=2)
def heun(path: GaussianPath, grid: Grid, form: str) -> Stages:
    """Heun's method on the probability flow in t; a step that ends at t = 0 is Euler's.

    Order 2 in law, two evaluations per step. Source: Karras et al. (2022), algorithm 1.
    """
    early = pair_map(path, grid[:-1], form, "flow")
    late = pair_map(path, np.where(grid[1:] > 0.0, grid[1:], grid[:-1]), form, "flow")
    stages: list[Stage] = []
    for i, (step, h) in enumerate(zip(euler(path, grid, form), np.diff(grid), strict=True)):
        if step.t_next == 0.0:
            return (*stages, step)
        # The slope at t is kept; half the difference of both slopes then puts the state right.
        kept = {"A": (early.from_output[i],), "B": early.from_state[i]}
        stages.append(Stage(step.t, step.t_next, step.P, step.E, **kept))
        P, E = np.eye(2) + 0.5 * h * late.from_state[i], 0.5 * h * late.from_output[i]
        stages.append(Stage(step.t_next, step.t_next, P, (E,), H=(-0.5 * h * np.eye(2),)))
    return tuple(stages)


@solver("ddim", order=1)
def ddim(path: GaussianPath, grid: Grid, form: str) -> Stages:
    """`x' = alpha' x0 + sigma' eps` with both predictions of the step's start.

    Order 1 in law, one evaluation per step. Source: Song, Meng, Ermon (2021), eq. 12 at eta = 0.
    """
    return adams(PathExponential(path, grid, form, 0.0), grid, 1, False)


@solver("ancestral", order=1)
def ancestral(path: GaussianPath, grid: Grid, form: str) -> Stages:
    """A draw from `p(x_s | x_t, x0)` with the prediction x0.

    Order 1 in law, one evaluation per step. Source: Ho, Jain, Abbeel (2020), eq. 6.
    """
    return adams(PathExponential(path, grid, form, 1.0), grid, 1, False)


@solver("multistep", order=adams_order)
def multistep(
    path: GaussianPath, grid: Grid, form: str, *, order: int = 2, correct: bool = False,
    variable: str = "auto",
) -> Stages:  # fmt: skip
    """DPM-Solver++ on the probability flow: the last predictions of x0 interpolated.

    order, correct: as for CLD's `multistep`. variable: see `PathExponential`. Order `order` from 1
    to 4, plus 1 with `correct`; one evaluation per step. Source: Lu et al. (2022), DPM-Solver++
    (2M, 3M); Zhao et al. (2023), UniPC, for `correct`.
    """
    return adams(PathExponential(path, grid, form, 0.0, variable), grid, order, correct)


@solver("stochastic_multistep", order=lambda churn, order, **_: min(order, 2) if churn else order)
def stochastic_multistep(
    path: GaussianPath, grid: Grid, form: str, *, churn: float = 1.0, order: int = 2,
    variable: str = "auto",
) -> Stages:  # fmt: skip
    """SDE-DPM-Solver++: `multistep` with noise, for churn 1 on the reverse SDE.

    Order `order`, at most 2 for churn > 0; one evaluation per step. Source: Lu et al. (2022).
    """
    return adams(PathExponential(path, grid, form, churn, variable), grid, order, False)


@solver("sscs", order=1)
def sscs(path: GaussianPath, grid: Grid, form: str, *, data_var: float = 1.0) -> Stages:
    """Half a step of the reverse SDE of Gaussian data, a kick by the rest of the score, a half.

    Data `N(0, data_var)` have the law `N(0, c)` at time t and a linear reverse SDE, which is solved
    exactly; the kick adds `h g^2 (s + x/c)` at the middle time. For `VP` and `data_var` 1 this is
    SSCS, whose Gaussian is the stationary law. Order 1 in law, one evaluation per step.
    Source: Dockhorn, Vahdat, Kreis (2022), algorithm 1.
    """
    middle = 0.5 * (grid[:-1] + grid[1:])
    ends = np.concatenate([grid[:1], middle, grid[-1:]])
    s, t = ends[1:], ends[:-1]
    variance = path.gaussian(ends, data_var).covariance.xx
    share = variance[1:] / variance[:-1]
    # The variance of x_t given x_s, without the cancellation of its two parts.
    added = -(path.sigma(t) ** 2) * np.expm1(2.0 * (path.log_sigma(s) - path.log_sigma(t)))
    phi, L = blocks(share * path.alpha(t) / path.alpha(s)), blocks(np.sqrt(share * added))
    weight = -np.diff(grid) * _squared_noise(path, middle)
    kick = pair_map(path, middle, form, "score").then(blocks(weight))
    P = kick.from_state + blocks(1.0 + weight / variance[1:-1])
    rest = affine_stages(middle, ends[2:], phi[1:] @ P, phi[1:] @ kick.from_output, L[1:])
    return (Stage(t=None, t_next=float(middle[0]), P=phi[0], L=L[0]), *rest)


@solver("pc", order=1, evaluations_per_step=2)
def predictor_corrector(
    path: GaussianPath, grid: Grid, form: str, *, predictor: str = "em", corrections: int = 1,
    snr: float = 0.16,
) -> Stages:  # fmt: skip
    """A step of another solver with one stage per step, then Langevin steps at the time reached.

    corrections: Langevin steps of size `2 (snr sigma)^2`, that of the source where the score has
    the size 1/sigma. Order 1 up to the bias of these steps; `1 + corrections` evaluations per step.
    Source: Song et al. (2021), algorithms 2 to 5.
    """
    single = ("em", "ancestral", "ddim", "euler")
    if predictor not in single or corrections < 1 or not snr > 0.0:
        raise ValueError(
            f"need a predictor among {', '.join(single)}, corrections >= 1 and snr > 0, got "
            f"{predictor!r}, {corrections} and {snr}"
        )
    t = np.where(grid[1:] > 0.0, grid[1:], grid[:-1])
    h = 2.0 * (snr * path.sigma(t)) ** 2
    fixes = kicks(path, grid, t, form, 1.0, h, 2.0 * h)
    pairs = zip(SOLVERS[predictor].build(path, grid, form), fixes, strict=True)
    return tuple(chain.from_iterable((step, *[fix] * corrections) for step, fix in pairs))


@solver("annealed_langevin", order=0)
def annealed_langevin(
    path: GaussianPath, grid: Grid, form: str, *, inner: int = 100, step: float = 0.1
) -> Stages:
    """Langevin steps at each time of the grid in turn, whose noise levels it anneals.

    inner: steps at each level. step: twice their size over `sigma^2`, the `epsilon/sigma_L^2` of
    the source. The law converges with `inner` and `step`, not with the grid (order 0).
    Source: Song and Ermon (2019), algorithm 1.
    """
    if inner < 1 or not step > 0.0:
        raise ValueError(f"inner must be at least 1 and step > 0, got {inner} and {step}")
    h = 0.5 * step * path.sigma(grid) ** 2
    levels = kicks(path, np.append(grid[0], grid), grid, form, 1.0, h, 2.0 * h)
    return tuple(level for level in levels for _ in range(inner))


def kicks(
    path: GaussianPath, grid: Grid, asked: np.ndarray, form: str, on_state: np.ndarray | float,
    on_score: np.ndarray, variance: np.ndarray,
) -> Stages:  # fmt: skip
    """`x' = on_state x + on_score s(x, asked) + sqrt(variance) z`, to the times grid[1:]."""
    kick = pair_map(path, asked, form, "score").then(blocks(on_score))
    P, L = blocks(on_state + 0.0 * asked) + kick.from_state, blocks(np.sqrt(variance))
    return tuple(affine_stages(asked, grid[1:], P, kick.from_output, L))


def _squared_noise(path: GaussianPath, t: np.ndarray) -> np.ndarray:
    """`g^2` at times t (n,); ValueError where it is infinite."""
    with np.errstate(divide="ignore"):
        g2: np.ndarray = path.diffusion(t)
    if not np.all(np.isfinite(g2)):
        raise ValueError(
            f"the reverse SDE of {path} has no finite rates at t = {t[~np.isfinite(g2)].max()}: "
            "use a solver of the flow, or a smaller T"
        )
    return g2
