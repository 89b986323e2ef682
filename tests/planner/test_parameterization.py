"""What networks return, as maps to the score: the x0 identity and the maps against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_mixture import mixture_in_one_dimension

from cldfast.lab.mixture import GaussianMixture
from cldfast.planner.parameterization import (
    PARAMETERIZATIONS,
    ROWS,
    VELOCITY_MAPS,
    LinearMap,
    check_parameterization,
    data_form,
    data_score,
    denoiser_map,
    score_map,
)
from cldfast.planner.reverse import Bridge
from cldfast.process.linear_flow import stack_matrix
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import CLD, PSLD, LinearPhaseSDE

BETA = LinearBeta(0.5, 8.0)
TIMES = np.array([1e-3, 0.01, 0.1, 0.4, 1.0])
X_NOISE = [0.0, 0.1, 1.0]


def apply(to_score: LinearMap, output: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Score (n, 2) at one time: output (n, r), u (n, 2)."""
    return output @ to_score.from_output[0].T + u @ to_score.from_state[0].T


def states(sde: LinearPhaseSDE, t: float, n: int = 20) -> np.ndarray:
    """States as they occur: data at either mode, noised."""
    rng = np.random.default_rng(0)
    kernel = sde.marginal(t)
    x0 = np.where(rng.random(n) < 0.3, -1.0, 1.5) + 0.4 * rng.standard_normal(n)
    return x0[:, None] * kernel.mean + rng.standard_normal((n, 2)) @ kernel.factor.T


@pytest.mark.parametrize("x_noise", X_NOISE)
@pytest.mark.parametrize("t", TIMES)
def test_x0_identity_for_a_mixture(x_noise: float, t: float) -> None:
    """The position score from the velocity score to 1e-9, and the score from E[x0 | u].

    The latter is `Sigma^-1 (m x0 - u)`: a rounding of x0 or u counts for Sigma^-1, ~ 1/tau^3.
    """
    sde = CLD(a=1.0, x_noise=x_noise, beta=BETA)
    u = states(sde, t)
    score, x0, _ = mixture_in_one_dimension(sde, t, u)
    at = np.array([t])
    from_velocity = apply(score_map(sde, at, "score"), score[:, 1:], u)
    from_x0 = apply(score_map(sde, at, "x0"), x0[:, None], u)
    size = np.abs(score).max(axis=0)
    assert np.max(np.abs(from_velocity - score) / size) < 1e-9
    rounding = 10 * 2.0**-53 * np.abs(sde.marginal(t).precision).max(axis=0)
    assert np.all(np.abs(from_x0 - score) < 1e-9 * size + rounding)


@pytest.mark.parametrize("x_noise", X_NOISE)
def test_x0_identity_for_a_mixture_in_two_dimensions(x_noise: float) -> None:
    """The same against the library's mixtures, correlated components, coordinate by coordinate."""
    mixture = GaussianMixture(
        [0.4, 0.6], [[-1.0, 0.5], [1.0, -1.0]], [[[0.5, 0.3], [0.3, 0.4]], [[0.2, 0.0], [0.0, 0.1]]]
    )
    sde = CLD(a=1.0, x_noise=x_noise, beta=BETA)
    u = torch.from_numpy(np.random.default_rng(0).standard_normal((100, 4)))
    for t in TIMES:
        score = mixture.score(u, float(t), sde).numpy()
        to_score = score_map(sde, np.array([t]), "score")
        for j in range(2):
            own = np.stack([score[:, j], score[:, 2 + j]], axis=1)
            state = np.stack([u[:, j].numpy(), u[:, 2 + j].numpy()], axis=1)
            got = apply(to_score, own[:, 1:], state)
            assert np.max(np.abs(got - own)) < 1e-9 * np.abs(own).max()


