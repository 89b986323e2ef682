"""The data prediction of a network, `E[x0 | u_t]`, as a linear map of its output and the state.

Under hybrid score matching the exact score is `s = -Sigma^-1 (u - m x0)`, so its velocity row alone
gives the prediction,

    x0 = (s_v + (Sigma^-1 u)_v) / (Sigma^-1 m)_v,

and through it everything else: solvers that interpolate x0 need one history plane per evaluation,
whatever the network returns and whether or not the position carries noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cldfast.planner.parameterization import (
    FULL_MAPS,
    VELOCITY_MAPS,
    check_parameterization,
    score_map,
)
from cldfast.process.sde import LinearPhaseSDE


@dataclass(frozen=True)
class OutputMap:
    """A quantity `from_output @ o + from_state @ u` at n times: (n, q, r) and (n, q, 2)."""

    from_output: np.ndarray
    from_state: np.ndarray

    @property
    def planes(self) -> int:
        """Planes per coordinate of the quantity, q."""
        return int(self.from_output.shape[-2])


def x0_map(sde: LinearPhaseSDE, t: np.ndarray, parameterization: str = "score") -> OutputMap:
    """`E[x0 | u_t]` (one plane) from the network output at times t (n,), all > 0.

    Multiplied through by det(Sigma), the velocity row divides by `Sigma_xx m_v - Sigma_xv m_x`, a
    sum of two negative terms, so nothing cancels or overflows as t goes to 0; only an underdamped
    process passes through 0 there, once it has swung back. A full score has two
    rows for one unknown; they enter with the weights `m^T`, which is least squares in the unit
    noise `-L^T s` that such networks are trained on.

    Raises ValueError for an unknown parameterisation, t <= 0, or a velocity row that does not fix
    x0.
    """
    check_parameterization(parameterization)
    t = np.asarray(t, dtype=np.float64)
    if not np.all(t > 0.0):
        raise ValueError(f"networks are asked at t > 0, got t = {np.min(t)}")
    kernel = sde.marginal(t)
    m_x, m_v = kernel.mean[..., 0], kernel.mean[..., 1]
    xx, xv, vv, det = (
        kernel.covariance.xx,
        kernel.covariance.xv,
        kernel.covariance.vv,
        kernel.det,
    )
    # adj(Sigma) m = det(Sigma) Sigma^-1 m.
    along_x, along_v = vv * m_x - xv * m_v, xx * m_v - xv * m_x
    if parameterization == "x0":
        shape = (*t.shape, 1)
        return OutputMap(np.ones((*shape, 1)), np.zeros((*shape, 2)))
    if parameterization in VELOCITY_MAPS:
        if not np.all(along_v < 0.0):
            raise ValueError(
                f"an underdamped process has swung back at t = {np.max(t[along_v >= 0.0])}: its "
                "velocity score does not fix x0; use a parameterization 'x0' or 'full_...'"
            )
        row = VELOCITY_MAPS[parameterization](sde, kernel)
        state = np.stack([det * row.shift_x - xv, det * row.shift_v + xx], axis=-1)
        gain = det * row.gain / along_v
        result = OutputMap(gain[..., None, None], (state / along_v[..., None])[..., None, :])
    else:
        full = FULL_MAPS[parameterization](sde, kernel)
        mean = kernel.mean[..., None, :]
        along = np.stack([along_x, along_v], axis=-1)[..., None, :]
        size = (m_x * along_x + m_v * along_v)[..., None, None]
        weight = det[..., None, None] * mean
        result = OutputMap(
            weight @ full.from_output / size, (weight @ full.from_state + along) / size
        )
    if not (np.all(np.isfinite(result.from_output)) and np.all(np.isfinite(result.from_state))):
        raise ValueError(f"the x0 map overflows at t = {np.min(t)}; choose a larger t_min")
    return result


def noise_map(
    sde: LinearPhaseSDE, t: np.ndarray, parameterization: str, factor: np.ndarray
) -> OutputMap:
    """Unit noise `-factor^T s` (two planes) from the network output, `factor factor^T = Sigma_t`.

    factor: (n, 2, 2), at times t (n,), all > 0; any square root of the kernel's covariance.

    Raises ValueError for an unknown parameterisation or t <= 0.
    """
    score = score_map(sde, t, parameterization)
    back = -np.swapaxes(factor, -1, -2)
    return OutputMap(back @ score.from_output, back @ score.from_state)
