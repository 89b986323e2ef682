"""Noise schedules: `beta(t)`, its exact integral `tau(t)` from 0 to t, and the inverse `t(tau)`.

Time runs forward. Methods take floats, numpy or torch arrays, compute in float64 and keep the
shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

Array = Any


def as_float64(value: Array) -> Array:
    """A float64 array of the same library and device; numbers become numpy arrays."""
    if not is_array_api_obj(value):
        return np.asarray(value, dtype=np.float64)
    xp = array_namespace(value)
    return xp.astype(value, xp.float64, copy=False)


def _namespace(value: Array) -> tuple[Any, Array]:
    """The value as by `as_float64`, and its array library."""
    array = as_float64(value)
    return array_namespace(array), array


@runtime_checkable
class Schedule(Protocol):
    """What the SDE asks of a schedule."""

    def beta(self, t: Array) -> Array:
        """Rate at time t."""

    def integral(self, t: Array) -> Array:
        """`tau(t)`, the integral of beta over [0, t]."""

    def inverse(self, tau: Array) -> Array:
        """The time at which the integral reaches `tau`."""


def require(relation: str, **values: float) -> None:
    """ValueError for a value that is not finite and not "> 0" or ">= 0", as `relation` says."""
    for name, value in values.items():
        allowed = value > 0.0 or (value == 0.0 and relation == ">= 0")
        if not (math.isfinite(value) and allowed):
            raise ValueError(f"{name} must be a finite number {relation}, got {value!r}")


@dataclass(frozen=True)
class ConstantBeta:
    """`beta(t) = value` (Dockhorn, Vahdat, Kreis 2022 use 4)."""

    value: float = 4.0

    def __post_init__(self) -> None:
        require("> 0", value=self.value)

    def beta(self, t: Array) -> Array:
        return as_float64(t) * 0.0 + self.value

    def integral(self, t: Array) -> Array:
        return as_float64(t) * self.value

    def inverse(self, tau: Array) -> Array:
        return as_float64(tau) / self.value


@dataclass(frozen=True)
class LinearBeta:
    """`beta(t) = beta_min + (beta_max - beta_min) t / T`: the values at 0 and at T."""

    beta_min: float
    beta_max: float
    T: float = 1.0

    def __post_init__(self) -> None:
        require(">= 0", beta_min=self.beta_min)
        require("> 0", beta_max=self.beta_max, T=self.T)

    @property
    def _slope(self) -> float:
        return (self.beta_max - self.beta_min) / self.T

    def beta(self, t: Array) -> Array:
        return as_float64(t) * self._slope + self.beta_min

    def integral(self, t: Array) -> Array:
        t = as_float64(t)
        return t * (self.beta_min + 0.5 * self._slope * t)

    def inverse(self, tau: Array) -> Array:
        """The root of the quadratic, in the form that does not cancel for small `tau` or slope."""
        xp, tau = _namespace(tau)
        root = xp.sqrt(self.beta_min**2 + 2.0 * self._slope * tau)
        return _divide(xp, 2.0 * tau, root + self.beta_min, tau)


def _divide(xp: Any, a: Array, b: Array, otherwise: Array) -> Array:
    """`a / b` where b > 0, `otherwise` elsewhere."""
    positive = b > 0.0
    return xp.where(positive, a / xp.where(positive, b, xp.ones_like(b)), otherwise)


@dataclass(frozen=True)
class ExponentialBeta:
    """`beta(t) = beta_min + delta (exp(k t) - 1)` with `k > 0`."""

    beta_min: float
    delta: float
    k: float = 1.0

    def __post_init__(self) -> None:
        require(">= 0", beta_min=self.beta_min, delta=self.delta)
        require("> 0", k=self.k, beta_min_plus_delta=self.beta_min + self.delta)

    def beta(self, t: Array) -> Array:
        xp, t = _namespace(t)
        return self.beta_min + self.delta * xp.expm1(self.k * t)

    def integral(self, t: Array) -> Array:
        """`beta_min t + delta (expm1(k t)/k - t)`, the bracket by its series where it cancels."""
        xp, t = _namespace(t)
        return self.beta_min * t + (self.delta / self.k) * _expm1_minus(xp, self.k * t)

    def inverse(self, tau: Array) -> Array:
        """Newton's method on the convex, increasing integral from an upper bound."""
        xp, tau = _namespace(tau)
        # Both parts of the integral are bounds: beta_min t <= tau and delta k t^2 / 2 <= tau. From
        # above, Newton on a convex increasing function decreases monotonically to the root.
        bounds = []
        if self.beta_min > 0.0:
            bounds.append(tau / self.beta_min)
        if self.delta > 0.0:
            part = self.k * tau / self.delta
            bounds.append(xp.sqrt(2.0 * tau / (self.delta * self.k)))
            bounds.append(xp.log1p(xp.sqrt(2.0 * part) + part) / self.k)
        t = reduce(xp.minimum, bounds)
        for _ in range(_NEWTON_STEPS):
            t = t - _divide(xp, self.integral(t) - tau, self.beta(t), xp.zeros_like(t))
        return t


