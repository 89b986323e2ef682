"""The law of the state over an integrated rate tau: exact, or as the codebases write it out.

Every codebase damps critically: `A = -d I + N` with `N^2 = 0`. With the stationary covariance S,
the covariance `S_0` of the start and `W = I + tau N` the codebases' closed forms are

    exp(A tau) = exp(-d tau) W
    cov(tau)   = exp(-2 d tau) ((exp(2 d tau) - 1) S - tau (N S + S N^T) - tau^2 N S N^T
                                + W S_0 W^T).

The first three terms cancel to the order tau^3, so a published mode must repeat the rounding of
these terms: the order of operations here is that of CLD-SGM. `exact` asks the process, whose
formulas do not cancel.
Source: Dockhorn, Vahdat, Kreis (2022), appendix B.1; Pandey and Mandt (2023), appendix A.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from cldfast.process.linear_flow import Covariance, Transition
from cldfast.process.sde import LinearPhaseSDE

Array = Any
Entries = tuple[Array, Array, Array, Array]


def exact(
    process: LinearPhaseSDE, tau: Array, var_x: Array | float = 0.0, var_v: Array | float = 0.0
) -> Transition:
    """The law over tau >= 0 from independent x and v of these variances, without cancellation."""
    step = process.transition(tau)
    x_x, x_v, v_x, v_v = step.entries
    own = step.covariance
    for weight, x, v in ((var_x, x_x, v_x), (var_v, x_v, v_v)):
        if not isinstance(weight, float | int) or weight > 0.0:
            own = own.plus_outer(weight, x, v)
    return Transition(step.entries, own)


def naive(
    process: LinearPhaseSDE,
    tau: Array,
    var_x: Array | float = 0.0,
    var_v: Array | float = 0.0,
    *,
    reverse: bool = False,
) -> Transition:
    """The law of `exact` by the published closed forms.

    reverse: of the time-reversed stationary process instead.
    """
    damping, N = _critical(process, reverse)
    S = process.prior().cov
    # Plain numbers multiply tensors of every device.
    rest, first, second = (m.tolist() for m in (S, N @ S + S @ N.T, N @ S @ N.T))
    moved = propagator(process, tau, reverse)
    shrink = array_namespace(tau).exp(-2.0 * damping * tau)
    growth, square = 1.0 / shrink - 1.0, tau**2

    def entry(i: int, j: int) -> Array:
        own = rest[i][j] * growth - first[i][j] * tau - second[i][j] * square
        start = [
            variance * moved[2 * i + k] * moved[2 * j + k]
            for k, variance in enumerate((var_x, var_v))
        ]
        return own * shrink + (start[0] + start[1])

    return Transition(moved, naive_covariance(entry(0, 0), entry(0, 1), entry(1, 1)))


LAWS: dict[str, Callable[..., Transition]] = {"exact": exact, "published": naive}


def propagator(process: LinearPhaseSDE, tau: Array, reverse: bool = False) -> Entries:
    """Entries of `exp(A tau)`, row by row, in the dtype of tau, which may be negative."""
    damping, N = _critical(process, reverse)
    decay = array_namespace(tau).exp(-damping * tau)
    (a, b), (c, d) = N.tolist()
    return decay * (1.0 + a * tau), decay * (b * tau), decay * (c * tau), decay * (1.0 + d * tau)


def _critical(process: LinearPhaseSDE, reverse: bool) -> tuple[float, np.ndarray]:
    """d and N of the process, or of the time-reversed stationary one."""
    A = process.reversed_drift if reverse else process.A
    damping = -0.5 * float(A[0, 0] + A[1, 1])
    return damping, A + damping * np.eye(2)


def naive_covariance(xx: Array, xv: Array, vv: Array) -> Covariance:
    """The covariance with these entries; its determinant cancels, as in the codebases."""
    return Covariance(xx, xv, vv, xx * vv - xv**2)


def jittered(own: Covariance, jitter: float) -> Covariance:
    """The covariance with `jitter` added to both variances."""
    if jitter == 0.0:
        return own
    det = own.det + jitter * (own.xx + own.vv + jitter)
    return Covariance(own.xx + jitter, own.xv, own.vv + jitter, det)


def checked(own: Covariance, options: str) -> Covariance:
    """The published covariance itself, or ValueError where rounding has made it indefinite.

    The codebases fail there, too. options: names of the options that a user may increase.
    """
    if not bool(((own.xx >= 0.0) & (own.vv >= 0.0) & (own.det >= 0.0)).all()):
        raise ValueError(
            "numerical precision error: the published covariance is not positive definite at some "
            f"time in float64; increase {options}, or use mode='exact'"
        )
    return own
