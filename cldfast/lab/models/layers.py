"""Small steps of both networks with few kernels, which is what a call on a small batch costs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer(owner: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer of a module.

    They are read where `nn.Module` keeps them: its attributes are looked up by a Python function
    that costs as much as a small kernel.
    """
    parameters: dict[str, Any] = owner._modules[name]._parameters  # type: ignore[union-attr]
    return parameters["weight"], parameters["bias"]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`W x + b` for one row x (n,) or for rows (B, n)."""
    return torch.addmv(bias, weight, x) if x.ndim == 1 else F.linear(x, weight, bias)


def silu(h: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else reads, in its own memory unless a gradient needs it."""
    return F.silu(h, inplace=not h.requires_grad)
