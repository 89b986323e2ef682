"""The rate of StanislasStrasman/CLD: linear, or exponential with a shape `a`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cldfast.compat.published import check_mode
from cldfast.process.schedules import CallableBeta, ExponentialBeta, LinearBeta, Schedule

# Below this |a| the codebase takes the rate for linear.
LINEAR_BELOW = 1e-3
# Gauss-Legendre nodes for the integral of beta^2: exact to rounding for exponents `a T` up to 20.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


class beta_parametric:
    """`beta(t) = beta_min + delta (exp(a t) - 1)`, `beta(final_time) = beta_max`; a = 0: linear.

    a: shape, per unit of time. final_time: > 0. beta_min, beta_max: rates at 0 and final_time.
    mode: "published" repeats the codebase's arithmetic in the dtype of t, and for 0 < |a| < 1e-3
        its slope of the exponential in the linear formula; "exact" computes in float64 and returns
        the dtype of t.

    Source: Strasman et al. (2025), section 4, with the code of the same authors.
    """

    mode = "exact"

    def __init__(
        self, a: float, final_time: float, beta_min: float, beta_max: float, mode: str | None = None
    ) -> None:
        self.mode = check_mode(mode or self.mode)
        self.a, self.final_time = a, final_time
        self.beta_min, self.beta_max = beta_min, beta_max
        self.delta = self._delta(linear=a == 0)

    def _delta(self, linear: bool) -> float:
        change = self.beta_max - self.beta_min
        return change / (self.final_time if linear else math.expm1(self.a * self.final_time))

    def change_a(self, a: float) -> None:
        """Another shape, with the same rates at both ends."""
        self.a = a
        self.delta = self._delta(linear=abs(a) < LINEAR_BELOW)

    @property
    def schedule(self) -> Schedule:
        """The same rate as a schedule of `cldfast`."""
        if self.a == 0:
            return LinearBeta(self.beta_min, self.beta_max, self.final_time)
        delta = self._delta(linear=False)
        if self.a > 0 and delta >= 0:
            return ExponentialBeta(self.beta_min, delta, self.a)
        return CallableBeta(
            lambda t: self.beta_min + delta * math.expm1(self.a * t), self.final_time
        )

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        """The rate at times t, shaped like t."""
        if self.mode == "exact":
            return self._exact(self.schedule.beta, t)
        if abs(self.a) < LINEAR_BELOW:
            return self.beta_min + self.delta * t
        return self.beta_min + self.delta * (torch.exp(self.a * t) - 1.0)

    def integrate(self, t: torch.Tensor) -> torch.Tensor:
        """The integral of the rate over [0, t], shaped like t."""
        if self.mode == "exact":
            return self._exact(self.schedule.integral, t)
        if abs(self.a) < LINEAR_BELOW:
            return self.beta_min * t + 0.5 * self.delta * t**2
        grown = (torch.exp(self.a * t) - 1) / self.a
        return self.beta_min * t + self.delta * (grown - t)

    def square_integrate(self, t: torch.Tensor) -> torch.Tensor:
        """The integral of the squared rate over [0, t], shaped like t; float64 inside.

        By quadrature: a sum of squares, where the closed form cancels for small `a t`.
        """
        nodes = torch.from_numpy(0.5 * (_NODES + 1.0)).to(t.device)
        weights = torch.from_numpy(0.5 * _WEIGHTS).to(t.device)
        wide = t.to(torch.float64)[..., None]
        return ((self(wide * nodes) ** 2 * weights).sum(-1) * wide[..., 0]).to(t.dtype)

    @staticmethod
    def _exact(function: Any, t: torch.Tensor) -> torch.Tensor:
        return function(t.to(torch.float64)).to(t.dtype)
