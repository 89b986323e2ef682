"""A checkpoint of CLD-SGM as a network in one call: the averaged weights, whatever wrapped it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cldfast
from cldfast.compat import cld_sgm


class Net(nn.Module):
    """With a parameter that is not trained, as the codebase's Fourier features are, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(3), requires_grad=False)
        self.layer = nn.Linear(4, 2)
        self.register_buffer("sigmas", torch.ones(2))

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(u) * self.sigmas


def saved(path: Path, net: nn.Module, prefix: str = "module.") -> list[torch.Tensor]:
    """A checkpoint as the codebase's `save_checkpoint` writes it; returns the averages."""
    averages = [p.detach() + 1.0 for p in net.parameters() if p.requires_grad]
    ema = {"decay": 0.99, "num_updates": 7, "shadow_params": averages}
    model = {prefix + name: value for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
    torch.save({"optimizer": optimizer.state_dict(), "model": model, "ema": ema, "step": 9}, path)
    return averages


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_averaged_weights_are_loaded(tmp_path: Path, prefix: str) -> None:
    trained = Net()
    trained.sigmas.mul_(3.0)
    averages = saved(tmp_path / "checkpoint.pth", trained, prefix)
    net = cld_sgm.load_model(tmp_path / "checkpoint.pth", Net().train())
    assert not net.training
    for found, expected in zip(net.layer.parameters(), averages, strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(net.W, trained.W) and torch.equal(net.sigmas, trained.sigmas)
    sde = cldfast.CLD.from_mass(4.0, 0.04, 4.0)
    model = cldfast.Model(net, sde, "mixed", shape=(2,))
    assert torch.equal(
        model.sample(3, 4, seed=1),
        cldfast.sample(net, sde, (3, 2), steps=4, seed=1, parameterization="mixed"),
    )


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    saved(path, Net())
    with pytest.raises(ValueError, match="does not fit the network: 2 averages for 4 parameters"):
        cld_sgm.load_model(path, nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)))
    other: Any = Net()
    other.layer = nn.Linear(4, 3)
    with pytest.raises(
        ValueError, match="checkpoint.pth: does not fit the network: .*size mismatch"
    ):
        cld_sgm.load_model(path, other)
    torch.save({"model": {}, "step": 1}, path)
    with pytest.raises(
        ValueError, match=r"expected a checkpoint with model and ema, got \['model'"
    ):
        cld_sgm.load_model(path, Net())