# Quadratic convergence: from a bound within a factor of a few, 10 steps reach rounding with room.
_NEWTON_STEPS = 10


def _expm1_minus(xp: Any, z: Array) -> Array:
    """`exp(z) - 1 - z`, by its series (1/19! < 2^-53) for z < 1, where the terms cancel."""
    small = xp.where(z < 1.0, z, xp.zeros_like(z))
    series = xp.zeros_like(z)
    for n in range(19, 1, -1):
        series = (series + 1.0 / math.factorial(n)) * small
    return xp.where(z < 1.0, series * small, xp.expm1(z) - z)


@dataclass(frozen=True)
class CosineBeta:
    """`tau(t) = -2 scale ln(cos(a + (b - a) t/T) / cos a)`: Nichol and Dhariwal's cosine schedule.

    Their `alpha_bar = exp(-tau)` at `scale = 1`, with `a = (pi/2) offset/(1 + offset)`; the angle
    at T is `b = (pi/2) end`, `end < 1` keeping beta finite (they clip beta instead).
    Source: Nichol and Dhariwal (2021), "Improved DDPM", eq. 17.
    """

    scale: float = 1.0
    offset: float = 0.008
    end: float = 0.99
    T: float = 1.0

    def __post_init__(self) -> None:
        require("> 0", scale=self.scale, T=self.T)
        require(">= 0", offset=self.offset)
        if not self.offset / (1.0 + self.offset) < self.end < 1.0:
            raise ValueError(f"end must lie between offset/(1 + offset) and 1, got {self.end!r}")

    @property
    def _start_angle(self) -> float:
        return 0.5 * math.pi * self.offset / (1.0 + self.offset)

    @property
    def _speed(self) -> float:
        return (0.5 * math.pi * self.end - self._start_angle) / self.T

    def beta(self, t: Array) -> Array:
        xp, t = _namespace(t)
        return (2.0 * self.scale * self._speed) * xp.tan(self._start_angle + self._speed * t)

    def integral(self, t: Array) -> Array:
        """By `cos(a + x)/cos a = 1 - (2 sin^2(x/2) + tan(a) sin(x))`, exact for small t."""
        xp, t = _namespace(t)
        x = t * self._speed
        drop = 2.0 * xp.sin(0.5 * x) ** 2 + math.tan(self._start_angle) * xp.sin(x)
        return -2.0 * self.scale * xp.log1p(-drop)

    def inverse(self, tau: Array) -> Array:
        """`2 sin^2(x/2) + tan(a) sin x = drop` solved through the half angle, `h = tan(x/2)`.

        With `drop = 1 - exp(-tau/(2 scale))` the half angle solves
        `(2 - drop) h^2 + 2 tan(a) h - drop = 0`.
        """
        xp, tau = _namespace(tau)
        drop = -xp.expm1(tau * (-0.5 / self.scale))
        tangent = math.tan(self._start_angle)
        denominator = tangent + xp.sqrt(tangent**2 + (2.0 - drop) * drop)
        return 2.0 * xp.atan(_divide(xp, drop, denominator, drop)) / self._speed


