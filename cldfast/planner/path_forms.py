"""What a network of a Gaussian path returns: combinations `o = p x0 + q eps` of data and noise.

Two combinations fix x0 and eps, and with them any third. Since `x = alpha x0 + sigma eps` is one,
an output and the state give any quantity `a x0 + b eps`:

    a x0 + b eps = ((a sigma - b alpha) o + (b p - a q) x)/(p sigma - q alpha)

so a table of (p, q) is all that there is to a parameterisation, in sampling and in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from cldfast.planner.parameterization import LinearMap

Array = Any
Form = Callable[[Any, Array], tuple[Array, Array]]


def _size(path: Any, t: Array) -> Array:
    """Root mean square of x for data of standard deviation `sigma_data`."""
    return (path.sigma(t) ** 2 + (path.alpha(t) * path.sigma_data) ** 2) ** 0.5


def _edm(path: Any, t: Array) -> tuple[Array, Array]:
    size, deviation = _size(path, t), path.sigma_data
    return path.sigma(t) / (deviation * size), -deviation * path.alpha(t) / size


# Name -> (p, q). "score": of the noised data. "noise": eps. "v": Salimans and Ho (2022). "flow":
# the velocity dx/dt. "denoiser": D(y, level), the data. "edm": the preconditioned output F in
# `D = c_skip y + c_out F` of Karras et al. (2022), table 1.
FORMS: dict[str, Form] = {
    "score": lambda path, t: (0.0 * t, -1.0 / path.sigma(t)),
    "noise": lambda path, t: (0.0 * t, 0.0 * t + 1.0),
    "x0": lambda path, t: (0.0 * t + 1.0, 0.0 * t),
    "v": lambda path, t: (-path.sigma(t), path.alpha(t)),
    "flow": lambda path, t: path.slopes(t),
    "denoiser": lambda path, t: (0.0 * t + 1.0, 0.0 * t),
    "edm": _edm,
}
# What networks of these forms see: a multiple of x, and in place of the time the noise level
# sigma/alpha of `y = x/alpha`, or a quarter of its logarithm.
INPUTS: dict[str, Form] = {
    "denoiser": lambda path, t: (1.0 / path.alpha(t), path.sigma(t) / path.alpha(t)),
    "edm": lambda path, t: (
        1.0 / _size(path, t), 0.25 * array_namespace(t).log(path.sigma(t) / path.alpha(t))
    ),
}  # fmt: skip


def check_form(path: Any, name: str) -> None:
    """ValueError for a name that is not one of `FORMS`."""
    if name not in FORMS:
        raise ValueError(
            f"unknown parameterization {name!r} of a {type(path).__name__} path; "
            f"expected one of {', '.join(FORMS)}"
        )


def change(path: Any, t: Array, name: str, to: str) -> tuple[Array, Array]:
    """The factors of an output `name` and of x in the quantity `to`, two of `FORMS`, at times t."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    (p, q), (a, b) = FORMS[name](path, t), FORMS[to](path, t)
    det = p * sigma - q * alpha
    return (a * sigma - b * alpha) / det, (b * p - a * q) / det


def pair_map(path: Any, t: np.ndarray, name: str, to: str) -> LinearMap:
    """`change` for two coordinates at times t (n,), as the planner has it.

    Raises ValueError for an unknown form, or one that does not fix the quantity.
    """
    t = np.asarray(t, dtype=np.float64)
    check_form(path, name)
    if name == to:  # also where sigma is 0, as it is for Langevin dynamics
        return LinearMap(blocks(np.ones_like(t)), blocks(np.zeros_like(t)))
    with np.errstate(all="ignore"):
        on_output, on_state = change(path, t, name, to)
    bad = ~(np.isfinite(on_output) & np.isfinite(on_state))
    if np.any(bad):
        raise ValueError(
            f"{name!r} does not give {to!r} at t = {t[bad].max()} of {path}: change t_min or T"
        )
    return LinearMap(blocks(on_output), blocks(on_state))


def blocks(values: Array) -> np.ndarray:
    """`c I` for each number c: (n, 2, 2)."""
    return np.asarray(values)[..., None, None] * np.eye(2)
