"""Perturbation, and matrices of rows by a table and their times."""

from __future__ import annotations

import torch

from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.backends.protocol import Backend, Noise
from cldfast.kernels.backends.registry import resolve_backend
from cldfast.kernels.checks import check_data, check_like, check_noise, check_weights
from cldfast.kernels.stage import stage
from cldfast.kernels.time_tables import AtTimes


def covers(weights: AtTimes, backend: str | Backend = "auto") -> bool:
    """Whether a table covers the times of all rows."""
    return resolve_backend(backend, weights.device).covers(weights)


def matrices(weights: AtTimes, backend: str | Backend = "auto") -> torch.Tensor:
    """A table's matrices at rows' times, float64 (B, rows, columns).

    weights: `table.at(t)`; a table's end may be exceeded by the rounding of a float32.

    Raises OutsideTableError, a ValueError, for a time outside the table; not where it is traced.
    """
    if torch.compiler.is_compiling():  # a graph cannot look at times
        return weights.table(weights.t)
    made = resolve_backend(backend, weights.device).matrices(weights)
    if made is None:
        raise weights.table.outside()
    return made


def perturb(
    data: tuple[torch.Tensor, ...],
    weights: torch.Tensor | AtTimes,
    *,
    noise: Noise = NoiseAddress(),  # noqa: B008, the type is immutable
    backend: str | Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`u = m x0 + L z` at every coordinate, each row with its own matrix: u (B, 2C, ...).

    data: (x0,) or (x0, v0), each (B, C, ...), float32 or float64.
    weights: the matrices (m, L) of the rows, a column for each tensor of data and the 2 of noise:
        `table.at(t)` at times t (B,), evaluated in float64 inside, or float64 (B, 2, n). A matrix
        may have q more rows, each for one more plane of the same data and noise.
    noise, backend: see `stage`.

    Returns u and the further planes (B, qC, ...) or None. Differentiable in data and in
    weights (not in a table's).
    Raises ValueError or TypeError before anything is written; OutsideTableError, a ValueError, for
    a time outside the table.
    """
    if len(data) not in (1, 2):
        raise ValueError(f"data must be (x0,) or (x0, v0), got {len(data)} tensors")
    like = check_data("data[0]", data[0])
    for other in data[1:]:
        check_like("data[1]", other, tuple(like.shape), like)
    rows, columns = like.shape[0], len(data) + 2
    if not isinstance(weights, AtTimes):
        check_weights(weights, rows, columns, like.device)
    elif (
        weights.shape[::2] != (rows, columns)
        or weights.shape[1] < 2
        or weights.device != like.device
    ):
        raise ValueError(
            f"the table at times must give ({rows}, 2 + q, {columns}) matrices on {like.device}, "
            f"got {weights.shape} on {weights.device}"
        )
    check_noise(noise, (rows, 2 * like.shape[1], *like.shape[2:]), like)
    found = resolve_backend(backend, like.device)
    needing = [*data] if isinstance(weights, AtTimes) else [*data, weights]
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in needing)
    by_operator = gradient or torch.compiler.is_compiling()
    if isinstance(weights, AtTimes) and (by_operator or not found.reads_tables):
        weights = matrices(weights, found)
    if isinstance(weights, torch.Tensor) and by_operator:
        made = stage(None, data, (), weights, noise=noise, backend=found)
    else:
        made = found.stage(None, data, (), weights, noise)
    return made.state, made.history
