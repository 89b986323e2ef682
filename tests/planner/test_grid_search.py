"""Fitted grids: never worse than the automatic one, and as asked for."""

from __future__ import annotations

import numpy as np
import pytest

from cldfast import CLD, make_plan, optimise_grid
from cldfast.planner.law import marginal_law, wasserstein2
from cldfast.process.schedules import LinearBeta

SDE = CLD(beta=LinearBeta(2.0, 6.0))


def error(grid, var: float, solver: str, **options) -> float:
    plan = make_plan(SDE, solver, None, grid, **options)
    return wasserstein2(
        plan.gaussian_law(data_var=var), marginal_law(SDE, float(grid[-1]), 0.0, var)
    )


@pytest.mark.parametrize(("solver", "t_min"), [("em", 1e-3), ("unipc", 0.0), ("sscs2", 1e-3)])
def test_the_law_error_falls(solver: str, t_min: float) -> None:
    grid = optimise_grid(SDE, solver, 8, 0.05, t_min=t_min, max_evaluations=120)
    assert grid.shape == (9,) and grid[0] == SDE.T and grid[-1] == t_min
    assert np.all(np.diff(grid) < 0.0)
    auto = make_plan(SDE, solver, 8, "auto", t_min=t_min).grid
    assert error(grid, 0.05, solver) < 0.7 * error(auto, 0.05, solver)


def test_several_variances_and_options() -> None:
    grid = optimise_grid(SDE, "multistep", 6, (1.0, 0.01), max_evaluations=60, order=3, knots=2)
    auto = make_plan(SDE, "multistep", 6, "auto", order=3).grid

    def both(times) -> float:
        return sum(error(times, v, "multistep", order=3) ** 2 / v for v in (1.0, 0.01))

    assert both(grid) <= both(auto)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_var": 0.0}, "data_var must hold finite variances > 0"),
        ({"knots": 0}, "knots must be an integer >= 1, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_errors(options, message: str) -> None:
    arguments = {"steps": 4, "max_evaluations": 4} | options
    with pytest.raises(ValueError, match=message):
        optimise_grid(SDE, "em", **arguments)
