"""The loss of every codebase: the square of a residual linear in output, state and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cldfast import kernels
from cldfast.training.row_weights import split_weights


def row_losses(
    ask: Callable[[torch.Tensor], torch.Tensor],
    state: torch.Tensor | None,
    planes: Sequence[torch.Tensor],
    weights: tuple[torch.Tensor, torch.Tensor],
    noise: kernels.Noise,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`sum |R_o o + R_u u + R_z z|^2` of each row, (B,), where `u = P (state, planes, z)`.

    ask: `ask(u)`, the network's output o. state, planes: of the data, see `cldfast.stage`.
    weights: P (B, 2, n), and `(R_o, R_u, R_z)` side by side, (B, q, r + 4), float64.
    noise: z or its address. dtype: to which u and the residual are rounded; None rounds nothing.
    """
    first, second = split_weights(*weights)
    u, offset, _ = kernels.stage(state, planes, (), first, noise=noise)
    assert offset is not None
    if dtype is not None:
        u, offset = u.to(dtype), offset.to(dtype)
    return kernels.residual(ask(u), offset, second, overwrite=True)
