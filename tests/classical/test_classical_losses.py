"""Baseline losses: known minimisers on Gaussian data."""

from __future__ import annotations

import pytest
import torch

from cldfast.classical.losses import OU, VE, implicit_loss, position_dsm_loss, sliced_loss
from cldfast.process.schedules import LinearBeta

F64 = torch.float64


@pytest.mark.parametrize("process", [OU(), OU(LinearBeta(0.1, 20.0)), VE()])
def test_kernels_by_their_moment_equations(process):
    """d var/dt follows from the SDE; checked by central differences."""
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    h = 1e-5
    mean, deviation = process.marginal(t)
    (mean_up, up), (mean_down, down) = process.marginal(t + h), process.marginal(t - h)
    slope = (up**2 - down**2) / (2 * h)
    mean_slope = (mean_up - mean_down) / (2 * h)
    if isinstance(process, OU):
        beta = LinearBeta(8.0, 8.0).beta(t) if process.beta == 8.0 else process.beta.beta(t)
        assert torch.allclose(slope, beta * (1 - deviation**2), rtol=1e-7)
        assert torch.allclose(mean_slope, -0.5 * beta * mean, rtol=1e-7)
    else:
        rate = 2 * torch.log(torch.tensor(5000.0, dtype=F64))
        assert torch.allclose(slope, rate * deviation**2, rtol=1e-7)
        assert torch.equal(mean, torch.ones_like(t))


@pytest.mark.parametrize("process", [OU(), VE(sigma_max=3.0)])
def test_denoising_loss_is_least_at_the_score(process):
    n, var = 200000, 0.5
    x0 = torch.randn(n, 1, dtype=F64) * var**0.5
    t = torch.full((n,), 0.3, dtype=F64)
    noise = torch.randn(n, 1, dtype=F64)
    mean, deviation = (float(k[0]) for k in process.marginal(t))
    slope = torch.tensor(-1.0 / (mean**2 * var + deviation**2), dtype=F64, requires_grad=True)
    loss = position_dsm_loss(lambda x, t: slope * x, process, x0, t, noise)
    (gradient,) = torch.autograd.grad(loss, slope)
    # A mean of n products of unit size: 2 deviation |x|.
    size = 2 * deviation * (mean**2 * var + deviation**2) ** 0.5
    assert abs(float(gradient)) < 5 * size / n**0.5


@pytest.mark.parametrize("name", ["implicit", "sliced"])
def test_losses_without_a_target_are_least_at_the_score(name):
    n = 100000
    cov = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
    x = torch.randn(n, 2, dtype=F64) @ torch.linalg.cholesky(cov).T
    matrix = (-torch.linalg.inv(cov)).requires_grad_()
    t = torch.ones(n, dtype=F64)
    if name == "implicit":
        loss = implicit_loss(lambda x, t: x @ matrix.T, x, t)
    else:
        signs = torch.randint(0, 2, x.shape).to(F64) * 2 - 1
        loss = sliced_loss(lambda x, t: x @ matrix.T, x, t, signs)
    # E[|s|^2 / 2 + div s] = -tr(cov^-1) / 2 there, and the gradient S cov + 1 vanishes.
    expected = -0.5 * float(torch.linalg.inv(cov).trace())
    assert float(loss.detach()) == pytest.approx(expected, abs=0.05)
    (gradient,) = torch.autograd.grad(loss, matrix)
    assert float(gradient.abs().max()) < 5 * 2.0 / n**0.5


def test_a_wrong_shape_is_refused():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"must return \(3, 2\), got \(3, 1\)"):
        position_dsm_loss(lambda x, t: x[:, :1], OU(), x, torch.ones(3), x)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        VE(2.0, 1.0)
