"""Tables of small matrices on NVIDIA GPUs by the compiled kernels."""

from __future__ import annotations

import torch

from cldfast.kernels.backends.cuda import stage as cuda
from cldfast.kernels.backends.plain import covers
from cldfast.kernels.backends.planes import current
from cldfast.kernels.time_tables import AtTimes

__all__ = ["covers", "matrices"]


def matrices(weights: AtTimes) -> torch.Tensor | None:
    """The matrices, float64 (B, rows, columns); None where a time lies outside the table."""
    if not covers(weights):
        return None
    device, (count, rows, columns) = weights.device, weights.shape
    coefficients, octaves = weights.table.on(device)
    _, terms, stride = coefficients.shape
    result = torch.empty((count, rows, columns), dtype=torch.float64, device=device)
    with current(device):
        cuda.kernels.matrices(
            coefficients.data_ptr(), octaves.data_ptr(), octaves.shape[0], terms, stride,
            weights.table.end, weights.t.data_ptr(), count, rows * columns, result.data_ptr(),
            *cuda.queue(device),
        )  # fmt: skip
    return result
