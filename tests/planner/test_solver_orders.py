"""Order of convergence of every solver, in the exact law of its output on Gaussian data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cldfast import CLD, make_plan
from cldfast.planner.law import marginal_law
from cldfast.planner.plan import Plan
from cldfast.planner.solvers import SOLVERS
from cldfast.process.schedules import LinearBeta

# Rates that are not constant, so that a beta or a time at the wrong place shows.
PLAIN = CLD(beta=LinearBeta(2.0, 6.0))
REGULARISED = CLD(a=1.0, sigma=2.0**0.5, x_noise=0.25, beta=LinearBeta(2.0, 8.0))
MEAN, VAR = 0.7, 0.5
T_MIN = 0.05

CASES: list[tuple[str, dict[str, Any], int]] = [
    ("em", {}, 1),
    ("sscs", {}, 1),
    ("sscs2", {}, 2),
    ("sscs2", {"extrapolate": False}, 2),
    *((name, {}, 1) for name in ("leapfrog", "aboba", "obab", "roba")),
    ("ancestral", {}, 1),
    *(("multistep", {"order": k, "form": f}, k) for f in ("x0", "R", "L") for k in (1, 2, 3, 4)),
    *(("multistep", {"order": 2, "variable": v}, 2) for v in ("tau", "log_snr", "sigma")),
    *(("multistep", {"order": 3, "variable": v}, 3) for v in ("tau", "log_snr", "sigma")),
    *(("unipc", {"order": k}, k + 1) for k in (1, 2, 3)),
    *(("unipc", {"order": 2, "form": form}, 3) for form in ("R", "L")),
    *(("unipc", {"order": 3, "variable": v}, 4) for v in ("tau", "sigma")),
    *(("stochastic_multistep", {"churn": c, "order": 1}, 1) for c in (0.3, 1.0)),
    *(("stochastic_multistep", {"churn": c}, 2) for c in (0.3, 1.0)),
    *(("stochastic_multistep", {"churn": c, "order": 1, "correct": True}, 2) for c in (0.3, 1.0)),
    ("stochastic_multistep", {"churn": 0.0, "order": 3}, 3),
    ("heun", {}, 2),
    ("dpm2", {}, 2),
    ("dpm3", {}, 3),
]


def error(plan: Plan) -> float:
    start = marginal_law(plan.sde, float(plan.grid[0]), MEAN, VAR)
    exact = marginal_law(plan.sde, float(plan.grid[-1]), MEAN, VAR)
    got = plan.gaussian_law(start.mean, start.cov, MEAN, VAR)
    return float(np.max(np.abs(got.cov - exact.cov)) + np.max(np.abs(got.mean - exact.mean)))


@pytest.mark.parametrize("sde", [PLAIN, REGULARISED], ids=["plain", "regularised"])
@pytest.mark.parametrize(("solver", "options", "claim"), CASES)
def test_order(sde, solver: str, options: dict[str, Any], claim: int) -> None:
    # Steps that are small enough for the leading term and large enough for float64.
    steps = {1: 800, 2: 400, 3: 400, 4: 250}[claim]
    plans = [make_plan(sde, solver, n, "linear", T_MIN, **options) for n in (steps, 2 * steps)]
    assert plans[0].order == claim
    coarse, fine = (error(plan) for plan in plans)
    assert abs(np.log2(coarse / fine) - claim) < 0.2


def test_every_solver_is_here() -> None:
    assert {solver for solver, _, _ in CASES} == set(SOLVERS)


@pytest.mark.parametrize("churn", [0.3, 1.0])
def test_higher_stochastic_orders_are_capped_at_two(churn: float) -> None:
    plans = [
        make_plan(REGULARISED, "stochastic_multistep", n, "linear", T_MIN, churn=churn, order=3)
        for n in (400, 800)
    ]
    assert plans[0].order == 2
    assert abs(np.log2(error(plans[0]) / error(plans[1])) - 2.0) < 0.2
