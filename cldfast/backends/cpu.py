"""The stage operation on the CPU: describes tensors to the compiled core by address and strides.

Arguments are taken as valid, as `cldfast.ops` leaves them; any memory layout is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cldfast import _core

# Dtype codes of csrc/stage.h.
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
WORD = 2**64 - 1
SERIAL_PAIRS: int = _core.SERIAL_PAIRS
_run = _core.stage

Description = tuple[int, ...]


def _strided(tensor: torch.Tensor, channels: int) -> Description | None:
    """The core's description of a tensor that is not contiguous, or None where it has none.

    The positions of a channel must form one arithmetic progression of addresses, as they do in
    batch slices, channel slices and channels-last tensors.
    """
    shape, strides = tensor.shape, tensor.stride()
    inner_stride = expected = None
    for size, stride in zip(reversed(shape[2:]), reversed(strides[2:]), strict=True):
        if size == 1:
            continue
        if inner_stride is None:
            inner_stride = stride
        elif stride != expected:
            return None
        expected = stride * size
    return (
        tensor.data_ptr(), shape[1] // channels, CODES[tensor.dtype],
        strides[0], strides[1] * channels, strides[1], inner_stride or 0,
    )  # fmt: skip


def describe(
    tensor: torch.Tensor, channels: int, inner: int, keep: list[torch.Tensor]
) -> Description:
    """What `_core.stage` wants to know of an input; `keep` holds a copy that it needs to live."""
    if not tensor.is_contiguous():
        described = _strided(tensor, channels)
        if described is not None:
            return described
        tensor = tensor.contiguous()
        keep.append(tensor)
    planes = tensor.shape[1] // channels
    width = channels * inner
    return (tensor.data_ptr(), planes, CODES[tensor.dtype], planes * width, width, inner, 1)


def room(planes: int, channels: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """Room for planes of the shape of `like`'s, in its memory format."""
    memory_format = torch.contiguous_format
    if not like.is_contiguous():
        for dims, other in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if like.dim() == dims and like.is_contiguous(memory_format=other):
                memory_format = other
    shape = (like.shape[0], planes * channels, *like.shape[2:])
    return torch.empty(shape, dtype=dtype, memory_format=memory_format)


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
    level: str = "",
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The next state, the new history rows or None, and the state in the dtype `cast` or None.

    Takes what `cldfast.reference.stage` takes, in any memory layout, and gives the same, in the
    memory format of u, or of outputs[0] where u is None; a column of zeros is skipped in every
    matrix, also where each row has its own. Three arguments are its own:

    out: receives the next state; may be u itself, else it shares no memory with an input.
    cast: float32, float64, bfloat16 or float16, for a second copy of the next state.
    level: forces one of `_core.levels()`, for tests.
    """
    like = outputs[0] if u is None else u
    rows, planes_channels, *spatial = like.shape
    channels = planes_channels if u is None else planes_channels // 2
    inner = 1
    for size in spatial:
        inner *= size
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

    if out is not None:
        # A layout that the core cannot describe is written by way of a copy.
        plain = out.is_contiguous() or _strided(out, channels) is not None
        state = out if plain else torch.empty_like(out, memory_format=torch.contiguous_format)
    elif u is not None and u.is_contiguous():
        state = torch.empty_like(u)
    else:
        state = room(2, channels, like.dtype, like)
    results = describe(state, channels, inner, keep)
    rows_out = copy = None
    if weight_rows > 2:
        rows_out = room(weight_rows - 2, channels, like.dtype, like)
        results += describe(rows_out, channels, inner, keep)
    copies: Description = ()
    if cast is not None:
        copy = room(2, channels, cast, like)
        copies = describe(copy, channels, inner, keep)

    _run(
        inputs, results, copies, rows, channels, inner, CODES[like.dtype],
        weights.data_ptr(), matrices, weight_rows, weight_columns, noise is None,
        seed & WORD, first_index * width & WORD, stage_index, stream,
        1 if rows * width < SERIAL_PAIRS else torch.get_num_threads(), level,
    )  # fmt: skip
    if out is not None and state is not out:
        state = out.copy_(state)
    return state, rows_out, copy
