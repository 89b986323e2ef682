"""Statistical quality of the addressed normals: moments, distribution, tails, correlations.

Every bound is 5 standard errors of the statistic (a chance of 6e-7 each, and the draws are fixed).
`benchmarks/normals_quality.py` runs the same statistics on as many values as one asks for.
"""

from __future__ import annotations

import math

import normals_quality
import pytest
import torch
from core_calls import normals

COUNT = 10_000_000


@pytest.fixture(scope="module")
def draws() -> torch.Tensor:
    """COUNT normals, the two of a pair side by side."""
    return torch.stack(normals(2024, 0, COUNT // 2), dim=1).reshape(-1)


def test_moments(draws: torch.Tensor) -> None:
    for name, value, error in normals_quality.moments(draws):
        assert abs(value) < 5 * error, name


def test_kolmogorov_smirnov(draws: torch.Tensor) -> None:
    # The statistic's 1e-6 quantile: P(sqrt(n) D > x) = 2 exp(-2 x^2).
    bound = math.sqrt(math.log(2 / 1e-6) / 2)
    assert math.sqrt(len(draws)) * normals_quality.kolmogorov_smirnov(draws) < bound


def test_tails(draws: torch.Tensor) -> None:
    for threshold, found, expected in normals_quality.tails(draws):
        # Poisson; a count of few has a skewed law, which one more covers.
        assert abs(found - expected) < 5 * math.sqrt(expected) + 1, threshold


def test_no_correlation() -> None:
    count = COUNT // 10
    for name, r in normals_quality.correlations(count):
        assert abs(r) < 5 / math.sqrt(count), name
