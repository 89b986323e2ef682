"""Solvers of Gaussian paths: orders in the exact law, published formulas, and one run for all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import cldfast
from cldfast import ConstantBeta, LinearBeta, make_plan, sample
from cldfast.classical import EDM, OU, VE, VP, Brownian, FlowMatching, GaussianPath
from cldfast.classical.paths import SOLVERS
from cldfast.lab.data import gaussians25
from cldfast.lab.mixture import GaussianMixture
from cldfast.planner.law import marginal_law

F64 = torch.float64
MEAN, VAR = 0.7, 0.5
PATHS: dict[str, GaussianPath] = {
    "VP": VP(),
    "VE": VE(0.05, 5.0),
    "Brownian": Brownian(LinearBeta(1.0, 20.0)),
    "EDM": EDM(5.0),
    "flow": FlowMatching(0.95),
}
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("em", {}, 1),
    ("sscs", {}, 1),
    ("euler", {}, 1),
    ("ddim", {}, 1),
    ("ancestral", {}, 1),
    ("heun", {}, 2),
    *(("multistep", {"order": k}, k) for k in (1, 2, 3)),
    *(("multistep", {"order": k, "variable": "t"}, k) for k in (2, 3)),
    ("multistep", {"order": 2, "correct": True}, 3),
    *(("stochastic_multistep", {"churn": c}, 2) for c in (0.4, 1.0)),
    ("stochastic_multistep", {"churn": 0.0, "order": 3}, 3),
]


def error(plan: cldfast.Plan) -> float:
    start = marginal_law(plan.sde, float(plan.grid[0]), MEAN, VAR)
    exact = marginal_law(plan.sde, float(plan.grid[-1]), MEAN, VAR)
    got = plan.gaussian_law(start.mean, start.cov, MEAN, VAR)
    return float(np.max(np.abs(got.cov - exact.cov)) + np.max(np.abs(got.mean - exact.mean)))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("solver", "options", "claim"), CASES)
def test_order(path: GaussianPath, solver: str, options: dict[str, Any], claim: int) -> None:
    # Small enough for the leading term, large enough for float64.
    steps = {1: 1600, 2: 400, 3: 400}[claim]
    plans = [
        make_plan(path, solver, n, "linear", 0.05 * path.T, parameterization="x0", **options)
        for n in (steps, 2 * steps)
    ]
    assert plans[0].order == claim
    coarse, fine = (error(plan) for plan in plans)
    assert abs(np.log2(coarse / fine) - claim) < 0.2


def test_every_solver_with_an_order_is_here() -> None:
    without = {"frozen_langevin", "annealed_langevin", "pc"}
    assert {solver for solver, _, _ in CASES} == set(SOLVERS) - without


def test_order_four_with_few_steps() -> None:
    """With many the error is below rounding."""
    for path in (VP(), VE(0.05, 5.0)):
        plans = [make_plan(path, "multistep", n, "linear", 0.05, order=4) for n in (20, 40)]
        assert np.log2(error(plans[0]) / error(plans[1])) > 3.7


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "multistep", "stochastic_multistep"])
@pytest.mark.parametrize("path", [VP(), EDM(5.0), FlowMatching()], ids=["VP", "EDM", "flow"])
def test_data_at_a_point_are_exact_from_any_start(path: GaussianPath, solver: str) -> None:
    """Where x0 does not move, these solvers make no error, down to t = 0."""
    plan = make_plan(path, solver, 4, "linear", 0.0, parameterization="x0")
    law = plan.gaussian_law(data_mean=2.0, data_var=0.0)
    np.testing.assert_allclose(law.mean, [2.0, 2.0], rtol=1e-13)
    np.testing.assert_allclose(law.cov, np.zeros((2, 2)), atol=1e-13)


@pytest.mark.parametrize("form", ["score", "noise", "x0", "v", "flow", "edm", "denoiser"])
def test_all_forms_make_one_law(form: str) -> None:
    for solver in ("em", "euler", "heun", "multistep", "sscs", "pc"):
        plans = [
            make_plan(VP(), solver, 12, "linear", 0.05, parameterization=name, denoise=True)
            for name in ("score", form)
        ]
        laws = [plan.gaussian_law(data_mean=MEAN, data_var=VAR) for plan in plans]
        np.testing.assert_allclose(laws[0].mean, laws[1].mean, rtol=1e-9)
        np.testing.assert_allclose(laws[0].cov, laws[1].cov, rtol=1e-9, atol=1e-12)


# --- published formulas, by hand ---------------------------------------------------------------


def toy_score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -torch.tanh(x) * (1.0 + t[:, None]) - 0.3 * x


def draws(steps: int, shape: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=F64, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("kind", ["VP", "VE"])
def test_euler_maruyama_of_score_sde(kind: str) -> None:
    """Song et al. (2021): `x + drift dt + diffusion sqrt(-dt) z`, dt = -1/N, of both processes."""
    n, steps, eps = 5, 30, 1e-3
    path: GaussianPath = VP() if kind == "VP" else VE(0.01, 50.0)
    x = start = 10.0 * torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    noise = draws(steps, (n, 2))
    times = np.linspace(1.0, eps, steps + 1)
    for z, t, dt in zip(noise, times[:-1], np.diff(times), strict=True):
        if kind == "VP":
            beta = 0.1 + t * (20.0 - 0.1)
            drift, diffusion = -0.5 * beta * x, math.sqrt(beta)
        else:
            sigma = 0.01 * (50.0 / 0.01) ** t
            drift, diffusion = 0.0 * x, sigma * math.sqrt(2.0 * (math.log(50.0) - math.log(0.01)))
        score = toy_score(x, torch.full((n,), t, dtype=F64))
        x = x + (drift - diffusion**2 * score) * dt + diffusion * math.sqrt(-dt) * z
    got = sample(
        toy_score,
        path,
        (n, 2),
        "em",
        steps,
        "linear",
        t_min=eps,
        init=start,
        noise=noise,
        dtype=F64,
    )
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def test_ancestral_sampling_of_ddpm_and_ncsn() -> None:
    """Song et al. (2021), appendices F and G: one step of each, with a given normal."""
    x, z = draws(2, (4, 2), seed=3)
    step: dict[str, Any] = {"init": x, "noise": [z], "dtype": F64}
    t, s = 0.6, 0.55
    score = toy_score(x, torch.full((4,), t, dtype=F64))
    # VE: x + (sigma_i^2 - sigma_j^2) s + sqrt(sigma_j^2 (sigma_i^2 - sigma_j^2)/sigma_i^2) z
    now, then = (0.01 * 5000.0**time for time in (t, s))
    gap = now**2 - then**2
    expected = x + gap * score + math.sqrt(then**2 * gap / now**2) * z
    got = sample(toy_score, VE(0.01, 50.0), (4, 2), "ancestral", None, [t, s], **step)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    # DDPM with 1 - beta = alpha_bar_i/alpha_bar_j, and the posterior's variance.
    path = OU(ConstantBeta(3.0))
    bar_t, bar_s = math.exp(-3.0 * t), math.exp(-3.0 * s)
    beta = 1.0 - bar_t / bar_s
    mean = (x + beta * score) / math.sqrt(1.0 - beta)
    expected = mean + math.sqrt(beta * (1.0 - bar_s) / (1.0 - bar_t)) * z
    got = sample(toy_score, path, (4, 2), "ancestral", None, [t, s], **step)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_langevin_corrector_of_score_sde() -> None:
    """Its step is `2 (snr |z|/|s|)^2`; here the score has the length `|z|/sigma` exactly."""
    path, (x, first, z) = EDM(5.0), draws(3, (4, 2), seed=5)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        direction = torch.tanh(x) + 0.1
        return -z.norm() / t[0] * direction / direction.norm()

    times = [3.0, 2.0]
    moved = sample(net, path, (4, 2), "em", None, times, init=x, noise=[first], dtype=F64)
    grad = net(moved, torch.full((4,), 2.0, dtype=F64))
    size = 2.0 * (0.16 * z.norm() / grad.norm()) ** 2
    expected = moved + size * grad + torch.sqrt(2.0 * size) * z
    got = sample(net, path, (4, 2), "pc", None, times, init=x, noise=[first, z], dtype=F64)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_flow_matching_euler_in_plain_code() -> None:
    n, steps = 6, 25

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) - t[:, None] * x

    x = start = torch.randn(n, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    for k in range(steps):
        t = 1.0 - k / steps
        x = x - velocity(x, torch.full((n,), t, dtype=F64)) / steps
    got = sample(
        velocity,
        FlowMatching(),
        (n, 3),
        "euler",
        steps,
        "linear",
        t_min=0.0,
        init=start,
        dtype=F64,
        seed=0,
    )
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_heun_of_edm_in_plain_code() -> None:
    """Karras et al. (2022), algorithm 1, with their grid; the last step is Euler's."""
    steps, rho = 8, 7.0
    i = np.arange(steps)
    low, high = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
    times = np.append((high + i / (steps - 1) * (low - high)) ** rho, 0.0)

    def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / (1.0 + sigma[:, None]))

    x = start = 80.0 * torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(4))
    for t, s in zip(times[:-1], times[1:], strict=True):
        at = torch.full((5,), t, dtype=F64)
        d = (x - denoiser(x, at)) / t
        ahead = x + (s - t) * d
        if s > 0.0:
            other = (ahead - denoiser(ahead, torch.full((5,), s, dtype=F64))) / s
            ahead = x + (s - t) * 0.5 * (d + other)
        x = ahead
    options: dict[str, Any] = {"init": start, "dtype": F64, "parameterization": "denoiser"}
    got = sample(denoiser, EDM(), (5, 2), "heun", None, times, **options)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_dpm_solver_2m_in_plain_code() -> None:
    """Lu et al. (2022), DPM-Solver++ (2M), algorithm 2, from its third step on.

    The first two differ: here the low order of the first step is put right with the second.
    """
    path, times = VP(), np.linspace(1.0, 0.1, 7)

    def data(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * t[:, None]

    states: list[torch.Tensor] = []
    start = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(4))
    sample(
        data, path, (5, 2), "multistep", None, times, init=start, dtype=F64, parameterization="x0",
        callback=lambda step, t, x: states.append(x.clone()),
    seed=0,
)  # fmt: skip
    alpha, sigma = path.alpha(times), path.sigma(times)
    lam = np.log(alpha / sigma)
    for i in range(3, 7):
        h, before = lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2]
        at = [torch.full((5,), times[k], dtype=F64) for k in (i - 1, i - 2)]
        now, old = data(states[i - 2], at[0]), data(states[i - 3], at[1])
        # The line integrated exactly; the published weight h/(2 before) differs at order h^3.
        weight = (h - 1.0 + math.exp(-h)) / (1.0 - math.exp(-h)) / before
        mixed = now + weight * (now - old)
        expected = sigma[i] / sigma[i - 1] * states[i - 2] - alpha[i] * math.expm1(-h) * mixed
        torch.testing.assert_close(states[i - 1], expected, rtol=1e-9, atol=1e-9)


