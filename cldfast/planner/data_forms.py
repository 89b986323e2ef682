"""Networks that predict the data, each a form of `D(y, sigma) = E[x0 | u]` with one output plane.

Given x0 the state is normal with the same mean row m and covariance Sigma at every coordinate, so
all that `u = (x, v)` says about the data is one plane,

    y = m^T Sigma^-1 u / snr,      snr = m^T Sigma^-1 m,      y | x0 ~ N(x0, sigma^2),

with `sigma = snr^(-1/2)`. A form makes the prediction out of its output o,

    x0 = keep y + gain o,

and `drop = 1 - keep` is given beside it, which is exact where the difference would cancel. Some
forms are asked about the state at time t, others about `scale y` with an argument of their own, so
that a network which never heard of v serves.

Sources: Karras et al. (2022), "Elucidating the design space of diffusion-based generative models",
section 5 and table 1, for the preconditioning; Salimans and Ho (2022), appendix D, for the
v-prediction; Ho, Jain, Abbeel (2020) for the prediction of the noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace

Array = Any


@dataclass(frozen=True)
class FormCoefficients:
    """`x0 = keep y + gain o`, and `drop = 1 - keep`, at noise levels (n,).

    scale, argument: the network sees `scale y` and the argument; None where it sees u and t.
    """

    keep: Array
    drop: Array
    gain: Array
    scale: Array | None = None
    argument: Array | None = None


class DataForm(ABC):
    """One way of writing `E[x0 | u]` as a network's output."""

    name: ClassVar[str]
    # Whether the network sees y and not the state.
    sees_y: ClassVar[bool] = True

    @abstractmethod
    def coefficients(self, sigma: Array) -> FormCoefficients:
        """The form at noise levels sigma (n,) > 0, float64."""

    def noise_level(self, argument: Array) -> Array:
        """The noise levels (n,) at which a network of y gets these arguments."""
        return argument

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class DataPrediction(DataForm):
    """x0 itself, of the state at time t."""

    name = "x0"
    sees_y = False

    def coefficients(self, sigma: Array) -> FormCoefficients:
        zero = sigma * 0.0
        return FormCoefficients(zero, zero + 1.0, zero + 1.0)


@dataclass(frozen=True)
class DataNoise(DataForm):
    """The unit noise `nu = (y - x0) / sigma` of y, of the state at time t."""

    name = "data_noise"
    sees_y = False

    def coefficients(self, sigma: Array) -> FormCoefficients:
        zero = sigma * 0.0
        return FormCoefficients(zero + 1.0, zero, -sigma)


@dataclass(frozen=True)
class Denoiser(DataForm):
    """x0, as `D(y, sigma)`."""

    name = "denoiser"

    def coefficients(self, sigma: Array) -> FormCoefficients:
        zero = sigma * 0.0
        return FormCoefficients(zero, zero + 1.0, zero + 1.0, zero + 1.0, sigma)


@dataclass(frozen=True)
class NoisePrediction(DataForm):
    """nu, of `y / sqrt(1 + sigma^2)` and sigma: what a variance-preserving process shows."""

    name = "epsilon"

    def coefficients(self, sigma: Array) -> FormCoefficients:
        zero = sigma * 0.0
        return FormCoefficients(zero + 1.0, zero, -sigma, _vp_scale(sigma), sigma)


@dataclass(frozen=True)
class VPrediction(DataForm):
    """`alpha nu - s x0`, `(alpha, s) = (1, sigma) / sqrt(1 + sigma^2)`, of `alpha y` and sigma."""

    name = "v_prediction"

    def coefficients(self, sigma: Array) -> FormCoefficients:
        alpha = _vp_scale(sigma)
        return FormCoefficients(alpha**2, (sigma * alpha) ** 2, -sigma * alpha, alpha, sigma)


@dataclass(frozen=True)
class Preconditioned(DataForm):
    """The preconditioned denoiser of Karras et al. (2022), "edm".

    `D(y, sigma) = c_skip y + c_out F(c_in y, c_noise)` with `c_noise = ln(sigma)/4`: input, output
    and training target of F have variance 1 for data of variance sigma_data^2 at every sigma.

    sigma_data: standard deviation of the data, > 0; 1 for standardised data.
    """

    name = "edm"
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        value = self.sigma_data
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"sigma_data must be a number, got {type(value).__name__}")
        if not 0.0 < value < math.inf:
            raise ValueError(f"sigma_data must be finite and > 0, got {value}")

    def __str__(self) -> str:
        return f"edm(sigma_data={self.sigma_data:g})" if self.sigma_data != 1.0 else self.name

    def coefficients(self, sigma: Array) -> FormCoefficients:
        xp = array_namespace(sigma)
        scale = 1.0 / xp.sqrt(sigma**2 + self.sigma_data**2)
        return FormCoefficients(
            (self.sigma_data * scale) ** 2, (sigma * scale) ** 2, sigma * self.sigma_data * scale,
            scale, 0.25 * xp.log(sigma),
        )  # fmt: skip

    def noise_level(self, argument: Array) -> Array:
        return array_namespace(argument).exp(4.0 * argument)


def _vp_scale(sigma: Array) -> Array:
    return 1.0 / array_namespace(sigma).sqrt(1.0 + sigma**2)


DATA_FORMS: dict[str, DataForm] = {
    form.name: form
    for form in (
        DataPrediction(), DataNoise(), Denoiser(), NoisePrediction(), VPrediction(),
        Preconditioned(),
    )
}  # fmt: skip
