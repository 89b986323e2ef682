"""The operations in plain PyTorch on any device: the reference with a backend's arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cldfast.kernels.backends import reference
from cldfast.kernels.backends.reference import residual
from cldfast.kernels.time_tables import AtTimes

__all__ = ["covers", "matrices", "residual", "stage"]


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
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The next state, the new history rows or None, and the state in the dtype `cast` or None.

    Takes what `reference.stage` takes; out receives the next state and may be u itself.
    Raises ValueError for a matrix of all rows on the host that is not finite.
    """
    on_host = weights.shape[0] == 1 and weights.device.type == "cpu"
    if on_host and not all(map(math.isfinite, weights.flatten().tolist())):
        raise ValueError("weights must be finite, got NaN or infinity")
    state, row = reference.stage(
        u, outputs, history, weights,
        seed=seed, first_index=first_index, stage_index=stage_index, stream=stream, noise=noise,
    )  # fmt: skip
    if out is not None:
        state = out.copy_(state)
    return state, row, None if cast is None else state.to(cast)


def covers(weights: AtTimes) -> bool:
    """Whether the table covers all of the times; the host waits if it has to look."""
    return weights.inside or bool(weights.table.covers(weights.t).all())


def matrices(weights: AtTimes) -> torch.Tensor | None:
    """The matrices, float64 (B, rows, columns); None where a time lies outside the table."""
    return weights.table(weights.t) if covers(weights) else None