@dataclass(frozen=True)
class CallableBeta:
    """Any positive `beta(t)`, integrated by SciPy's adaptive quadrature (`scipy.integrate.quad`).

    function: maps a float in [0, T] to a finite rate >= 0; kinks cost accuracy. The integral is
    good to about 1e-12 relative for smooth rates; its cost is one quadrature per distinct time, on
    the host, so prefer a closed form for training.
    """

    function: Callable[[float], float]
    T: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"beta must be a number, a schedule or a callable, got {self.function!r}"
            )
        require("> 0", T=self.T)

    def beta(self, t: Array) -> Array:
        return on_host(t, lambda x: np.array([float(self.function(s)) for s in x]))

    def integral(self, t: Array) -> Array:
        return on_host(t, self._quadratures)

    def inverse(self, tau: Array) -> Array:
        return on_host(tau, self._roots)

    def _quadratures(self, times: np.ndarray) -> np.ndarray:
        """The integrals up to each time: quadrature between neighbouring distinct times, summed."""
        from scipy.integrate import quad

        nodes, where = np.unique(times, return_inverse=True)
        starts = np.concatenate([[0.0], nodes[:-1]])
        pieces = [
            quad(self.function, start, end, epsabs=0.0, epsrel=QUADRATURE_ERROR, limit=200)[0]
            for start, end in zip(starts, nodes, strict=True)
        ]
        if not all(math.isfinite(piece) and piece >= 0.0 for piece in pieces):
            raise ValueError("beta must be finite and >= 0 on [0, T], and so its integral")
        return np.cumsum(pieces)[where]

    def _roots(self, targets: np.ndarray) -> np.ndarray:
        """Bracketed root finding (`scipy.optimize.brentq`) on [0, T], to about 1e-15 T."""
        from scipy.optimize import brentq

        end = float(self.integral(self.T))
        outside = (targets < 0.0) | (targets > end * (1.0 + 10.0 * QUADRATURE_ERROR))
        if np.any(outside):
            raise ValueError(f"tau must lie in [0, {end}], got {targets[outside][0]}")

        def excess(t: float, target: float) -> float:
            return float(self.integral(t)) - min(target, end)

        return np.array(
            [brentq(excess, 0.0, self.T, args=(y,), xtol=1e-15 * self.T) for y in targets]
        )


# The relative error asked of each quadrature; QUADPACK warns of rounding if asked for much less.
QUADRATURE_ERROR = 1e-13


def on_host(array: Array, function: Callable[[np.ndarray], np.ndarray]) -> Array:
    """Apply a function of flat numpy float64 arrays to an array of any library."""
    xp, array = _namespace(array)
    if isinstance(array, np.ndarray | np.generic):
        return function(np.ravel(array)).reshape(np.shape(array))
    host = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    return xp.asarray(function(host.ravel()).reshape(host.shape), device=array.device)


_KINDS: dict[str, type] = {
    "constant": ConstantBeta,
    "linear": LinearBeta,
    "exponential": ExponentialBeta,
    "cosine": CosineBeta,
}


def as_schedule(beta: object, T: float) -> Schedule:
    """A number becomes `ConstantBeta`, a bare callable `CallableBeta`; schedules pass."""
    if isinstance(beta, Schedule):
        return beta
    if isinstance(beta, int | float | np.number) and not isinstance(beta, bool):
        require("> 0", beta=float(beta))
        return ConstantBeta(float(beta))
    return CallableBeta(beta, T)  # type: ignore[arg-type]


def schedule_config(schedule: Schedule) -> dict[str, Any]:
    """The schedule as plain data, for a run folder."""
    for name, kind in _KINDS.items():
        if type(schedule) is kind:
            return {"kind": name, **asdict(schedule)}  # type: ignore[call-overload]
    raise ValueError(
        f"only the schedules {', '.join(_KINDS)} can be written to a file, "
        f"got {type(schedule).__name__}"
    )


def schedule_from_config(config: dict[str, Any]) -> Schedule:
    """Inverse of `schedule_config`."""
    fields = dict(config)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"unknown schedule {kind!r}; expected one of {', '.join(_KINDS)}")
    try:
        result: Schedule = _KINDS[kind](**fields)
    except TypeError as error:
        raise ValueError(f"bad fields for the {kind} schedule: {error}") from error
    return result
