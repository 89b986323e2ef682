"""Two Gaussians in each coordinate, with an exact network that is differentiable in time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cldfast.process.sde import LinearPhaseSDE

CENTRES = torch.tensor([-1.0, 1.0], dtype=torch.float64)
SPREAD = 0.2


def exact_x0(sde: LinearPhaseSDE) -> Callable[[Tensor, Tensor], Tensor]:
    """`E[x0 | u]` for coordinates that are N(+-1, SPREAD^2), each sign half of the time.

    u tells of x0 by `y = m^T Sigma^-1 u / snr`, which is N(x0, 1/snr).
    """

    def net(u: Tensor, t: Tensor) -> Tensor:
        marginal = sde.marginal(t[:1].double())
        weight = (marginal.precision @ marginal.mean[..., None])[0, :, 0]
        variance = 1.0 / (weight * marginal.mean[0]).sum()
        x, v = u.double().chunk(2, dim=1)
        y = ((weight[0] * x + weight[1] * v) * variance)[..., None]
        total = SPREAD**2 + variance
        share = (-(y - CENTRES).square() / (2.0 * total)).softmax(-1)
        kept: Tensor = (share * (SPREAD**2 * y + variance * CENTRES) / total).sum(-1)
        return kept.to(u.dtype)

    return net


def exact_rows(n: int, dim: int, seed: int) -> Tensor:
    """Rows (n, dim) of the data."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (n, dim), generator=generator) * 2.0 - 1.0
    return sign + SPREAD * torch.randn(n, dim, generator=generator)
