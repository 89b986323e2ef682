"""The stage operation on the CPU: describes tensors to the compiled core by address and strides.

Arguments are taken as valid; any memory layout is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cldfast import _core
from cldfast.kernels.backends.cpu.tables import address
from cldfast.kernels.backends.planes import (
    CODES,
    WORD,
    Description,
    Weights,
    describe,
    room,
    strided,
)

SERIAL_PAIRS: int = _core.SERIAL_PAIRS
_run = _core.stage


def stage(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor],
    history: Sequence[torch.Tensor],
    weights: Weights,
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

    Takes what `reference.stage` takes, in any memory layout, and gives the same, in the
    memory format of u, or of outputs[0] where u is None; a column that is zero in every matrix is
    not read, also where each row has its own. Weights may be a table's at each row's time, which
    raises OutsideTableError before anything is written. Three arguments are its own:

    out: receives the next state; may be u itself, else it shares no memory with an input.
    cast: float32, float64, bfloat16 or float16, for a second copy of the next state.
    level: forces one of `_core.levels()`, for tests.
    """
    like = outputs[0] if u is None else u
    rows, planes_channels, *spatial = like.shape
    channels = planes_channels if u is None else planes_channels // 2
    inner = math.prod(spatial)
    width = channels * inner
    matrices, weight_rows, weight_columns = weights.shape

    if isinstance(weights, torch.Tensor) and not weights.is_contiguous():
        weights = weights.contiguous()
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
        plain = out.is_contiguous() or strided(out, channels) is not None
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

    inside = _run(
        inputs, results, copies, rows, channels, inner, CODES[like.dtype],
        *address(weights), matrices, weight_rows, weight_columns, noise is None,
        seed & WORD, first_index * width & WORD, stage_index, stream,
        1 if rows * width < SERIAL_PAIRS else torch.get_num_threads(), level,
    )  # fmt: skip
    if not inside:
        raise weights.table.outside()  # type: ignore[union-attr]
    if out is not None and state is not out:
        state = out.copy_(state)
    return state, rows_out, copy


def philox_words(
    seed: int, first_pair: int, count: int, stage_index: int, stream: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two words of each pair of a run, int64 (count,), as `philox.pair_words`."""
    words = torch.empty((2, count), dtype=torch.uint32)
    start = words.data_ptr()
    _core.philox_words(
        seed & WORD, first_pair, count, stage_index, stream, start, start + 4 * count
    )
    radius, angle = words.to(torch.int64).unbind(0)
    return radius, angle
