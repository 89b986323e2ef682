"""What the x0 solvers do exactly, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cldfast import CLD, initial_state, make_plan, run
from cldfast.lab.mixture import GaussianMixture
from cldfast.planner.parameterization import PARAMETERIZATIONS
from cldfast.planner.solvers import SOLVERS
from cldfast.planner.solvers.exponential import FORMS, Exponential, lagrange
from cldfast.process.schedules import LinearBeta

pytestmark = pytest.mark.usefixtures("one_thread")
X0_SOLVERS = [
    "multistep", "unipc", "stochastic_multistep", "ancestral", "sscs2", "heun", "dpm2", "dpm3",
]  # fmt: skip
# The noise of a point is constant along its path: the R form is exact on it, too.
OPTIONS = {
    "multistep": [{}, {"order": 4}, {"form": "R"}, {"variable": "tau"}],
    "unipc": [{}, {"order": 3}],
    "stochastic_multistep": [{}, {"churn": 0.0}, {"churn": 0.4, "order": 3, "correct": True}],
    "sscs2": [{}, {"extrapolate": False}],
}
SDES = {
    "plain": CLD(beta=LinearBeta(1.0, 7.0)),
    "regularised": CLD(x_noise=0.25),
    "at rest": CLD(v0_var=0.0),
}


@pytest.mark.parametrize("solver", X0_SOLVERS)
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("steps", [1, 3])
def test_one_step_returns_a_point_from_its_velocity_score(
    solver: str, name: str, steps: int
) -> None:
    sde, point = SDES[name], 1.3

    def velocity_score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kernel = sde.marginal(float(t[0]))
        x, v = u.chunk(2, 1)
        row, (m_x, m_v) = kernel.precision[1], kernel.mean
        return -(row[0] * (x - m_x * point) + row[1] * (v - m_v * point))

    u = initial_state(sde, (8, 3), seed=1, dtype=torch.float64)
    for options in OPTIONS.get(solver, [{}]):
        plan = make_plan(sde, solver, steps, "linear", 0.0, "score", **options)
        x = run(plan, velocity_score, u, seed=2)[:, :3]
        assert float((x - point).abs().max()) < 1e-10, options


def test_churn_leads_from_the_flow_to_the_ancestral_sampler() -> None:
    def matrices(solver: str, **options) -> list[np.ndarray]:
        return make_plan(SDES["regularised"], solver, 6, "auto", t_min=0.0, **options).matrices()

    for options in ({"order": 1}, {"order": 3}, {"order": 2, "correct": True}):
        pairs = zip(
            matrices("stochastic_multistep", churn=0.0, **options),
            matrices("multistep", **options),
            strict=True,
        )
        assert all(np.array_equal(a, b) for a, b in pairs)
    pairs = zip(
        matrices("stochastic_multistep", churn=1.0, order=1), matrices("ancestral"), strict=True
    )
    assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("solver", X0_SOLVERS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_every_parameterization_makes_the_same_sampler(solver: str, parameterization: str) -> None:
    """With exact outputs the law is that of the x0 network, whatever the network returns."""
    for sde in SDES.values():
        laws = [
            make_plan(sde, solver, 6, "auto", parameterization=p).gaussian_law(
                data_mean=0.4, data_var=0.3
            )
            for p in ("x0", parameterization)
        ]
        assert np.allclose(laws[0].mean, laws[1].mean, rtol=1e-8, atol=1e-9)
        assert np.allclose(laws[0].cov, laws[1].cov, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variable", ["t", "tau", "log_snr", "sigma"])
def test_weights_integrate_constants_exactly(form: str, variable: str) -> None:
    """The polynomial through equal values is that value: weights sum to those of order 1."""
    sde = CLD(x_noise=0.3, beta=LinearBeta(1.0, 7.0))
    grid = np.array([1.0, 0.6, 0.4, 0.25])
    rule = Exponential(sde, grid, "score", form, 0.0, variable)
    s, t = grid[3:], grid[2:3]
    one = rule.weights(s, t, grid[None, 2:3])
    many = rule.weights(s, t, grid[None, 2::-1])
    assert np.allclose(many.sum(1), one[:, 0], rtol=0.0, atol=1e-7 if form == "L" else 1e-10)
    kernel = sde.marginal(t)
    if form == "x0":
        # From the conditional mean to the conditional mean.
        got = rule.move(s, t) @ kernel.mean[..., None] + one[:, 0]
        assert np.allclose(got[..., 0], sde.marginal(s).mean, atol=1e-12)


def test_the_l_form_is_a_quadrature_that_converges() -> None:
    """Many small steps with constant noise against one."""
    sde = CLD(beta=LinearBeta(1.0, 7.0))
    grid = np.linspace(0.5, 0.3, 41)
    rule = Exponential(sde, grid, "score", "L")
    whole = rule.weights(grid[-1:], grid[:1], grid[None, :1])[0, 0]
    total = np.zeros((2, 2))
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        at = np.array([t])
        total = rule.move(np.array([s]), at)[0] @ total
        total = total + rule.weights(np.array([s]), at, at[None])[0, 0]
    assert np.allclose(whole, total, rtol=1e-9, atol=1e-12)


def test_lagrange() -> None:
    nodes, points = np.array([[0.1, 0.4, 1.0]]), np.array([[0.2, 0.4, 3.0]])
    values, slopes = lagrange(nodes, points)
    for power in range(3):
        assert np.allclose(np.einsum("nj,njp->np", nodes**power, values), points**power)
        want = power * points ** max(power - 1, 0)
        assert np.allclose(np.einsum("nj,njp->np", nodes**power, slopes), want)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("t_min", [0.0, 1e-5, 1e-3])
def test_single_precision_follows_double_to_the_end(name: str, t_min: float) -> None:
    """An exact score, rounded like everything else, down to singular kernels."""
    sde = SDES[name]
    mixture = GaussianMixture([1.0], [[0.4]], [[0.1]])
    exact = mixture.network(sde)

    def rounded(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return exact(u.double(), t.double()).to(u.dtype)

    u = initial_state(sde, (64, 1), seed=1, dtype=torch.float64)
    for solver in SOLVERS:
        plan = make_plan(sde, solver, 20, "auto", t_min)
        x = run(plan, rounded, u.float(), seed=3)[:, :1]
        want = run(plan, exact, u, seed=3)[:, :1]
        # 20 steps of some roundings of 6e-8 each; roba kicks by the score at the end of a leap.
        assert float((x - want).abs().max()) < (1e-4 if solver == "roba" else 1e-5), solver


def test_evaluations_and_history() -> None:
    sde = CLD()
    for solver, per_step, history in [
        ("em", 1, 0), ("ancestral", 1, 0), ("multistep", 1, 1), ("unipc", 1, 2), ("sscs2", 1, 2),
        ("heun", 2, 1), ("dpm2", 2, 1), ("dpm3", 3, 2),
    ]:  # fmt: skip
        plan = make_plan(sde, solver, 10)
        assert plan.evaluations == 10 * per_step
        assert plan.history_length == history
    assert make_plan(sde, "multistep", 10, order=4).evaluations == 10
    assert make_plan(sde, "multistep", 10, order=4, form="L").evaluations == 11
    assert make_plan(sde, "multistep", 1, order=4, form="R", t_min=0.0).evaluations == 2
    # Heun's method has no network to ask at t = 0.
    assert make_plan(sde, "heun", 10, t_min=0.0).evaluations == 19


def test_velocity_scores_serve_the_regularised_process_with_one_plane() -> None:
    for solver in SOLVERS:
        assert make_plan(CLD(x_noise=0.25), solver, 5).output_planes == (1,)


def test_every_solver_has_an_automatic_grid() -> None:
    for solver in SOLVERS:
        assert make_plan(CLD(), solver, 5, "auto").steps == 5


@pytest.mark.parametrize(
    ("solver", "options", "error", "message"),
    [
        ("multistep", {"order": 0}, ValueError, "order must be an integer from 1 to 4, got 0"),
        ("multistep", {"order": 5}, ValueError, "order must be an integer from 1 to 4, got 5"),
        ("multistep", {"order": 2.0}, TypeError, "declared as 'order: int = 2', got 2.0 .float"),
        ("unipc", {"order": 4}, ValueError, "order must be an integer from 1 to 3, got 4"),
        ("multistep", {"form": "eps"}, ValueError, "unknown form 'eps'; expected one of x0, R, L"),
        ("multistep", {"variable": "s"}, ValueError, "unknown variable 's'; expected one of t, ta"),
        ("stochastic_multistep", {"churn": 2.0}, ValueError, "churn must lie in"),
        ("heun", {"order": 2}, TypeError, "solver 'heun' takes no option 'order'"),
    ],
)
def test_errors(solver: str, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_plan(CLD(), solver, 5, **options)
