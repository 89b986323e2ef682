"""A denoiser trained by plain EDM code, sampled by EDM's own sampler and by CLD's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import cldfast

ROWS = 20_000


class EDM(nn.Module):
    """A preconditioned denoiser for data of standard deviation 1; Karras et al. (2022), table 1."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        sizes = [2 + 16, width, width, width, 2]
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        layers = [m for a, b in pairs for m in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigma = sigma[:, None]
        scale = (sigma**2 + 1).sqrt()
        angles = sigma.log() / 4 * torch.linspace(0.5, 4, 8)
        out = self.layers(torch.cat([x / scale, angles.sin(), angles.cos()], dim=1))
        return x / scale**2 + sigma / scale * out


def data(rows: int, seed: int) -> torch.Tensor:
    """Five Gaussians on a circle, of standard deviation 1 or so."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(0, 5, (rows,), generator=generator) * (2 * math.pi / 5)
    centres = 1.3 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centres + 0.15 * torch.randn(rows, 2, generator=generator)


@pytest.fixture(scope="module")
def denoiser() -> EDM:
    """Trained for some seconds, with EDM's noise levels and weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = EDM()
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for step in range(300):
            x, sigma = data(512, step), (1.2 * torch.randn(512) - 1.2).exp()
            y = x + sigma[:, None] * torch.randn_like(x)
            loss = ((1 + sigma**-2)[:, None] * (net(y, sigma) - x) ** 2).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def heun(D: EDM, rows: int, steps: int, rho: float = 7.0) -> torch.Tensor:
    """Karras et al. (2022), algorithm 1, from 80 to 0.002: 2 steps - 1 evaluations."""
    low, high = 0.002 ** (1 / rho), 80 ** (1 / rho)
    levels = (high + torch.arange(steps) / (steps - 1) * (low - high)) ** rho
    x = 80 * torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    for here, there in zip(levels, [*levels[1:], torch.tensor(0.0)], strict=True):
        slope = (x - D(x, here.expand(rows))) / here
        moved = x + (there - here) * slope
        if there > 0:
            again = (moved - D(moved, there.expand(rows))) / there
            moved = x + (there - here) * (slope + again) / 2
        x = moved
    return x


def sliced_w2(x: torch.Tensor, y: torch.Tensor, directions: int = 128) -> float:
    angle = torch.arange(directions) * (math.pi / directions)
    rays = torch.stack([angle.cos(), angle.sin()])
    return float(((x @ rays).sort(0).values - (y @ rays).sort(0).values).square().mean().sqrt())


@pytest.mark.parametrize(
    ("solver", "a", "x_noise"),
    [
        ("multistep", 2.0, 0.0),
        ("multistep", 1.0, 0.25),
        ("stochastic_multistep", 2.0, 0.0),
        ("stochastic_multistep", 1.0, 0.25),
    ],
)
def test_cld_samples_as_well_as_edm_itself(
    denoiser: EDM, solver: str, a: float, x_noise: float
) -> None:
    """At 50 evaluations at most 5 % farther from the data; the spread of both is 1 % or so."""
    reference = data(ROWS, seed=10_000)
    own = sliced_w2(heun(denoiser, ROWS, 25), reference)
    sde = cldfast.CLD(a=a, x_noise=x_noise)
    x = cldfast.sample(
        cldfast.from_denoiser(denoiser), sde, (ROWS, 2), solver, 50, "auto",
        parameterization="denoiser",
    seed=0,
)  # fmt: skip
    assert sliced_w2(x, reference) < 1.05 * own
