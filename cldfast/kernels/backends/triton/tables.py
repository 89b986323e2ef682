"""Tables of small matrices on GPUs by Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cldfast.kernels.backends.planes import current
from cldfast.kernels.backends.triton.stage import OPTIONS, float64_bits
from cldfast.kernels.time_tables import TERMS, AtTimes

_BLOCK = 256
_MANTISSA_BITS = tl.constexpr(52)
_MANTISSA = tl.constexpr(2**52 - 1)
# Exponents as they are stored: of numbers below 1, of 2^-51, and of 4.
_BELOW_ONE, _LAST_BIT_OF_TWO, _FOUR = tl.constexpr(1022), tl.constexpr(972), tl.constexpr(1025)


@triton.jit(do_not_specialize=["end", "numbers"])
def matrices_kernel(
    coefficients,
    stride,
    octaves,
    count,
    end: tl.int64,
    times,
    entries,
    numbers,
    result,
    TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As csrc/shared/table.h and csrc/cuda/table.cu, where the steps are explained."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < numbers
    end_time = end.to(tl.float64, bitcast=True)
    s = tl.load(times + index // entries, mask=inside, other=1.0) / end_time
    bits = tl.minimum(s, 1.0).to(tl.int64, bitcast=True) - 1
    octave = tl.minimum((bits >> _MANTISSA_BITS) * -1 + _BELOW_ONE, count - 1)
    split = tl.load(octaves + 2 * octave + 1)
    mantissa = bits & _MANTISSA
    shift = split * -1 + _MANTISSA_BITS
    number = mantissa >> shift
    rest = mantissa - (number << shift) + 1
    width = ((split + _LAST_BIT_OF_TWO) << _MANTISSA_BITS).to(tl.float64, bitcast=True)
    x = rest.to(tl.float64) * width - 1.0
    slope = ((split + _FOUR) << _MANTISSA_BITS).to(tl.float64, bitcast=True)
    x += tl.where(s > 1.0, (s - 1.0) * slope, 0.0)
    panel = tl.load(octaves + 2 * octave) + number
    last = coefficients + ((panel + 1) * TERMS - 1) * stride + index % entries
    total = tl.load(last, mask=inside, other=0.0)
    for k in tl.static_range(1, TERMS):
        total = tl.fma(total, x, tl.load(last - k * stride, mask=inside, other=0.0))
    tl.store(result + index, total, mask=inside)


def matrices(weights: AtTimes) -> torch.Tensor:
    """The matrices of times that the table covers, float64 (B, rows, columns)."""
    count, rows, columns = weights.shape
    coefficients, octaves = weights.table.on(weights.device)
    result = torch.empty((count, rows, columns), dtype=torch.float64, device=weights.device)
    with current(weights.device):
        matrices_kernel[(triton.cdiv(result.numel(), _BLOCK),)](
            coefficients, coefficients.shape[2], octaves, octaves.shape[0],
            float64_bits(weights.table.end), weights.t, rows * columns, result.numel(), result,
            TERMS, _BLOCK, **OPTIONS,
        )  # fmt: skip
    return result
