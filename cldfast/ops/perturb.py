"""Perturbation, and the matrices of rows from a table and their times."""

from __future__ import annotations

import torch

from cldfast.ops.checks import (
    STATE_DTYPES,
    check_address,
    check_like,
    check_seed,
    check_tensor,
    describe,
)
from cldfast.ops.dispatch import backend_matrices, backend_stage, resolve_backend
from cldfast.ops.stage import stage
from cldfast.tables import Table


class OutsideTableError(ValueError):
    """A time lies outside a table, where the formula that it was made of must serve."""


def matrices(table: Table, t: torch.Tensor, backend: str = "auto") -> torch.Tensor:
    """The table's matrix at each row's time: float64 (B, rows, columns), for `stage`, `residual`.

    t: times (B,), any float dtype; a table's end may be exceeded by the rounding of a float32.

    Raises TypeError for anything else, OutsideTableError (a ValueError) for a time outside it.
    """
    if check_tensor("t", t).dim() != 1 or not t.is_floating_point():
        raise TypeError(f"t must be a float tensor (B,), got {describe(t)}")
    if t.dtype != torch.float64 or not t.is_contiguous():
        t = t.to(torch.float64).contiguous()
    made = backend_matrices(resolve_backend(backend, t.device))(table, t)
    if made is None:
        low = table.end * 0.5 ** table.octaves.shape[0]
        raise OutsideTableError(f"times must lie in ({low:.3g}, {table.end:g}], as the table's do")
    return made


def perturb(
    data: tuple[torch.Tensor, ...],
    t: torch.Tensor,
    table: Table,
    *,
    seed: int = 0,
    first_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """`u = m x0 + L z` at every coordinate, with each row's own time: u (B, 2C, ...).

    data: (x0,) or (x0, v0), each (B, C, ...), float32 or float64. t: (B,) times.
    table: of the matrices (m, L), 2 rows, a column for each tensor of data and the 2 of noise.
    seed, first_index, stream, noise, backend: see `stage`.

    Raises ValueError or TypeError before anything is written; OutsideTableError, a ValueError, for
    a time outside the table.
    """
    like, name = check_data(data, table), resolve_backend(backend, check_tensor("t", t).device)
    if noise is not None:
        check_like("noise", noise, (like.shape[0], 2 * like.shape[1], *like.shape[2:]), like)
    check_seed(seed)
    check_address(first_index, 0, stream)
    weights = matrices(table, t, name)
    if len(weights) != like.shape[0] or t.device != like.device:
        raise ValueError(f"t must be ({like.shape[0]},) on {like.device}, got {describe(t)}")
    address = {"seed": seed, "first_index": first_index, "stream": stream, "noise": noise}
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in data):
        return stage(None, data, (), weights, **address, backend=name)[0]  # type: ignore[arg-type]
    return backend_stage(name)(None, data, (), weights, **address)[0]


def check_data(data: tuple[torch.Tensor, ...], table: Table) -> torch.Tensor:
    """The first of the tensors to be perturbed, after a look at all of them."""
    like = check_tensor("data[0]", data[0])
    if like.dtype not in STATE_DTYPES:
        raise TypeError(f"data must be float32 or float64, got {describe(like)}")
    if like.dim() < 2 or like.numel() == 0:
        raise ValueError(f"data must be non-empty (B, C, ...), got {describe(like)}")
    for other in data[1:]:
        check_like("data[1]", other, tuple(like.shape), like)
    if (table.rows, table.columns) != (2, len(data) + 2):
        raise ValueError(
            f"the table of {len(data)} data tensors must be of 2 x {len(data) + 2} matrices, "
            f"got {table.rows} x {table.columns}"
        )
    return like
