"""Langevin dynamics: laws in closed form, exactness of MALA, plans, addressing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

import cldfast
from cldfast import make_plan, sample
from cldfast.classical import (
    VE,
    KineticLangevin,
    Langevin,
    annealed_langevin,
    kinetic_langevin,
    mala,
    ula,
)
from cldfast.lab.data import two_points
from cldfast.lab.mixture import GaussianMixture

F64 = torch.float64


def normal_score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -x


@pytest.mark.parametrize("h", [0.1, 0.5, 1.5])
def test_stationary_variance_of_ula(h: float) -> None:
    """`2/(2 - h)` for a normal target: exactly in law, and in 1e5 chains."""
    plan = make_plan(Langevin(400 * h), "ula", 400, "linear", t_min=0.0)
    law = plan.gaussian_law(data_mean=0.3)
    np.testing.assert_allclose(law.cov, 2.0 / (2.0 - h) * np.eye(2), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(law.mean, [0.3, 0.3], rtol=1e-10)
    n = 100_000
    x = ula(normal_score, torch.zeros(n, 1, dtype=F64), h, 200, seed=1)
    expected = 2.0 / (2.0 - h)
    assert abs(float(x.var()) - expected) < 4 * expected * math.sqrt(2.0 / n)


@pytest.mark.parametrize("friction", [0.5, 2.0])
def test_stationary_laws_of_kinetic_langevin(friction: float) -> None:
    """For a normal target of variance 1.

    BAOAB: x exact, v short of h^2/4 (Leimkuhler and Matthews 2013). OBABO: v exact, x of the
    modified energy, 1/(1 - h^2/4). Neither depends on the friction.
    """
    h = 0.5
    laws = {}
    for scheme in ("baoab", "obabo"):
        plan = make_plan(KineticLangevin(400 * h, friction), scheme, 400, "linear", t_min=0.0)
        assert plan.evaluations == 401
        laws[scheme] = plan.gaussian_law(data_mean=0.3)
        np.testing.assert_allclose(laws[scheme].mean, [0.3, 0.0], atol=1e-10)
    np.testing.assert_allclose(laws["baoab"].cov, np.diag([1.0, 1.0 - h * h / 4]), atol=1e-10)
    np.testing.assert_allclose(
        laws["obabo"].cov, np.diag([1.0 / (1.0 - h * h / 4), 1.0]), atol=1e-10
    )


@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("baoab", 2), ("obabo", 2)])
def test_orders_of_kinetic_schemes(scheme: str, order: int) -> None:
    """Against the exact linear SDE for a normal target, solved by matrix exponentials."""
    T, friction, var = 2.0, 1.5, 0.7
    drift = np.array([[0.0, 1.0], [-1.0 / var, -friction]])
    from scipy.linalg import expm, solve_continuous_lyapunov

    phi = expm(T * drift)
    stationary = solve_continuous_lyapunov(drift, -np.diag([0.0, 2.0 * friction]))
    mean0, cov0 = np.array([1.0, -0.5]), np.array([[0.3, 0.1], [0.1, 2.0]])
    mean, cov = phi @ mean0, phi @ (cov0 - stationary) @ phi.T + stationary
    errors = []
    for steps in (160, 320):
        plan = make_plan(KineticLangevin(T, friction), scheme, steps, "linear", t_min=0.0)
        assert plan.order == order
        law = plan.gaussian_law(mean0, cov0, 0.0, var)
        errors.append(np.abs(law.cov - cov).max() + np.abs(law.mean - mean).max())
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2


@pytest.mark.parametrize("scheme", ["euler", "baoab", "obabo"])
def test_chains_have_the_law_of_their_plan(scheme: str) -> None:
    n, h, steps = 40_000, 0.3, 12
    x, v = kinetic_langevin(
        normal_score, torch.full((n, 1), 2.0, dtype=F64), h, steps, scheme=scheme, seed=3
    )
    plan = make_plan(KineticLangevin(h * steps), scheme, steps, "linear", t_min=0.0)
    law = plan.gaussian_law(np.array([2.0, 0.0]), np.diag([0.0, 1.0]))
    for k, got in enumerate((x, v)):
        deviation = math.sqrt(law.cov[k, k])
        assert abs(float(got.mean()) - law.mean[k]) < 4.5 * deviation / n**0.5
        assert abs(float(got.var()) - deviation**2) < 4.5 * deviation**2 * (2.0 / n) ** 0.5
    assert abs(float((x * v).mean() - x.mean() * v.mean()) - law.cov[0, 1]) < 5.0 / n**0.5


def test_schemes_part_by_part() -> None:
    """BAOAB and OBABO as they are written, each part on its own, with the plan's normals."""
    h, g = 0.4, 1.3

    def score(x: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
        return torch.sin(2.0 * x) - x

    decay, spread = math.exp(-g * h), math.sqrt(1.0 - math.exp(-2.0 * g * h))
    generator = torch.Generator().manual_seed(0)
    x0, v0, z1, z2 = (torch.randn(6, 1, dtype=F64, generator=generator) for _ in range(4))
    x, v = x0, v0
    for z in (z1, z2):
        v = v + 0.5 * h * score(x)
        x = x + 0.5 * h * v
        v = decay * v + spread * z
        x = x + 0.5 * h * v
        v = v + 0.5 * h * score(x)
    noise: list[Any] = [torch.cat([z, z], 1) for z in (z1, z2, z2)]
    got = kinetic_langevin(score, x0, h, 2, v=v0, friction=g, noise=noise)
    torch.testing.assert_close(got, (x, v), rtol=1e-12, atol=1e-12)
    # The friction between two steps of OBABO is one draw; the half at either end has its own.
    half, half_spread = math.exp(-0.5 * g * h), math.sqrt(1.0 - math.exp(-g * h))
    v = half * v0 + half_spread * z1 + 0.5 * h * score(x0)
    x = x0 + h * v
    v = decay * (v + 0.5 * h * score(x)) + spread * z2 + 0.5 * h * score(x)
    x = x + h * v
    v = half * (v + 0.5 * h * score(x)) + half_spread * z1
    noise = [torch.cat([z, z], 1) for z in (z1, z2, z1)]
    got = kinetic_langevin(score, x0, h, 2, v=v0, friction=g, scheme="obabo", noise=noise)
    torch.testing.assert_close(got, (x, v), rtol=1e-12, atol=1e-12)


def test_mala_draws_the_target_exactly() -> None:
    """A target with two modes and a step so long that ULA is off: KS test, 1e5 draws."""
    n, step = 100_000, 0.6
    data = GaussianMixture([0.3, 0.7], [[-1.2], [1.0]], [[0.5], [0.3]])
    x, acceptance = mala(data.log_prob, data.sample(n, 5).double(), step, 40, seed=2)

    def cdf(x: np.ndarray) -> np.ndarray:
        from scipy.stats import norm

        return 0.3 * norm.cdf(x, -1.2, 0.5**0.5) + 0.7 * norm.cdf(x, 1.0, 0.3**0.5)

    assert kstest(x[:, 0].numpy(), cdf).pvalue > 0.001
    assert acceptance.shape == (n,) and 0.4 < float(acceptance.mean()) < 0.9
    score = data.network(Langevin(1.0))
    biased = ula(score, data.sample(n, 5).double(), step, 40, seed=2)
    assert kstest(biased[:, 0].numpy(), cdf).pvalue < 1e-6


def test_the_acceptance_of_mala_in_closed_form() -> None:
    """Stationary chains on N(0, 1): the mean of min(1, ratio), by quadrature over x and z.

    For this target log ratio = (h/4) (x^2 - x'^2) with x' = (1 - h) x + sqrt(2h) z.
    """
    h, n = 0.8, 50_000
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()
    x, z = nodes[:, None], nodes[None, :]
    moved = (1.0 - h) * x + math.sqrt(2.0 * h) * z
    expected = float(
        weights @ np.minimum(1.0, np.exp(0.25 * h * (x * x - moved * moved))) @ weights
    )
    start = torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(1))
    _, acceptance = mala(
        lambda x: -0.5 * x.square().sum(1), start, h, 20, score=lambda x: -x, seed=6
    )
    # 20 dependent draws of each chain; the kink of the minimum costs the quadrature 1e-3.
    assert float(acceptance.mean()) == pytest.approx(expected, abs=3e-3)


