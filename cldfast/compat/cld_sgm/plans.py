"""The codebase's fixed-grid samplers as plans, for a network that returns the full score."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cldfast.compat.cld_sgm import formulas
from cldfast.compat.cld_sgm.interface import PublishedInterface
from cldfast.compat.cld_sgm.sde import CLD
from cldfast.compat.published import OutputMap, fold, merge
from cldfast.planner.grids import make_grid
from cldfast.planner.plan import Plan
from cldfast.planner.solvers.em import em
from cldfast.planner.solvers.sscs import sscs
from cldfast.planner.stage import Stage

STRIDINGS = ("linear", "quadratic")


def time_grid(config: Any, eps: float) -> np.ndarray:
    """Forward times from 1 to eps; a denoising step takes one of the n_discrete_steps."""
    if config.striding not in STRIDINGS:
        raise ValueError(f"striding must be one of {', '.join(STRIDINGS)}, got {config.striding!r}")
    steps = config.n_discrete_steps - bool(config.denoising)
    return make_grid(config.striding, T=1.0, t_min=eps, steps=steps)


def sampler_plan(
    config: Any, sde: PublishedInterface, solver: str, eps: float, output_map: OutputMap
) -> Plan:
    """The steps of "em" or "sscs" on the config's grid, without denoising.

    In the published mode a normal is spent wherever the codebase spends one, so SSCS has two stages
    a step; in the exact mode neighbouring half-steps are one.
    """
    grid = time_grid(config, eps)
    if solver == "em":
        stages = em(sde.process, grid, "full_score")
    elif not isinstance(sde, CLD):
        raise ValueError(f"the sscs sampler is for CLD only, got an sde of type {sde.type}")
    elif sde.mode == "exact":
        stages = sscs(sde.process, grid, "full_score")
    else:
        num_stab = getattr(config, "sscs_num_stab", None) or 0.0
        stages = published_sscs(sde, grid, config.striding == "quadratic", num_stab)
    return Plan(fold(stages, output_map), sde.process, solver, 1, "velocity output", grid)


def denoising_plan(sde: PublishedInterface, eps: float, output_map: OutputMap) -> Plan:
    """One Euler step from eps to 0 without its noise."""
    grid = np.array([eps, 0.0])
    (step,) = em(sde.process, grid, "full_score")
    mean = Stage(t=step.t, t_next=step.t_next, P=step.P, E=step.E)
    return Plan(fold([mean], output_map), sde.process, "em", 1, "velocity output", grid)


def published_sscs(
    sde: CLD, grid: np.ndarray, quadratic: bool, num_stab: float
) -> tuple[Stage, ...]:
    """Two stages a step: a half-step; then the kick and the second half-step.

    As published, the second half-step takes the first one's integral of beta, the kick takes time
    and beta at the start of the step, and num_stab is added to the variances.
    """
    # Their reversed times in their roundings, since their covariances magnify them: over a short
    # half-step xx is of the order of b^3, and what is left of terms of order 1.
    end = 1.0 - float(grid[-1])
    t = torch.linspace(0.0, end, len(grid), dtype=torch.float64)
    if quadratic:
        t = end * torch.flip(1.0 - (t / end) ** 2, dims=[0])
    dt, start = t[1:] - t[:-1], 1.0 - t[:-1]
    b = sde.beta_int_fn(start) - sde.beta_int_fn(1.0 - (t[:-1] + dt / 2.0))
    half = formulas.transition(b, sde.g, reverse=True).numpy()
    xx, xv, vv = formulas.covariance(b, sde.f, sde.g, 0.0, 0.0, num_stab)
    l_xx, l_vx, l_vv = formulas.lower_factor(xx, -xv, vv)
    L = torch.stack([l_xx, torch.zeros_like(l_xx), l_vx, l_vv], -1).unflatten(-1, (2, 2)).numpy()
    kick = (2.0 * sde.f * sde.beta_fn(start) * dt).numpy()
    stages: list[Stage] = []
    for k, s in enumerate(start.tolist()):
        P, E = np.eye(2), np.zeros((2, 2))
        P[1, 1], E[1, 1] = 1.0 + kick[k] * sde.m_inv, kick[k]
        middle, after = 0.5 * float(grid[k] + grid[k + 1]), float(grid[k + 1])
        first = Stage(t=None, t_next=middle, P=half[k], L=L[k])
        pull = Stage(t=s, t_next=middle, P=P, E=(E,))
        second = Stage(t=None, t_next=after, P=half[k], L=L[k])
        stages += [first, *merge([pull, second])]
    return tuple(stages)
