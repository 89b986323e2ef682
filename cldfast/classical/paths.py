"""The processes that classical score-based models noise their data by, see `process.path`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from cldfast.planner.parameterization import LinearMap, Parameterization
from cldfast.planner.path_forms import pair_map, pair_view
from cldfast.planner.solvers import Solver
from cldfast.planner.solvers import solver as register
from cldfast.process.path import Path
from cldfast.process.schedules import LinearBeta, as_float64, as_schedule, on_host, require

Array = Any
Function = Callable[[np.ndarray], np.ndarray]
# A complex step this small has no error of its own, and nothing is subtracted.
_COMPLEX_STEP = 1e-30
# The solvers of Gaussian paths, and the decorator that enters one.
SOLVERS: dict[str, Solver] = {}
solver = partial(register, table=SOLVERS)


class GaussianPath(Path):
    """A path given by functions of time.

    alpha, sigma: analytic functions of numpy arrays, alpha falling from 1 and sigma growing; their
        derivatives are taken by a complex step (Squire and Trapp 1998). T: end time.
    prior_var: variance of the law at T from which sampling starts; None is `sigma(T)^2`.
    """

    solvers = SOLVERS

    def __init__(
        self, alpha: Function, sigma: Function, T: float = 1.0, prior_var: float | None = None
    ) -> None:
        require("> 0", T=T)
        self._alpha, self._sigma = alpha, sigma
        self.T, self.prior_var = float(T), prior_var

    def alpha(self, t: Array) -> Array:
        return _on_host(t, self._alpha)

    def sigma(self, t: Array) -> Array:
        return _on_host(t, self._sigma)

    def slopes(self, t: Array) -> tuple[Array, Array]:
        def slope(f: Function) -> Array:
            return _on_host(t, lambda s: np.imag(f(s + 1j * _COMPLEX_STEP)) / _COMPLEX_STEP)

        return slope(self._alpha), slope(self._sigma)

    def score_map(self, t: np.ndarray, parameterization: Parameterization) -> LinearMap:
        return pair_map(self, t, parameterization, "score")

    def input_map(self, t: np.ndarray, parameterization: Parameterization) -> Any:
        return pair_view(self, t, parameterization)


class OU(GaussianPath):
    """Ornstein-Uhlenbeck, or variance preserving: `dX = -beta X/2 dt + sqrt(beta) dB`.

    beta: a number, a schedule such as `cldfast.CosineBeta`, or a callable. Source: Song et al.
    (2021), eq. 11.
    """

    prior_var = 1.0

    def __init__(self, beta: object = 8.0, T: float = 1.0) -> None:
        require("> 0", T=T)
        self.T, self.beta = float(T), as_schedule(beta, T)

    def alpha(self, t: Array) -> Array:
        tau = self.beta.integral(t)
        return array_namespace(tau).exp(-0.5 * tau)

    def sigma(self, t: Array) -> Array:
        tau = self.beta.integral(t)
        xp = array_namespace(tau)
        return xp.sqrt(-xp.expm1(-tau))

    def slopes(self, t: Array) -> tuple[Array, Array]:
        alpha, half = self.alpha(t), 0.5 * self.beta.beta(t)
        return -half * alpha, half * alpha * alpha / self.sigma(t)


class VP(OU):
    """`OU`, by default with the linear rate from 0.1 to 20 of Song et al. (2021)."""

    def __init__(self, beta: object = None, T: float = 1.0) -> None:
        super().__init__(LinearBeta(0.1, 20.0, T) if beta is None else beta, T)


class EDM(GaussianPath):
    """`X_t = X_0 + t eps`: time is the noise level. Source: Karras et al. (2022), table 1."""

    def __init__(self, T: float = 80.0) -> None:
        require("> 0", T=T)
        self.T = float(T)

    def alpha(self, t: Array) -> Array:
        return 0.0 * as_float64(t) + 1.0

    def sigma(self, t: Array) -> Array:
        return as_float64(t)

    def slopes(self, t: Array) -> tuple[Array, Array]:
        zero = 0.0 * as_float64(t)
        return zero, zero + 1.0


class VE(EDM):
    """Variance exploding: `X_t = X_0 + sigma(t) eps`, sigma geometric from sigma_min to sigma_max.

    At t = 0 the data have noise of level sigma_min already. Source: Song et al. (2021), eq. 9.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, T: float = 1.0) -> None:
        super().__init__(T)
        if not 0.0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self._rate = math.log(sigma_max / sigma_min) / self.T

    def sigma(self, t: Array) -> Array:
        t = as_float64(t)
        return self.sigma_min * array_namespace(t).exp(self._rate * t)

    def slopes(self, t: Array) -> tuple[Array, Array]:
        return 0.0 * as_float64(t), self._rate * self.sigma(t)


class Brownian(EDM):
    """Brownian motion from the data on: `dX = sqrt(2 beta) dB`, the heat equation at rate beta."""

    def __init__(self, beta: object = 50.0, T: float = 1.0) -> None:
        super().__init__(T)
        self.beta = as_schedule(beta, self.T)

    def sigma(self, t: Array) -> Array:
        return (2.0 * self.beta.integral(t)) ** 0.5

    def slopes(self, t: Array) -> tuple[Array, Array]:
        return 0.0 * as_float64(t), self.beta.beta(t) / self.sigma(t)


class FlowMatching(EDM):
    """`X_t = (1 - t) X_0 + t eps`, straight lines from data to noise.

    At t = 1 nothing of the data is left, so the reverse SDE has no finite drift there: solvers with
    noise need T < 1. Source: Lipman et al. (2023), eq. 20, their time reversed; Liu et al. (2023).
    """

    variable = "t"
    parameterization = "flow"

    def __init__(self, T: float = 1.0) -> None:
        super().__init__(T)
        if T > 1.0:
            raise ValueError(f"T must be at most 1, where all is noise, got {T}")

    def alpha(self, t: Array) -> Array:
        return 1.0 - as_float64(t)

    def slopes(self, t: Array) -> tuple[Array, Array]:
        zero = 0.0 * as_float64(t)
        return zero - 1.0, zero + 1.0


def _on_host(t: Array, function: Function) -> Array:
    return on_host(t, lambda s: np.asarray(function(s)) + 0.0 * s)
