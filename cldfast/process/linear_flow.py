"""Exact transitions of `dU = A U dtau + D^(1/2) dB` in two dimensions, without cancellation.

Every formula that could cancel stands in this file. Functions take arrays of numpy or torch
(through the array API), compute in float64 and broadcast over the leading dimensions of `tau`.

Write `A = -damping I + N` with N traceless, so `N^2 = discriminant I = w^2 I`. For any damping

    exp(A tau) = exp(-damping tau) (C I + S N),    C = cosh(w tau),  S = sinh(w tau)/w

with C and S entire in the discriminant. With the three scalar functions

    F1 = exp(-2 damping tau) C S,    F2 = exp(-2 damping tau) S^2,    J = int_0^tau F2 ds

the covariance `Q(tau) = int_0^tau exp(A s) D exp(A s)^T ds` is, for every drift,

    Q = J (det(A) D + adj(A) D adj(A)^T) + F1 D + F2 (damping D + (N D + D N^T)/2)

(both sides vanish at 0; differentiate, and use `C^2 = 1 + discriminant S^2`). For a damped
oscillator (diagonal of A <= 0, off-diagonal entries of opposite signs: CLD, PSLD) the terms on the
diagonal of Q are positive while F1 is, so the small powers of tau at which the naive formulas
cancel (Q_xx ~ tau^3 without position noise) come out of J ~ tau^3/3 alone; det Q has one
difference, in `det(A) J^2 + J F1 - F2^2/4 ~ tau^4 (1/3 - 1/4)`.

J itself follows from two integrations by parts: with `slow`, `fast` the eigenvalues of -A,

    real eigenvalues:     J = (E(2 slow) - exp(-slow tau) sine - damping F2) / (2 damping fast)
    complex eigenvalues:  J = (E(2 damping) - F1 - damping F2) / (2 det(A))

where `E(r) = int_0^tau exp(-r s) ds` and `sine = exp(-damping tau) S`. They are the same formula at
critical damping, neither divides by w, and neither cancels once `|eigenvalue| tau` is of order 1;
below, J is its Taylor series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from array_api_compat import array_namespace

Array = Any

# The series serves `z = |largest eigenvalue| tau <= SERIES_REACH`. At the switch the closed form
# has lost a factor of 3/(2 z^2) to 3/z^2 (J ~ tau^3/3 is left of terms ~ tau), the series, whose
# terms alternate, one of about exp(2z).
SERIES_REACH = 0.5
# `S^2 exp(-2 damping s)` is twice the second divided difference of `r -> exp(-r s)` at 2 slow,
# 2 damping, 2 fast, so the term of order tau^(k+3) of J is at most tau^3 (2z)^k / (k! (k+3)), while
# J is at least about tau^3 exp(-2z)/3. Their ratio falls under 2^-53 at k = 18.
SERIES_TERMS = 18


@dataclass(frozen=True)
class Covariance:
    """Symmetric 2x2 matrices by their entries, with determinants that are not differences.

    xx, xv, vv, det: float64, all of one shape. `xx vv - xv^2` loses every digit of the determinant
    where one direction dominates, so the code that makes a covariance gives the determinant too.
    """

    xx: Array
    xv: Array
    vv: Array
    det: Array

    @property
    def matrix(self) -> Array:
        """The matrices, (..., 2, 2)."""
        return stack_matrix(self.xx, self.xv, self.xv, self.vv)

    @property
    def adjugate(self) -> Array:
        """`det` times the inverse, (..., 2, 2); finite where the inverse is not."""
        return stack_matrix(self.vv, -self.xv, -self.xv, self.xx)

    def adjugate_times(self, x: Array, v: Array) -> tuple[Array, Array]:
        """The adjugate applied to vectors `(x, v)` of the shape of the entries."""
        return self.vv * x - self.xv * v, self.xx * v - self.xv * x

    @property
    def inverse(self) -> Array:
        """Inverse matrices, (..., 2, 2); infinite where singular."""
        return self.adjugate / self.det[..., None, None]

    @property
    def factor(self) -> Array:
        """Lower triangular L with `L L^T` the matrix, (..., 2, 2); singular ones allowed."""
        xp = array_namespace(self.xx)
        spread = self.xx > 0.0
        safe = xp.where(spread, self.xx, 1.0)
        root = xp.sqrt(safe)
        return stack_matrix(
            xp.where(spread, root, 0.0),
            xp.zeros_like(root),
            xp.where(spread, self.xv / root, 0.0),
            xp.sqrt(xp.where(spread, self.det / safe, self.vv)),
        )

    @property
    def inverse_factor(self) -> Array:
        """The inverse of `factor`, (..., 2, 2); infinite where singular."""
        xp = array_namespace(self.xx)
        root, root_det = xp.sqrt(self.xx), xp.sqrt(self.det)
        cross = -self.xv / (root * root_det)
        return stack_matrix(1.0 / root, xp.zeros_like(root), cross, root / root_det)

    def plus_outer(self, weight: float, x: Array, v: Array) -> Covariance:
        """`self + weight p p^T` with `p = (x, v)`, `weight >= 0`.

        The determinant by the matrix determinant lemma, `det + weight p^T adj p`: a sum of two
        terms that are not negative.
        """
        pull_x, pull_v = self.adjugate_times(x, v)
        wx = weight * x
        return Covariance(
            self.xx + wx * x,
            self.xv + wx * v,
            self.vv + weight * v * v,
            self.det + weight * (x * pull_x + v * pull_v),
        )


class WithCovariance:
    """Base of the laws below: the matrices of the field `covariance`."""

    covariance: Covariance

    @property
    def cov(self) -> Array:
        """Covariance, (..., 2, 2)."""
        return self.covariance.matrix

    @property
    def det(self) -> Array:
        """Determinant of `cov`, (...)."""
        return self.covariance.det

    @property
    def factor(self) -> Array:
        """Lower triangular L with `L L^T = cov`, (..., 2, 2); singular at time 0."""
        return self.covariance.factor


@dataclass(frozen=True)
class Transition(WithCovariance):
    """Law of `U_(t+tau) | U_t = u`: normal with mean `phi @ u` and covariance `cov`.

    entries: of phi, row by row, and `covariance`: float64, each of the shape of tau.
    """

    entries: tuple[Array, Array, Array, Array]
    covariance: Covariance

    @property
    def phi(self) -> Array:
        """`exp(A tau)`, (..., 2, 2)."""
        return stack_matrix(*self.entries)


def stack_matrix(xx: Array, xv: Array, vx: Array, vv: Array) -> Array:
    """(..., 2, 2) from four entries of one shape."""
    flat = array_namespace(xx).stack([xx, xv, vx, vv], axis=-1)
    return flat.reshape((*flat.shape[:-1], 2, 2))


class LinearFlow:
    """The transitions of one constant drift and noise: constants once, then any `tau`.

    drift: (2, 2), eigenvalues with negative real part. diffusion: squared noise amplitudes (x, v).
    The constants are made in rational arithmetic: a discriminant that is 1e-12 of its terms (nearly
    critical damping) comes out to all digits.

    Raises ValueError for a drift without a stationary law, or noise that misses x or v.
    """

    def __init__(
        self,
        drift: Sequence[Sequence[float | Fraction]] | np.ndarray,
        diffusion: Sequence[float] | np.ndarray,
    ) -> None:
        (a, b), (c, d) = ([Fraction(entry) for entry in row] for row in drift)
        p, q = (Fraction(entry) for entry in diffusion)
        damping, gap, det = -(a + d) / 2, (a - d) / 2, a * d - b * c
        if not (damping > 0 and det > 0):
            raise ValueError(
                "A must have eigenvalues with negative real part (trace < 0 and determinant > 0), "
                f"got {_floats(drift).tolist()}: the process has no stationary law"
            )
        # det(A) D + adj(A) D adj(A)^T, which is 4 damping det(A) times the stationary covariance.
        energy = (
            det * p + d * d * p + b * b * q,
            -c * d * p - a * b * q,
            det * q + c * c * p + a * a * q,
        )
        size = energy[0] * energy[2] - energy[1] ** 2
        if size <= 0:
            raise ValueError(
                f"the noise D = {_floats(diffusion).tolist()} does not reach both x and v through "
                f"A = {_floats(drift).tolist()}: the stationary law is singular"
            )
        scale = 4 * damping * det
        self.drift, self.diffusion = _floats(drift), _floats(diffusion)
        # Plain numbers, which a traced graph can hold.
        self._drift = ((float(a), float(b)), (float(c), float(d)))
        self._diffusion = (float(p), float(q))
        self.damping, self.determinant = float(damping), float(det)
        self.discriminant = float(gap * gap + b * c)
        self.stationary = Covariance(
            *(np.float64(float(entry)) for entry in (*(e / scale for e in energy), size / scale**2))
        )
        self._energy = tuple(float(entry) for entry in energy)
        self._gap = float(gap)
        # The time reversal of the stationary process, -A - D Sigma^-1 = Sigma A^T Sigma^-1.
        xx, xv, vv = (entry * scale / size for entry in energy)
        self._reversed = [[-a - p * vv, -b + p * xv], [-c + q * xv, -d - q * xx]]

        self._rate = math.sqrt(abs(self.discriminant))
        self._largest = math.sqrt(self.determinant)
        if self.discriminant >= 0.0:
            self._largest = self.damping + self._rate
        self._series = _series(self.damping, self.discriminant)

    def reversed(self) -> LinearFlow:
        """The flow of the time-reversed stationary process: same noise, same stationary law."""
        return LinearFlow(self._reversed, self.diffusion)

    def contraction(self, slack: float) -> tuple[np.ndarray, float]:
        """A metric M (2, 2) and a rate eta with `A^T M + M A <= -2 eta M`.

        In the basis (e, N e / p) the matrix N is `[[0, discriminant/p], [p, 0]]`, whose symmetric
        part has the norm `|p + discriminant/p| / 2`. At `p = |w|` that gives the spectral rate, the
        largest there is: `damping - w` or `damping`. The basis collapses as w goes to 0, so p is
        kept at least `2 slack damping`; then `eta >= (1 - 2 slack) damping`.
        """
        n = self.drift + self.damping * np.eye(2)
        p = max(self._rate, 2.0 * slack * self.damping)
        if p == self._rate:
            spectral = self.discriminant < 0.0
            eta = self.damping if spectral else self.determinant / self._largest
        else:
            eta = self.damping - 0.5 * (p + self.discriminant / p)
        if not np.any(n):
            return np.eye(2), self.damping
        if p == 0.0:
            raise ValueError(
                "critical damping attains no rate: its spectral one is a supremum; pass slack > 0"
            )
        if n[0, 1] != 0.0:
            first = np.array([0.0, 1.0])
        elif n[1, 0] != 0.0:
            first = np.array([1.0, 0.0])
        else:
            first = np.array([1.0, 1.0])
        coordinates = np.linalg.inv(np.stack([first, n @ first / p], axis=1))
        metric = coordinates.T @ coordinates
        return metric / np.trace(metric), eta

    def transition(self, tau: Array) -> Transition:
        """Propagator and covariance for float64 `tau >= 0` of any shape."""
        xp = array_namespace(tau)
        parts = self._real if self.discriminant >= 0.0 else self._complex
        phi, f1, f2, closed = parts(xp, tau)
        near = self._largest * tau <= SERIES_REACH
        # Both branches are evaluated. The powers of a large tau would overflow in the series.
        small = xp.where(near, tau, 0.0)
        series = small * self._series[-1]
        for coefficient in self._series[-2::-1]:
            series = (series + coefficient) * small
        return Transition(
            phi, self._covariance(f1, f2, xp.where(near, series * small * small, closed))
        )

    def _real(self, xp: Any, tau: Array) -> tuple[Any, Array, Array, Array]:
        """Entries of phi, F1, F2 and the closed J for real eigenvalues, through the slow mode."""
        (_, b), (c, _) = self._drift
        w, fast = self._rate, self._largest
        slow = self.determinant / fast
        decay = xp.exp(-slow * tau)
        lost = xp.expm1((-2.0 * w) * tau)  # exp(-2 w tau) - 1
        ramp = lost * (-0.5 / w) if w > 0.0 else tau
        sine = decay * ramp
        # The diagonal is cosine +- gap sine. In terms of the two modes, with `lag = |gap| - w`,
        # neither entry is the difference of two halves of the slow mode.
        lag = -b * c / (abs(self._gap) + w) if b * c != 0.0 else 0.0
        high = decay + lag * sine
        low = xp.exp(-fast * tau) - lag * sine
        f1, f2 = decay * sine * (1.0 + 0.5 * lost), sine * sine
        integral = xp.expm1((-2.0 * slow) * tau) * (-0.5 / slow)
        closed = (integral - decay * sine - self.damping * f2) * (0.5 / (self.damping * fast))
        first, last = (high, low) if self._gap >= 0.0 else (low, high)
        return (first, b * sine, c * sine, last), f1, f2, closed

    def _complex(self, xp: Any, tau: Array) -> tuple[Any, Array, Array, Array]:
        """Entries of phi, F1, F2 and the closed J for complex eigenvalues."""
        (_, b), (c, _) = self._drift
        decay = xp.exp(-self.damping * tau)
        sine = decay * xp.sin(self._rate * tau) * (1.0 / self._rate)
        cosine = decay * xp.cos(self._rate * tau)
        f1, f2 = cosine * sine, sine * sine
        integral = xp.expm1((-2.0 * self.damping) * tau) * (-0.5 / self.damping)
        closed = (integral - f1 - self.damping * f2) * (0.5 / self.determinant)
        gap = self._gap * sine
        return (cosine + gap, b * sine, c * sine, cosine - gap), f1, f2, closed

    def _covariance(self, f1: Array, f2: Array, j: Array) -> Covariance:
        """Q from its three scalar functions; `damping +- gap` is minus the other diagonal entry.

        The determinant is quadratic in the noise; in each coefficient the squares of J cancel
        symbolically: `W = det(A) J^2 + J F1 - F2^2/4` for either noise alone, and for both together
        a sum of products of the entries that either makes.
        """
        (a, b), (c, d) = self._drift
        p, q = self._diffusion
        xx, xv, vv = self._energy
        w = j * (self.determinant * j + f1) - 0.25 * f2 * f2
        det = w * ((b * q) ** 2 + (c * p) ** 2)
        if p * q > 0.0:
            half = 0.5 * f2
            det = det + (p * q) * (
                (j * (self.determinant + d * d) + f1 - d * f2)
                * (j * (self.determinant + a * a) + f1 - a * f2)
                + (b * c) * ((b * c) * (j * j) - 2.0 * (half - d * j) * (half - a * j))
            )
        return Covariance(
            j * xx + p * f1 - (p * d) * f2 if p > 0.0 else j * xx,
            j * xv + (0.5 * (b * q + c * p)) * f2,
            j * vv + q * f1 - (q * a) * f2 if q > 0.0 else j * vv,
            det,
        )


def _series(damping: float, discriminant: float) -> list[float]:
    """Coefficients of tau^3, tau^4, ... in J: those of `exp(-2 damping s) S^2`, integrated."""
    result = []
    for k in range(2, SERIES_TERMS + 2):
        power = sum(
            math.comb(k, 2 * j) * damping ** (k - 2 * j) * discriminant ** (j - 1)
            for j in range(1, k // 2 + 1)
        )
        result.append((-2.0) ** k / (2.0 * math.factorial(k)) * power / (k + 1))
    return result


def _floats(matrix: Any) -> np.ndarray:
    """A read-only float64 array of numbers or fractions."""
    array = np.array(matrix, dtype=np.float64)
    array.flags.writeable = False
    return array