def test_chains_are_addressed() -> None:
    start = torch.randn(8, 3, dtype=F64, generator=torch.Generator().manual_seed(3))

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        return -0.5 * x.square().sum(1)

    runs: list[Any] = [
        lambda x, i: ula(normal_score, x, 0.3, 5, seed=7, first_index=i),
        lambda x, i: torch.cat(kinetic_langevin(normal_score, x, 0.3, 5, seed=7, first_index=i), 1),
        lambda x, i: mala(log_prob, x, 0.3, 5, seed=7, first_index=i)[0],
    ]
    for run in runs:
        assert torch.equal(run(start, 0)[5:], run(start[5:], 5))


def test_trajectories() -> None:
    start = torch.zeros(4, 3)
    for run in (
        lambda callback: ula(normal_score, start, 0.1, 6, callback=callback),
        lambda callback: mala(lambda x: -x.square().sum(1), start, 0.1, 6, callback=callback)[0],
    ):
        trajectory = cldfast.Trajectory(every=2)
        end = run(trajectory)
        assert trajectory.states.shape == (3, 4, 3)
        assert not torch.equal(torch.as_tensor(trajectory.states[-1]), end)


def test_annealing_reaches_both_modes() -> None:
    """Two points at -1 and 1 with deviation 0.05: plain Langevin stays where it begins."""
    data = two_points()
    narrow = GaussianMixture(data.weights, data.means, 0.0025 * torch.ones_like(data.means))
    path = VE(0.02, 4.0)
    x = annealed_langevin(narrow.network(path), path, (4000, 1), 16, inner=20, step=0.2, seed=1)
    assert abs(float((x > 0).float().mean()) - 0.5) < 0.05
    stuck = ula(narrow.network(Langevin(1.0)), torch.ones(4000, 1), 0.001, 320, seed=1)
    assert float((stuck > 0).float().mean()) == 1.0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="'noise' does not give 'score'"):
        make_plan(Langevin(1.0), "ula", 5, parameterization="noise")
    with pytest.raises(ValueError, match="'noise' does not give 'score'"):
        make_plan(KineticLangevin(1.0), "baoab", 5, parameterization="noise")
    with pytest.raises(
        ValueError, match="unknown solver 'ula'; expected one of auto, euler, baoab"
    ):
        make_plan(KineticLangevin(1.0), "ula", 5)
    with pytest.raises(ValueError, match="friction must be a finite number > 0"):
        KineticLangevin(1.0, 0.0)
    with pytest.raises(ValueError, match="step must be a finite number > 0"):
        mala(lambda x: -x.square().sum(1), torch.zeros(2, 1), -0.1, 3)
    with pytest.raises(ValueError, match="inner must be at least 1"):
        sample(normal_score, VE(0.1, 2.0), (2, 1), "annealed_langevin", 3, inner=0)