# --- laws --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver", ["em", "pc", "sscs", "stochastic_multistep", "annealed_langevin"]
)
def test_samples_have_the_law_of_the_plan(solver: str) -> None:
    path, n = VP(), 40_000
    data = GaussianMixture([1.0], [[MEAN]], [[VAR]])
    plan = make_plan(path, solver, 12, "linear", 0.05)
    law = plan.gaussian_law(data_mean=MEAN, data_var=VAR)
    x = sample(
        data.network(path), path, (n, 1), solver, 12, "linear", t_min=0.05, dtype=F64, seed=0
    )
    mean, var = float(law.mean[0]), float(law.cov[0, 0])
    assert abs(float(x.mean()) - mean) < 4.5 * math.sqrt(var / n)
    assert abs(float(x.var()) - var) < 4.5 * var * math.sqrt(2.0 / n)


def test_frozen_langevin_is_no_time_reversal() -> None:
    """However fine the grid its variance is too large, while that of the reversal is right."""
    var = 0.01
    ratios = {}
    for solver in ("em", "frozen_langevin"):
        plan = make_plan(VP(), solver, 4000, "linear", 1e-3)
        exact = marginal_law(plan.sde, 1e-3, 0.0, var)
        ratios[solver] = plan.gaussian_law(data_var=var).cov[0, 0] / exact.cov[0, 0]
    assert abs(ratios["em"] - 1.0) < 0.02
    assert ratios["frozen_langevin"] > 2.0


