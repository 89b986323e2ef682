"""Solvers proved by their exact laws: formulas, identities, orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cldfast.planner.law import GaussianLaw, marginal_law, wasserstein2
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import PARAMETERIZATIONS, score_map
from cldfast.planner.plan import Plan
from cldfast.planner.solvers import SOLVERS
from cldfast.planner.solvers.sscs import sscs
from cldfast.planner.stage import Stage
from cldfast.process.schedules import ExponentialBeta, LinearBeta, Schedule
from cldfast.process.sde import CLD, PSLD, LinearPhaseSDE

LINEAR = LinearBeta(0.5, 8.0)
EXPONENTIAL = ExponentialBeta(0.3, 0.5, 2.5)
# The solvers of this file; others have their own.
FIRST_ORDER = ("em", "sscs")
DATA = {"data_mean": 0.7, "data_var": 0.3}


def without_network(stages: tuple[Stage, ...]) -> GaussianLaw:
    """The transition that the stages make when every network output is zero: map and covariance."""
    phi, cov = np.eye(2), np.zeros((2, 2))
    for stage in stages:
        phi = stage.P @ phi
        cov = stage.P @ cov @ stage.P.T + stage.L @ stage.L.T
    return GaussianLaw(phi, cov)


def zero_score_error(sde: LinearPhaseSDE, plan: Plan) -> float:
    """Distance of the zero-output plan from the exact reversed stationary transition."""
    got = without_network(plan.stages)
    tau = sde.tau(plan.grid[0]) - sde.tau(plan.grid[-1])
    want = sde.reversed_transition(tau)
    return float(max(np.abs(got.mean - want.phi).max(), np.abs(got.cov - want.cov).max()))


def with_time_slip(sde: LinearPhaseSDE, plan: Plan) -> Plan:
    """The published slip: the second half-step takes the first half's integral of beta again."""
    stages = list(plan.stages)
    for k in range(plan.steps):
        first, middle, last = stages[3 * k : 3 * k + 3]
        stages[3 * k + 2] = Stage(None, last.t_next, P=first.P, L=first.L)
    return Plan(tuple(stages), sde, "sscs", 1, plan.parameterization, plan.grid)


PROCESSES = st.builds(
    lambda log_a, log_damping, x_noise, beta: CLD(
        a=10.0**log_a, damping=10.0**log_damping, x_noise=x_noise, beta=beta
    ),
    st.floats(-0.5, 0.6),
    st.floats(-0.5, 0.5),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([LINEAR, EXPONENTIAL, LinearBeta(6.0, 0.5)]),
)
GRIDS = st.sampled_from(["linear", "quadratic", "power"])


@settings(max_examples=60, deadline=None)
@given(PROCESSES, GRIDS, st.integers(1, 20), st.booleans())
def test_sscs_without_score_is_exact(
    sde: LinearPhaseSDE, grid: str, steps: int, merge: bool
) -> None:
    """A renormalised network that returns 0: the splitting has nothing to split.

    Its kicks vanish and the half-steps join to the exact reversed transition, for any rate. One
    plane carries the position score by the x0 identity, so position noise asks for both planes.
    """
    name = "full_renormalised" if np.any(sde.D[0] > 0.0) else "renormalised"
    plan = make_plan(sde, "sscs", steps, grid, 1e-3, name, merge=merge)
    # Up to 40 products of matrices of size about a^2 (tau reaches 8, the law is of order 1).
    assert zero_score_error(sde, plan) < 1e-12


def test_the_time_slip_is_caught_by_the_zero_score_identity() -> None:
    """Half-steps that share one integral of beta look right under constant beta, and keep order 1;
    the identity tells them apart at once under any other schedule.
    """
    constant = CLD(beta=4.0)
    plan = make_plan(constant, "sscs", 20, "linear", 0.05, "renormalised", merge=False)
    assert zero_score_error(constant, with_time_slip(constant, plan)) < 1e-13
    sde = CLD(beta=LINEAR)
    plan = make_plan(sde, "sscs", 20, "linear", 0.05, "renormalised", merge=False)
    assert zero_score_error(sde, plan) < 1e-13
    assert zero_score_error(sde, with_time_slip(sde, plan)) > 1e-4

    def slipped(steps: int) -> float:
        plan = make_plan(sde, "sscs", steps, "linear", 0.05, merge=False)
        return discretisation_error(with_time_slip(sde, plan))

    errors = [slipped(steps) for steps in (200, 400)]
    assert abs(np.log2(errors[0] / errors[1]) - 1.0) < 0.15


