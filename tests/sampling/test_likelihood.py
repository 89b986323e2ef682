"""The likelihood bound against exact densities."""

from __future__ import annotations

import math

import pytest
import torch

from cldfast import CLD, likelihood
from cldfast.lab.mixture import GaussianMixture
from cldfast.process.schedules import LinearBeta

pytest.importorskip("torchdiffeq")
pytestmark = pytest.mark.usefixtures("one_thread")
GAUSSIAN = GaussianMixture([1.0], [[0.3, -0.5]], [[0.5, 0.2]])
MIXTURE = GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.0], [0.8, 0.3]], [[[0.05, 0.02], [0.02, 0.1]], [[0.09, 0.0], [0.0, 0.04]]]
)
SDES = [CLD(beta=LinearBeta(2.0, 6.0)), CLD(x_noise=0.25), CLD(v0_var=0.0)]


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_exact_trace_gives_the_density(sde, data: GaussianMixture) -> None:
    x0 = data.sample(16, seed=1).double()
    got = likelihood(
        data.network(sde), sde, x0, probe="exact", rtol=1e-6, atol=1e-6, t_min=1e-3, seed=0
    )
    gap = got.nll + data.log_prob(x0)
    # What the kernel at t_min moves x by, 1/sqrt(snr), times the slope of the log density.
    level = float(1.0 / math.sqrt(float(_snr(sde, 1e-3))))
    assert float(gap.abs().max()) < 60.0 * level + 1e-3
    assert abs(float(gap.mean())) < 10.0 * level + 1e-3
    assert got.evaluations > 20 and got.dim == 2


def _snr(sde, t: float) -> float:
    kernel = sde.marginal(t)
    return kernel.mean @ kernel.precision @ kernel.mean


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@pytest.mark.parametrize("parameterization", ["score", "x0", "full_score"])
def test_hutchinson_is_unbiased(probe: str, parameterization: str) -> None:
    sde = CLD()
    x0 = MIXTURE.sample(1, seed=2).double().repeat(600, 1)
    net = MIXTURE.network(sde, parameterization)
    options = {"parameterization": parameterization, "rtol": 1e-4, "atol": 1e-4, "t_min": 1e-2}
    options["seed"] = 0
    nll = likelihood(net, sde, x0, probe=probe, **options).nll
    exact = likelihood(net, sde, x0, probe="exact", **options).nll
    error = float((nll - exact).std()) / math.sqrt(len(x0))
    assert abs(float((nll - exact).mean())) < 4.0 * error
    assert 0.0 < error < 0.5


def test_draws_rows_and_units() -> None:
    sde = CLD()
    net = MIXTURE.network(sde)
    x0 = MIXTURE.sample(6, seed=3).double()
    options = {"rtol": 1e-5, "atol": 1e-5, "t_min": 0.05}
    one = likelihood(net, sde, x0, seed=5, **options)
    part = likelihood(net, sde, x0[4:], seed=5, first_index=4, **options)
    assert torch.allclose(one.nll[4:], part.nll, atol=1e-3)
    other = likelihood(net, sde, x0, seed=6, **options)
    both = likelihood(net, sde, x0, seed=5, draws=2, **options)
    assert torch.allclose(both.nll, 0.5 * (one.nll + other.nll), atol=1e-6)
    assert both.draws == 2 and both.evaluations == one.evaluations + other.evaluations
    bits = one.bits_per_dim(levels=1, width=1.0)
    assert torch.allclose(bits, one.nll / (2.0 * math.log(2.0)))
    assert torch.allclose(one.bits_per_dim(), bits + 7.0)


def test_errors() -> None:
    sde, x0 = CLD(), torch.zeros(2, 2, dtype=torch.float64)
    net = MIXTURE.network(sde)
    with pytest.raises(ValueError, match="unknown probe 'uniform'; expected one of rademacher"):
        likelihood(net, sde, x0, probe="uniform")
    with pytest.raises(ValueError, match="draws must be an integer >= 1, got 0"):
        likelihood(net, sde, x0, draws=0)
    with pytest.raises(ValueError, match="t_min must lie in"):
        likelihood(net, sde, x0, t_min=0.0)
