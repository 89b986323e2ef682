"""The residual operation: the squared residual of each row, which every score-matching loss is."""

from __future__ import annotations

import torch

from cldfast import reference
from cldfast.ops.checks import (
    check_like,
    check_planes,
    check_seed,
    check_state,
    check_tensor,
    describe,
)
from cldfast.ops.dispatch import resolve_backend


def residual(
    output: torch.Tensor,
    u: torch.Tensor,
    weights: torch.Tensor,
    *,
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """`loss_i = sum |R_o o + R_u u + R_z z|^2` of each row, (B,), differentiable in the output.

    output: (B, rC, ...), r planes, any float dtype. u: state (B, 2C, ...), float32 or float64.
    weights: float64 (B, q, r + 4): per row the blocks R_o, R_u, R_z of q residual planes.
    seed, first_index, stage_index, stream: the address at which z was made, as in `stage`.
    noise: z (B, 2C, ...) itself, instead.

    Raises ValueError or TypeError before anything is computed.
    """
    check_state("u", u)
    channels = u.shape[1] // 2
    planes = check_planes("output", output, u, channels)
    shape = check_tensor("weights", weights).shape
    if weights.dtype != torch.float64 or len(shape) != 3:
        raise TypeError(f"weights must be float64 (B, q, r + 4), got {describe(weights)}")
    if shape[0] != u.shape[0] or shape[2] != planes + 4 or weights.device != u.device:
        raise ValueError(
            f"weights must be ({u.shape[0]}, q, {planes + 4}) on {u.device}, "
            f"got {describe(weights)}"
        )
    check_seed(seed)
    if noise is not None:
        check_like("noise", noise, tuple(u.shape), u)
    resolve_backend(backend, u.device)
    return reference.residual(
        output, u, weights, seed=seed, first_index=first_index, stage_index=stage_index,
        stream=stream, noise=noise,
    )  # fmt: skip
