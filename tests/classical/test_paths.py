"""Gaussian paths: their laws by moment equations, and what networks return by linear algebra."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import cldfast
from cldfast import CosineBeta, ExponentialBeta, LinearBeta, make_plan
from cldfast.classical import EDM, OU, VE, VP, Brownian, FlowMatching, GaussianPath
from cldfast.planner.path_forms import FORMS, change, pair_map, parts

PATHS: dict[str, GaussianPath] = {
    "VP": VP(),
    "constant": OU(3.0, T=2.0),
    "exponential": OU(ExponentialBeta(0.1, 0.5, 3.0)),
    "cosine": OU(CosineBeta()),
    "callable": OU(lambda t: 1.0 + 3.0 * t * t),
    "VE": VE(0.05, 5.0),
    "Brownian": Brownian(LinearBeta(1.0, 20.0)),
    "EDM": EDM(5.0),
    "flow": FlowMatching(),
    "custom": GaussianPath(lambda t: np.cos(1.5 * t), lambda t: np.sin(1.5 * t)),
}
by_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@by_path
def test_slopes_and_rates_by_central_differences(path: GaussianPath) -> None:
    t = np.array([0.1, 0.4, 0.8]) * path.T
    h = 1e-6 * path.T
    for slope, function in zip(path.slopes(t), (path.alpha, path.sigma), strict=True):
        expected = (function(t + h) - function(t - h)) / (2 * h)
        np.testing.assert_allclose(slope, expected, rtol=1e-7, atol=1e-7 / path.T)
    # d var/dt = 2 f var + g^2 and d mean/dt = f mean.
    variance = (path.sigma(t + h) ** 2 - path.sigma(t - h) ** 2) / (2 * h)
    f, g2 = path.drift(t), path.diffusion(t)
    np.testing.assert_allclose(2 * f * path.sigma(t) ** 2 + g2, variance, rtol=1e-6)
    np.testing.assert_allclose(f * path.alpha(t), path.slopes(t)[0], rtol=1e-12)


@by_path
def test_the_time_of_a_noise_level(path: GaussianPath) -> None:
    t = np.array([1e-4, 0.03, 0.5, 0.99]) * path.T
    np.testing.assert_allclose(path.time(path.log_sigma(t)), t, rtol=1e-9)
    assert float(path.time(np.array([50.0]))[0]) == pytest.approx(path.T, rel=1e-14)


@by_path
def test_torch_and_numpy_agree(path: GaussianPath) -> None:
    t = np.array([0.2, 0.7]) * path.T
    for name in ("alpha", "sigma", "drift", "diffusion"):
        function: Any = getattr(path, name)
        got = function(torch.from_numpy(t))
        assert isinstance(got, torch.Tensor)
        np.testing.assert_allclose(got.numpy(), function(t), rtol=1e-13)


def test_nothing_cancels_at_small_times() -> None:
    """Against series with relative error of the order of t."""
    t = np.array([1e-14])
    assert float(OU(3.0).sigma(t)[0]) == pytest.approx(math.sqrt(3e-14), rel=1e-12)
    assert float(OU(3.0).diffusion(t)[0]) == pytest.approx(3.0, rel=1e-12)
    assert float(FlowMatching().diffusion(t)[0]) == pytest.approx(2e-14, rel=1e-12)


def test_priors() -> None:
    assert VP().prior().cov.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert float(VE(0.01, 50.0).prior().covariance.xx) == pytest.approx(2500.0)
    assert float(FlowMatching().prior().covariance.xx) == 1.0
    given = GaussianPath(lambda t: 1.0 + 0.0 * t, lambda t: 3.0 * t, prior_var=10.0)
    assert float(given.prior().covariance.vv) == 10.0


@by_path
@pytest.mark.parametrize("name", [*FORMS, "denoiser", "edm", "epsilon", "v_prediction"])
def test_every_form_gives_score_data_and_velocity(path: GaussianPath, name: str) -> None:
    """From known x0 and eps: the output by its definition, then back."""
    rng = np.random.default_rng(0)
    t = np.array([0.1, 0.5, 0.9]) * path.T
    x0, eps = rng.standard_normal((2, 3))
    alpha, sigma = path.alpha(t), path.sigma(t)
    x, level = alpha * x0 + sigma * eps, sigma / alpha
    (falling, growing), size = path.slopes(t), np.sqrt(1.0 + level**2)
    outputs = {
        "score": -eps / sigma,
        "noise": eps,
        "epsilon": eps,
        "x0": x0,
        "denoiser": x0,
        "v": alpha * eps - sigma * x0,
        "v_prediction": (eps - level * x0) / size,
        "flow": falling * x0 + growing * eps,
        # D = c_skip y + c_out F of Karras et al. (2022), for data of unit variance.
        "edm": (x0 - (x0 + level * eps) / size**2) / (level / size),
    }
    expected = {"x0": x0, "score": -eps / sigma, "flow": falling * x0 + growing * eps, "noise": eps}
    p, q = parts(path, t, name)
    np.testing.assert_allclose(p * x0 + q * eps, outputs[name], rtol=1e-10, atol=1e-10)
    for to, value in expected.items():
        on_output, on_state = change(path, t, name, to)
        np.testing.assert_allclose(on_output * outputs[name] + on_state * x, value, rtol=1e-9)
        made = pair_map(path, t, name, to)
        np.testing.assert_allclose(
            made.from_output, on_output[:, None, None] * np.eye(2), rtol=1e-9
        )


def test_what_networks_of_the_data_see() -> None:
    """`(x/alpha, sigma/alpha)`, and for EDM `(c_in x/alpha, ln(sigma/alpha)/4)`, in the plan."""
    path = VP()
    for name, argument, scale in (
        ("denoiser", lambda s: s, lambda s: 1.0),
        (cldfast.Preconditioned(0.5), lambda s: math.log(s) / 4, lambda s: (s * s + 0.25) ** -0.5),
    ):
        plan = make_plan(path, "ddim", 3, "linear", 0.1, parameterization=name)
        for stage in plan.stages:
            alpha, sigma = float(path.alpha(stage.t)), float(path.sigma(stage.t))
            assert stage.argument == pytest.approx(argument(sigma / alpha), rel=1e-12)
            assert stage.seen is not None
            expected = scale(sigma / alpha) / alpha * np.eye(2)
            np.testing.assert_allclose(stage.seen, expected, rtol=1e-12)


def test_what_is_refused_says_why() -> None:
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        VE(2.0, 1.0)
    with pytest.raises(ValueError, match="T must be at most 1"):
        FlowMatching(1.5)
    with pytest.raises(ValueError, match="T must be a finite number > 0"):
        EDM(-1.0)
    with pytest.raises(ValueError, match="unknown parameterization 'mixed' of a VP path"):
        make_plan(VP(), "em", 5, parameterization="mixed")
    with pytest.raises(ValueError, match="no finite rates at t = 1.0"):
        make_plan(FlowMatching(), "em", 5)
    with pytest.raises(ValueError, match=r"'score' does not give 'x0' at t = 1\.0"):
        make_plan(FlowMatching(), "ddim", 5, parameterization="score")
    with pytest.raises(ValueError, match="log_snr grid needs T < 1"):
        make_plan(FlowMatching(), "euler", 5, "log_snr")
    with pytest.raises(ValueError, match="use variable='t'"):
        make_plan(FlowMatching(), "multistep", 5, variable="log_snr")
    with pytest.raises(ValueError, match="unknown solver 'aboba'; expected one of auto, em,"):
        make_plan(VP(), "aboba", 5)
    with pytest.raises(TypeError, match="a path such as cldfast.classical.VP, got str"):
        make_plan("VP", "em", 5)  # type: ignore[arg-type]
