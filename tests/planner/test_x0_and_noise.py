"""The data prediction and unit noise as maps of network output and state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cldfast import CLD, PSLD, LinearPhaseSDE, make_plan
from cldfast.lab.mixture import GaussianMixture
from cldfast.planner.law import marginal_law, wasserstein2
from cldfast.planner.parameterization import (
    FULL_MAPS,
    PARAMETERIZATIONS,
    VELOCITY_MAPS,
    noise_map,
    score_map,
    x0_map,
)
from cldfast.process.schedules import LinearBeta

TIMES = np.array([1e-6, 1e-3, 0.1, 1.0])
SDES = [
    CLD(beta=LinearBeta(1.0, 7.0)),
    CLD(x_noise=0.1),
    CLD(x_noise=1.0),
    CLD(v0_var=0.0),
    PSLD(),
]


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_score_of_a_point_gives_the_point(sde, parameterization: str) -> None:
    """`s = -Sigma^-1 (u - m x0)`: solve the score map for the output, then ask for x0."""
    x0, noise = 1.7, np.array([0.6, -1.1])
    kernel = sde.marginal(TIMES)
    u = kernel.mean * x0 + kernel.factor @ noise
    # Through the noise: `L^T s = -noise` has no cancellation at small times.
    score = -np.linalg.solve(np.swapaxes(kernel.factor, 1, 2), noise[None, :, None])[..., 0]
    to_score = score_map(sde, TIMES, parameterization)
    rest = score - (to_score.from_state @ u[..., None])[..., 0]
    if parameterization in VELOCITY_MAPS:
        output = rest[:, 1:] / to_score.from_output[:, 1]
    elif to_score.planes == 1:
        # Both rows, in units of the noise: the velocity row alone may say next to nothing.
        scaled = np.swapaxes(kernel.factor, 1, 2) @ to_score.from_output
        moved = np.swapaxes(kernel.factor, 1, 2) @ rest[..., None]
        output = (scaled * moved).sum(1) / (scaled**2).sum(1)
    else:
        output = np.linalg.solve(to_score.from_output, rest[..., None])[..., 0]
    found = x0_map(sde, TIMES, parameterization)
    got = found.from_output @ output[..., None] + found.from_state @ u[..., None]
    # Scores carry x0 to about eps/sqrt(snr) only; nothing may lose more than that.
    assert np.allclose(got[:, 0, 0], x0, rtol=0.0, atol=1e-10)
    assert found.from_output.shape == (len(TIMES), 1, to_score.planes)


@pytest.mark.parametrize("sde", SDES)
def test_mixture(sde) -> None:
    mixture = GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.01]])
    generator = torch.Generator().manual_seed(0)
    for t in (1e-3, 0.05, 0.5):
        kernel = sde.marginal(t)
        x0 = mixture.sample(50, seed=1).double()
        z = torch.randn(50, 2, generator=generator, dtype=torch.float64)
        u = x0 * torch.tensor(kernel.mean) + z @ torch.tensor(kernel.factor).T
        found = x0_map(sde, np.array([t]))
        got = u.numpy() @ found.from_state[0].T
        got = got + mixture.score(u, t, sde)[:, 1:].numpy() @ found.from_output[0].T
        assert np.allclose(got, mixture.denoiser(u, t, sde).numpy(), rtol=0.0, atol=1e-9)


def test_noise_map() -> None:
    sde = CLD(x_noise=0.3)
    kernel = sde.marginal(TIMES)
    found = noise_map(sde, TIMES, "full_noise", kernel.factor)
    assert np.allclose(found.from_output, np.eye(2), atol=1e-12)
    assert np.allclose(found.from_state, 0.0)
    assert found.planes == 2


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown parameterization 'velocity'"):
        x0_map(CLD(), TIMES, "velocity")
    with pytest.raises(ValueError, match="networks are asked at t > 0"):
        x0_map(CLD(), np.array([0.5, 0.0]))


def test_an_oscillating_process_needs_more_than_its_velocity_score() -> None:
    """`Sigma_xx m_v = Sigma_xv m_x` once m_v has changed sign: s_v says nothing of x0 there."""
    sde = CLD(damping=0.1)
    for parameterization in ("score", "noise", "mixed"):
        with pytest.raises(ValueError, match="underdamped process has swung back at t = 0"):
            make_plan(sde, "multistep", 20, parameterization=parameterization)
    for parameterization in ("x0", "full_score"):
        assert make_plan(sde, "multistep", 20, parameterization=parameterization).evaluations == 20
    assert make_plan(sde, "em", 20).evaluations == 20


@pytest.mark.parametrize("solver", ["em", "sscs", "multistep", "heun", "ancestral"])
def test_a_decoupled_process_needs_more_than_its_velocity_score(solver: str) -> None:
    """With a diagonal A the velocity says nothing of x0; x0 itself and full scores serve."""
    sde = LinearPhaseSDE([[-0.5, 0.0], [0.0, -1.0]], [1.0, 2.0], 0.3, LinearBeta(0.5, 8.0))
    for parameterization in ("score", "noise", "mixed", "renormalised"):
        with pytest.raises(
            ValueError, match="x and v do not interact .* use a parameterization 'x0"
        ):
            make_plan(sde, solver, 20, parameterization=parameterization)
    laws = [
        make_plan(sde, solver, 20, "auto", parameterization=p).gaussian_law(data_var=0.3)
        for p in ("x0", *FULL_MAPS)
    ]
    for law in laws[1:]:
        assert np.allclose(law.cov, laws[0].cov, rtol=1e-8, atol=1e-9)
    exact = marginal_law(sde, 1e-3, 0.0, 0.3)
    assert wasserstein2(laws[0], exact) < 0.2


def test_the_velocity_may_point_either_way() -> None:
    """The process of (x, -v) has the plan of (x, v), mirrored."""
    mirror = np.diag([1.0, -1.0])
    plain = CLD(x_noise=0.3)
    turned = LinearPhaseSDE(mirror @ plain.A @ mirror, plain.D, plain.v0_var, plain.schedule)
    for solver in ("em", "multistep"):
        plans = [
            make_plan(sde, solver, 5, "auto", parameterization="x0") for sde in (plain, turned)
        ]
        pairs = zip(*(plan.stages for plan in plans), strict=True)
        assert all(np.allclose(mirror @ a.P @ mirror, b.P, rtol=1e-12) for a, b in pairs)
        laws = [make_plan(sde, solver, 5, "auto").gaussian_law() for sde in (plain, turned)]
        assert np.allclose(laws[0].cov, mirror @ laws[1].cov @ mirror, rtol=1e-10)
