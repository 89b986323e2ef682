"""A noise schedule from the two functions that codebases pass around."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cldfast.process.schedules import as_float64

Rate = Callable[[torch.Tensor], Any]


@dataclass(frozen=True)
class FunctionBeta:
    """`beta(t)` and its integral from 0, both given as functions of a float64 tensor.

    function, antiderivative: tensor -> tensor of the same shape, or a number. T: end time.
    """

    function: Rate
    antiderivative: Rate
    T: float = 1.0

    def beta(self, t: Any) -> Any:
        """Rate at time t."""
        return _call(self.function, t)

    def integral(self, t: Any) -> Any:
        """Integral of the rate over [0, t]."""
        return _call(self.antiderivative, t)

    def inverse(self, tau: Any) -> Any:
        """Bracketed root finding (`scipy.optimize.brentq`) on [0, T]; ValueError outside."""
        return _call(self._inverse, tau)

    def _inverse(self, tau: torch.Tensor) -> torch.Tensor:
        from scipy.optimize import brentq

        end = float(self.integral(self.T))
        targets = tau.detach().cpu().numpy()
        # A target may pass the end by the rounding of the integral.
        if np.any(targets < 0.0) or np.any(targets > end * (1.0 + 1e-12)):
            raise ValueError(f"tau must lie in [0, {end}], got {targets.tolist()}")

        def excess(t: float, target: float) -> float:
            return float(self.integral(t)) - min(target, end)

        roots = [brentq(excess, 0.0, self.T, args=(y,), xtol=1e-15) for y in targets.ravel()]
        return torch.tensor(roots, dtype=torch.float64, device=tau.device).reshape(tau.shape)


def _call(function: Rate, value: Any) -> Any:
    """A function of tensors applied to an array of torch or numpy, which it stays."""
    array = as_float64(value)
    if isinstance(array, torch.Tensor):
        return function(array) + 0.0 * array
    tensor = torch.tensor(np.asarray(array), device="cpu")
    return (function(tensor) + 0.0 * tensor).numpy()
