"""Addressed normals as a tensor: a stage that reads nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.backends.protocol import Backend
from cldfast.kernels.stage import stage


def normals(
    shape: Sequence[int],
    address: NoiseAddress,
    *,
    factor: np.ndarray | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str | Backend = "auto",
) -> torch.Tensor:
    """Pairs `L z` of addressed normals for data of a shape: (n, 2C, ...) for (n, C, ...).

    Row i depends on the seed, stage and stream of the address and on `first_index + i` alone.
    factor: L, (2, 2); None is the identity. device: None is PyTorch's default.
    """
    n, channels, *rest = shape
    u = torch.empty((n, 2 * channels, *rest), dtype=dtype, device=device)
    weights = np.zeros((1, 2, 4))
    weights[0, :, 2:] = np.eye(2) if factor is None else factor
    # The columns of the state are zero, so the empty tensor is not read: it only gives the shape. A
    # graph or a transform takes no memory to write to.
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    out = None if traced else u
    return stage(
        u, weights=torch.from_numpy(weights), noise=address, out=out, backend=backend
    ).state
