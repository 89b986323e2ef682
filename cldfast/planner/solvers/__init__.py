"""Solvers: each turns an SDE and a time grid into the stages of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cldfast.planner.grids import DEFAULT_STEPS, Grid, make_grid
from cldfast.planner.guidance import added_score, classifier_free
from cldfast.planner.parameterization import denoiser_map, score_map
from cldfast.planner.plan import Plan
from cldfast.planner.solvers.ancestral import ORDER as ANCESTRAL_ORDER
from cldfast.planner.solvers.ancestral import ancestral
from cldfast.planner.solvers.dpm import ORDER_2 as DPM2_ORDER
from cldfast.planner.solvers.dpm import ORDER_3 as DPM3_ORDER
from cldfast.planner.solvers.dpm import dpm2, dpm3
from cldfast.planner.solvers.em import ORDER as EM_ORDER
from cldfast.planner.solvers.em import em
from cldfast.planner.solvers.heun import ORDER as HEUN_ORDER
from cldfast.planner.solvers.heun import heun
from cldfast.planner.solvers.leapfrog import ORDER as LEAPFROG_ORDER
from cldfast.planner.solvers.leapfrog import leapfrog
from cldfast.planner.solvers.multistep import multistep, multistep_order
from cldfast.planner.solvers.splitting import ORDER as SPLITTING_ORDER
from cldfast.planner.solvers.splitting import aboba, obab, roba
from cldfast.planner.solvers.sscs import ORDER as SSCS_ORDER
from cldfast.planner.solvers.sscs import sscs
from cldfast.planner.solvers.sscs2 import ORDER as SSCS2_ORDER
from cldfast.planner.solvers.sscs2 import sscs2
from cldfast.planner.solvers.stochastic_multistep import (
    stochastic_multistep,
    stochastic_multistep_order,
)
from cldfast.planner.solvers.unipc import unipc, unipc_order
from cldfast.planner.stage import Stage
from cldfast.process.noise_level import NoiseLevel
from cldfast.process.sde import LinearPhaseSDE

Solver = Callable[..., tuple[Stage, ...]]

# name -> (solver, order in law: a number, or a function of the solver's options)
SOLVERS: dict[str, tuple[Solver, int | Callable[..., int]]] = {
    "em": (em, EM_ORDER),
    "sscs": (sscs, SSCS_ORDER),
    "sscs2": (sscs2, SSCS2_ORDER),
    "leapfrog": (leapfrog, LEAPFROG_ORDER),
    "aboba": (aboba, SPLITTING_ORDER),
    "obab": (obab, SPLITTING_ORDER),
    "roba": (roba, SPLITTING_ORDER),
    "ancestral": (ancestral, ANCESTRAL_ORDER),
    "stochastic_multistep": (stochastic_multistep, stochastic_multistep_order),
    "multistep": (multistep, multistep_order),
    "unipc": (unipc, unipc_order),
    "heun": (heun, HEUN_ORDER),
    "dpm2": (dpm2, DPM2_ORDER),
    "dpm3": (dpm3, DPM3_ORDER),
}


# Steps from which a solver does better on the quadratic grid than on the logistic, docs/solvers.md.
# The others gain little or were measured on the latter alone.
QUADRATIC_FROM = {"leapfrog": 0, "roba": 0, "sscs2": 25, "unipc": 25}


def make_plan(
    sde: LinearPhaseSDE,
    solver: str = "sscs",
    steps: int | None = None,
    grid: Grid = "quadratic",
    t_min: float = 1e-3,
    parameterization: str = "score",
    denoise: bool = False,
    guidance_scale: float | None = None,
    guidance_term: bool = False,
    **options: Any,
) -> Plan:
    """A sampler on a fixed grid as a `Plan`.

    sde: the forward process. solver: a name of `SOLVERS`. steps: grid intervals (None: 50, or those
    of a grid given as an array). grid: a name of `cldfast.make_grid`, "auto" for the best one
    measured for the solver and number of steps, or a descending array of times. t_min: last time; 0
    is allowed, and exact data predictions then end on the data.
    parameterization: what the network returns. denoise: one more evaluation at the last time, which
    replaces the state by `E[u_0 | u]`. guidance_scale: classifier-free guidance, for a network that
    returns (conditional, unconditional). guidance_term: read one more output, the last, added to
    the score with weight 1. options: the solver's own, e.g. `order=3` for multistep, and `rho` for
    the power grid.

    Raises ValueError or TypeError naming what was expected.
    """
    if not isinstance(sde, LinearPhaseSDE):
        raise TypeError(
            f"sde must be a LinearPhaseSDE such as cldfast.CLD, got {type(sde).__name__}"
        )
    if solver == "pflow":
        raise ValueError("pflow chooses its own steps and has no plan: call cldfast.pflow")
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; expected one of {', '.join(SOLVERS)}")
    grid_options = {"rho": options.pop("rho")} if "rho" in options else {}
    if isinstance(grid, str) and grid == "auto":
        grid = auto_grid(solver, DEFAULT_STEPS if steps is None else steps, options)
    times = make_grid(
        grid, T=sde.T, t_min=t_min, steps=steps, noise=NoiseLevel(sde), **grid_options
    )
    build, order = SOLVERS[solver]
    try:
        stages = build(sde, times, parameterization, **options)
    except TypeError as error:
        if options:
            raise TypeError(f"solver {solver} does not take {sorted(options)}: {error}") from error
        raise
    if denoise:
        stages = (*stages, denoising_stage(sde, float(times[-1]), parameterization))
    if guidance_term:
        stages = added_score(stages, sde, parameterization)
    if guidance_scale is not None:
        # The first output's blocks are split last, so the term stays behind both of its parts.
        stages = classifier_free(stages, guidance_scale)
    claimed = order if isinstance(order, int) else order(**options)
    return Plan(stages, sde, solver, claimed, parameterization, times, guidance_term)


def auto_grid(solver: str, steps: int, options: dict[str, Any]) -> str:
    """The grid that `grid="auto"` stands for.

    The last step of a logistic grid is a leap: the L form does not survive it, and with many steps
    it costs more than the first steps gain.
    """
    late = options.get("form") == "L" or steps >= QUADRATIC_FROM.get(solver, math.inf)
    return "quadratic" if late else "logistic"


def denoising_stage(sde: LinearPhaseSDE, t: float, parameterization: str) -> Stage:
    """The state at t replaced by `E[u_0 | u_t]`, without noise: one evaluation."""
    times = np.array([t])
    clean = denoiser_map(sde, times, score_map(sde, times, parameterization))
    return Stage(t=t, t_next=0.0, P=clean.from_state[0], E=(clean.from_output[0],))
