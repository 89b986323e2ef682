"""Predictor and corrector with one evaluation per step."""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import Parameterization
from cldfast.planner.solvers.multistep import adams_order, multistep
from cldfast.planner.solvers.registry import solver
from cldfast.planner.stage import Stage
from cldfast.process.sde import LinearPhaseSDE


@solver(
    "unipc",
    order=lambda order, **_: adams_order(order, correct=True),
    quadratic_from=lambda form, **_: 0 if form == "L" else 25,
)
def unipc(
    sde: LinearPhaseSDE,
    grid: np.ndarray,
    parameterization: Parameterization,
    *,
    order: int = 2,
    form: str = "x0",
    variable: str = "t",
) -> tuple[Stage, ...]:
    """`multistep` whose states are corrected by the evaluation made there, before it is used on.

    order: 1 to 3. form, variable: see `multistep`; the corrector has one node more.

    Order `order + 1` in law (3 by default), one evaluation per step: the correction of a step and
    the next prediction are one row of coefficients.
    Source: Zhao et al. (2023), UniPC, on a single noise level.
    """
    return multistep(
        sde, grid, parameterization, order=order, form=form, correct=True, variable=variable
    )
