"""The operations in plain PyTorch: their specification, and the fallback on any device.

A stage is one small matrix applied at every coordinate:

    (x', v', h ..., y ...) = W (x, v, o ..., h ..., z_x, z_v)

A *plane* is one scalar per coordinate, (B, C, ...): the state has the planes x and v along
dimension 1, a network output or a history row has one or two, and the noise planes z are addressed
normals that are made on the fly. `W` holds the blocks P, E, H, L, A, B of `planner.stage.Stage`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def split_planes(tensor: torch.Tensor, channels: int) -> tuple[torch.Tensor, ...]:
    """The planes of a tensor with a multiple of `channels` along dimension 1."""
    return tensor.split(channels, dim=1)


def stage(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor],
    history: Sequence[torch.Tensor],
    weights: torch.Tensor,
    noise: Noise,
    seen_planes: int = 0,
    seen_dtype: torch.dtype | None = None,
) -> StageResult:
    """The next state (B, 2C, ...), the new history row (B, qC, ...), and what the network sees.

    u: state (B, 2C, ...), or None where a stage does not read it; then outputs[0] has one plane.
    outputs, history: (B, rC, ...), r planes each; their dtype may differ from the state's.
    weights: float64 (R, 2 + q + s, n), columns in the order of the planes, the two noise planes
        last; R = 1 shares one matrix, R = B gives every row its own.
    seen_planes: s, of what the network sees, (B, sC, ...) of seen_dtype, the state's if None.
    """
    like = u if u is not None else outputs[0]
    channels = like.shape[1] // (2 if u is not None else 1)
    dtype = like.dtype
    planes: list[torch.Tensor] = []
    for tensor in ([u] if u is not None else []) + [*outputs, *history]:
        planes += split_planes(tensor, channels)
    out_planes = weights.shape[1]
    plane_shape = (like.shape[0], channels, *like.shape[2:])

    if weights.shape[0] == 1:
        # One matrix on the host: plain numbers, and a column of zeros is not read at all, so that
        # a non-finite plane behind a zero coefficient does no harm (0 * inf is not 0).
        matrix = weights[0].tolist()
        used = [any(row[j] != 0.0 for row in matrix) for j in range(weights.shape[2])]
    else:
        rows = weights.to(device=like.device, dtype=dtype)
        rows = rows.reshape(*rows.shape, *([1] * (like.dim() - 1)))
        matrix = [[rows[:, i, j] for j in range(rows.shape[2])] for i in range(out_planes)]
        used = [True] * weights.shape[2]

    if used[-1] or used[-2]:
        if isinstance(noise, torch.Tensor):
            planes += split_planes(noise, channels)
        else:
            planes += noise_planes(plane_shape, dtype, like.device, noise)
    results = []
    for i in range(out_planes):
        total = None
        for j, plane in enumerate(planes):
            if used[j]:
                term = plane.to(dtype) * matrix[i][j]
                total = term if total is None else total + term
        results.append(
            total
            if total is not None
            else torch.zeros(plane_shape, dtype=dtype, device=like.device)
        )
    kept = out_planes - seen_planes
    return StageResult(
        torch.cat(results[:2], dim=1),
        torch.cat(results[2:kept], dim=1) if kept > 2 else None,
        torch.cat(results[kept:], dim=1).to(seen_dtype or dtype) if seen_planes else None,
    )


def residual(output: torch.Tensor, offset: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The squared residual of each row, `loss_i = sum |R_o o + R_e e|^2`, (B,).

    output: o, (B, rC, ...), r planes. offset: e, (B, pC, ...), whose dtype the loss has. weights:
    float64 (B, q, r + p), the blocks R_o and R_e of q residual planes side by side.
    """
    channels = (output.shape[1] + offset.shape[1]) // weights.shape[2]
    planes = [*split_planes(output, channels), *split_planes(offset, channels)]
    rows = weights.to(device=offset.device, dtype=offset.dtype)
    rows = rows.reshape(*rows.shape, *([1] * (offset.dim() - 1)))
    total: torch.Tensor | float = 0.0
    for i in range(rows.shape[1]):
        line: torch.Tensor | float = 0.0
        for j, plane in enumerate(planes):
            line = line + rows[:, i, j] * plane.to(offset.dtype)
        assert isinstance(line, torch.Tensor)
        total = total + line.square().flatten(1).sum(1)
    assert isinstance(total, torch.Tensor)
    return total


def covers(weights: AtTimes) -> bool:
    """Whether the table covers all of the times; the host waits if it has to look."""
    return weights.inside or bool(weights.table.covers(weights.t).all())


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
        on_host = weights.shape[0] == 1 and weights.device.type == "cpu"
        if on_host and not all(map(math.isfinite, weights.flatten().tolist())):
            raise ValueError("weights must be finite, got NaN or infinity")
        made = stage(u, outputs, history, weights, noise, seen_planes, seen_dtype)
        return made if out is None else made._replace(state=out.copy_(made.state))

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
        losses = residual(output, offset, weights)
        if scale is not None:
            losses = losses * scale.to(losses.dtype)
        if factor != 1.0:
            losses = losses * factor
        return losses.sum() if reduce else losses, None

    def covers(self, weights: AtTimes) -> bool:
        return covers(weights)

    def matrices(self, weights: AtTimes) -> torch.Tensor | None:
        return weights.table(weights.t) if covers(weights) else None

    def words(
        self, address: NoiseAddress, count: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return philox.pair_words(address, count, device)


register_backend("reference", ReferenceBackend)
