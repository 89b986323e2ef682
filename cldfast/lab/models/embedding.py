"""The embedding of a time or of a noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cldfast.lab.models.layers import layer, linear, silu

# What the second argument of a network is: forward time, sigma, or ln(sigma) / 4.
CONDITIONINGS = ("time", "sigma", "c_noise")

# The smallest time that the embedding tells from 0; grids end at 1e-5 or above in practice.
_TIME_FLOOR = 1e-8


class TimeEmbedding(nn.Module):
    """Learned embedding of times or noise levels t (B,), from Fourier features.

    conditioning: what t is. "time": a forward time in (0, T]. The score changes over a time
    proportional to t when t is small, so equal steps of log t carry equal information there; near
    t = T it changes with t itself. Both are given: sines and cosines of 2^k pi/2 t (k = 0..5,
    periods 4 to 1/8) and of 2^k pi/16 log t (k = 0..5, periods 32 to 1, the longest covering 1e-8
    to 1), and the numbers t and log t / 8, which are of the order of 1 like the other features.
    "sigma": a noise level > 0, "c_noise": ln(sigma) / 4 (Karras et al. 2022, table 1); given are
    c_noise itself and sines and cosines of 2^k pi/4 c_noise (k = 0..5), the same periods in
    ln sigma as those above in log t.

    Raises ValueError for an unknown conditioning.
    """

    FREQUENCIES = 6

    def __init__(self, width: int, conditioning: str = "time") -> None:
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise ValueError(
                f"conditioning: expected one of {', '.join(CONDITIONINGS)}, got {conditioning!r}"
            )
        self.conditioning = conditioning
        octaves = [2.0**k for k in range(self.FREQUENCIES)]
        none = [0.0] * self.FREQUENCIES
        # The factors of t, or of c_noise, and those of log t, in all features: first the plain
        # numbers, then the angles of the sines, then those of the cosines.
        self.of_t: Tensor
        self.of_log_t: Tensor
        if conditioning == "time":
            of_t, of_log_t = ([step * k for k in octaves] for step in (math.pi / 2, math.pi / 16))
            factors = [1.0, 0.0, *of_t, *none, *of_t, *none]
            of_log = torch.tensor([0.0, 1.0 / 8.0, *none, *of_log_t, *none, *of_log_t])
            self.register_buffer("of_log_t", of_log, persistent=False)
            self.plain = 2
        else:
            of_c = [math.pi / 4 * k for k in octaves]
            factors = [1.0, *of_c, *of_c]
            if conditioning == "sigma":  # c_noise = ln(sigma) / 4
                factors = [factor / 4 for factor in factors]
            self.plain = 1
        self.register_buffer("of_t", torch.tensor(factors), persistent=False)
        self.angles = (len(factors) - self.plain) // 2
        self.layers = nn.Sequential(
            nn.Linear(len(factors), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def features(self, t: Tensor) -> Tensor:
        """The features (B, n) of t (B,), or (n,) of a single one."""
        t = t if len(t) == 1 else t[:, None]
        if self.conditioning == "time":
            log_t = t.clamp_min(_TIME_FLOOR).log()
            features = torch.addcmul(t * self.of_t, log_t, self.of_log_t)
        else:
            features = (t.log() if self.conditioning == "sigma" else t) * self.of_t
        # In place: numbers, sines and cosines made apart and then joined would be more kernels.
        features.narrow(-1, self.plain, self.angles).sin_()
        features.narrow(-1, self.plain + self.angles, self.angles).cos_()
        return features

    def forward(self, t: Tensor) -> Tensor:
        """Embed t (B,) as (B, width), a single one as (width,)."""
        inner = silu(linear(self.features(t), *layer(self.layers, "0")))
        return silu(linear(inner, *layer(self.layers, "2")))
