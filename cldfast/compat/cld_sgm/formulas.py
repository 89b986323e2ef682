"""The published closed forms, kept with their cancellations: what bug-compatible runs repeat.

`b` is an integral of beta (float64 tensor, any shape), `f = 2/sqrt(M^-1)`, `g = 1/f`; with
`k = 2 g b` the exact solution of the process over b is

    x' = e^-k ((1 + k) x + 4 g^2 b v)        v' = e^-k (-b x + (1 - k) v).

The exact mode takes the same quantities from `cldfast.process.linear_flow`, where nothing cancels.
Source: Dockhorn, Vahdat, Kreis (2022), appendix B.1.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def transition(b: Tensor, g: float, *, reverse: bool = False) -> Tensor:
    """The matrix of the solution over b, (..., 2, 2); reverse: of the reversed stationary process.

    Reversing time changes the sign of the velocity, so of both off-diagonal entries.
    """
    k = 2.0 * g * b
    decay = torch.exp(-k)
    sign = -1.0 if reverse else 1.0
    entries = [1.0 + k, sign * 4.0 * g**2 * b, -sign * b, 1.0 - k]
    return torch.stack([decay * entry for entry in entries], -1).unflatten(-1, (2, 2))


def covariance(
    b: Tensor, f: float, g: float, var0x: Tensor | float, var0v: Tensor | float, jitter: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries xx, xv, vv after b, from independent x and v of variances var0x and var0v.

    jitter: added to xx and vv.
    """
    k = 2.0 * g * b
    decay = torch.exp(-2.0 * k)
    growth = 1.0 / decay
    xx = growth - 1.0 - 2.0 * k - 2.0 * k**2 + var0x * (1.0 + k) ** 2 + var0v * (2.0 * g * k) ** 2
    xv = 4.0 * g * b**2 - var0x * b * (1.0 + k) + var0v * 2.0 * g * k * (1.0 - k)
    vv = (
        f**2 * (growth - 1.0) / 4.0
        + f * b
        - 2.0 * b**2
        + var0x * b**2
        + var0v * (1.0 - k) ** 2
    )  # fmt: skip
    return xx * decay + jitter, xv * decay, vv * decay + jitter


def lower_factor(xx: Tensor, xv: Tensor, vv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky entries l_xx, l_vx, l_vv; ValueError where rounding has made the matrix indefinite.

    The published code fails there too, and asks for a larger jitter.
    """
    l_xx = torch.sqrt(xx)
    l_vx = xv / l_xx
    l_vv = torch.sqrt(vv - l_vx**2)
    if bool(torch.isnan(l_xx).any() | torch.isnan(l_vx).any() | torch.isnan(l_vv).any()):
        raise ValueError(
            "numerical precision error: a published covariance is not positive definite in "
            "float64; increase numerical_eps or sscs_num_stab, or use mode='exact'"
        )
    return l_xx, l_vx, l_vv
