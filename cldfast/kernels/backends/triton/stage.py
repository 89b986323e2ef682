"""The stage operation in Triton."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.backends.planes import WORD, current, room, strided, writable
from cldfast.kernels.backends.protocol import ALL_COLUMNS, Noise, StageResult
from cldfast.kernels.backends.triton.normals import normals, words
from cldfast.kernels.limits import LAUNCH_OUTPUTS
from cldfast.kernels.time_tables import AtTimes

# Pairs of a program: 16 bytes a lane of each plane for 4 warps, twice.
BLOCK = 1024
# No product is fused unless the source says so: the normals' error terms depend on it.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
# What changes from call to call: a kernel of its own for those that 16 divides would be compiled in
# the middle of a run.
ADDRESS = ["seed", "first_pair", "stage_index", "stream"]

Plane = tuple[torch.Tensor, tuple[int, int, int]]


@triton.jit
def place(row, column, inner, strides, DENSE: tl.constexpr):
    """Offsets of coordinates in a plane."""
    offset = row.to(tl.int64) * strides[0]
    if DENSE:
        offset += column
    else:
        offset += (column // inner).to(tl.int64) * strides[1] + (column % inner) * strides[2]
    return offset


@triton.jit
def narrowed(y, dtype: tl.constexpr):
    """A block in another dtype, rounded as PyTorch does: to 16 bits by way of float32."""
    if dtype.primitive_bitwidth == 16:
        y = y.to(tl.float32)
    return y.to(dtype)


@triton.jit
def _entry(weights, matrix, k: tl.constexpr, m, ROWS: tl.constexpr, COLUMNS: tl.constexpr, zero):
    """Entry (k, m) of a matrix, or of each pair's own, as a block like `zero`."""
    return tl.load(weights + (matrix * ROWS + k) * COLUMNS + m).to(zero.dtype) + zero


@triton.jit
def _column(
    weights, matrix, row: tl.constexpr, m, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    OUTS: tl.constexpr, zero,
):  # fmt: skip
    """Entries (row, m) ... (row + 3, m) of a matrix; those from row + OUTS on are zeros."""
    w1, w2, w3 = zero, zero, zero
    w0 = _entry(weights, matrix, row, m, ROWS, COLUMNS, zero)
    if OUTS > 1:
        w1 = _entry(weights, matrix, row + 1, m, ROWS, COLUMNS, zero)
    if OUTS > 2:
        w2 = _entry(weights, matrix, row + 2, m, ROWS, COLUMNS, zero)
    if OUTS > 3:
        w3 = _entry(weights, matrix, row + 3, m, ROWS, COLUMNS, zero)
    return w0, w1, w2, w3


