"""Tensors and arrays of a caller as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def as_numpy(value: Any, name: str) -> NDArray[Any]:
    """A tensor or an array as an array, bfloat16 as float32; TypeError for anything else."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray):
        return value
    raise TypeError(f"{name}: expected a tensor or an array, got {type(value).__name__}")


def as_float64(value: Any, name: str, *, integers: bool = False) -> NDArray[np.float64]:
    """A tensor or an array of floating point, or also of whole numbers, as float64.

    Raises TypeError for another type or dtype, ValueError where an entry is not finite.
    """
    array = as_numpy(value, name)
    if array.dtype.kind not in ("fiu" if integers else "f"):
        expected = "numbers" if integers else "floating point"
        raise TypeError(f"{name}: expected {expected}, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers")
    return array.astype(np.float64)
