"""Loss weights that are learned: how uncertain the network is at each time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Times below are as uncertain as this one; sampling grids end above.
_TIME_FLOOR = 1e-8
_FEATURES = 32


class Uncertainty(nn.Module):
    """Divides the loss at time t by `exp(w(t))` and adds w(t), with a learned w.

    Its minimum in w is the logarithm of the loss per coordinate, so that every time counts alike,
    whatever the size of its loss. w begins at 0. Train its parameters together with the network's.

    Source: Karras et al. (2024), "Analyzing and improving the training dynamics of diffusion
    models", section 3.1 and eq. 21; Kendall and Gal (2018).
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        super().__init__()
        # Cosines of log t with periods from 64 down to 2: 1e-8 to 1 is 18 long.
        self.frequencies: Tensor
        octaves = torch.linspace(0.0, 5.0, _FEATURES // 2, device=device)
        self.register_buffer("frequencies", 2.0**octaves * (math.pi / 32), persistent=False)
        self.weight = nn.Parameter(torch.zeros(_FEATURES + 1, device=device))

    def log_variance(self, t: Tensor) -> Tensor:
        """w at times t (B,), float64 (B,)."""
        angles = t.to(torch.float64).clamp_min(_TIME_FLOOR).log()[:, None] * self.frequencies
        ones = torch.ones_like(angles[:, :1])
        features = torch.cat([angles.sin(), angles.cos(), ones], 1)
        return features @ self.weight.to(torch.float64)

    def forward(self, losses: Tensor, t: Tensor, coordinates: int) -> Tensor:
        """The weighted losses (B,).

        losses: (B,), sums over so many coordinates. t: (B,).
        """
        log_variance = self.log_variance(t).to(losses.dtype)
        return losses * torch.exp(-log_variance) + coordinates * log_variance
