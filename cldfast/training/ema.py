"""Exponential moving average (EMA) of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """A running average of a network's parameters; buffers are copied as they are.

    After n updates an update uses `min(decay, (1 + n) / (10 + n))`, so the random initial weights
    are forgotten at once and short runs are averaged over about a tenth of their length.

    Args:
        model: the network that is trained; its layout must not change afterwards.
        decay: weight of the past in one update, in [0, 1).

    Attributes:
        model: the averaged network, a copy in evaluation mode, without gradients.
        updates: number of updates so far.

    Raises:
        ValueError: decay outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay: expected in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._pair(model)

    @property
    def next_decay(self) -> float:
        """The weight of the past in the next update, warm-up included."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, model: nn.Module, skip: Tensor | None = None) -> None:
        """Move the average towards the present weights of `model`; one pass over all of them.

        skip: a number () on the weights' device that is 1 where the average must stay as it is,
            else 0: decided there, without waiting for it.

        Raises ValueError for a model of another layout.
        """
        if self._source is not model:
            self._pair(model)
        weight = 1.0 - self.next_decay
        if skip is None:
            torch._foreach_lerp_(self._averaged, self._current, weight)
        else:
            moves = list(torch._foreach_sub(self._current, self._averaged))
            torch._foreach_mul_(moves, weight * (1.0 - skip))
            torch._foreach_add_(self._averaged, moves)
        for target, source in self._buffers:
            target.copy_(source)
        self.updates += 1

    def _pair(self, model: nn.Module) -> None:
        """Collect the tensors once: walking a network's modules costs as much as averaging it."""
        averaged: list[Tensor] = list(self.model.parameters())
        current: list[Tensor] = list(model.parameters())
        if [p.shape for p in averaged] != [p.shape for p in current]:
            raise ValueError("model: expected the parameters of the averaged network")
        self._averaged, self._current = averaged, current
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))
        self._source = model

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the weights and buffers of `model` with the averaged ones."""
        model.load_state_dict(self.model.state_dict())

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the block `model` has the averaged weights; afterwards its own again."""
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield model
        finally:
            model.load_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """Averaged weights under "model", and the number of updates; `load_state_dict` reads it."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; RuntimeError (from PyTorch) if the weights do not fit."""
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])
