"""What cldfast is measured against, in plain PyTorch.

`PublishedSteps` are the steps of Dockhorn, Vahdat and Kreis (2022) in the manner of public
sampler code: a tensor operation for each term of each formula, fresh tensors, halves split and
joined again. `MergedEager` is the best that we could write without a kernel: the merged
stage in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cldfast.process.sde import CLD

# Added to the variances, as published code does against rounding.
_JITTER = 1e-9


class PublishedSteps:
    """The published SSCS and Euler-Maruyama steps for a constant beta; times are forward.

    sde: gives a, with mass a^-2 and friction 2/a, and beta. check: test the factors for NaN, as
    published code does in every half-step; a graph compiler cannot trace that.

    Published Euler-Maruyama code lets times in double precision turn the state into float64. Here
    the state stays in float32, which favours the published code.

    Source: Dockhorn, Vahdat, Kreis (2022), algorithm 1 and appendix B.
    """

    def __init__(self, sde: CLD, check: bool = True) -> None:
        self.a, self.mass_inv, self.friction = sde.a, sde.a**2, 2.0 / sde.a
        self.rate = float(sde.beta(sde.T))
        self.check = check

    def beta(self, t: torch.Tensor) -> torch.Tensor:
        return self.rate * torch.ones_like(t)

    def half_step(self, u: torch.Tensor, t: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        """The reversed stationary process, exact, over dt: u (B, 2C, ...), t and dt 0-dim."""
        a = self.a
        tau = self.beta(t) * dt
        x, v = torch.chunk(u, 2, dim=1)
        decay = torch.exp(-a * tau)
        mean_x = decay * ((1.0 + a * tau) * x - a**2 * tau * v)
        mean_v = decay * (tau * x + (1.0 - a * tau) * v)
        mean = torch.cat((mean_x, mean_v), dim=1)

        decay = torch.exp(-2.0 * a * tau)
        var_xx = 1.0 - decay * (1.0 + 2.0 * a * tau + 2.0 * a**2 * tau**2) + _JITTER
        var_xv = -2.0 * a * decay * tau**2
        var_vv = (1.0 - decay * (1.0 - 2.0 * a * tau + 2.0 * a**2 * tau**2)) / a**2 + _JITTER
        l_xx = torch.sqrt(var_xx)
        l_xv = var_xv / l_xx
        l_vv = torch.sqrt(var_vv - l_xv**2)
        if self.check and (torch.isnan(l_xx).any() or torch.isnan(l_vv).any()):
            raise ValueError("numerical precision error")

        z_x, z_v = torch.chunk(torch.randn_like(u), 2, dim=1)
        noise = torch.cat((l_xx * z_x, l_xv * z_x + l_vv * z_v), dim=1)
        return mean + noise

    def kick(
        self, u: torch.Tensor, score: torch.Tensor, t: torch.Tensor, dt: torch.Tensor
    ) -> torch.Tensor:
        """The Euler step of the score: score (B, C, ...)."""
        x, v = torch.chunk(u, 2, dim=1)
        v = v + 2.0 * self.friction * (score + self.mass_inv * v) * self.beta(t) * dt
        return torch.cat((x, v), dim=1)

    def sscs(
        self, u: torch.Tensor, score: torch.Tensor, t: torch.Tensor, dt: torch.Tensor
    ) -> torch.Tensor:
        """Half-step, kick, half-step, the score given."""
        u = self.half_step(u, t, dt / 2)
        u = self.kick(u, score, t, dt)
        return self.half_step(u, t, dt / 2)

    def em(
        self, u: torch.Tensor, score: torch.Tensor, t: torch.Tensor, dt: torch.Tensor
    ) -> torch.Tensor:
        """Euler-Maruyama on the reverse SDE: forward drift and diffusion, reversed, per row."""
        rows = torch.ones(u.shape[0], dtype=u.dtype, device=u.device) * t
        beta = self.beta(rows).reshape(-1, *([1] * (u.dim() - 1)))
        x, v = torch.chunk(u, 2, dim=1)
        drift_x = self.mass_inv * beta * v
        drift_v = -beta * x - self.friction * self.mass_inv * beta * v
        drift = torch.cat((drift_x, drift_v), dim=1)
        diffusion_v = torch.sqrt(2.0 * self.friction * beta) * torch.ones_like(v)
        diffusion = torch.cat((torch.zeros_like(x), diffusion_v), dim=1)

        drift_x, drift_v = torch.chunk(drift, 2, dim=1)
        _, diffusion_v = torch.chunk(diffusion, 2, dim=1)
        drift = torch.cat((-drift_x, -drift_v + diffusion_v**2 * score), dim=1)
        diffusion = torch.cat((torch.zeros_like(diffusion_v), diffusion_v), dim=1)
        drift = drift * dt
        diffusion = diffusion * torch.sqrt(dt)
        noise = torch.randn_like(u)
        return u + drift + diffusion * noise


def published_sample(
    steps: PublishedSteps,
    net: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    shape: Sequence[int],
    grid: Sequence[float],
    device: str = "cpu",
) -> torch.Tensor:
    """A whole run of published SSCS: data shape (n, d) or (n, C, H, W), descending times.

    net(u, t) returns the velocity score; t is a full (n,) tensor, as published loops make it.
    """
    times = torch.as_tensor(grid, dtype=torch.float64, device=device)
    with torch.no_grad():
        x, v = (torch.randn(*shape, device=device) for _ in range(2))
        u = torch.cat((x, v / steps.a), dim=1)
        for i in range(len(times) - 1):
            t, dt = times[i], times[i] - times[i + 1]
            u = steps.half_step(u, t, dt / 2)
            score = net(u, torch.ones(u.shape[0], device=u.device) * t)
            u = steps.kick(u, score, t, dt)
            u = steps.half_step(u, t, dt / 2)
        return torch.chunk(u, 2, dim=1)[0]


class MergedEager:
    """The merged stage in place: one fill with normals, then fused multiply-adds.

    weights: (1, 2, 5) float64 on (x, v, o, z_x, z_v), zero noise columns are skipped.
    like: a state (B, 2C, ...); scratch is allocated here, once.
    """

    def __init__(self, weights: torch.Tensor, like: torch.Tensor) -> None:
        self.rows = weights[0].tolist()
        used = [any(row[j] != 0.0 for row in self.rows) for j in (3, 4)]
        n, channels, *rest = like.shape
        half = (n, channels // 2, *rest)
        # Each noise plane is memory of its own, so that the fill and the reads are contiguous.
        self.noise = [like.new_empty(half) if use else None for use in used]
        self.scratch = like.new_empty(half)

    def __call__(self, u: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Update u in place; output (B, C, ...)."""
        x, v = u.chunk(2, dim=1)
        torch.mul(x, self.rows[1][0], out=self.scratch)
        x.mul_(self.rows[0][0]).add_(v, alpha=self.rows[0][1])
        v.mul_(self.rows[1][1]).add_(self.scratch)
        planes = [output, *(None if z is None else z.normal_() for z in self.noise)]
        for j, plane in enumerate(planes, start=2):
            for row, into in zip(self.rows, (x, v), strict=True):
                if plane is not None and row[j] != 0.0:
                    into.add_(plane, alpha=row[j])
        return u
