"""The operations in plain PyTorch: their specification, and the fallback on any device.

A *plane* is one scalar per coordinate, (B, C, ...): the state has the planes x and v along
dimension 1, a network output or a history row has one or two, the noise z_x and z_v.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from cldfast.kernels import philox
from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.backends.protocol import ALL_COLUMNS, Backend, Noise, StageResult
from cldfast.kernels.backends.registry import register_backend
from cldfast.kernels.time_tables import AtTimes


def noise_planes(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str, address: NoiseAddress
) -> tuple[torch.Tensor, torch.Tensor]:
    """Addressed normals (z_x, z_v), each of the plane shape (B, C, ...).

    The flat pair index is (first_index + row) * D + j, j the index in a contiguous (C, ...) plane
    of D coordinates, so a sample's noise depends on (seed, sample index) alone.
    """
    pairs = math.prod(shape[1:])
    z_x, z_v = philox.pair_normals(address.in_pairs(pairs), shape[0] * pairs, dtype, device)
    return z_x.reshape(tuple(shape)), z_v.reshape(tuple(shape))


class ReferenceBackend(Backend):
    """Plain PyTorch on any device, differentiable in everything, as often as one likes."""

    def __init__(self, name: str = "reference") -> None:
        super().__init__(name, fuses_gradients=False)

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
        assert isinstance(weights, torch.Tensor) and step is None  # see __init__
        like = outputs[0] if u is None else u
        channels, dtype = like.shape[1] // (1 if u is None else 2), like.dtype
        shape = (like.shape[0], channels, *like.shape[2:])
        planes: list[torch.Tensor] = []
        for tensor in ([] if u is None else [u]) + [*outputs, *history]:
            planes += tensor.split(channels, dim=1)
        if weights.shape[0] == 1:
            # One matrix: plain numbers, and a column of zeros is not read at all, so that a
            # non-finite plane behind a zero coefficient does no harm (0 * inf is not 0).
            matrix = weights[0].tolist()
            finite = all(math.isfinite(entry) for row in matrix for entry in row)
            if weights.device.type == "cpu" and not finite:
                raise ValueError("weights must be finite, got NaN or infinity")
            reads = [any(column) for column in zip(*matrix, strict=True)]
        else:
            rows = weights.to(device=like.device, dtype=dtype)
            rows = rows.reshape(*rows.shape, *([1] * (like.dim() - 1)))
            matrix = [row.unbind(1) for row in rows.unbind(1)]
            reads = [True] * weights.shape[2]

        if reads[-1] or reads[-2]:
            if isinstance(noise, torch.Tensor):
                planes += noise.split(channels, dim=1)
            else:
                planes += noise_planes(shape, dtype, like.device, noise)
        results = []
        for row in matrix:
            total = None
            for plane, entry, read in zip(planes, row, reads, strict=False):
                if read:
                    term = plane.to(dtype) * entry
                    total = term if total is None else total + term
            if total is None:
                total = torch.zeros(shape, dtype=dtype, device=like.device)
            results.append(total)
        kept = len(results) - seen_planes
        state = torch.cat(results[:2], dim=1)
        return StageResult(
            state if out is None else out.copy_(state),
            torch.cat(results[2:kept], dim=1) if kept > 2 else None,
            torch.cat(results[kept:], dim=1).to(seen_dtype or dtype) if seen_planes else None,
        )

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
        assert isinstance(weights, torch.Tensor)
        channels = (output.shape[1] + offset.shape[1]) // weights.shape[2]
        planes = [*output.split(channels, dim=1), *offset.split(channels, dim=1)]
        rows = weights.to(device=offset.device, dtype=offset.dtype)
        rows = rows.reshape(*rows.shape, *([1] * (offset.dim() - 1)))
        losses: Any = 0.0
        for row in rows.unbind(1):
            terms = zip(planes, row.unbind(1), strict=True)
            line: Any = sum(entry * plane.to(offset.dtype) for plane, entry in terms)
            losses = losses + line.square().flatten(1).sum(1)
        if scale is not None:
            losses = losses * scale.to(losses.dtype)
        if factor != 1.0:
            losses = losses * factor
        return losses.sum() if reduce else losses, None


register_backend("reference", ReferenceBackend)