def test_error_budgets_of_paths() -> None:
    plan = make_plan(VP(), "ancestral", 50, "linear", 1e-2)
    budget = plan.error_budget(data_var=0.3, score_error=0.1)
    assert 0.0 < budget.initialisation < budget.discretisation
    assert budget.score > 0.0
    assert budget.total <= budget.initialisation + budget.discretisation + budget.score + 1e-12
    # VP starts from the stationary law; the data's variance is left at exp(-10.05).
    worst = math.exp(-10.05) * abs(1.0 - 0.3)
    assert budget.initialisation < worst


def test_grids_are_fitted_for_paths() -> None:
    def law_error(grid: Any) -> float:
        plan = make_plan(VP(), "multistep", None if grid is not None else 6, grid)
        return abs(plan.gaussian_law(data_var=0.1).cov[0, 0] - 0.1)

    grid = cldfast.optimise_grid(VP(), "multistep", 6, 0.1, max_evaluations=60)
    auto = make_plan(VP(), "multistep", 6, "auto").grid
    assert law_error(grid) <= law_error(auto)


@pytest.mark.parametrize("name", ["VP", "VE", "flow"])
def test_25_gaussians_with_20_evaluations(name: str) -> None:
    """Sliced W2 within 1.20 of that of two exact samples."""
    data, n = gaussians25(), 20_000
    path = {"VP": VP(), "VE": VE(0.01, 50.0), "flow": FlowMatching()}[name]
    x = sample(data.network(path), path, (n, 2), "multistep", 20, "logistic", order=3, seed=1)
    floor = np.mean([sliced(data.sample(n, 2 + k), data.sample(n, 12 + k)) for k in range(4)])
    got = np.mean([sliced(x, data.sample(n, 12 + k)) for k in range(4)])
    assert got < 1.20 * floor


def sliced(a: torch.Tensor, b: torch.Tensor, count: int = 64) -> float:
    """Sliced W2 of samples of one size, over fixed directions of the plane."""
    angle = torch.arange(count) * (math.pi / count)
    directions = torch.stack([angle.cos(), angle.sin()])
    gap = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return float(gap.square().mean().sqrt())
