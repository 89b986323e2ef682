"""Gaussian paths `X_t = alpha(t) X_0 + sigma(t) eps` from data to noise, forward time 0 to T.

Every classical score-based model noises its data along such a path. Its laws are those of

    dX = f X dt + g dB      f = alpha'/alpha,    g^2 = 2 sigma (sigma' alpha - alpha' sigma)/alpha

and backward in time, with their score s, the reverse SDE is `dX = (-f X + g^2 s) dr + g dB` for
r = -t, and the probability flow `dX/dt = f X - g^2 s/2` (Song et al. 2021, eqs. 6 and 13). Where
alpha falls and sigma grows, nothing here cancels.

A path has no velocity. A pair (x, v) of its stages holds two coordinates of a sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from cldfast.process.linear_flow import Covariance, stack_matrix
from cldfast.process.prior_gap import PriorGap, prior_gap
from cldfast.process.sde import LinearPhaseSDE, Marginal

Array = Any
# A bisection over the logarithm from this part of the largest number to all of it ends after 60
# halvings below the spacing of float64.
_FLOOR = 1e-12
_HALVINGS = 60


class Path(ABC):
    """What is known of a path from alpha, sigma and their derivatives.

    The planner has no solvers of its own for a path: it asks the path for them, and for the map
    from a network's output to the score. `cldfast.classical` has both, and the paths.
    """

    T: float
    # Variance of the law from which sampling starts; None is `sigma(T)^2`.
    prior_var: float | None = None
    # Whether the planes of a state are two coordinates of the data, or one and its velocity.
    paired: ClassVar[bool] = True
    # In which the polynomials of exponential solvers are polynomials: "log_snr" or "t".
    variable: ClassVar[str] = "log_snr"
    # What a network is taken to return where nothing is said, see `planner.path_forms`.
    parameterization: ClassVar[str] = "score"
    # Name -> `cldfast.planner.solvers.Solver`.
    solvers: ClassVar[Mapping[str, Any]]

    @abstractmethod
    def alpha(self, t: Array) -> Array:
        """The factor of the data, float64 in the shape of t."""

    @abstractmethod
    def sigma(self, t: Array) -> Array:
        """The standard deviation of the noise, float64 in the shape of t."""

    @abstractmethod
    def slopes(self, t: Array) -> tuple[Array, Array]:
        """The derivatives of alpha and sigma."""

    @abstractmethod
    def score_map(self, t: np.ndarray, parameterization: Any) -> Any:
        """The `LinearMap` from output and state to the score of a pair at times t (n,)."""

    @abstractmethod
    def input_map(self, t: np.ndarray, parameterization: Any) -> Any:
        """What the network sees at times t (n,), see `planner.parameterization.input_map`."""

    def __repr__(self) -> str:
        shown = (f"{k}={v}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({', '.join(shown)})"

    def drift(self, t: Array) -> Array:
        """f, infinite where alpha is 0."""
        return self.slopes(t)[0] / self.alpha(t)

    def diffusion(self, t: Array) -> Array:
        """`g^2`, infinite where alpha is 0."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        falling, growing = self.slopes(t)
        return 2.0 * sigma * (growing * alpha - falling * sigma) / alpha

    def log_sigma(self, t: np.ndarray) -> np.ndarray:
        """`log(sigma/alpha)`, minus half the log signal-to-noise ratio."""
        with np.errstate(divide="ignore"):
            level: np.ndarray = np.log(self.sigma(t)) - np.log(self.alpha(t))
        return level

    def time(self, log_sigma: np.ndarray) -> np.ndarray:
        """The times at which `log_sigma` has these values, at most T."""
        return np.minimum(bisected(self.log_sigma, log_sigma, self.T), self.T)

    def marginal(self, t: Array, objective: str = "dsm") -> Marginal:
        """The law of a pair given its data: `mean` (..., 2, 2) is `alpha I`."""
        alpha = self.alpha(t)
        zero = 0.0 * alpha
        return Marginal(stack_matrix(alpha, zero, zero, alpha), isotropic(self.sigma(t) ** 2))

    def gaussian(self, t: Array, data_var: float) -> Marginal:
        """The law of a pair for data `N(1, data_var)` per coordinate."""
        alpha = self.alpha(t)
        variance = alpha * alpha * data_var + self.sigma(t) ** 2
        return Marginal(np.stack([alpha, alpha], axis=-1), isotropic(variance))

    def prior(self) -> Marginal:
        """The law of a pair from which sampling starts, of mean 0."""
        variance = self.sigma(self.T) ** 2 if self.prior_var is None else self.prior_var
        return Marginal(np.zeros(2), isotropic(np.float64(variance)))

    def prior_gap(self, second_moment: float, dim: int = 1) -> PriorGap:
        """How far the law at T is from `prior`, at most, over data of a second moment.

        second_moment: `E |x0|^2`, summed over the coordinates. dim: number of coordinates. For
        `Brownian(1)` the divergence is `E |x0|^2/(4 T)`.

        Raises ValueError for a second moment < 0 or dim < 1.
        """
        cov = isotropic(np.float64(self.sigma(self.T) ** 2)).matrix
        mean = np.array([self.alpha(self.T), 0.0])
        return prior_gap(mean, cov, self.prior().cov, second_moment, dim / 2)


def bisected(
    rising: Callable[[np.ndarray], np.ndarray], values: np.ndarray, largest: float
) -> np.ndarray:
    """Where a rising function of positive numbers has these values, at most at the largest."""
    low = np.full(np.shape(values), math.log(largest) + math.log(_FLOOR))
    high = np.full(np.shape(values), math.log(largest))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = rising(np.exp(middle)) > values
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.exp(high)


def isotropic(variance: Array) -> Covariance:
    """The covariance of two independent coordinates of one variance."""
    return Covariance(variance, 0.0 * variance, variance, variance * variance)


Process = LinearPhaseSDE | Path
