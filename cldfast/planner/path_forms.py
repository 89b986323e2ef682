"""What a network of a Gaussian path returns: combinations `o = p x0 + q eps` of data and noise.

Two combinations fix x0 and eps, and with them any third. Since `x = alpha x0 + sigma eps` is one,
an output and the state give any quantity `a x0 + b eps`:

    a x0 + b eps = ((a sigma - b alpha) o + (b p - a q) x)/(p sigma - q alpha)

so a table of (p, q) is all that there is to a parameterisation, in sampling and in training. The
forms of `cldfast.planner.data_forms` serve too, for `y = x/alpha` at the noise level sigma/alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cldfast.planner.data_forms import DATA_FORMS, DataForm
from cldfast.planner.parameterization import LinearMap, Parameterization
from cldfast.process.path import Path

Array = Any
# Name -> (p, q) at times t. "score": of the noised data. "noise": eps. "v": Salimans and Ho (2022).
# "flow": the velocity dx/dt, Lipman et al. (2023).
FORMS: dict[str, Callable[[Path, Array], tuple[Array, Array]]] = {
    "score": lambda path, t: (0.0 * t, -1.0 / path.sigma(t)),
    "noise": lambda path, t: (0.0 * t, 0.0 * t + 1.0),
    "x0": lambda path, t: (0.0 * t + 1.0, 0.0 * t),
    "v": lambda path, t: (-path.sigma(t), path.alpha(t)),
    "flow": lambda path, t: path.slopes(t),
}


def data_form_of(path: Path, name: Parameterization) -> DataForm | None:
    """The form of a network that predicts the data from y, None for one of `FORMS`.

    Raises ValueError for an unknown name.
    """
    form = name if isinstance(name, DataForm) else None
    if form is None and name not in FORMS:
        form = DATA_FORMS.get(str(name))
        if form is None:
            raise ValueError(
                f"unknown parameterization {name!r} of a {type(path).__name__} path; expected one "
                f"of {', '.join(dict.fromkeys([*FORMS, *DATA_FORMS]))}"
            )
    return form


def parts(path: Path, t: Array, name: Parameterization) -> tuple[Array, Array]:
    """(p, q) of an output at times t, float64."""
    form = data_form_of(path, name)
    if form is None:
        return FORMS[str(name)](path, t)
    level = path.sigma(t) / path.alpha(t)
    made = form.coefficients(level)
    # x0 = keep y + gain o with y = x0 + level eps
    return made.drop / made.gain, -made.keep * level / made.gain


def change(
    path: Path, t: Array, name: Parameterization, to: Parameterization
) -> tuple[Array, Array]:
    """The factors of an output `name` and of x in the quantity `to`, at times t, float64."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    (p, q), (a, b) = parts(path, t, name), parts(path, t, to)
    det = p * sigma - q * alpha
    return (a * sigma - b * alpha) / det, (b * p - a * q) / det


def view(path: Path, t: Array, name: Parameterization) -> tuple[Array, Array] | None:
    """The factor of x in what the network sees, and its second argument; None for x and t."""
    form = data_form_of(path, name)
    if form is None or not form.sees_y:
        return None
    made = form.coefficients(path.sigma(t) / path.alpha(t))
    assert made.scale is not None and made.argument is not None  # of a form that sees y
    return made.scale / path.alpha(t), made.argument


def pair_map(path: Path, t: np.ndarray, name: Parameterization, to: str) -> LinearMap:
    """`change` for two coordinates at times t (n,), as the planner has it.

    Raises ValueError for an unknown form, or one that does not fix the quantity.
    """
    t = np.asarray(t, dtype=np.float64)
    data_form_of(path, name)
    if name == to:  # also where sigma is 0, as it is for Langevin dynamics
        return LinearMap(blocks(np.ones_like(t)), blocks(np.zeros_like(t)))
    with np.errstate(all="ignore"):
        on_output, on_state = change(path, t, name, to)
    bad = ~(np.isfinite(on_output) & np.isfinite(on_state))
    if np.any(bad):
        raise ValueError(
            f"{str(name)!r} does not give {to!r} at t = {t[bad].max()} of {path}: change t_min or T"
        )
    return LinearMap(blocks(on_output), blocks(on_state))


def pair_view(
    path: Path, t: np.ndarray, name: Parameterization
) -> tuple[np.ndarray, np.ndarray] | None:
    """`view` for two coordinates, as `input_map` of the planner has it: (n, 2, 2) and (n,)."""
    seen = view(path, np.asarray(t, dtype=np.float64), name)
    return None if seen is None else (blocks(seen[0]), seen[1])


def pair_network(
    path: Path, t: np.ndarray, name: Parameterization, mean: float, var: float, score_bias: float
) -> tuple[np.ndarray, np.ndarray]:
    """What a perfect network for data `N(mean, var)` returns: `gain @ (x, v) + shift`.

    `E[x0 | x] = mean + alpha var r` and `E[eps | x] = sigma r` with `r = (x - alpha mean)/c`, c the
    variance of x. gain: (n, 2, 2). shift: (n, 2). score_bias: a constant added to the score.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    variance = alpha**2 * var + sigma**2
    if name == "score":  # also where sigma is 0
        gain, shift = -1.0 / variance, alpha * mean / variance + score_bias
    else:
        p, q = parts(path, t, name)
        gain = (p * alpha * var + q * sigma) / variance
        shift = (p - gain * alpha) * mean
        if score_bias != 0.0:
            with np.errstate(divide="ignore"):  # infinite where x says nothing of the data
                shift = shift + score_bias / change(path, t, name, "score")[0]
    return blocks(gain), np.stack([shift, shift], axis=-1)


def blocks(values: Array) -> np.ndarray:
    """`c I` for each number c: (n, 2, 2)."""
    return np.asarray(values)[..., None, None] * np.eye(2)
