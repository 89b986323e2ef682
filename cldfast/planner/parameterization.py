"""What a network returns, as a linear map to the score and back.

At time t a network output o (r planes per coordinate) and the state u give the full score

    score = from_output @ o + from_state @ u          from_output (2, r), from_state (2, 2)

so a solver folds any parameterisation into its coefficients. A velocity score carries the position
score with it, because under hybrid score matching the exact score is `-Sigma^-1 (u - m E[x0 | u])`:
the row of the score along `m` is known, and (eliminating `E[x0 | u]`)

    s_x = w_x/w_v s_v + (m_x v - m_v x) / (Sigma_xx m_v - Sigma_xv m_x)        w = Sigma^-1 m.

Maps of one output plane are given by their velocity row, `s_v = gain o + shift_x x + shift_v v`;
that row is all a loss needs. Functions work on numpy (planning) and torch (training times) alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from cldfast.planner.reverse import Bridge
from cldfast.process.linear_flow import stack_matrix
from cldfast.process.sde import LinearPhaseSDE, Marginal

Array = Any


@dataclass(frozen=True)
class ScoreMap:
    """`score = from_output @ o + from_state @ u` at n times: (n, 2, r) and (n, 2, 2)."""

    from_output: Array
    from_state: Array

    @property
    def planes(self) -> int:
        """Network output planes per coordinate, r."""
        return int(self.from_output.shape[-1])


class VelocityMap(NamedTuple):
    """`s_v = gain o + shift_x x + shift_v v` at n times, each (n,)."""

    gain: Array
    shift_x: Array
    shift_v: Array


def _score(sde: LinearPhaseSDE, marginal: Marginal) -> VelocityMap:
    zero = marginal.det * 0.0
    return VelocityMap(zero + 1.0, zero, zero)


def _noise(sde: LinearPhaseSDE, marginal: Marginal) -> VelocityMap:
    zero = marginal.det * 0.0
    return VelocityMap(-marginal.ell, zero, zero)


def _mixed(sde: LinearPhaseSDE, marginal: Marginal) -> VelocityMap:
    return VelocityMap(-marginal.ell, marginal.det * 0.0, -1.0 / marginal.covariance.vv)


def _x0(sde: LinearPhaseSDE, marginal: Marginal) -> VelocityMap:
    """The velocity row of `-Sigma^-1 (u - m x0)`, Sigma^-1 through the adjugate."""
    xx, xv = marginal.covariance.xx / marginal.det, marginal.covariance.xv / marginal.det
    gain = xx * marginal.mean[..., 1] - xv * marginal.mean[..., 0]
    return VelocityMap(gain, xv, -xx)


def _renormalised(sde: LinearPhaseSDE, marginal: Marginal) -> VelocityMap:
    zero = marginal.det * 0.0
    *_, vx, vv = sde.prior_precision
    return VelocityMap(zero + 1.0, zero - vx, zero - vv)


def _full_score(sde: LinearPhaseSDE, marginal: Marginal) -> ScoreMap:
    zero = marginal.det * 0.0
    return ScoreMap(
        stack_matrix(zero + 1.0, zero, zero, zero + 1.0), stack_matrix(zero, zero, zero, zero)
    )


def _full_noise(sde: LinearPhaseSDE, marginal: Marginal) -> ScoreMap:
    """`score = -L^-T o`, with `L^-T = [[1/l_xx, -l_vx/(l_xx l_vv)], [0, 1/l_vv]]`."""
    factor = marginal.factor
    zero = marginal.det * 0.0
    l_xx, l_vx, l_vv = factor[..., 0, 0], factor[..., 1, 0], factor[..., 1, 1]
    return ScoreMap(
        stack_matrix(-1.0 / l_xx, l_vx / (l_xx * l_vv), zero, -1.0 / l_vv),
        stack_matrix(zero, zero, zero, zero),
    )


@lru_cache(maxsize=8)
def _bridge(sde: LinearPhaseSDE) -> Bridge:
    return Bridge(sde)


def _full_noise_r(sde: LinearPhaseSDE, marginal: Marginal) -> ScoreMap:
    """`score = -R^-T o` with `R = L O(theta)`, so `R^-T = L^-T O(theta)`."""
    lower = _full_noise(sde, marginal)
    angle = _bridge(sde).angle(marginal.tau)
    c, s = array_namespace(angle).cos(angle), array_namespace(angle).sin(angle)
    return ScoreMap(lower.from_output @ stack_matrix(c, -s, s, c), lower.from_state)


def _full_renormalised(sde: LinearPhaseSDE, marginal: Marginal) -> ScoreMap:
    zero = marginal.det * 0.0
    shift = [zero - entry for entry in sde.prior_precision]
    return ScoreMap(_full_score(sde, marginal).from_output, stack_matrix(*shift))


# One plane: the output is d (or C) wide.
VELOCITY_MAPS: dict[str, Callable[[LinearPhaseSDE, Marginal], VelocityMap]] = {
    "score": _score,
    "noise": _noise,
    "mixed": _mixed,
    "x0": _x0,
    "renormalised": _renormalised,
}
# Two planes: 2d (or 2C) wide, x half then v half.
FULL_MAPS: dict[str, Callable[[LinearPhaseSDE, Marginal], ScoreMap]] = {
    "full_score": _full_score,
    "full_noise": _full_noise,
    "full_noise_r": _full_noise_r,
    "full_renormalised": _full_renormalised,
}
PARAMETERIZATIONS = (*VELOCITY_MAPS, *FULL_MAPS)


def check_parameterization(name: str) -> None:
    """ValueError for a name that is not one of `PARAMETERIZATIONS`."""
    if name not in PARAMETERIZATIONS:
        raise ValueError(
            f"unknown parameterization {name!r}; expected one of {', '.join(PARAMETERIZATIONS)}"
        )


def complete_velocity_score(marginal: Marginal, row: VelocityMap) -> ScoreMap:
    """The full score from its velocity row, by the identity at the head of this file."""
    xp = array_namespace(marginal.det)
    m_x, m_v = marginal.mean[..., 0], marginal.mean[..., 1]
    xx, xv, vv = marginal.covariance.xx, marginal.covariance.xv, marginal.covariance.vv
    along_v = xx * m_v - xv * m_x  # det(Sigma) w_v; negative for all t > 0
    slope = (vv * m_x - xv * m_v) / along_v
    return ScoreMap(
        xp.stack([slope * row.gain, row.gain], axis=-1)[..., None],
        stack_matrix(
            slope * row.shift_x - m_v / along_v,
            slope * row.shift_v + m_x / along_v,
            row.shift_x,
            row.shift_v,
        ),
    )


def score_map(sde: LinearPhaseSDE, t: np.ndarray, parameterization: str = "score") -> ScoreMap:
    """The map from network output to full score at times t (n,), all > 0.

    "score": the velocity score s_v. "noise": eps_v with `s_v = -ell eps_v`. "mixed": `s_v =
    -v/Sigma_vv - ell o` (Dockhorn, Vahdat, Kreis 2022, eq. 10). "x0": `E[x0 | u]`. "renormalised":
    `grad_v log p_t/p_inf`. "full_*": both rows; "full_noise" is `score = -L^-T o`, L lower;
    "full_noise_r" is `-R^-T o` with R the factor that the probability flow carries along, R_t of
    Zhang, Tao, Chen (2022), see `cldfast.planner.reverse`; its angle starts at 0 at t = 0 for
    v0_var > 0.

    Raises ValueError for an unknown name or a time where the kernel is singular (t = 0).
    """
    check_parameterization(parameterization)
    t = np.asarray(t, dtype=np.float64)
    if not np.all(t > 0.0):
        raise ValueError(
            f"the score at t = {np.min(t)} does not exist: networks are asked at t > 0"
        )
    marginal = sde.marginal(t)
    with np.errstate(all="ignore"):  # what overflows is refused below, in words
        if parameterization in FULL_MAPS:
            result = FULL_MAPS[parameterization](sde, marginal)
        else:
            row = VELOCITY_MAPS[parameterization](sde, marginal)
            result = complete_velocity_score(marginal, row)
    if not (np.all(np.isfinite(result.from_output)) and np.all(np.isfinite(result.from_state))):
        raise ValueError(f"the score map overflows at t = {np.min(t)}; choose a larger t_min")
    return result


def denoiser_map(sde: LinearPhaseSDE, t: np.ndarray, score: ScoreMap) -> ScoreMap:
    """`E[u_0 | u_t] = Phi^-1 (u + Q score)` as a map of (output, state): Tweedie in phase space.

    The initial velocity is part of u_0, hence the kernel given (x0, v0) is the one that enters.
    Source: Efron (2011), "Tweedie's formula and selection bias", for a linear Gaussian channel.
    """
    step = sde.marginal(t, objective="dsm")
    back = np.linalg.inv(step.mean)
    return ScoreMap(
        back @ step.cov @ score.from_output, back @ (np.eye(2) + step.cov @ score.from_state)
    )
