"""The stage operation on NVIDIA GPUs by the compiled kernels, on PyTorch's current stream.

Arguments are taken as valid; any memory layout is taken. Importing
this raises ImportError where the CUDA kernels were not built or no device runs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

try:
    from cldfast import _cuda as kernels
except ImportError as error:
    raise ImportError(
        "the CUDA kernels were not built: nvcc was missing or failed when cldfast was installed "
        f"({error})"
    ) from error

from cldfast.kernels.backends.planes import (
    ALL_COLUMNS,
    CODES,
    WORD,
    Description,
    current,
    describe,
    room,
    strided,
)

CudaError = kernels.CudaError


def require_device() -> None:
    """ImportError with the reason where no device of this machine runs the kernels."""
    try:
        if kernels.device_count() == 0 or not torch.cuda.is_available():
            raise ImportError(f"no CUDA device: PyTorch {torch.__version__} sees none")
        with torch.cuda.device(0):
            kernels.check_device(0)
    except CudaError as error:
        raise ImportError(f"no CUDA device: {error}") from error


def queue(device: torch.device) -> tuple[int, int]:
    """Device number and stream handle of PyTorch's current stream."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def stage(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor],
    history: Sequence[torch.Tensor],
    weights: torch.Tensor,
    *,
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    cast: torch.dtype | None = None,
    step: torch.Tensor | None = None,
    used: int = ALL_COLUMNS,
    row_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The next state, the new history rows or None, and the state in the dtype `cast` or None.

    Takes what `reference.stage` takes, in any memory layout, and gives the same, in the
    memory format of u, or of outputs[0] where u is None. One matrix for all rows may lie on the
    host or on the device. Further arguments:

    out: receives the next state; may be u itself, else it shares no memory with an input.
    cast: float32, float64, bfloat16 or float16, for a second copy of the next state.
    step: int64 (), on the device: weights are a table (N, 2 + q, n) on the device, of which the
        matrix number `step` is taken, and `step` is added to stage_index.
    used: a bit for each column of such a table that is not all zeros; the others are not read.
    row_out: receives the new history rows; may be a history row itself.
    """
    like = outputs[0] if u is None else u
    rows, planes_channels, *spatial = like.shape
    channels = planes_channels if u is None else planes_channels // 2
    inner = math.prod(spatial)
    width = channels * inner
    matrices, weight_rows, weight_columns = weights.shape

    keep: list[torch.Tensor] = []
    inputs: Description = () if u is None else describe(u, channels, inner, keep)
    for tensor in outputs:
        inputs += describe(tensor, channels, inner, keep)
    for tensor in history:
        inputs += describe(tensor, channels, inner, keep)
    if noise is not None:
        inputs += describe(noise, channels, inner, keep)

    state = room(2, channels, like.dtype, like) if out is None else _writable(out, channels)
    results = describe(state, channels, inner, keep)
    rows_made = copy = None
    if weight_rows > 2:
        if row_out is None:
            row_out = room(weight_rows - 2, channels, like.dtype, like)
        rows_made = _writable(row_out, channels)
        results += describe(rows_made, channels, inner, keep)
    copies: Description = ()
    if cast is not None:
        copy = room(2, channels, cast, like)
        copies = describe(copy, channels, inner, keep)
    if not weights.is_contiguous():
        weights = weights.contiguous()

    with current(like.device):
        kernels.stage(
            inputs, results, copies, rows, channels, inner, CODES[like.dtype],
            weights.data_ptr(), step is not None or matrices > 1 or weights.is_cuda,
            1 if step is not None else matrices, weight_rows, weight_columns,
            0 if step is None else step.data_ptr(), used, noise is None,
            seed & WORD, first_index * width & WORD, stage_index, stream, *queue(like.device),
        )  # fmt: skip
    if out is not None and state is not out:
        state = out.copy_(state)
    if row_out is not None and rows_made is not None and rows_made is not row_out:
        rows_made = row_out.copy_(rows_made)
    return state, rows_made, copy


def _writable(out: torch.Tensor, channels: int) -> torch.Tensor:
    """`out`, or room to be copied to it where the kernels cannot describe its layout."""
    if out.is_contiguous() or strided(out, channels) is not None:
        return out
    return torch.empty_like(out, memory_format=torch.contiguous_format)


def advance(step: torch.Tensor, times: torch.Tensor, time: torch.Tensor) -> None:
    """`step += 1`, then `time = times[step]` while there is one; int64 (), (N,) and ()."""
    with current(step.device):
        kernels.advance(
            step.data_ptr(), times.data_ptr(), time.data_ptr(), len(times),
            times.dtype == torch.float64, *queue(step.device),
        )  # fmt: skip


def philox_words(
    seed: int, first_pair: int, count: int, stage_index: int, stream: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two words of each pair of a run, int64 (count,), as `philox.pair_words`."""
    words = torch.empty(2, count, dtype=torch.int32, device=device)
    with current(device):
        kernels.philox_words(
            seed & WORD, first_pair & WORD, count, stage_index, stream,
            words[0].data_ptr(), words[1].data_ptr(), *queue(device),
        )  # fmt: skip
    unsigned = words.to(torch.int64) & 0xFFFFFFFF
    return unsigned[0], unsigned[1]