@settings(max_examples=40, deadline=None)
@given(PROCESSES, GRIDS, st.integers(1, 30), st.sampled_from(["score", "x0", "full_score"]))
def test_merged_is_unmerged_in_law(
    sde: LinearPhaseSDE, grid: str, steps: int, parameterization: str
) -> None:
    merged, published = (
        make_plan(sde, "sscs", steps, grid, 1e-2, parameterization, merge=merge)
        for merge in (True, False)
    )
    assert len(merged.stages) == steps + 1 and len(published.stages) == 3 * steps
    assert merged.evaluations == published.evaluations == steps
    one, two = merged.gaussian_law(**DATA), published.gaussian_law(**DATA)
    # Few coarse steps of a fast process overshoot: relative to what comes out.
    size = max(1.0, np.abs(one.cov).max(), np.abs(one.mean).max() ** 2)
    assert np.abs(one.mean - two.mean).max() < 1e-10 * size
    assert np.abs(one.cov - two.cov).max() < 1e-10 * size


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("solver", FIRST_ORDER)
@pytest.mark.parametrize(
    "sde", [CLD(beta=LINEAR), CLD(x_noise=0.3, beta=EXPONENTIAL), PSLD(beta=LINEAR)], ids=repr
)
def test_parameterizations_agree_in_law(sde: LinearPhaseSDE, solver: str, denoise: bool) -> None:
    laws = {
        name: make_plan(sde, solver, 25, "quadratic", 1e-2, name, denoise).gaussian_law(**DATA)
        for name in PARAMETERIZATIONS
    }
    reference = laws["full_score"]
    for name, law in laws.items():
        # x0 and noise are small parts of terms ~ Sigma^-1 at t = 1e-2, 1e4 to 1e6 roundings.
        assert np.allclose(law.mean, reference.mean, rtol=0, atol=1e-9), name
        assert np.allclose(law.cov, reference.cov, rtol=0, atol=1e-9), name


def discretisation_error(plan: Plan) -> float:
    """W2 over (x, v) between the plan started from the exact law and the exact law at its end."""
    start = marginal_law(plan.sde, float(plan.grid[0]), **DATA)
    law = plan.gaussian_law(start.mean, start.cov, **DATA)
    return wasserstein2(law, marginal_law(plan.sde, float(plan.grid[-1]), **DATA), "phase")


def measured_order(
    solver: str, sde: LinearPhaseSDE, grid: str, steps: int = 400, **options: Any
) -> float:
    """`log2` of the ratio of errors from `steps` to twice as many."""
    coarse, fine = (
        discretisation_error(make_plan(sde, solver, n, grid, 0.05, **options))
        for n in (steps, 2 * steps)
    )
    return float(np.log2(coarse / fine))


ORDER_CASES = [
    (beta, x_noise, grid)
    for beta in (4.0, LINEAR, EXPONENTIAL)
    for x_noise in (0.0, 0.5)
    for grid in ("linear", "quadratic")
]


@pytest.mark.parametrize(("beta", "x_noise", "grid"), ORDER_CASES)
@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_order(solver: str, beta: float | Schedule, x_noise: float, grid: str) -> None:
    """The order that the solver states, on exact laws, within 0.15."""
    sde = CLD(x_noise=x_noise, beta=beta)
    assert abs(measured_order(solver, sde, grid) - SOLVERS[solver].order) < 0.15


@pytest.mark.parametrize("sde", [PSLD(beta=LINEAR), CLD(damping=0.4, beta=LINEAR)], ids=repr)
@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_order_of_other_processes(solver: str, sde: LinearPhaseSDE) -> None:
    assert abs(measured_order(solver, sde, "linear") - SOLVERS[solver].order) < 0.15


def test_em_coefficients() -> None:
    """`u' = u + h beta (-A u + D s) + sqrt(h beta D) z`, beta at the start of the step."""
    sde = CLD(a=1.5, x_noise=0.4, beta=LINEAR)
    grid = np.array([1.0, 0.6, 0.1])
    plan = make_plan(sde, "em", grid=grid, parameterization="full_score")
    assert plan.steps == plan.evaluations == 2 and plan.order == 1
    assert plan.output_planes == (2,)
    for stage, t, h in zip(plan.stages, (1.0, 0.6), (0.4, 0.5), strict=True):
        weight = h * (0.5 + 7.5 * t)
        assert stage.t == t and stage.t_next == pytest.approx(t - h, rel=1e-15)
        assert np.allclose(stage.P, np.eye(2) - weight * sde.A, rtol=1e-14)
        assert np.allclose(stage.E[0], weight * np.diag(sde.D), rtol=1e-14)
        assert np.allclose(stage.L, np.diag(np.sqrt(weight * sde.D)), rtol=1e-14)


