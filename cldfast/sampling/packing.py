"""Samples of a path as states of a plan: two coordinates are one pair (x, v)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from cldfast.conditions import null_of
from cldfast.network import Network
from cldfast.sampling.callbacks import InfoCallback, StepInfo

Tensor = torch.Tensor


class Packing:
    """How samples of one shape lie in states (B, 2 pairs): flat, with a zero where odd in number.

    The first half of a row is the x plane, the second half the v plane, so packing an even number
    of coordinates is a view. shape: of the samples, (n, ...); `self.shape` is (n, pairs).
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.rest = tuple(shape[1:])
        self.size = math.prod(self.rest)
        self.shape = (shape[0], (self.size + 1) // 2)

    def pack(self, name: str, x: Tensor) -> Tensor:
        """Samples, or what a network returns for them, as planes; ValueError for another shape."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if tuple(x.shape[1:]) != self.rest:
            wanted = ", ".join(map(str, ("B", *self.rest)))
            raise ValueError(f"{name} must be ({wanted}), got {tuple(x.shape)}")
        flat = x.flatten(1)
        return nn.functional.pad(flat, (0, 1)) if self.size % 2 else flat

    def unpack(self, u: Tensor) -> Tensor:
        """The samples (B, ...) in states u."""
        return u[:, : self.size].reshape(len(u), *self.rest)

    def network(self, net: Network) -> Network:
        """A network of samples as one of states."""
        return _Packed(net, self)

    def guidance(self, term: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        """A guidance term of samples as one of states."""
        return lambda u, t: self.pack("the guidance term", term(self.unpack(u), t))

    def callback(self, callback: InfoCallback) -> InfoCallback:
        """A callback that looks at samples as one that looks at states."""

        def packed(info: StepInfo) -> Tensor | None:
            replacement = callback(info.changed(self.unpack(info.state), self.unpack))
            return None if replacement is None else self.pack("the callback's state", replacement)

        return packed


class _Packed(nn.Module):
    """A module, so that the network's parameters say its device and dtype."""

    def __init__(self, net: Network, packing: Packing) -> None:
        super().__init__()
        self.net, self.packing, self.null = net, packing, null_of(net)

    def forward(self, u: Tensor, t: Tensor, **conditions: Any) -> Tensor | tuple[Tensor, ...]:
        result = self.net(self.packing.unpack(u), t, **conditions)
        if isinstance(result, Tensor):
            return self.packing.pack("the network's output", result)
        return tuple(self.packing.pack("the network's output", part) for part in result)
