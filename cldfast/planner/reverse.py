"""How the deviation `w = u - m_t x0` moves down in time when the data prediction x0 is frozen.

Every reverse process with the marginals of the forward one moves w by a linear map and noise that
keep its law, `w_t ~ N(0, Sigma_t)` to `w_s ~ N(0, Sigma_s)` for s < t. Write `Sigma = R R^T` with

    dR/dtau = (A + D Sigma^-1 / 2) R                         (R_t of Zhang, Tao, Chen 2022)

Then the probability flow is `w_s = R_s R_t^-1 w_t`, and any other process of the family is

    w_s = R_s C R_t^-1 w_t + R_s (I - C C^T)^(1/2) z         C(s, t) a contraction, I for the flow.

R is any square root of Sigma up to a rotation, so `R = L O(theta)` with L the exact lower factor
and one angle; the entry above the diagonal of `L^-1 (dR/dtau) O^T` leaves for it

    dtheta/dtau = -(sqrt(det Sigma)/Sigma_xx) (A_xv - D_x Sigma_xv / (2 det Sigma)),

an integral, no differential equation: the determinant and the zero row of R at tau = 0 stay exact.

The reverse SDE has `C_1 = (R_t^-1 Phi R_s)^T`, the exact Gaussian posterior of u_s given (u_t, x0).
Between the two, C_churn is C_1 = S U in polar form (S symmetric, U a rotation by phi) with both
taken to the power churn: `S^churn U(churn phi)`. (Adding K s to the drift with K of any
antisymmetric part and noise of its symmetric part keeps the marginals, so each such path is a
reverse process.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.polynomial import chebyshev

from cldfast.process.linear_flow import stack_matrix
from cldfast.process.sde import LinearPhaseSDE, Marginal

Array = Any

# Panels span at most this factor in tau, and this many time constants of A. In log tau the rate's
# nearest singularities lie about pi/2 off the axis, so Chebyshev series of this degree on half a
# panel's width, ln(3)/2, converge as (pi/ln 3 + ...)^-k = 5.9^-k: to 1e-18.
_PANEL_FACTOR = 3.0
_PANEL_TIMES = 2.0
_DEGREE = 24
# Below this fraction of the largest tau the angle is what its limit law sqrt(tau) says.
_FLOOR = 1e-12


class Bridge:
    """Propagators and noise of one SDE for a frozen data prediction.

    churn: 0 for the probability flow, 1 for the reverse SDE. smallest: the smallest tau > 0 that
    will be asked for, where it is extremely small. Times are integrated rates tau >= 0, float64
    arrays of any shape (n denotes it below).

    Raises ValueError for a churn outside [0, 1].
    """

    def __init__(self, sde: LinearPhaseSDE, churn: float = 0.0, smallest: float = 0.0) -> None:
        if not (math.isfinite(churn) and 0.0 <= churn <= 1.0):
            raise ValueError(f"churn must lie in [0, 1], got {churn!r}")
        self.sde, self.churn = sde, float(churn)
        largest = float(sde.tau(sde.T))
        floor = min(_FLOOR * largest, smallest or math.inf)
        reach = _PANEL_TIMES / float(np.linalg.norm(sde.A))
        edges = [largest]
        while edges[-1] > floor:
            edges.append(max(edges[-1] / _PANEL_FACTOR, edges[-1] - reach))
        self._edges = np.log(edges[::-1])
        self._angle_series()

    def marginal(self, tau: np.ndarray) -> Marginal:
        """`N(m x0, Sigma)`, the law of u given x0, at integrated rates tau."""
        return self.sde.marginal_at(tau)

    def factor(self, tau: np.ndarray) -> np.ndarray:
        """R, (n, 2, 2); its x row is zero at tau = 0."""
        return self.marginal(tau).factor @ self.rotation(tau)

    def inverse_factor(self, tau: np.ndarray) -> np.ndarray:
        """`R^-1`, (n, 2, 2), tau > 0."""
        inverse: np.ndarray = self.marginal(tau).covariance.inverse_factor
        return np.swapaxes(self.rotation(tau), -1, -2) @ inverse

    def whitened_mean(self, tau: np.ndarray) -> np.ndarray:
        """`R^-1 m`, (n, 2), tau > 0: its square is the signal-to-noise ratio of the data."""
        marginal = self.marginal(tau)
        cov, m_x, m_v = marginal.covariance, marginal.mean[..., 0], marginal.mean[..., 1]
        # L^-1 m by forward substitution; its second entry is a sum of two terms of one sign.
        root = np.sqrt(cov.xx)
        second = cov.adjugate_times(m_x, m_v)[1] / (root * np.sqrt(cov.det))
        lower = np.stack([m_x / root, second], axis=-1)[..., None]
        return (np.swapaxes(self.rotation(tau), -1, -2) @ lower)[..., 0]

    def contraction(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """C, (n, 2, 2), for s < t."""
        s, t = np.broadcast_arrays(s, t)
        if self.churn == 0.0:
            return np.broadcast_to(np.eye(2), (*s.shape, 2, 2))
        axes, gain = self._posterior(s, t)
        forward = self.inverse_factor(t) @ self.sde.transition(t - s).phi @ self.factor(s)
        # The rotation in the polar form of the transposed 2x2 matrix.
        angle = np.arctan2(
            forward[..., 0, 1] - forward[..., 1, 0], forward[..., 0, 0] + forward[..., 1, 1]
        )
        # Singular values of C_1 are g/sqrt(1 + g^2); at a gain of 0 any power > 0 of 0 is 0.
        shrink = np.where(gain > 0.0, np.exp(-0.5 * self.churn * _log1p_inverse_square(gain)), 0.0)
        symmetric = (axes * shrink[..., None, :]) @ np.swapaxes(axes, -1, -2)
        return symmetric @ _rotate(self.churn * angle)

    def propagator(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """`R_s C R_t^-1`, (n, 2, 2), for s < t; where s = t > 0 it is I."""
        s, t = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(t, np.float64))
        return self.factor(s) @ (self.contraction(s, t) @ self.inverse_factor(t))

    def mean_moved(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The propagator applied to m_t, (n, 2)."""
        moved = self.contraction(s, t) @ self.whitened_mean(t)[..., None]
        return (self.factor(s) @ moved)[..., 0]

    def noise_factor(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Lower factor (n, 2, 2) of `Sigma_s - F Sigma_t F^T`, F the propagator; no subtraction."""
        s, t = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(t, np.float64))
        if self.churn == 0.0:
            return np.zeros((*s.shape, 2, 2))
        axes, gain = self._posterior(s, t)
        left = np.where(gain > 0.0, -np.expm1(-self.churn * _log1p_inverse_square(gain)), 1.0)
        spread = self.factor(s) @ (axes * np.sqrt(left)[..., None, :])
        det = self.marginal(s).det * left[..., 0] * left[..., 1]
        return lower_factor(spread, np.sqrt(det))

    def _posterior(self, s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Axes V (n, 2, 2) and gains g (n, 2) with `I - C_1 C_1^T = V diag(1/(1 + g^2)) V^T`.

        The information form of the posterior covariance: `(Sigma_s^-1 + Phi^T Q^-1 Phi)^-1`, in
        the coordinates of R_s, where a singular Sigma_s is no trouble.
        """
        step = self.sde.transition(t - s)
        arrived = step.phi @ self.factor(s)
        root = step.factor
        first = arrived[..., 0, :] / root[..., 0, 0, None]
        second = (arrived[..., 1, :] - root[..., 1, 0, None] * first) / root[..., 1, 1, None]
        _, gain, axes = np.linalg.svd(np.stack([first, second], axis=-2))
        return np.swapaxes(axes, -1, -2), gain

    def _angle_rate(self, tau: np.ndarray) -> np.ndarray:
        cov = self.marginal(tau).covariance
        pull = self.sde.A[0, 1] - 0.5 * self.sde.D[0] * cov.xv / cov.det
        return -np.sqrt(cov.det) / cov.xx * pull

    def _angle_series(self) -> None:
        """Chebyshev series of the integral of `tau dtheta/dtau` over log tau, panel by panel."""
        low, high = self._edges[:-1], self._edges[1:]
        nodes = chebyshev.chebpts1(_DEGREE + 1)
        points = 0.5 * (low + high)[:, None] + 0.5 * (high - low)[:, None] * nodes
        tau = np.exp(points)
        values = tau * self._angle_rate(tau)
        series = np.linalg.solve(chebyshev.chebvander(nodes, _DEGREE), values.T)
        self._series = chebyshev.chebint(series, lbnd=-1.0, axis=0) * (0.5 * (high - low))
        start = 0.0
        if self.sde.v0_var > 0.0:
            # theta ~ sqrt(tau) at 0; without initial velocity it winds for ever, as log(tau), and
            # is measured from the lowest edge.
            lowest = np.exp(self._edges[:1])
            start = 2.0 * float((lowest * self._angle_rate(lowest))[0])
        totals = chebyshev.chebval(1.0, self._series)
        self._starts = start + np.concatenate([[0.0], np.cumsum(totals)])

    def angle(self, tau: Array) -> Array:
        """theta of `R = L O(theta)` at float64 tau >= 0 of any shape, in tau's array library."""
        xp = array_namespace(tau)
        edges, starts, series = (
            xp.asarray(part, device=device(tau))
            for part in (self._edges, self._starts, self._series)
        )
        flat = xp.reshape(tau, (-1,))
        lowest = math.exp(self._edges[0])
        log = xp.log(xp.clip(flat, lowest, None))
        panel = xp.clip(xp.searchsorted(edges, log) - 1, 0, len(self._edges) - 2)
        low, high = xp.take(edges, panel), xp.take(edges, panel + 1)
        at = (2.0 * log - low - high) / (high - low)
        # Clenshaw's recurrence for the Chebyshev series of each entry's own panel.
        one, two = 0.0 * at, 0.0 * at
        for coefficients in range(series.shape[0] - 1, 0, -1):
            one, two = xp.take(series[coefficients], panel) + 2.0 * at * one - two, one
        total = xp.take(starts, panel) + xp.take(series[0], panel) + at * one - two
        below = flat < lowest
        total = xp.where(below, float(self._starts[0]) * xp.sqrt(flat / lowest), total)
        return xp.reshape(total, tau.shape)

    def rotation(self, tau: Array) -> Array:
        """`O(theta)` of `R = L O(theta)`, (..., 2, 2), in tau's array library."""
        return _rotate(self.angle(tau))


def _rotate(angle: Array) -> Array:
    xp = array_namespace(angle)
    c, s = xp.cos(angle), xp.sin(angle)
    return stack_matrix(c, -s, s, c)


def _log1p_inverse_square(gain: np.ndarray) -> np.ndarray:
    """`log(1 + 1/g^2)`, minus the log of the squared singular value; any number where g = 0."""
    positive = np.where(gain > 0.0, gain, 1.0)
    return np.log1p(1.0 / positive**2)


def lower_factor(root: np.ndarray, det: np.ndarray) -> np.ndarray:
    """Lower factor of `root root^T`, whose determinant's root is `det`; singular ones allowed."""
    x, v = root[..., 0, :], root[..., 1, :]
    size = np.hypot(x[..., 0], x[..., 1])
    spread = size > 0.0
    safe = np.where(spread, size, 1.0)
    result = np.zeros_like(root)
    result[..., 0, 0] = size
    result[..., 1, 0] = np.where(spread, np.sum(x * v, axis=-1) / safe, 0.0)
    result[..., 1, 1] = np.where(spread, det / safe, np.hypot(v[..., 0], v[..., 1]))
    return result
