"""Plans for networks that predict the noise of the codebase's factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cldfast.compat.psld.process import decomposition_of, noise_to_score, process_of, rows_of
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.process.sde import PSLD


def score_columns(sde: Any, objective: str, t: np.ndarray) -> np.ndarray:
    """The map from predicted noise to score at times t (n,), (n, 2, r)."""
    cov = process_of(sde).marginal(t, objective).covariance
    result: np.ndarray = noise_to_score(cov, decomposition_of(sde), rows_of(sde))
    return result


def exact_plan(
    sde: Any,
    solver: str,
    grid: np.ndarray,
    objective: str,
    denoise: bool,
    *,
    guidance: float | None = None,
    **options: Any,
) -> Plan:
    """A solver on a descending grid for the network of `sde`, trained by `objective`.

    denoise: a last step from the grid's end to 0, Euler's without noise. guidance: the network
    returns a second output, an addition to the score of this strength.
    """
    process = process_of(sde)
    plan = make_plan(process, solver, grid=grid, parameterization="full_score", **options)
    stages = plan.stages
    if denoise:
        stages = (*stages, _denoising(process, float(grid[-1])))
    stages = with_noise_output(stages, sde, objective, guidance)
    return published_plan(sde, stages, np.array([*grid, 0.0]) if denoise else grid, solver)


def published_plan(sde: Any, stages: Sequence[Stage], grid: np.ndarray, solver: str) -> Plan:
    """Stages as a plan; the name of its parameterisation is the codebase's."""
    return Plan(tuple(stages), process_of(sde), solver, 1, f"eps, {sde.decomp_mode} factor", grid)


def with_noise_output(
    stages: Sequence[Stage], sde: Any, objective: str, guidance: float | None = None
) -> tuple[Stage, ...]:
    """Stages that read the full score, made to read the predicted noise (and a guidance term)."""
    asked = [k for k, stage in enumerate(stages) if stage.t is not None]
    columns = score_columns(sde, objective, np.array([stages[k].t for k in asked]))
    result = list(stages)
    for k, block in zip(asked, columns, strict=True):
        score = stages[k].E[0]
        added = () if guidance is None else (guidance * score,)
        result[k] = replace(stages[k], E=(score @ block, *added))
    return tuple(result)


def _denoising(process: PSLD, t: float) -> Stage:
    """A step of Euler's method for the reverse SDE from t to 0, its noise left out."""
    way = t * float(process.beta(t))
    return Stage(t=t, t_next=0.0, P=np.eye(2) - way * process.A, E=(way * np.diag(process.D),))