@triton.jit(do_not_specialize=ADDRESS)
def stage_kernel(
    inputs,
    input_strides,
    outputs,
    output_strides,
    weights,
    step,
    pairs: tl.int64,
    width: tl.int64,
    inner: tl.int64,
    seed: tl.uint64,
    first_pair: tl.int64,
    stage_index: tl.uint32,
    stream: tl.uint32,
    used: tl.constexpr,
    first_row: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    INS: tl.constexpr,
    ADDRESSED: tl.constexpr,
    NOISY: tl.constexpr,
    OWN: tl.constexpr,
    TABLE: tl.constexpr,
    ODD: tl.constexpr,
    DENSE: tl.constexpr,
    LONG: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows first_row ... first_row + OUTS - 1 of a stage's matrix of ROWS, at BLOCK flat pairs."""
    COLUMNS: tl.constexpr = INS + 2 if ADDRESSED else INS
    like: tl.constexpr = tl.float64 if WIDE else tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    pair = start + tl.arange(0, BLOCK) - ODD
    if not LONG:
        pair = pair.to(tl.int32)
        width = width.to(tl.int32)
        inner = inner.to(tl.int32)
    inside = (pair >= 0) & (pair < pairs)
    row, column = pair // width, pair % width
    matrix = tl.full([], 0, tl.int64)
    first_half = (first_pair >> 1) + start // 2
    if TABLE:
        number = tl.load(step)
        matrix = number
        stage_index += number.to(tl.uint32)
        seed = tl.load(step + 1).to(tl.uint64, bitcast=True)
        first_half += (tl.load(step + 2) >> 1) * width
    if OWN:
        matrix = tl.where(inside, row, 0).to(tl.int64)

    zero = tl.full([BLOCK], 0.0, like)
    y0, y1, y2, y3 = zero, zero, zero, zero
    for m in tl.static_range(INS):
        if (used >> m) & 1:
            w0, w1, w2, w3 = _column(weights, matrix, first_row, m, ROWS, COLUMNS, OUTS, zero)
            needed = (w0 != 0.0) | (w1 != 0.0) | (w2 != 0.0) | (w3 != 0.0)
            at = place(row, column, inner, input_strides[m], (DENSE >> m) & 1)
            x = tl.load(inputs[m] + at, mask=inside & needed, other=0.0).to(like)
            y0, y1 = tl.fma(x, w0, y0), tl.fma(x, w1, y1)
            y2, y3 = tl.fma(x, w2, y2), tl.fma(x, w3, y3)
    if NOISY:
        z_x, z_v = normals(seed, first_half, stage_index, stream, BLOCK, WIDE)
        for c in tl.static_range(2):
            z = z_v if c else z_x
            w0, w1, w2, w3 = _column(weights, matrix, first_row, INS + c, ROWS, COLUMNS, OUTS, zero)
            y0, y1 = tl.fma(z, w0, y0), tl.fma(z, w1, y1)
            y2, y3 = tl.fma(z, w2, y2), tl.fma(z, w3, y3)
    for k in tl.static_range(OUTS):
        y = y0 if k == 0 else (y1 if k == 1 else (y2 if k == 2 else y3))
        at = place(row, column, inner, output_strides[k], (DENSE >> (INS + k)) & 1)
        tl.store(outputs[k] + at, narrowed(y, outputs[k].dtype.element_ty), mask=inside)


@triton.jit
def _advance_kernel(step, times, time, count):
    following = tl.load(step) + 1
    tl.store(step, following)
    tl.store(time, tl.load(times + following, mask=following < count), mask=following < count)


@triton.jit(do_not_specialize=[*ADDRESS, "count"])
def _words_kernel(
    radius, angle, count: tl.int64, seed: tl.uint64, first_pair: tl.int64, stage_index: tl.uint32,
    stream: tl.uint32, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    half = (first_pair >> 1) + start // 2 + tl.arange(0, BLOCK // 2)
    w0, w1, w2, w3 = words(seed, half, stage_index, stream)
    pair = start + tl.arange(0, BLOCK) - (first_pair & 1)
    inside = (pair >= 0) & (pair < count)
    tl.store(radius + pair, tl.interleave(w0, w2).to(tl.int32, bitcast=True), mask=inside)
    tl.store(angle + pair, tl.interleave(w1, w3).to(tl.int32, bitcast=True), mask=inside)


def planes_of(tensor: torch.Tensor, channels: int, keep: list[torch.Tensor]) -> list[Plane]:
    """Each plane as a tensor that starts there, with the strides of batch, channel and position."""
    described = strided(tensor, channels)
    if described is None:
        tensor = tensor.contiguous()
        keep.append(tensor)
        described = strided(tensor, channels)
        assert described is not None
    count, strides = described[1], (described[3], described[5], described[6])
    return [(tensor[:, p * channels :], strides) for p in range(count)]


def is_dense(plane: Plane, channels: int, inner: int) -> bool:
    """Whether a row's coordinates lie side by side."""
    _, (_, channel_stride, inner_stride) = plane
    return (inner == 1 or inner_stride == 1) and (channels == 1 or channel_stride == inner)


def float64_bits(value: float) -> int:
    """The bits of a float64 as an int64: Triton would pass a float on as a float32."""
    return struct.unpack("<q", struct.pack("<d", value))[0]  # type: ignore[no-any-return]


def signed(word: int) -> int:
    """A 64-bit word as the int64 of its bits."""
    word &= WORD
    return word - 2**64 if word >= 2**63 else word


def stage(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor],
    history: Sequence[torch.Tensor],
    weights: torch.Tensor | AtTimes,
    noise: Noise,
    *,
    out: torch.Tensor | None = None,
    seen_planes: int = 0,
    seen_dtype: torch.dtype | None = None,
    step: torch.Tensor | None = None,
    used: int = ALL_COLUMNS,
    row_out: torch.Tensor | None = None,
) -> StageResult:
    """See `cldfast.kernels.backends.protocol.Backend.stage`."""
    assert isinstance(weights, torch.Tensor)  # tables are not read
    like = outputs[0] if u is None else u
    rows, planes_channels, *spatial = like.shape
    channels = planes_channels if u is None else planes_channels // 2
    inner = math.prod(spatial)
    width = channels * inner
    matrices, weight_rows, columns = weights.shape
    given = noise if isinstance(noise, torch.Tensor) else None
    address = noise if isinstance(noise, NoiseAddress) else NoiseAddress()

    keep: list[torch.Tensor] = []
    inputs: list[Plane] = []
    for tensor in [u, *outputs, *history, given]:
        if tensor is not None:
            inputs += planes_of(tensor, channels, keep)
    state = room(2, channels, like.dtype, like) if out is None else writable(out, channels)
    results = planes_of(state, channels, keep)
    rows_made = seen = None
    history_planes = weight_rows - 2 - seen_planes
    if history_planes:
        if row_out is None:
            row_out = room(history_planes, channels, like.dtype, like)
        rows_made = writable(row_out, channels)
        results += planes_of(rows_made, channels, keep)
    if seen_planes:
        seen = room(seen_planes, channels, seen_dtype or like.dtype, like)
        results += planes_of(seen, channels, keep)
    if step is None and matrices == 1 and weights.device.type == "cpu":
        table = weights[0].tolist()
        if not all(abs(entry) < float("inf") for row in table for entry in row):
            raise ValueError("weights must be finite, got NaN or infinity")
        used = sum(1 << m for m in range(columns) if any(row[m] != 0.0 for row in table))
    used &= (1 << columns) - 1

    # A matrix of the host's is on its way while the host goes on.
    on_device = weights.to(like.device, non_blocking=True).contiguous()

    pairs = rows * width
    first_pair = address.first_index * width & WORD
    odd = first_pair & 1
    grid = ((pairs + odd + BLOCK - 1) // BLOCK,)
    # The state's planes come first and may be inputs, so they are written last.
    for first in range((weight_rows - 1) // LAUNCH_OUTPUTS * LAUNCH_OUTPUTS, -1, -LAUNCH_OUTPUTS):
        part = results[first : first + LAUNCH_OUTPUTS]
        dense = sum(
            is_dense(plane, channels, inner) << i for i, plane in enumerate([*inputs, *part])
        )
        noisy = given is None and bool(used >> len(inputs) & 3)
        with current(like.device):
            stage_kernel[grid](
                *_pointers(inputs), *_pointers(part), on_device, step, pairs, width, inner,
                address.seed, signed(first_pair), address.stage_index, int(address.stream), used,
                first, weight_rows, len(part), len(inputs), given is None, noisy,
                step is None and matrices > 1, step is not None, odd, dense, pairs >= 2**31 - BLOCK,
                like.dtype == torch.float64, BLOCK, **OPTIONS,
            )  # fmt: skip
    if out is not None and state is not out:
        state = out.copy_(state)
    if row_out is not None and rows_made is not None and rows_made is not row_out:
        rows_made = row_out.copy_(rows_made)
    return StageResult(state, rows_made, seen)


def _pointers(planes: Sequence[Plane]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return tuple(tensor for tensor, _ in planes), tuple(strides for _, strides in planes)


def advance(step: torch.Tensor, times: torch.Tensor, time: torch.Tensor) -> None:
    """See `cldfast.kernels.backends.protocol.Backend.advance`."""
    with current(step.device):
        _advance_kernel[(1,)](step, times, time, len(times))


def pair_words(
    address: NoiseAddress, count: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two words of each pair from an address on, int64 (count,), as `philox.pair_words`."""
    made = torch.empty(2, count, dtype=torch.int32, device=device)
    first_pair = address.first_index
    grid = ((count + (first_pair & 1) + BLOCK - 1) // BLOCK,)
    with current(device):
        _words_kernel[grid](
            made[0], made[1], count, address.seed, signed(first_pair), address.stage_index,
            int(address.stream), BLOCK, **OPTIONS,
        )  # fmt: skip
    unsigned = made.to(torch.int64) & 0xFFFFFFFF
    return unsigned[0], unsigned[1]
