"""The Monte Carlo harness: its intervals, its network, and a sampler that converges in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from forms import question

from cldfast.lab.mixture import GaussianMixture
from cldfast.lab.mixture_error import interval, mixture_error
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import PARAMETERIZATIONS, score_map
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import CLD

SDE = CLD(x_noise=0.2, beta=LinearBeta(0.5, 8.0))
MIXTURE = GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [1.5, 0.5]], [[0.04, 0.1], [0.2, 0.05]])


def test_interval() -> None:
    """1, 2, 3, 4: standard error sqrt(5/12), Student's 97.5 % point at 3 degrees 3.182446."""
    got = interval([1.0, 2.0, 3.0, 4.0])
    assert got.mean == 2.5 and got.values == (1.0, 2.0, 3.0, 4.0)
    assert got.half_width == pytest.approx(3.182446305 * math.sqrt(5.0 / 12.0), rel=1e-8)
    with pytest.raises(ValueError, match="at least 2 values and a confidence in"):
        interval([1.0])
    with pytest.raises(ValueError, match=r"got 2 and 1.0"):
        interval([1.0, 2.0], 1.0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_mixture_network(parameterization: str) -> None:
    """Its output, through the map of the parameterisation, is the mixture's score."""
    t = 0.3
    u = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 4)))
    net = MIXTURE.network(SDE, parameterization)
    output = net(*question(SDE, t, parameterization, u))
    to_score = score_map(SDE, np.array([t]), parameterization)
    planes = [part.numpy() for part in output.chunk(to_score.planes, dim=1)]
    x, v = (part.numpy() for part in u.chunk(2, dim=1))
    gain, shift = to_score.from_output[0], to_score.from_state[0]
    want = MIXTURE.score(u, t, SDE).chunk(2, dim=1)
    for i in range(2):
        got = sum(gain[i, r] * plane for r, plane in enumerate(planes))
        got = got + shift[i, 0] * x + shift[i, 1] * v
        assert np.allclose(got, want[i].numpy(), rtol=0, atol=1e-10)


def spread(x: torch.Tensor, y: torch.Tensor) -> float:
    """A cheap distance: of the sorted first coordinates, W2 in one dimension."""
    return float((x[:, 0].sort().values - y[:, 0].sort().values).square().mean().sqrt())


def test_few_steps_show_and_many_reach_the_floor() -> None:
    seeds = range(4)
    coarse = mixture_error(make_plan(SDE, "em", 8, "linear", 1e-2), MIXTURE, 2000, seeds, spread)
    fine = mixture_error(make_plan(SDE, "sscs", 150), MIXTURE, 2000, seeds, spread)
    assert len(coarse.error.values) == len(coarse.floor.values) == 4
    assert coarse.error.mean - coarse.error.half_width > 2.0 * coarse.floor.mean
    assert fine.error.mean - fine.error.half_width < fine.floor.mean + fine.floor.half_width
    # The floor of n points in one dimension is of order sqrt(variance / n) = 0.03.
    assert 0.005 < fine.floor.mean < 0.15


def test_target_is_the_law_at_the_last_time() -> None:
    """Stopping early at t = 0.2 compares with data noised to 0.2, denoising with the data."""
    seen = []

    def record(x: torch.Tensor, y: torch.Tensor) -> float:
        seen.append(y)
        return 0.0

    grid = [1.0, 0.6, 0.2]
    mixture_error(make_plan(SDE, "em", grid=grid), MIXTURE, 20_000, (0, 1), record)
    mixture_error(make_plan(SDE, "em", grid=grid, denoise=True), MIXTURE, 20_000, (0, 1), record)
    marginal = SDE.marginal(0.2)
    variance = float(MIXTURE.cov()[0, 0])
    noised = float(marginal.mean[0]) ** 2 * variance + float(marginal.cov[0, 0])
    # A sample variance of 20,000 points is good to about 1 %.
    assert float(seen[0][:, 0].var()) == pytest.approx(noised, rel=0.05)
    assert float(seen[-1][:, 0].var()) == pytest.approx(variance, rel=0.05)


def test_refusals() -> None:
    plan = make_plan(SDE, "em", 3)
    for samples, seeds in ((1, (0, 1)), (10, (0,)), (10, (3, 3))):
        with pytest.raises(ValueError, match="at least 2 samples and 2 different seeds"):
            mixture_error(plan, MIXTURE, samples, seeds, spread)
