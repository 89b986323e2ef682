"""The residual operation on the CPU: losses and, in the same pass, their gradient."""

from __future__ import annotations

import math

import torch

from cldfast import _core
from cldfast.kernels.backends.cpu.stage import SERIAL_PAIRS
from cldfast.kernels.backends.cpu.tables import address
from cldfast.kernels.backends.planes import (
    CODES,
    WORD,
    Description,
    Weights,
    describe,
    gradient_room,
    residual_channels,
)

_run = _core.residual


def residual(
    output: torch.Tensor,
    u: torch.Tensor,
    weights: Weights,
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
    level: str = "",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The losses of `reference.residual` and their gradient with respect to the output.

    The gradient has the output's dtype and memory format; None if it is not asked for. Weights may
    be a table's at each row's time, which raises OutsideTableError before anything is written.

    scale: float64 (B,), multiplies each row's loss; factor: all of them. Both also the gradient.
    reduce: return the sum over rows, (), instead of the rows, (B,).
    overwrite: the gradient may take the memory of u, and does where that fits.
    level: forces one of `_core.levels()`, for tests.
    """
    rows, _, *spatial = u.shape
    channels = residual_channels(output, u, weights)
    inner = math.prod(spatial)
    width = channels * inner
    _, residuals, columns = weights.shape
    if isinstance(weights, torch.Tensor) and not weights.is_contiguous():
        weights = weights.contiguous()

    keep: list[torch.Tensor] = []
    described = describe(output, channels, inner, keep)
    others = describe(u, channels, inner, keep)
    if noise is not None:
        others += describe(noise, channels, inner, keep)
    result: torch.Tensor | None = None
    written: Description = ()
    if gradient:
        result = gradient_room(output, channels, u if overwrite else None)
        written = describe(result, channels, inner, keep)
    if scale is not None and not scale.is_contiguous():
        scale = scale.contiguous()
    loss = u.new_empty(() if reduce else (rows,))
    inside = _run(
        described, others, written, rows, channels, inner, CODES[u.dtype],
        *address(weights), residuals, columns, 0 if scale is None else scale.data_ptr(), factor,
        noise is None, seed & WORD, first_index * width & WORD, stage_index, stream,
        loss.data_ptr(), reduce,
        1 if rows * width < SERIAL_PAIRS else torch.get_num_threads(), level,
    )  # fmt: skip
    if not inside:
        raise weights.table.outside()  # type: ignore[union-attr]
    return loss, result
