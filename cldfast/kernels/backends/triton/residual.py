"""The residual operation by Triton: losses and, in the same pass, their gradient."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from cldfast.kernels.backends.planes import current, gradient_room
from cldfast.kernels.backends.triton.stage import (
    BLOCK,
    OPTIONS,
    Plane,
    float64_bits,
    is_dense,
    narrowed,
    place,
    planes_of,
)
from cldfast.kernels.limits import TRITON_RESIDUALS
from cldfast.kernels.time_tables import AtTimes


@triton.jit
def _weight(weights, scale, k: tl.constexpr, m, COLUMNS: tl.constexpr, zero):
    """Entry (k, m) of a row's matrix, times its scale, as a block like `zero`."""
    return (tl.load(weights + k * COLUMNS + m) * scale).to(zero.dtype) + zero


@triton.jit(do_not_specialize=["factor"])
def residual_kernel(
    inputs,
    input_strides,
    gradients,
    gradient_strides,
    weights,
    scales,
    factor: tl.int64,
    sums,
    pieces,
    width,
    inner,
    RESIDUALS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INS: tl.constexpr,
    SCALED: tl.constexpr,
    DENSE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One piece of BLOCK pairs of one row."""
    like: tl.constexpr = tl.float64 if WIDE else tl.float32
    row = (tl.program_id(0) // pieces).to(tl.int64)
    piece = tl.program_id(0) % pieces
    column = piece * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    scale = factor.to(tl.float64, bitcast=True)  # Triton takes a float for a float32
    if SCALED:
        scale *= tl.load(scales + row)
    scale = tl.sqrt(scale)
    matrix = weights + row * RESIDUALS * INS

    zero = tl.full([BLOCK], 0.0, like)
    r0, r1 = zero, zero
    for m in tl.static_range(INS):
        w0 = _weight(matrix, scale, 0, m, INS, zero)
        needed = (w0 != 0.0) | (m < OUTPUTS)
        if RESIDUALS > 1:
            w1 = _weight(matrix, scale, 1, m, INS, zero)
            needed = needed | (w1 != 0.0)
        at = place(row, column, inner, input_strides[m], (DENSE >> m) & 1)
        x = tl.load(inputs[m] + at, mask=inside & needed, other=0.0).to(like)
        r0 = tl.fma(x, w0, r0)
        if RESIDUALS > 1:
            r1 = tl.fma(x, w1, r1)
    squares = r0.to(tl.float64) * r0.to(tl.float64)
    if RESIDUALS > 1:
        squares += r1.to(tl.float64) * r1.to(tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(inside, squares, 0.0), axis=0))
    for j in tl.static_range(len(gradients)):
        gradient = _weight(matrix, scale, 0, j, INS, zero) * (r0 + r0)
        if RESIDUALS > 1:
            w = _weight(matrix, scale, 1, j, INS, zero)
            gradient = tl.fma(r1 + r1, w, gradient)
        at = place(row, column, inner, gradient_strides[j], (DENSE >> (INS + j)) & 1)
        tl.store(gradients[j] + at, narrowed(gradient, gradients[j].dtype.element_ty), mask=inside)


def residual(
    output: torch.Tensor,
    offset: torch.Tensor,
    weights: torch.Tensor | AtTimes,
    *,
    scale: torch.Tensor | None = None,
    factor: float = 1.0,
    reduce: bool = False,
    gradient: bool = True,
    overwrite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `cldfast.kernels.backends.protocol.Backend.residual`.

    NotImplementedError for over two residual planes.
    """
    assert isinstance(weights, torch.Tensor)  # tables are not read
    rows, planes_channels, *spatial = offset.shape
    channels = (output.shape[1] + planes_channels) // weights.shape[2]
    inner = math.prod(spatial)
    width = channels * inner
    residuals = weights.shape[1]
    if residuals > TRITON_RESIDUALS:
        raise NotImplementedError(
            f"the Triton residual has {TRITON_RESIDUALS} planes at most, got {residuals}; "
            "backend='reference' has any number"
        )

    keep: list[torch.Tensor] = []
    inputs: list[Plane] = []
    for tensor in (output, offset):
        inputs += planes_of(tensor, channels, keep)
    result: torch.Tensor | None = None
    written: list[Plane] = []
    if gradient:
        result = gradient_room(output, channels, offset if overwrite else None)
        written = planes_of(result, channels, keep)
    dense = sum(
        is_dense(plane, channels, inner) << i for i, plane in enumerate([*inputs, *written])
    )
    block = min(BLOCK, max(16, triton.next_power_of_2(width)))
    pieces = (width + block - 1) // block
    sums = torch.empty(rows, pieces, dtype=torch.float64, device=offset.device)
    with current(offset.device):
        residual_kernel[(rows * pieces,)](
            tuple(t for t, _ in inputs), tuple(s for _, s in inputs),
            tuple(t for t, _ in written), tuple(s for _, s in written),
            weights.contiguous(), None if scale is None else scale.contiguous(),
            float64_bits(factor), sums, pieces, width, inner, residuals,
            output.shape[1] // channels, len(inputs), scale is not None, dense,
            offset.dtype == torch.float64, block, **OPTIONS,
        )  # fmt: skip
    return (sums.sum() if reduce else sums.sum(1)).to(offset.dtype), result