def test_sscs_coefficients() -> None:
    """One unmerged step, written out: half, kick at the middle with all of the step, half."""
    sde = CLD(beta=LINEAR)
    plan = make_plan(sde, "sscs", grid=[1.0, 0.5], merge=False)
    first, kick, second = plan.stages
    tau = [0.5 * t + 3.75 * t * t for t in (1.0, 0.75, 0.5)]
    for stage, way in ((first, tau[0] - tau[1]), (second, tau[1] - tau[2])):
        half = sde.reversed_transition(way)
        assert not stage.evaluates
        assert np.allclose(stage.P, half.phi, rtol=1e-13)
        assert np.allclose(stage.L, half.factor, rtol=1e-13)
    assert kick.t == 0.75 and not np.any(kick.L)
    weight = tau[0] - tau[2]
    # Sigma_inf = diag(1, 1/4): the kick adds weight * 2 * (s_v + 4 v).
    assert np.allclose(kick.P, [[1.0, 0.0], [0.0, 1.0 + weight * 8.0]], rtol=1e-13)
    assert np.allclose(kick.E[0], [[0.0], [weight * 2.0]], rtol=1e-13)


def test_a_grid_may_end_at_zero() -> None:
    """No network is asked at t = 0, so the last state may be the data's own time."""
    sde = CLD(beta=LINEAR)
    for solver in FIRST_ORDER:
        plan = make_plan(sde, solver, grid=[1.0, 0.5, 0.1, 0.0])
        assert plan.stages[-1].t_next == 0.0
        assert np.all(np.isfinite(plan.gaussian_law().cov))


def test_denoising_adds_one_evaluation() -> None:
    sde = CLD(beta=LINEAR)
    plan = make_plan(sde, "em", 5, denoise=True)
    assert plan.evaluations == 6 and plan.steps == 5
    last = plan.stages[-1]
    assert last.t == 1e-3 and last.t_next == 0.0 and not np.any(last.L)
    # All that is left of the error of x at t_min is the posterior mean's: less than without.
    plain = make_plan(sde, "em", 5)
    target = marginal_law(sde, 0.0, **DATA)
    assert wasserstein2(plan.gaussian_law(**DATA), target) < wasserstein2(
        plain.gaussian_law(**DATA), target
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sde": "cld"}, TypeError, "sde must be a LinearPhaseSDE .* or a path .*, got str"),
        ({"solver": "pflow"}, ValueError, "call cldfast.pflow"),
        ({"solver": "euler"}, ValueError, "unknown solver 'euler'; expected one of auto, em"),
        ({"grid": "cubic"}, ValueError, "unknown grid 'cubic'"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"grid": [0.1, 1.0]}, ValueError, "must descend strictly"),
        ({"t_min": 2.0}, ValueError, "t_min must lie in"),
        ({"parameterization": "eps"}, ValueError, "unknown parameterization 'eps'"),
        ({"merge": True}, TypeError, "solver 'em' takes no option 'merge'; it takes none"),
        (
            {"solver": "sscs", "order": 2},
            TypeError,
            "solver 'sscs' takes no option 'order'; it takes merge: bool = True",
        ),
        ({"t_min": 0.0, "denoise": True}, ValueError, "score at t = 0.0 does not exist"),
        ({"grid": "power", "rho": -1.0}, ValueError, "rho must be finite and > 0"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_plan(**{"sde": CLD(), "solver": "em", "steps": 4, **change})


def test_solver_functions_give_stages_directly() -> None:
    """What a solver file holds is a function: the same rows as through `make_plan`."""
    sde = CLD(beta=LINEAR)
    grid = np.array([1.0, 0.4, 0.1])
    direct = sscs(sde, grid, "score")
    plan = make_plan(sde, "sscs", grid=grid)
    for one, two in zip(direct, plan.stages, strict=True):
        assert np.array_equal(one.matrix(), two.matrix())
    assert score_map(sde, grid).planes == 1
