"""Classical score matching losses in plain PyTorch: baselines beside the phase-space ones.

States here are positions alone, x (B, d) or (B, C, H, W); networks are `net(x, t)` and return the
score of x. Losses are summed over the coordinates of a row and averaged over rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cldfast.process.schedules import Schedule, as_schedule

PositionNetwork = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class OU:
    """Ornstein-Uhlenbeck, or variance preserving: `dX = -beta X/2 dt + sqrt(beta) dB`.

    Source: Song et al. (2021), eq. 11.
    """

    beta: object = 8.0
    T: float = 1.0

    def marginal(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean factor and standard deviation of `X_t | x0`, float64 like t."""
        schedule: Schedule = as_schedule(self.beta, self.T)
        tau = schedule.integral(t)
        return torch.exp(-0.5 * tau), torch.sqrt(-torch.expm1(-tau))


@dataclass(frozen=True)
class VE:
    """Variance exploding: `X_t | x0 ~ N(x0, sigma(t)^2)`, sigma geometric in t.

    Source: Song et al. (2021), eq. 9.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    T: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )

    def marginal(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean factor (one) and standard deviation of `X_t | x0`, float64 like t."""
        t = t.to(torch.float64)
        ratio = self.sigma_max / self.sigma_min
        return torch.ones_like(t), self.sigma_min * ratio ** (t / self.T)


def position_dsm_loss(
    net: PositionNetwork, process: OU | VE, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Denoising score matching for a process on positions, `|deviation s + noise|^2`.

    x0, noise: (B, d) or (B, C, H, W), noise standard normal. t: (B,) times > 0.
    Source: Vincent (2011); Song et al. (2021), eq. 7, weighted by the variance.
    """
    mean, deviation = (_per_row(k.to(x0.dtype), x0) for k in process.marginal(t))
    score = net(mean * x0 + deviation * noise, t.to(x0.dtype))
    _check_score(score, x0)
    return (deviation * score + noise).square().flatten(1).sum(1).mean()


def implicit_loss(net: PositionNetwork, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Implicit score matching, `|s|^2 / 2 + div s`, with the exact divergence: d backward passes.

    Source: Hyvarinen (2005), theorem 1.
    """
    x = x.detach().requires_grad_()
    score = net(x, t)
    _check_score(score, x)
    flat = score.flatten(1)
    divergence = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
    for j in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(flat[:, j].sum(), x, create_graph=True)
        divergence = divergence + gradient.flatten(1)[:, j]
    return (0.5 * flat.square().sum(1) + divergence).mean()


def sliced_loss(
    net: PositionNetwork, x: torch.Tensor, t: torch.Tensor, directions: torch.Tensor
) -> torch.Tensor:
    """Sliced score matching with reduced variance, `|s|^2 / 2 + w^T (ds/dx) w`.

    directions: w like x, of zero mean and unit covariance (Rademacher or normal).
    Source: Song, Garg, Shi, Ermon (2019), eq. 8.
    """
    x = x.detach().requires_grad_()
    score = net(x, t)
    _check_score(score, x)
    (gradient,) = torch.autograd.grad((score * directions).sum(), x, create_graph=True)
    slices = (gradient * directions).flatten(1).sum(1)
    return (0.5 * score.square().flatten(1).sum(1) + slices).mean()


def _per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def _check_score(score: torch.Tensor, x: torch.Tensor) -> None:
    if score.shape != x.shape:
        raise ValueError(f"the network must return {tuple(x.shape)}, got {tuple(score.shape)}")
