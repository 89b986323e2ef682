"""The stage operation in plain PyTorch: the specification, and the fallback on any device.

A stage is one small matrix applied at every coordinate:

    (x', v', h ...) = W (x, v, o ..., h ..., z_x, z_v)

A *plane* is one scalar per coordinate, (B, C, ...): the state has the planes x and v along
dimension 1, a network output or a history row has one or two, and the noise planes z are addressed
normals that are made on the fly. `W` holds the blocks P, E, H, L, A, B of `planner.stage.Stage`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cldfast.kernels.philox import pair_normals


def noise_planes(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    seed: int,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Addressed normals (z_x, z_v), each of the plane shape (B, C, ...).

    The flat pair index is (first_index + row) * D + j, j the index in a contiguous (C, ...) plane
    of D coordinates, so a sample's noise depends on (seed, sample index) alone.
    """
    pairs = 1
    for size in shape[1:]:
        pairs *= size
    z_x, z_v = pair_normals(
        seed, first_index * pairs, shape[0] * pairs, stage_index, stream, dtype, device
    )
    return z_x.reshape(tuple(shape)), z_v.reshape(tuple(shape))


def split_planes(tensor: torch.Tensor, channels: int) -> tuple[torch.Tensor, ...]:
    """The planes of a tensor with a multiple of `channels` along dimension 1."""
    return tensor.split(channels, dim=1)


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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The next state (B, 2C, ...), and the new history rows (B, qC, ...) or None where q = 0.

    u: state (B, 2C, ...), or None where a stage does not read it; then outputs[0] has one plane.
    outputs, history: (B, rC, ...), r planes each; their dtype may differ from the state's.
    weights: float64 (R, 2 + q, n), columns in the order of the planes, the two noise planes last;
        R = 1 shares one matrix, R = B gives every row its own.
    noise: replaces the addressed normals, shaped like the state.

    Arguments are taken as valid: `cldfast.kernels.stage` checks them.
    """
    like = u if u is not None else outputs[0]
    channels = like.shape[1] // (2 if u is not None else 1)
    dtype = like.dtype
    planes: list[torch.Tensor] = []
    for tensor in ([u] if u is not None else []) + [*outputs, *history]:
        planes += split_planes(tensor, channels)
    out_planes = weights.shape[1]
    plane_shape = (like.shape[0], channels, *like.shape[2:])

    shared = weights.shape[0] == 1
    if shared:
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
        if noise is None:
            planes += noise_planes(
                plane_shape, dtype, like.device,
                seed=seed, first_index=first_index, stage_index=stage_index, stream=stream,
            )  # fmt: skip
        else:
            planes += split_planes(noise, channels)
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
    state = torch.cat(results[:2], dim=1)
    return state, torch.cat(results[2:], dim=1) if out_planes > 2 else None


def residual(
    output: torch.Tensor,
    u: torch.Tensor,
    weights: torch.Tensor,
    *,
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """The squared residual of each row, `loss_i = sum |R_o o + R_u u + R_z z|^2`, (B,).

    output: (B, rC, ...), r planes. u: state (B, 2C, ...), or any p planes. The noise z is made
    again from the address it was first made at, or given as `noise`, (B, 2C, ...).
    weights: float64 (B, q, r + p + 2), the blocks R_o, R_u, R_z of q residual planes side by side.

    Arguments are taken as valid: `cldfast.kernels.residual` checks them.
    """
    channels = (output.shape[1] + u.shape[1]) // (weights.shape[2] - 2)
    plane_shape = (u.shape[0], channels, *u.shape[2:])
    z: tuple[torch.Tensor, ...]
    if noise is None:
        z = noise_planes(
            plane_shape, u.dtype, u.device,
            seed=seed, first_index=first_index, stage_index=stage_index, stream=stream,
        )  # fmt: skip
    else:
        z = split_planes(noise, channels)
    planes = [*split_planes(output, channels), *split_planes(u, channels), *z]
    rows = weights.to(device=u.device, dtype=u.dtype)
    rows = rows.reshape(*rows.shape, *([1] * (u.dim() - 1)))
    total: torch.Tensor | float = 0.0
    for i in range(rows.shape[1]):
        line: torch.Tensor | float = 0.0
        for j, plane in enumerate(planes):
            line = line + rows[:, i, j] * plane.to(u.dtype)
        assert isinstance(line, torch.Tensor)
        total = total + line.square().flatten(1).sum(1)
    assert isinstance(total, torch.Tensor)
    return total
