"""Samples of a path as states of a plan: two coordinates are one pair (x, v)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cldfast.network import Network
from cldfast.planner.path_forms import INPUTS
from cldfast.planner.plan import Plan
from cldfast.process.path import Path

Tensor = torch.Tensor


class Packing:
    """How samples of one shape lie in states (B, 2 pairs): flat, with a zero where odd in number.

    The first half of a row is the x plane, the second half the v plane, so packing an even number
    of coordinates is a view. plan: of a path whose stages move two coordinates. shape: (n, ...).
    """

    pairs = True

    def __init__(self, plan: Plan, shape: Sequence[int]) -> None:
        assert isinstance(plan.sde, Path)
        self.path, self.form = plan.sde, plan.parameterization
        self.rest = tuple(shape[1:])
        self.size = math.prod(self.rest)
        # Of the planes of a state, as `initial_state` takes them.
        self.shape: tuple[int, ...] = (shape[0], (self.size + 1) // 2)

    def pack(self, name: str, x: Tensor) -> Tensor:
        """Samples, or what a network returns for them, as planes; ValueError for another shape."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if tuple(x.shape[1:]) != self.rest:
            wanted = ", ".join(map(str, ("B", *self.rest)))
            raise ValueError(f"{name} must be ({wanted}), got {tuple(x.shape)}")
        flat = x.flatten(1)
        return torch.nn.functional.pad(flat, (0, 1)) if self.size % 2 else flat

    def unpack(self, u: Tensor) -> Tensor:
        """The samples (B, ...) in states u."""
        return u[:, : self.size].reshape(len(u), *self.rest)

    def network(self, net: Network) -> Network:
        """`net(u, t)` for a network of samples, see `cldfast.planner.path_forms`."""

        def packed(u: Tensor, t: Tensor) -> Tensor | tuple[Tensor, ...]:
            x = self.unpack(u)
            if self.form in INPUTS:
                scale, label = INPUTS[self.form](self.path, t[:1].to(torch.float64))
                x, t = x * scale.to(x.dtype), label.to(t.dtype).expand(len(t))
            result = net(x, t)
            if isinstance(result, Tensor):
                return self.pack("the network's output", result)
            return tuple(self.pack("the network's output", part) for part in result)

        return packed

    def guidance(self, term: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        """A guidance term for samples as one for states."""
        return lambda u, t: self.pack("the guidance term", term(self.unpack(u), t))

    def callback(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """A callback that looks at samples as one for states."""

        def packed(step: int, t: float, u: Tensor) -> Tensor | None:
            replacement = callback(step, t, self.unpack(u))
            return None if replacement is None else self.pack("the callback's state", replacement)

        return packed


class Positions(Packing):
    """The packing of a path with velocities, (B, 2C, ...): the network sees positions."""

    pairs = False

    def __init__(self, plan: Plan, shape: Sequence[int]) -> None:
        super().__init__(plan, shape)
        self.shape = tuple(shape)

    def pack(self, name: str, x: Tensor) -> Tensor:
        return x

    def unpack(self, u: Tensor) -> Tensor:
        return u.chunk(2, dim=1)[0]

    def callback(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        return callback


def packing_of(plan: Plan, shape: Sequence[int]) -> Packing | None:
    """How a plan's states hold samples of a shape (n, ...); None for a phase-space process."""
    if not isinstance(plan.sde, Path):
        return None
    return Packing(plan, shape) if plan.sde.paired else Positions(plan, shape)
