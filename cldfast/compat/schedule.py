"""A noise schedule from the two functions that codebases pass around."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cldfast.process.schedules import CallableBeta, as_float64

Rate = Callable[[Any], Any]


@dataclass(frozen=True)
class FunctionBeta(CallableBeta):
    """`beta(t)`, `function`, and its integral from 0, each a function of a float64 tensor.

    Both return a tensor of the same shape, or a number. T: end time.
    """

    antiderivative: Rate = field(kw_only=True)

    def beta(self, t: Any) -> Any:
        """Rate at time t."""
        return _call(self.function, t)

    def integral(self, t: Any) -> Any:
        """Integral of the rate over [0, t]."""
        return _call(self.antiderivative, t)


def _call(function: Rate, value: Any) -> Any:
    """A function of tensors applied to an array of torch or numpy, which it stays."""
    array = as_float64(value)
    if isinstance(array, torch.Tensor):
        return function(array) + 0.0 * array
    tensor = torch.tensor(np.asarray(array), device="cpu")
    return (function(tensor) + 0.0 * tensor).numpy()
