"""Learned weights of times: their minimum, their gradient, and a training that goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cldfast import CLD, Uncertainty, hsm_loss
from cldfast.lab.models import MLPScore
from cldfast.training import CHECKPOINT, TrainConfig, Trainer

F64 = torch.float64


def test_the_minimum_is_the_logarithm_of_the_loss() -> None:
    """Of losses `d c(t)` in d coordinates: w(t) = log c(t), and the weighted loss is d (1 + w)."""
    model, d = Uncertainty(), 7
    t = torch.logspace(-3, 0, 60, dtype=F64)
    losses = d * (0.2 + t.sqrt())
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(losses, t, d).mean()
        loss.backward()
        return loss

    assert torch.equal(model(losses, t, d), losses)  # w begins at 0
    optimizer.step(closure)
    w = model.log_variance(t).detach()
    # Cosines of log t with periods down to 2 follow a smooth function to within a percent.
    assert float((w - torch.log(losses / d)).abs().max()) < 0.01
    # The minimum is flat: an error of 0.01 in w costs d 0.01^2 / 2.
    least = d * (1.0 + torch.log(losses / d))
    assert torch.allclose(model(losses, t, d), least, rtol=0.0, atol=1e-3)


def test_gradients_of_the_weights() -> None:
    model = Uncertainty().double()
    with torch.no_grad():
        model.weight.copy_(0.1 * torch.randn(len(model.weight)))
    t = torch.tensor([1e-9, 1e-3, 0.5], dtype=F64)
    losses = torch.rand(3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: model(a, t, 2), (losses,))
    w = model.log_variance(t)
    rows = model(losses, t, 2)
    (grad,) = torch.autograd.grad(rows.sum(), losses)
    torch.testing.assert_close(grad, torch.exp(-w.detach()), rtol=1e-12, atol=0.0)
    # Times below the floor are as uncertain as it.
    low = model.log_variance(torch.tensor([1e-9, 1e-8], dtype=F64))
    assert torch.equal(low[0], low[1])


@pytest.mark.parametrize("parameterization", ["mixed", "edm"])
def test_in_the_loss(parameterization: str) -> None:
    model, x0 = Uncertainty(), torch.randn(9, 3)
    with torch.no_grad():
        model.weight.copy_(0.1 * torch.randn(len(model.weight)))
    t = torch.linspace(0.01, 1.0, 9, dtype=F64)
    options = {"parameterization": parameterization, "seed": 2, "t": t, "reduction": "none"}

    def net(u, s):
        return u[:, :3] * 0.5

    plain = hsm_loss(net, CLD(), x0, **options)
    weighted = hsm_loss(net, CLD(), x0, uncertainty=model, **options)
    w = model.log_variance(t).float()
    torch.testing.assert_close(weighted, plain * torch.exp(-w) + 3.0 * w, rtol=1e-6, atol=1e-6)
    for reduction in ("mean", "sum"):
        made = hsm_loss(net, CLD(), x0, uncertainty=model, **{**options, "reduction": reduction})
        torch.testing.assert_close(made, getattr(weighted, reduction)(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("parameterization", ["mixed", "edm"])
def test_training_goes_on_bit_for_bit(tmp_path, parameterization: str) -> None:
    pytest.importorskip("safetensors")
    config = TrainConfig(
        steps=12, batch_size=8, lr=1e-2, warmup=3, checkpoint_every=4, uncertainty=True,
        parameterization=parameterization, sigma_data=0.5, times="log",
    )  # fmt: skip
    data = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))

    def net() -> MLPScore:
        torch.manual_seed(0)
        planes = 1 if parameterization == "edm" else 2
        return MLPScore(2, width=8, depth=1, time_width=8, in_planes=planes)

    def trainer(**options) -> Trainer:
        return Trainer(net(), CLD(), data, config, **options)

    whole = trainer(folder=tmp_path / "whole")
    whole.fit()
    first = trainer(folder=tmp_path / "parts")
    first.fit(steps=8)
    rest = trainer(folder=tmp_path / "parts", resume=True)
    assert rest.step == 8
    rest.fit()
    assert whole.uncertainty is not None and rest.uncertainty is not None
    for part in ("net", "uncertainty"):
        parameters = (getattr(trained, part).parameters() for trained in (whole, rest))
        for a, b in zip(*parameters, strict=True):
            assert torch.equal(a, b)
    assert float(whole.uncertainty.weight.detach().abs().max()) > 0.0
    with pytest.raises(ValueError, match="made with another settings"):
        other = Trainer(net(), CLD(), data, replace(config, sigma_data=1.0))
        other.load(tmp_path / "parts" / CHECKPOINT)
