"""The residual operation on NVIDIA GPUs: losses and, in the same pass, their gradient."""

from __future__ import annotations

import math

import torch

from cldfast.kernels.backends.cuda import stage as cuda
from cldfast.kernels.backends.planes import (
    ALL_COLUMNS,
    CODES,
    WORD,
    Description,
    current,
    describe,
    gradient_room,
    residual_channels,
)

# A thread that reads its input again for further planes has written as many by then.
_MOST_OVERWRITTEN = 2


def residual(
    output: torch.Tensor,
    u: torch.Tensor,
    weights: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    factor: float = 1.0,
    reduce: bool = False,
    gradient: bool = True,
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    overwrite: bool = False,
    used: int = ALL_COLUMNS,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The losses of `reference.residual` and their gradient with respect to the output.

    The gradient has the output's dtype and memory format; None if it is not asked for. The same
    inputs give the same bits: a row is cut where its width says, and sums are taken in order.

    scale: float64 (B,), multiplies each row's loss; factor: all of them. Both also the gradient.
    reduce: return the sum over rows, (), instead of the rows, (B,).
    overwrite: the gradient may take the memory of u, and does where that fits.
    used: a bit for each column of weights that is not all zeros, as far as that is known.
    """
    rows, _, *spatial = u.shape
    channels = residual_channels(output, u, weights)
    inner = math.prod(spatial)
    width = channels * inner
    _, residuals, columns = weights.shape
    if not weights.is_contiguous():
        weights = weights.contiguous()

    keep: list[torch.Tensor] = []
    described = describe(output, channels, inner, keep)
    others = describe(u, channels, inner, keep)
    if noise is not None:
        others += describe(noise, channels, inner, keep)
    result: torch.Tensor | None = None
    written: Description = ()
    if gradient:
        overwrite = overwrite and output.shape[1] <= _MOST_OVERWRITTEN * channels
        result = gradient_room(output, channels, u if overwrite else None)
        written = describe(result, channels, inner, keep)
    if scale is not None and not scale.is_contiguous():
        scale = scale.contiguous()
    sums = torch.empty(
        cuda.kernels.residual_room(rows, channels, inner, reduce),
        dtype=torch.float64,
        device=u.device,
    )
    loss = torch.empty(() if reduce else (rows,), dtype=u.dtype, device=u.device)
    with current(u.device):
        cuda.kernels.residual(
            described, others, written, rows, channels, inner, CODES[u.dtype],
            weights.data_ptr(), residuals, columns, used, 0 if scale is None else scale.data_ptr(),
            factor, noise is None, seed & WORD, first_index * width & WORD, stage_index, stream,
            sums.data_ptr(), loss.data_ptr(), reduce, *cuda.queue(u.device),
        )  # fmt: skip
    return loss, result
