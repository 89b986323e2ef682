"""From a process, the name of a solver and a time grid to a `Plan`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from cldfast.planner.automatic import resolved
from cldfast.planner.grids import DEFAULT_STEPS, Grid, make_grid
from cldfast.planner.guidance import added_score, classifier_free
from cldfast.planner.parameterization import (
    Parameterization,
    check_parameterization,
    default_parameterization,
    denoiser_map,
    input_map,
    score_map,
)
from cldfast.planner.plan import Plan
from cldfast.planner.solvers import SOLVERS
from cldfast.planner.stage import Stage
from cldfast.process.noise_level import noise_level
from cldfast.process.path import Path, Process


def make_plan(
    sde: Process,
    solver: str = "auto",
    steps: int | None = None,
    grid: Grid | None = None,
    t_min: float = 1e-3,
    parameterization: Parameterization | None = None,
    denoise: bool = False,
    guidance_scale: float | None = None,
    guidance_term: bool = False,
    *,
    nfe: int | None = None,
    **options: Any,
) -> Plan:
    """A sampler on a fixed grid as a `Plan`.

    sde: the forward process, in phase space or a path of `cldfast.classical`.
    solver: the name of a solver in `cldfast.planner.solvers`, or of one that you have registered;
        "auto" is the best one measured for the number of steps (`cldfast.planner.automatic`).
    steps: grid intervals; None is 20, or the intervals of a grid given as an array.
    grid: a name of `cldfast.make_grid`, "auto" for the best one measured for the solver and number
        of steps, or a descending array of times; None is that of the solver "auto", and
        "quadratic" for others.
    t_min: last time; 0 is allowed, and exact data predictions then end on the data.
    parameterization: what the network returns and sees, see `cldfast.planner.parameterization`;
        None is "score", or "data_noise" where the position carries noise. For a path see
        `cldfast.planner.path_forms`.
    denoise: one more evaluation at the last time, which replaces the state by `E[u_0 | u]`.
    guidance_scale: classifier-free guidance, for a network that returns (conditional,
        unconditional).
    guidance_term: read one more output, the last, added to the score with weight 1.
    nfe: a budget of network evaluations in place of steps: the most steps within it.
    options: the solver's own, e.g. `order=3` for multistep, and `rho` for the power grid.

    Raises ValueError or TypeError naming what was expected. What the solver's own code raises is
    left as it is.
    """
    if not isinstance(sde, Process):
        raise TypeError(
            "sde must be a LinearPhaseSDE such as cldfast.CLD, or a path such as "
            f"cldfast.classical.VP, got {type(sde).__name__}"
        )
    if nfe is not None:
        if steps is not None or not (grid is None or isinstance(grid, str)):
            raise ValueError(
                "give nfe= or steps=, not both; a grid given as times has its own steps"
            )
        build = partial(
            make_plan, sde, solver, grid=grid, t_min=t_min, parameterization=parameterization,
            denoise=denoise, guidance_scale=guidance_scale, guidance_term=guidance_term, **options,
        )  # fmt: skip
        return _longest(nfe, lambda steps: build(steps=steps))
    solvers = sde.solvers if isinstance(sde, Path) else SOLVERS
    solver, grid, options = resolved(solver, steps, grid, options, solvers)
    if solver == "pflow":
        raise ValueError("pflow chooses its own steps and has no plan: call cldfast.pflow")
    if solver not in solvers:
        raise ValueError(f"unknown solver {solver!r}; expected one of auto, {', '.join(solvers)}")
    if parameterization is None:
        parameterization = default_parameterization(sde)
    if not isinstance(sde, Path):
        check_parameterization(parameterization)
    method = solvers[solver]
    grid_options = {"rho": options.pop("rho")} if "rho" in options else {}
    settings = method.settings(options)
    if isinstance(grid, str) and grid == "auto":
        grid = method.auto_grid(DEFAULT_STEPS if steps is None else steps, settings)
    times = make_grid(
        grid, T=sde.T, t_min=t_min, steps=steps, noise=noise_level(sde), **grid_options
    )
    stages = tuple(method.build(sde, times, parameterization, **options))
    if not stages or not math.isclose(stages[-1].t_next, times[-1], abs_tol=1e-12 * sde.T):
        end = stages[-1].t_next if stages else "nowhere"
        raise ValueError(
            f"the stages of solver {solver!r} must lead to the end of the grid, {times[-1]}, "
            f"and lead to {end}"
        )
    if denoise:
        stages = (*stages, denoising_stage(sde, float(times[-1]), parameterization))
    stages = _guided(stages, sde, parameterization, guidance_term, guidance_scale)
    stages = with_inputs(stages, sde, parameterization)
    return Plan(
        stages, sde, solver, method.order_in_law(settings), parameterization, times, guidance_term,
        guidance_scale,
    )  # fmt: skip


def _guided(
    stages: tuple[Stage, ...],
    sde: Process,
    parameterization: Parameterization,
    term: bool,
    scale: float | None,
) -> tuple[Stage, ...]:
    if term:
        stages = added_score(stages, sde, parameterization)
    if scale is not None:
        # The first output's blocks are split last, so the term stays behind both of its parts.
        stages = classifier_free(stages, scale)
    return stages


def _longest(nfe: int, build: Callable[[int], Plan]) -> Plan:
    """The plan of the most steps whose evaluations are at most nfe; ValueError where none is."""
    if isinstance(nfe, bool) or not isinstance(nfe, int | np.integer) or nfe < 1:
        raise ValueError(f"nfe must be an integer >= 1, got {nfe!r}")
    steps = int(nfe)
    plan = build(steps)
    while plan.evaluations > nfe:
        if steps == 1:
            raise ValueError(
                f"one step of solver {plan.solver!r} needs {plan.evaluations} evaluations, more "
                f"than nfe = {nfe}: give more, or take another solver"
            )
        # Evaluations are proportional to steps, up to a few at the ends.
        steps = max(1, min(steps - 1, steps * nfe // plan.evaluations))
        plan = build(steps)
    while plan.evaluations < nfe and (longer := build(plan.steps + 1)).evaluations <= nfe:
        plan = longer
    return plan


def with_inputs(
    stages: Sequence[Stage], sde: Process, parameterization: Parameterization
) -> tuple[Stage, ...]:
    """Stages that say what the network sees, where that is not the state and its time."""
    times = np.array([stage.t for stage in stages if stage.evaluates], dtype=np.float64)
    inputs = input_map(sde, times, parameterization)
    if inputs is None:
        return tuple(stages)
    rows = iter(zip(*inputs, strict=True))
    result = []
    for stage in stages:
        if stage.evaluates:
            seen, argument = next(rows)
            stage = replace(stage, seen=seen, argument=float(argument))
        result.append(stage)
    return tuple(result)


def prediction_stage(plan: Plan, t: float) -> Stage:
    """`E[u_0 | u_t]` from what a plan's networks return at time t, guidance included."""
    stages = (denoising_stage(plan.sde, t, plan.parameterization),)
    return _guided(
        stages, plan.sde, plan.parameterization, plan.guidance_term, plan.guidance_scale
    )[0]


def denoising_stage(sde: Process, t: float, parameterization: Parameterization) -> Stage:
    """The state at t replaced by `E[u_0 | u_t]`, without noise: one evaluation."""
    times = np.array([t])
    clean = denoiser_map(sde, times, score_map(sde, times, parameterization))
    return Stage(t=t, t_next=0.0, P=clean.from_state[0], E=(clean.from_output[0],))
