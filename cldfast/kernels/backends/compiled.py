"""What the two compiled modules share: tensors described to a kernel by address and strides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.backends.planes import (
    CODES,
    Description,
    describe,
    gradient_room,
    room,
    writable,
)
from cldfast.kernels.backends.protocol import ALL_COLUMNS, Backend, Noise, StageResult
from cldfast.kernels.time_tables import AtTimes

# Seed, first pair, stage and stream of the normals; None where they are given.
NoiseWords = tuple[int, int, int, int] | None
# The shape of a plane, (rows, channels, positions of a channel), and the code of its dtype.
Layout = tuple[int, int, int, int]


class CompiledBackend(Backend):
    """A backend whose kernels take addresses; a subclass launches them.

    `_launch_stage(device, layout, planes, weights, noise, step, used)` runs a stage; planes: those
    read and those written. `_launch_residual(layout, planes, weights, scale, factor, loss, reduce)`
    runs a residual; planes: the output's, the offset's, and those of the gradient.
    """

    _launch_stage: Callable[..., None]
    _launch_residual: Callable[..., None]

    def _may_overwrite(self, output_planes: int) -> bool:
        """Whether the kernel may write the gradient of so many planes over the offset."""
        return True

    def stage(
        self,
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
        # A small stage costs little more than these lines: they avoid what they can.
        like = outputs[0] if u is None else u
        shape = like.shape
        channels = shape[1] if u is None else shape[1] // 2
        inner = 1 if len(shape) == 2 else math.prod(shape[2:])
        if isinstance(weights, torch.Tensor) and not weights.is_contiguous():
            weights = weights.contiguous()

        keep: list[torch.Tensor] = []
        state_read: Description = () if u is None else describe(u, channels, inner, keep)
        in_place = out is u and u is not None and not keep
        inputs = state_read
        for tensor in outputs:
            inputs += describe(tensor, channels, inner, keep)
        for tensor in history:
            inputs += describe(tensor, channels, inner, keep)
        words: NoiseWords = None
        if isinstance(noise, NoiseAddress):
            first_pair = noise.first_index * channels * inner
            words = (noise.seed, first_pair, noise.stage_index, noise.stream)
        else:
            inputs += describe(noise, channels, inner, keep)

        if in_place and u is not None:
            state, results = u, state_read
        else:
            state = room(2, channels, like.dtype, like) if out is None else writable(out, channels)
            results = describe(state, channels, inner, keep)
        history_planes = weights.shape[1] - 2 - seen_planes
        made = seen = None
        if history_planes:
            if row_out is None:
                row_out = room(history_planes, channels, like.dtype, like)
            made = writable(row_out, channels)
            results += describe(made, channels, inner, keep)
        if seen_planes:
            seen = room(seen_planes, channels, seen_dtype or like.dtype, like)
            results += describe(seen, channels, inner, keep)

        layout = (shape[0], channels, inner, CODES[like.dtype])
        self._launch_stage(like.device, layout, (inputs, results), weights, words, step, used)
        if out is not None and state is not out:
            state = out.copy_(state)
        if row_out is not None and made is not row_out:
            made = row_out.copy_(made)  # type: ignore[arg-type]
        return StageResult(state, made, seen)

    def residual(
        self,
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
        rows, planes_channels, *spatial = offset.shape
        channels = (output.shape[1] + planes_channels) // weights.shape[2]
        inner = math.prod(spatial)
        if isinstance(weights, torch.Tensor) and not weights.is_contiguous():
            weights = weights.contiguous()
        if scale is not None and not scale.is_contiguous():
            scale = scale.contiguous()

        keep: list[torch.Tensor] = []
        read = describe(output, channels, inner, keep), describe(offset, channels, inner, keep)
        result: torch.Tensor | None = None
        written: Description = ()
        if gradient:
            overwrite = overwrite and self._may_overwrite(output.shape[1] // channels)
            result = gradient_room(output, channels, offset if overwrite else None)
            written = describe(result, channels, inner, keep)
        loss = offset.new_empty(() if reduce else (rows,))
        layout = (rows, channels, inner, CODES[offset.dtype])
        self._launch_residual(layout, (*read, written), weights, scale, factor, loss, reduce)
        return loss, result
