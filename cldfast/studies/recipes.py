"""How networks are trained in the studies: our best recipe, and the published one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cldfast.lab.models import MLPScore
from cldfast.planner.parameterization import Parameterization, named_form
from cldfast.process.sde import CLD
from cldfast.training import TrainConfig

# The smallest time of training, and of sampling.
T_MIN = 1e-3
# Steps between checkpoints: a killed study loses some seconds.
_CHECKPOINT_EVERY = 500


def process(a: float, x_noise: float, T: float = 1.0) -> CLD:
    """The process of the published position-noise experiments, up to a time T.

    Raises ValueError for a <= 0, x_noise < 0 or T <= 0.
    """
    return CLD(a=a, sigma=math.sqrt(2.0), x_noise=x_noise, v0_var=0.01, beta=4.0, T=T)


@dataclass(frozen=True)
class Recipe:
    """Makes, for data of d coordinates and a process with x_noise, a network and its training.

    network: of (d, x_noise). config: of (x_noise, steps, seed).
    """

    network: Callable[[int, float], nn.Module]
    config: Callable[[float, int, int], TrainConfig]

    def form(self, x_noise: float) -> Parameterization:
        """What the network returns and sees, for data of standard deviation 1."""
        name = self.config(x_noise, 1, 0).parameterization
        assert name is not None
        return named_form(name)


def _edm_network(dim: int, x_noise: float) -> nn.Module:
    return MLPScore(dim, width=128, depth=3, in_planes=1, conditioning="c_noise", gated=True)


def _edm_config(x_noise: float, steps: int, seed: int) -> TrainConfig:
    return TrainConfig(
        steps=steps, batch_size=512, lr=2e-3, decay="cosine", clip=None, ema_decay=0.995,
        parameterization="edm", times="half_log", weighting="edm", t_min=T_MIN, seed=seed,
        checkpoint_every=_CHECKPOINT_EVERY, log_every=_CHECKPOINT_EVERY,
    )  # fmt: skip


def _published_config(x_noise: float, steps: int, seed: int) -> TrainConfig:
    form, weighting = ("full_score", "det") if x_noise > 0.0 else ("score", "reweighted")
    return TrainConfig(
        steps=steps, batch_size=256, lr=2e-4, warmup=0, clip=1.0, ema_decay=0.9999,
        parameterization=form, times="uniform", weighting=weighting, t_min=1e-5, seed=seed,
        checkpoint_every=_CHECKPOINT_EVERY, log_every=_CHECKPOINT_EVERY,
    )  # fmt: skip


class PublishedScore(nn.Module):
    """The published network: the velocity score, and with noise on the position both scores.

    dim: coordinates d. rows: 1 for the velocity score (d outputs), 2 for both (2 d outputs), which
    are two networks. width, depth: of the hidden layers.

    Source: Strasman, Surendran et al. (2025), the networks of their experiments.
    """

    def __init__(self, dim: int, rows: int, width: int = 512, depth: int = 3) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_PublishedPart(dim, width, depth) for _ in range(rows))

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        """u (B, 2 d) at times t (B,) to (B, rows d)."""
        return torch.cat([part(u, t) for part in self.parts], dim=1)


class _PublishedPart(nn.Module):
    frequencies: Tensor

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2 * dim, width), nn.Linear(width, dim)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.times = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.embedding = nn.Linear(width, width, bias=False)
        # Frequencies from 1 down to 1e-4, as for the positions of words (Vaswani et al. 2017).
        half = width // 2
        frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device="cpu") / (half - 1))
        self.register_buffer("frequencies", frequencies)

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies
        e = F.relu(self.embedding(torch.cat([phase.sin(), phase.cos()], dim=1)))
        h = self.first(u)
        for hidden, time in zip(self.hidden, self.times, strict=True):
            h = h + F.relu(hidden(h) + time(e))
        out: Tensor = self.last(h)
        return out


RECIPES = {
    "edm": Recipe(_edm_network, _edm_config),
    "published": Recipe(
        lambda dim, x_noise: PublishedScore(dim, 2 if x_noise > 0.0 else 1), _published_config
    ),
}