@pytest.mark.parametrize("x_noise", X_NOISE)
def test_x0_identity_for_gaussian_data(x_noise: float) -> None:
    """`score = -(Sigma + s^2 m m^T)^-1 (u - m mu)` for every state."""
    sde = CLD(a=1.0, x_noise=x_noise, beta=BETA)
    for t in TIMES:
        kernel = sde.marginal(t)
        cov = kernel.cov + 0.3 * np.outer(kernel.mean, kernel.mean)
        u = np.random.default_rng(1).standard_normal((50, 2))
        score = -np.linalg.solve(cov, (u - 0.7 * kernel.mean).T).T
        got = apply(score_map(sde, np.array([t]), "score"), score[:, 1:], u)
        assert np.max(np.abs(got - score) / np.abs(score).max(axis=0)) < 1e-9


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("sde", [CLD(x_noise=0.3, beta=BETA), PSLD(beta=BETA)], ids=repr)
def test_maps_by_their_definitions(name: str, sde: LinearPhaseSDE) -> None:
    """The output that the docstring names, made from a known score, gives the score back."""
    for t in TIMES:
        u = states(sde, t)
        score, x0, _ = mixture_in_one_dimension(sde, t, u)
        kernel = sde.marginal(t)
        ell = np.sqrt(kernel.cov[0, 0] / np.linalg.det(kernel.cov)) if t > 0.05 else kernel.ell
        stationary = np.linalg.inv(sde.prior().cov)
        y, sigma = u @ kernel.statistic, kernel.sigma_y
        nu, alpha, level = (y - x0) / sigma, 1.0 / np.hypot(1.0, sigma), np.hypot(1.0, sigma)
        output = {
            "score": score[:, 1:],
            "noise": score[:, 1:] / -ell,
            "mixed": (score[:, 1:] + u[:, 1:] / kernel.cov[1, 1]) / -ell,
            "x0": x0[:, None],
            "data_noise": nu[:, None],
            "denoiser": x0[:, None],
            "epsilon": nu[:, None],
            "v_prediction": (alpha * nu - sigma * alpha * x0)[:, None],
            # c_skip = 1/level^2 and c_out = sigma/level of Karras et al. (2022), sigma_data = 1.
            "edm": ((x0 - y / level**2) / (sigma / level))[:, None],
            "renormalised": score[:, 1:] + (u @ stationary)[:, 1:],
            "full_score": score,
            "full_noise": -score @ kernel.factor,
            "full_noise_r": -score @ Bridge(sde).factor(sde.tau(t)),
            "full_renormalised": score + u @ stationary,
        }[name]
        to_score = score_map(sde, np.array([t]), name)
        assert to_score.planes == output.shape[1]
        got = apply(to_score, output, u)
        # Near t = 0 the output is a small part of terms ~ Sigma^-1: digits go with 1/t.
        assert np.max(np.abs(got - score) / np.abs(score).max(axis=0)) < 1e-9


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_maps_of_torch_times(name: str) -> None:
    """The rows that training uses are those of the planner."""
    sde = CLD(x_noise=0.3, beta=BETA)
    ours, theirs = sde.marginal(TIMES), sde.marginal(torch.from_numpy(TIMES))
    form = data_form(name)
    if form is None:
        want, got = ROWS[name](sde, ours), ROWS[name](sde, theirs)
    else:
        want, got = data_score(form, ours), data_score(form, theirs)
    pairs = [(want.from_output, got.from_output), (want.from_state, got.from_state)]
    for array, tensor in pairs:
        assert array.shape[:2] == (len(TIMES), 1 if name in VELOCITY_MAPS else 2)
        assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64
        assert np.allclose(tensor.numpy(), array, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("x_noise", X_NOISE)
def test_denoiser_is_the_posterior_mean(x_noise: float) -> None:
    """`E[u_0 | u_t]` for Gaussian data, by conditioning the joint normal law of (u_0, u_t)."""
    sde = CLD(a=1.0, x_noise=x_noise, beta=BETA)
    mu, variance = 0.7, 0.3
    start = np.diag([variance, sde.v0_var])
    for t in TIMES:
        step = sde.marginal(t, objective="dsm")
        cov = step.cov + step.mean @ start @ step.mean.T
        u = np.random.default_rng(2).standard_normal((20, 2))
        centred = u - mu * step.mean[:, 0]
        want = np.array([mu, 0.0]) + centred @ np.linalg.solve(cov, step.mean @ start)
        score = -np.linalg.solve(cov, centred.T).T
        at = np.array([t])
        clean = denoiser_map(sde, at, score_map(sde, at, "full_score"))
        got = score @ clean.from_output[0].T + u @ clean.from_state[0].T
        # u + Q score subtracts what noise of size Q Sigma^-1 has added: digits go with 1/t.
        assert np.allclose(got, want, rtol=0, atol=1e-12 / t)


def test_refusals() -> None:
    sde = CLD()
    with pytest.raises(ValueError, match="unknown parameterization 'eps'; expected one of score"):
        score_map(sde, np.array([0.5]), "eps")
    with pytest.raises(ValueError, match="unknown parameterization 'x1'"):
        check_parameterization("x1")
    with pytest.raises(ValueError, match=r"score at t = 0.0 does not exist"):
        score_map(sde, np.array([0.5, 0.0]))
    with pytest.raises(ValueError, match="overflows at t = .*; choose a larger t_min"):
        score_map(CLD(v0_var=0.0), np.array([1e-200]))


def test_stack_matrix() -> None:
    entries = [np.arange(3.0) + k for k in range(4)]
    assert np.array_equal(stack_matrix(*entries)[1], [[1.0, 2.0], [3.0, 4.0]])
