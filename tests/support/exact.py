"""Transitions in arbitrary precision, by a route that the library does not take.

`exp(A s) = sum_i exp(l_i s) P_i` over the eigenvalues l_i with spectral projectors P_i, hence

    Q(tau) = sum_ij P_i D P_j^T (exp((l_i + l_j) tau) - 1) / (l_i + l_j).

Where the eigenvalues meet the projectors are infinite; a discriminant moved by 10^-(digits/3) moves
the result by as much, and what the projectors lose, twice a third of the digits at most, leaves a
third.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np

DIGITS = 240
UNDERFLOW = 1e-290


@dataclass(frozen=True)
class Exact:
    """phi and q (2, 2) mpmath matrices, det of q."""

    phi: Any
    q: Any
    det: Any

    def sigma(self, v0_var: float) -> Any:
        """`Q + v0_var p p^T`, p the second column of phi."""
        with mp.workdps(DIGITS):
            p = self.phi[:, 1]
            return self.q + mp.mpf(float(v0_var)) * (p * p.T)


def transition(drift: Any, diffusion: Any, tau: float) -> Exact:
    """Exact values for the float64 (or mpmath) entries given."""
    with mp.workdps(DIGITS):
        A = _matrix(drift)
        D = mp.diag([mp.mpf(float(entry)) for entry in diffusion])
        tau = mp.mpf(float(tau))
        mean = (A[0, 0] + A[1, 1]) / 2
        N = A - mean * mp.eye(2)
        discriminant = N[0, 0] ** 2 + N[0, 1] * N[1, 0]
        scale = mp.mpf(10) ** (-DIGITS // 3) * mean**2
        if abs(discriminant) < scale:
            discriminant += scale
        w = mp.sqrt(discriminant)
        modes = [(mean + w, (mp.eye(2) + N / w) / 2), (mean - w, (mp.eye(2) - N / w) / 2)]
        phi, q = mp.zeros(2), mp.zeros(2)
        for rate, projector in modes:
            phi += mp.exp(rate * tau) * projector
            for other, second in modes:
                total = rate + other
                q += projector * D * second.T * (mp.expm1(total * tau) / total)
        phi, q = phi.apply(mp.re), q.apply(mp.re)
        return Exact(phi, q, q[0, 0] * q[1, 1] - q[0, 1] ** 2)


def van_loan(drift: Any, diffusion: Any, tau: float, digits: int = 60) -> Exact:
    """The same by the exponential of Van Loan (1978), whose digits go with `exp(2 |A| tau)`."""
    with mp.workdps(digits):
        A = _matrix(drift)
        block = mp.zeros(4)
        block[:2, :2], block[2:, 2:] = A, -A.T
        block[:2, 2:] = mp.diag([mp.mpf(float(entry)) for entry in diffusion])
        exponential = mp.expm(block * mp.mpf(float(tau)))
        phi = exponential[:2, :2]
        q = exponential[:2, 2:] * phi.T
        return Exact(phi, q, q[0, 0] * q[1, 1] - q[0, 1] ** 2)


def relative(got: Any, want: Any) -> float:
    """`|got - want| / |want|`, in high precision until the end."""
    with mp.workdps(DIGITS):
        return float(abs((mp.mpf(float(got)) - want) / want))


def phi_error(got: np.ndarray, want: Any, drift: Any) -> float:
    """Largest error of an entry of phi, relative to the norm of phi.

    In units of velocity that give both off-diagonal entries of the drift one size: entries that
    pass through zero (`1 - a tau` at `tau = 1/a`) have no relative error of their own. A norm
    under `UNDERFLOW` counts as that: float64 gives up relative precision at 2e-308.
    """
    with mp.workdps(DIGITS):
        b, c = abs(mp.mpf(float(drift[0][1]))), abs(mp.mpf(float(drift[1][0])))
        unit = mp.sqrt(c / b) if b * c > 0 else mp.mpf(1)
        size = [[1, unit], [1 / unit, 1]]
        norm = max(abs(want[i, j]) * size[i][j] for i in range(2) for j in range(2))
        norm = max(norm, mp.mpf(UNDERFLOW))
        worst = max(
            abs(mp.mpf(float(got[i, j])) - want[i, j]) * size[i][j]
            for i in range(2)
            for j in range(2)
        )
        return float(worst / norm)


def covariance_errors(cov: np.ndarray, det: float, want: Any) -> tuple[float, float, float]:
    """Errors of diagonal (relative), off-diagonal (over `sqrt(xx vv)`) and determinant."""
    with mp.workdps(DIGITS):
        size = mp.sqrt(want[0, 0] * want[1, 1])
        exact_det = want[0, 0] * want[1, 1] - want[0, 1] ** 2
        return (
            max(relative(cov[i, i], want[i, i]) for i in range(2)),
            float(abs(mp.mpf(float(cov[0, 1])) - want[0, 1]) / size),
            relative(det, exact_det),
        )


def _matrix(rows: Any) -> Any:
    return mp.matrix([[mp.mpf(float(entry)) for entry in row] for row in rows])
