"""gDDIM's arrays, `(B, ..., d, 2)` with (x, v) last, as our states, and its networks as ours.

Memory is shared where strides allow. A state seen in the codebase's layout always is; the other way
an array whose pairs lie together in memory is copied once, since a state has x and v apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cldfast.compat.published import check_name

LAYOUTS = ("pairs", "halves")
Function = Callable[[Any, Any], Any]


def to_state(u: Any) -> torch.Tensor:
    """`(B, d, 2)` as a state `(B, 2d)`, or `(B, H, W, C, 2)` as `(B, 2C, H, W)`, channels last.

    u: a tensor, a numpy array, or any array with DLPack, such as JAX's.

    Raises ValueError for another shape.
    """
    return _state(as_tensor(u), "pairs")


def from_state(u: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_state`, always a view: `(B, 2C, ...)` as `(B, ..., C, 2)`.

    `xp.from_dlpack` makes an array of another library of it.
    """
    return _array(u, "pairs")


def as_network(function: Function, xp: Any = np, layout: str = "pairs") -> Function:
    """A network `net(u, t)` of `cldfast.run` from a function of arrays in gDDIM's layout.

    function: `function(u, t)` with u `(B, ..., d, 2)` and t (B,), arrays of the library `xp`; it
        returns the noise or score shaped like u, in any float dtype. It must leave u as it is: u is
        the sampler's own memory where the library can look at it.
    xp: the array library, with `xp.from_dlpack`: numpy, jax.numpy, torch.
    layout: "pairs", or "halves" for a function of `(B, ..., 2d)`, all of x before all of v, which
        is what the models inside the codebase see, and which needs no copy either way.

    The network returns x half then v half, `(B, 2C, ...)`. Raises ValueError or TypeError for an
    unknown layout, a library without DLPack, or a result of another shape.
    """
    check_name("layout", layout, LAYOUTS)
    if not hasattr(xp, "from_dlpack"):
        raise TypeError(f"xp must be an array library with from_dlpack, got {xp!r}")

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen = _array(u.detach(), layout)
        result = as_tensor(function(xp.from_dlpack(seen), xp.from_dlpack(t.contiguous())))
        if result.shape != seen.shape:
            raise ValueError(
                f"the function must return an array shaped like its input, {tuple(seen.shape)}, "
                f"got {tuple(result.shape)}"
            )
        return _state(result, layout)

    return net


def as_tensor(array: Any) -> torch.Tensor:
    """A tensor on the memory of an array; TypeError for what has no DLPack."""
    if isinstance(array, torch.Tensor):
        return array
    if isinstance(array, np.ndarray):
        # PyTorch takes neither memory that is read-only nor strides that run backwards.
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        return torch.from_numpy(array)
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"expected an array with DLPack, got {type(array).__name__}")
    return torch.from_dlpack(array)


def _array(u: torch.Tensor, layout: str) -> torch.Tensor:
    if u.dim() < 2 or u.shape[1] % 2:
        raise ValueError(f"a state must be (B, 2d) or (B, 2C, H, W), got {tuple(u.shape)}")
    halves = u.movedim(1, -1)
    if layout == "halves":
        return halves
    return halves.unflatten(-1, (2, u.shape[1] // 2)).transpose(-1, -2)


def _state(array: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "pairs":
        if array.dim() < 3 or array.shape[-1] != 2:
            raise ValueError(
                f"expected (B, d, 2) or (B, H, W, C, 2), x and v last, got {tuple(array.shape)}"
            )
        array = array.transpose(-1, -2).flatten(-2)
    return array.movedim(-1, 1)
