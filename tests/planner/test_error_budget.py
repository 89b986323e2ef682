"""The error budget: each part by its own means, and the triangle inequality."""

from __future__ import annotations

import numpy as np
import pytest

from cldfast.planner.law import gaussian_law, marginal_law, wasserstein2
from cldfast.planner.make_plan import make_plan
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import CLD

SDE = CLD(x_noise=0.2, beta=LinearBeta(0.5, 8.0))


@pytest.mark.parametrize("over", ["x", "phase"])
@pytest.mark.parametrize("solver", ["em", "sscs"])
def test_parts(solver: str, over: str) -> None:
    plan = make_plan(SDE, solver, 40, "quadratic", 1e-2)
    budget = plan.error_budget(0.7, 0.3, 0.05, over)
    parts = (budget.initialisation, budget.discretisation, budget.score)
    assert all(part > 0.0 for part in parts)
    assert budget.total <= sum(parts) * (1.0 + 1e-12)
    clean = plan.error_budget(0.7, 0.3, 0.0, over)
    assert clean.score < 1e-15
    assert (clean.initialisation, clean.discretisation) == parts[:2]
    # Written out: the plan from either start, against the exact law at the end.
    exact = marginal_law(SDE, 1e-2, 0.7, 0.3)
    started = plan.gaussian_law(data_mean=0.7, data_var=0.3)
    assert clean.total == wasserstein2(started, exact, over)


def test_discretisation_goes_with_the_step() -> None:
    """Order 1: a tenth of the step, a tenth of the error. The other parts belong to the process."""
    coarse, fine = (
        make_plan(SDE, "em", n, "linear", 0.05).error_budget(0.7, 0.3, 0.05) for n in (200, 2000)
    )
    assert coarse.discretisation / fine.discretisation == pytest.approx(10.0, rel=0.1)
    assert coarse.initialisation == pytest.approx(fine.initialisation, rel=0.5)
    assert coarse.score == pytest.approx(fine.score, rel=0.1)


def test_initialisation_falls_with_the_end_time() -> None:
    """What is left of the start is `Phi(tau(T))`: `exp(-2 tau)` for a = 2, up to its polynomial."""
    errors = []
    for T in (0.5, 1.0, 1.5):
        plan = make_plan(CLD(beta=4.0, T=T), "sscs", 500, "linear", 1e-2)
        errors.append(plan.error_budget(0.7, 0.3).initialisation)
    slopes = -np.diff(np.log(errors)) / (0.5 * 4.0)
    # The mean decays with (1 + 2 tau) exp(-2 tau) and must be carried back to x: under 2, near it.
    assert np.all((slopes > 1.2) & (slopes < 4.0))


def test_score_error_is_linear_in_its_size() -> None:
    """A constant bias moves the mean alone, in proportion."""
    plan = make_plan(SDE, "sscs", 100)
    small, large = (plan.error_budget(score_error=size).score for size in (0.01, 0.1))
    assert large == pytest.approx(10.0 * small, rel=1e-9)
    assert plan.gaussian_law().cov == pytest.approx(plan.gaussian_law(data_mean=1.0).cov, rel=1e-12)


def test_an_error_of_the_data_prediction_is_one_for_every_network() -> None:
    """Biases along `Sigma^-1 m`, which an error of E[x0 | u] makes, do the same to each of them."""
    sde = CLD(a=1.0, x_noise=0.5, beta=LinearBeta(0.5, 8.0))
    budgets = []
    for parameterization in ("score", "mixed", "x0", "data_noise", "edm"):
        plan = make_plan(sde, "multistep", 12, "logistic", parameterization=parameterization)
        budgets.append(plan.error_budget(0.7, 0.3, 0.2, of="full").score)
        times = np.array([stage.t for stage in plan.stages])
        marginal = sde.marginal(times)
        along = np.linalg.solve(marginal.cov, marginal.mean[..., None])[..., 0]
        bias = 0.2 * along / np.linalg.norm(along, axis=1, keepdims=True)
        full = make_plan(sde, "multistep", 12, "logistic", parameterization="full_score")
        laws = [
            gaussian_law(p.stages, sde, p.parameterization, None, None, 0.7, 0.3, bias)
            for p in (plan, full)
        ]
        assert laws[0].mean == pytest.approx(laws[1].mean, rel=1e-8)
        unbiased = plan.gaussian_law(data_mean=0.7, data_var=0.3)
        assert abs(laws[0].mean[0] - unbiased.mean[0]) == pytest.approx(budgets[-1], rel=1e-8)
    assert budgets == pytest.approx([budgets[0]] * 5, rel=1e-8)


@pytest.mark.parametrize("over", ["x", "phase"])
def test_the_worst_direction_of_a_full_score(over: str) -> None:
    """No constant of length M moves the law farther, and one direction moves it as far."""
    sde = CLD(a=1.0, x_noise=0.5)
    plan = make_plan(sde, "em", 50, parameterization="full_score")
    worst = plan.error_budget(0.7, 0.3, 0.2, over, of="full").score
    start = plan.gaussian_law(data_mean=0.7, data_var=0.3)
    moved = []
    for angle in np.linspace(0.0, np.pi, 721):
        bias = 0.2 * np.array([np.cos(angle), np.sin(angle)])
        law = gaussian_law(plan.stages, sde, "full_score", None, None, 0.7, 0.3, bias)
        moved.append(wasserstein2(law, start, over))
    # Between angles 1/4 degree apart the cosine loses at most (pi/1440)^2/2 = 2.4e-6.
    assert max(moved) == pytest.approx(worst, rel=3e-6) and max(moved) <= worst * (1 + 1e-9)
    assert worst > plan.error_budget(0.7, 0.3, 0.2, over).score


def test_target_of_a_plan_that_denoises_is_the_data() -> None:
    """For data of zero variance E[x0 | u] is exact: no error is left in x, whatever the start."""
    plan = make_plan(SDE, "sscs", 10, "quadratic", 1e-2, denoise=True)
    budget = plan.error_budget(0.7, 0.0)
    assert budget.total < 1e-9
    # The velocity comes out as its mean: the law's width v0_var is missing.
    phase = plan.error_budget(0.7, 0.0, over="phase")
    assert 0.01 * SDE.v0_var**0.5 < phase.discretisation <= SDE.v0_var**0.5 * (1 + 1e-9)


def test_refusals() -> None:
    plan = make_plan(SDE, "em", 3)
    with pytest.raises(ValueError, match="score_error must be finite and >= 0, got -1"):
        plan.error_budget(score_error=-1.0)
    with pytest.raises(ValueError, match="data_var must be >= 0"):
        plan.error_budget(data_var=-1.0)
    with pytest.raises(ValueError, match="of must be 'velocity' or 'full', got 'x'"):
        plan.error_budget(of="x")
    with pytest.raises(ValueError, match="over must be 'x' or 'phase', got 'v'"):
        plan.error_budget(over="v")
