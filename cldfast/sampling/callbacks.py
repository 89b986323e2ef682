"""What a run tells its callback after each stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

InfoCallback = Callable[["StepInfo"], torch.Tensor | None]
StateCallback = Callable[[int, float, torch.Tensor], torch.Tensor | None]
# `callback(info)`, or `callback(step, t, state)`.
Callback = InfoCallback | StateCallback


@dataclass(frozen=True)
class StepInfo:
    """A run after one of its stages, for `callback(info)`.

    step: the number of the stage, from 0. t: the time that it has led to. state: the state there,
    (B, 2d) or (B, 2C, H, W); of a path the samples themselves.
    """

    step: int
    t: float
    state: torch.Tensor
    predict: Callable[[], torch.Tensor | None] = field(repr=False)

    @property
    def x0(self) -> torch.Tensor | None:
        """`E[x0 | state]` of the latest network evaluation, for previews; None before the first.

        (B, d) or (B, C, H, W). With guidance it is the guided prediction. It is made from the
        network's output when it is asked for, without another evaluation.
        """
        return self.predict()

    def changed(
        self, state: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> StepInfo:
        """The same with another state, and with the prediction changed by a function."""

        def predict() -> torch.Tensor | None:
            made = self.predict()
            return None if made is None else change(made)

        return replace(self, state=state, predict=predict)


def as_info_callback(callback: Callback) -> InfoCallback:
    """A callback of either kind as one that takes a `StepInfo`.

    A callback that can be called with three arguments is called so.

    Raises TypeError for one that can be called neither way.
    """
    call: Any = callback
    if not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    if _takes(call, 3):
        return lambda info: call(info.step, info.t, info.state)
    if not _takes(call, 1):
        raise TypeError("callback must be callback(info) or callback(step, t, state)")
    result: InfoCallback = call
    return result


def _takes(call: Callable[..., Any], arguments: int) -> bool:
    try:
        inspect.signature(call).bind(*[None] * arguments)
    except TypeError:
        return False
    except ValueError:  # a function that says nothing
        return arguments == 3
    return True
