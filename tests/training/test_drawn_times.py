"""The distributions of training times in log t and in the noise level of y."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from cldfast import CLD, PSLD, LinearBeta, sample_times

# Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed with probability 0.001.
ROWS, PASSED = 20_000, 1.95 / math.sqrt(20_000)
T_MIN = 1e-3
SDES = [CLD(beta=LinearBeta(0.5, 7.0)), CLD(a=1.0, x_noise=0.5), PSLD()]


def distance(uniform: np.ndarray) -> float:
    """The largest distance from the uniform distribution function."""
    return float(np.max(np.abs(np.sort(uniform) - np.linspace(0, 1, len(uniform)))))


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("method", ["log", "log_snr", "edm"])
def test_distributions(method: str, sde) -> None:
    options = {"t_min": T_MIN, "method": method, "seed": 3, "sigma_data": 2.0}
    t, factors = sample_times(ROWS, sde, **options)
    assert float(t.min()) >= T_MIN and float(t.max()) <= sde.T
    level = np.log(sde.marginal(t.numpy()).sigma_y)
    low, high = (math.log(sde.marginal(end).sigma_y) for end in (T_MIN, sde.T))
    if method == "log":
        place = np.log(t.numpy() / T_MIN) / math.log(sde.T / T_MIN)
    elif method == "log_snr":
        place = (level - low) / (high - low)
    else:
        # ln(sigma / sigma_data) ~ N(-1.2 - ln 0.5, 1.2^2) between both ends.
        law = NormalDist(-1.2 + math.log(2.0) + math.log(2.0), 1.2)
        place = np.array([law.cdf(value) for value in level])
        place = (place - law.cdf(low)) / (law.cdf(high) - law.cdf(low))
    assert distance(place) < PASSED
    # Factors undo the density: means are those of uniform times, 5 standard errors.
    for function, mean in (
        (lambda t: t, 0.5 * (sde.T + T_MIN)),
        (lambda t: 1.0 / t, math.log(sde.T / T_MIN) / (sde.T - T_MIN)),
    ):
        values = function(t) * factors
        # A function like the density has no spread left but roundings.
        error = 5.0 * float(values.std()) / math.sqrt(ROWS) + 1e-12 * mean
        assert abs(float(values.mean()) - mean) < error
    tail, _ = sample_times(ROWS - 7, sde, first_index=7, **options)
    assert torch.equal(t[7:], tail)


def test_log_times_by_their_formula() -> None:
    t, factors = sample_times(100, CLD(T=2.0), t_min=T_MIN, method="log", seed=0)
    # The density of log-uniform times is 1 / (t log(T / t_min)).
    want = t * math.log(2.0 / T_MIN) / (2.0 - T_MIN)
    torch.testing.assert_close(factors, want, rtol=1e-12, atol=0.0)


def test_importance_knows_the_noise_on_the_position() -> None:
    """`beta trace(D Sigma^-1)` times the factors is constant but for the cells of the table."""
    sde = SDES[1]
    t, factors = sample_times(5000, sde, t_min=0.01, method="importance", seed=1)
    precision = np.linalg.inv(sde.marginal(t.numpy()).cov)
    weight = sde.beta(t.numpy()) * np.einsum("i,kii->k", sde.D, precision)
    weighted = weight * factors.numpy()
    assert weighted.std() / weighted.mean() < 0.02


def test_edm_levels_go_with_the_data() -> None:
    """Data in other units: noise levels in those units."""
    sde = CLD()
    medians = [
        float(torch.median(sde.marginal(sample_times(4001, sde, method="edm", t_min=1e-6,
                                                     sigma_data=size, seed=0)[0]).sigma_y))
        for size in (0.25, 0.5)
    ]  # fmt: skip
    # exp(-1.2) = 0.30 at sigma_data = 0.5; a median of 4001 is good to 1.25 * 1.2 / sqrt(4001).
    assert medians[1] == pytest.approx(math.exp(-1.2), rel=0.1)
    assert medians[1] / medians[0] == pytest.approx(2.0, rel=0.1)
