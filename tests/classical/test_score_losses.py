"""Losses of positions: known minimisers and values on Gaussian data, and each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cldfast
from cldfast.classical import (
    EDM,
    OU,
    VE,
    VP,
    FlowMatching,
    GaussianPath,
    dsm_loss,
    flow_matching_loss,
    implicit_loss,
    multi_scale_loss,
    sliced_loss,
)
from cldfast.lab.mixture import GaussianMixture
from cldfast.planner.path_forms import FORMS

F64 = torch.float64


@pytest.mark.parametrize("path", [OU(), VE(sigma_max=3.0)], ids=["OU", "VE"])
def test_denoising_loss_is_least_at_the_score(path: GaussianPath) -> None:
    n, var = 200000, 0.5
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, 1, dtype=F64, generator=generator) * var**0.5
    t = torch.full((n,), 0.3, dtype=F64)
    alpha, sigma = float(path.alpha(0.3)), float(path.sigma(0.3))
    slope = torch.tensor(-1.0 / (alpha**2 * var + sigma**2), dtype=F64, requires_grad=True)
    loss = dsm_loss(lambda x, t: slope * x, path, x0, t, seed=1)
    (gradient,) = torch.autograd.grad(loss, slope)
    # A mean of n products of unit size: 2 sigma |x|.
    size = 2 * sigma * (alpha**2 * var + sigma**2) ** 0.5
    assert abs(float(gradient)) < 5 * size / n**0.5


@pytest.mark.parametrize("weighting", ["noise", "x0", "flow"])
@pytest.mark.parametrize("form", [*FORMS, "denoiser", "edm"])
def test_a_loss_does_not_depend_on_the_form(form: str, weighting: str) -> None:
    """The same prediction in another form has the same loss, in the units that are asked for."""
    data = GaussianMixture([1.0, 2.0], [[-1.0, 0.5], [1.0, 0.0]], [[0.2, 0.1], [0.3, 0.4]])
    x0, t = data.sample(64).double(), torch.rand(64, dtype=F64) * 0.8 + 0.1
    path, noise = VP(), torch.randn(64, 2, dtype=F64)
    options: dict[str, Any] = {"weighting": weighting, "noise": noise}
    losses = [
        float(dsm_loss(data.network(path, name), path, x0, t, parameterization=name, **options))
        for name in ("x0", form)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    # By hand, of the data predictions.
    sigma, alpha = path.sigma(t)[:, None], path.alpha(t)[:, None]
    made = data.network(path, "x0")(alpha * x0 + sigma * noise, t)
    falling, growing = (slope[:, None] for slope in path.slopes(t))
    scale = {"x0": 1.0, "noise": alpha / sigma, "flow": falling - growing * alpha / sigma}
    assert losses[0] == pytest.approx(
        float((scale[weighting] * (made - x0)).square().sum(1).mean())
    )


def test_flow_matching_in_three_lines() -> None:
    x0, noise, t = torch.randn(9, 3), torch.randn(9, 3), torch.rand(9, dtype=F64)
    s = t[:, None].float()
    expected = (torch.sin((1 - s) * x0 + s * noise) - (noise - x0)).square().sum(1).mean()
    got = flow_matching_loss(lambda x, t: torch.sin(x), x0, t=t, noise=noise)
    torch.testing.assert_close(got, expected)
    assert float(flow_matching_loss(lambda x, t: 0 * x, x0, VP(), seed=3)) > 0.0


def test_times_and_noise_are_addressed() -> None:
    x0 = torch.randn(8, 3)
    times: list[torch.Tensor] = []

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(t)
        return -x

    whole = dsm_loss(net, EDM(5.0), x0, seed=4)
    halves = [dsm_loss(net, EDM(5.0), x0[i : i + 4], seed=4, first_index=i) for i in (0, 4)]
    assert torch.equal(times[0], torch.cat(times[1:]))
    assert float(whole) == pytest.approx(float(sum(halves)) / 2, rel=1e-6)
    assert float(times[0].min()) >= 1e-3 and float(times[0].max()) <= 5.0


def test_noise_levels_of_a_multi_scale_loss() -> None:
    x0, levels = torch.randn(4000, 2, dtype=F64), [0.1, 1.0, 3.0]
    seen: list[torch.Tensor] = []

    def net(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(sigma)
        return -x / (1.0 + sigma[:, None] ** 2)

    loss = multi_scale_loss(net, x0, levels, seed=2)
    counts = [int((seen[0] == level).sum()) for level in levels]
    assert sum(counts) == 4000 and min(counts) > 4000 / 3 - 5 * (4000 * 2 / 9) ** 0.5
    # |sigma s + eps|^2 on average over x0 of unit variance: 2 coordinates of 1/(1 + sigma^2).
    expected = sum(2 / (1 + level**2) for level in levels) / 3
    assert float(loss) == pytest.approx(expected, rel=0.1)
    fixed = multi_scale_loss(net, x0, [1.0], seed=2)
    assert float(fixed) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("name", ["implicit", "hutchinson", "sliced"])
def test_losses_without_a_target_are_least_at_the_score(name: str) -> None:
    n = 100000
    generator = torch.Generator().manual_seed(0)
    cov = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
    x = torch.randn(n, 2, dtype=F64, generator=generator) @ torch.linalg.cholesky(cov).T
    matrix = (-torch.linalg.inv(cov)).requires_grad_()
    t = torch.ones(n, dtype=F64)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x @ matrix.T

    signs = torch.randint(0, 2, x.shape, generator=generator).to(F64) * 2 - 1
    if name == "implicit":
        loss = implicit_loss(net, x, t)
    elif name == "hutchinson":
        loss = implicit_loss(net, x, t, signs)
    else:
        loss = sliced_loss(net, x, t, signs)
    # E[|s|^2 / 2 + div s] = -tr(cov^-1) / 2 there, and the gradient S cov + 1 vanishes.
    expected = -0.5 * float(torch.linalg.inv(cov).trace())
    assert float(loss.detach()) == pytest.approx(expected, abs=0.06)
    (gradient,) = torch.autograd.grad(loss, matrix)
    assert float(gradient.abs().max()) < 5 * 3.0 / n**0.5


def test_the_exact_divergence_is_exact() -> None:
    """Of images too: for s = sin(x) the loss is `|sin x|^2/2 + sum cos x`."""
    x = torch.randn(5, 2, 3, 2, dtype=F64)
    expected = (0.5 * x.sin().square() + x.cos()).flatten(1).sum(1).mean()
    got = implicit_loss(lambda x, t: torch.sin(x), x, torch.ones(5))
    torch.testing.assert_close(got.detach(), expected)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"must return \(3, 2\), got \(3, 1\)"):
        dsm_loss(lambda x, t: x[:, :1], OU(), x, torch.ones(3))
    with pytest.raises(ValueError, match="unknown parameterization 'mixed'"):
        dsm_loss(lambda x, t: x, OU(), x, parameterization="mixed")
    with pytest.raises(ValueError, match="unknown parameterization 'reweighted'"):
        dsm_loss(lambda x, t: x, OU(), x, weighting="reweighted")
    assert cldfast.dsm_loss is not dsm_loss and FlowMatching().parameterization == "flow"
