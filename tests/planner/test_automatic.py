"""What `solver="auto"` stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cldfast.planner.automatic import resolved
from cldfast.planner.make_plan import make_plan
from cldfast.planner.solvers import SOLVERS
from cldfast.process.sde import CLD

SDE = CLD()


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 50])
def test_auto_is_a_solver_on_its_grid_with_its_options(steps: int) -> None:
    solver, grid, options = resolved("auto", steps, None, {}, SOLVERS)
    auto = make_plan(SDE, steps=steps, parameterization="noise")
    named = make_plan(SDE, solver, steps, grid, parameterization="noise", **options)
    assert auto.evaluations == steps and auto.solver == solver
    for made, wanted in zip(auto.matrices(), named.matrices(), strict=True):
        assert np.array_equal(made, wanted)


def test_what_is_said_is_taken() -> None:
    """A grid or options of one's own."""
    made = make_plan(SDE, steps=4, grid="linear").grid
    np.testing.assert_allclose(made, np.linspace(1.0, 1e-3, 5), rtol=1e-12)
    times = np.linspace(1.0, 0.1, 31)
    assert np.array_equal(make_plan(SDE, grid=times).grid, times)
    grids = [resolved("auto", steps, None, {}, SOLVERS)[1] for steps in (6, 20)]
    assert grids == ["logistic", "quadratic"]
    assert resolved("auto", 6, None, {"order": 1}, SOLVERS)[2]["order"] == 1
    with pytest.raises(TypeError, match="takes no option 'magic'"):
        make_plan(SDE, steps=6, magic=1)


def test_named_solvers_keep_their_defaults() -> None:
    assert resolved("sscs", None, None, {}, SOLVERS) == ("sscs", "quadratic", {})
    plan = make_plan(SDE, "sscs")
    assert plan.steps == 20 and plan.solver == "sscs"
    assert np.array_equal(plan.grid, make_plan(SDE, "sscs", 20, "quadratic").grid)


@pytest.mark.parametrize("steps", ["many", 2.5, True, 0])
def test_bad_steps_are_refused(steps: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="steps must be"):
        make_plan(SDE, steps=steps)
