"""Phase-space diffusions: what is known exactly about `dU = beta A U dt + sqrt(beta) D^(1/2) dB`.

`U = (x, v)` per coordinate, `X_0 ~ data`, `V_0 ~ N(0, v0_var)`, time forward from 0 to T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from cldfast.process.linear_flow import Covariance, LinearFlow, Transition, WithCovariance
from cldfast.process.prior_gap import PriorGap, prior_gap
from cldfast.process.schedules import (
    Schedule,
    as_float64,
    as_schedule,
    schedule_config,
    schedule_from_config,
)

Array = Any
OBJECTIVES = ("hsm", "dsm")
# A tuple, for `torch.compile` does not follow a union of types.
_ON_HOST = (np.ndarray, np.generic)


@dataclass(frozen=True)
class Marginal(WithCovariance):
    """Perturbation kernel at time t, per coordinate; float64 arrays that begin with the shape of t.

    Hybrid score matching (`hsm`): `U_t | x0 ~ N(mean x0, cov)`, `mean` (..., 2), the initial
    velocity integrated out. Denoising score matching (`dsm`): `U_t | u0 ~ N(mean @ u0, cov)`,
    `mean` (..., 2, 2). `covariance` holds the entries and the determinant. `tau` is the integral of
    beta up to t, None for the stationary law.
    """

    mean: Array
    covariance: Covariance
    tau: Array | None = None

    @property
    def precision(self) -> Array:
        """Inverse of `cov`, (..., 2, 2); infinite at t = 0."""
        return self.covariance.inverse

    @property
    def ell(self) -> Array:
        """`ell = sqrt(cov_xx / det) = 1 / L_vv`: the velocity score is `-ell` times unit noise.

        Source: Dockhorn, Vahdat, Kreis (2022), eq. 7.
        """
        xp = array_namespace(self.det)
        return xp.sqrt(self.covariance.xx / self.det)

    @property
    def signal(self) -> Array:
        """`m^T adj(Sigma) m` (`hsm`), (...): the signal-to-noise ratio times the determinant.

        The entries of m^T and adj(Sigma) m agree in sign for a damped oscillator (CLD, PSLD) until
        it swings back, so nothing cancels as t goes to 0.
        """
        m_x, m_v = self.mean[..., 0], self.mean[..., 1]
        pull_x, pull_v = self.covariance.adjugate_times(m_x, m_v)
        return m_x * pull_x + m_v * pull_v

    @property
    def snr(self) -> Array:
        """Signal-to-noise ratio `m^T Sigma^-1 m` of x0 (`hsm`), (...); infinite at t = 0."""
        return self.signal / self.det

    @property
    def sigma_y(self) -> Array:
        """Noise level `snr^(-1/2)` of the sufficient statistic y (`hsm`), (...); 0 at t = 0."""
        return array_namespace(self.det).sqrt(self.det / self.signal)

    @property
    def statistic(self) -> Array:
        """The row (..., 2) of the sufficient statistic `y = m^T Sigma^-1 u / snr` (`hsm`).

        All that u says about x0: y is x0 plus noise of standard deviation `sigma_y`, alike at every
        coordinate, and the rest of u is noise that is independent of it.
        """
        pull = self.covariance.adjugate_times(self.mean[..., 0], self.mean[..., 1])
        return array_namespace(self.det).stack([part / self.signal for part in pull], axis=-1)


@dataclass(frozen=True)
class Contraction:
    """How fast the renormalised backward process forgets: `A~^T M + M A~ <= -2 eta M`.

    drift: A~ (2, 2). metric: M (2, 2), symmetric positive definite, trace 1. rate: eta > 0, per
    unit of integrated beta.
    """

    drift: np.ndarray
    metric: np.ndarray
    rate: float


class LinearPhaseSDE:
    """Any stable linear phase-space process under a time change.

    A: (2, 2) drift matrix per coordinate, both eigenvalues with negative real part.
    D: squared noise amplitudes (x, v), each >= 0 and one > 0; noise must reach both x and v.
    v0_var: variance of the initial velocity, >= 0.
    beta: rate; a number, a schedule of `cldfast.process.schedules`, or a callable.
    T: end time.

    A process cannot be changed: tables and caches are kept by process. A subclass sets attributes
    of its own before it calls this constructor.

    Raises ValueError for a drift without a stationary law, negative noise, or non-finite numbers.
    """

    # The name in a configuration, and the constructor's arguments beside beta.
    _kind: ClassVar[str] = "linear"
    _arguments: ClassVar[tuple[str, ...]] = ("A", "D", "v0_var", "T")

    def __init__(
        self,
        A: Sequence[Sequence[float]] | np.ndarray,
        D: Sequence[float] | np.ndarray,
        v0_var: float = 0.0,
        beta: object = 4.0,
        T: float = 1.0,
    ) -> None:
        self.A = _checked("A", A, (2, 2))
        self.D = _checked("D", D, (2,))
        self.v0_var = _number("v0_var", v0_var, minimum=0.0)
        self.T = _number("T", T, minimum=0.0, open_end=True)
        self.schedule: Schedule = as_schedule(beta, self.T)
        # D, and below the stationary precision row by row: plain numbers, for traced graphs.
        self.diffusion = (float(self.D[0]), float(self.D[1]))
        if np.any(self.D < 0.0) or not np.any(self.D > 0.0):
            raise ValueError(f"D must hold squared noise amplitudes >= 0, one > 0, got {self.D}")
        try:
            self._flow = LinearFlow(self.A, self.D)
            self._reversed_flow = self._flow.reversed()
        except (OverflowError, ZeroDivisionError) as error:
            raise ValueError(f"A = {self.A.tolist()}, D = {self.D.tolist()}: {error}") from error
        inverse = self._flow.stationary.inverse
        self.prior_precision = tuple(float(entry) for entry in inverse.ravel())
        self._made = True

    def __setattr__(self, name: str, value: object) -> None:
        if "_made" in vars(self):
            raise AttributeError(
                f"a {type(self).__name__} cannot be changed: make a new one with another {name}"
            )
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies of arrays can be written to, whatever the original.
        vars(self).update(state)
        self.A.flags.writeable = self.D.flags.writeable = False

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(A={self.A.tolist()}, D={self.D.tolist()}, "
            f"v0_var={self.v0_var}, beta={self.schedule}, T={self.T})"
        )

    def beta(self, t: Array) -> Array:
        """Rate at time t."""
        return self.schedule.beta(t)

    def tau(self, t: Array) -> Array:
        """Integral of beta over [0, t]."""
        return self.schedule.integral(t)

    def time(self, tau: Array) -> Array:
        """The time at which the integral of beta reaches `tau`."""
        return self.schedule.inverse(tau)

    def transition(self, tau: Array) -> Transition:
        """Exact forward transition over an integrated rate `tau >= 0` (any shape), float64."""
        return self._flow.transition(_not_negative("tau", tau))

    def reversed_transition(self, tau: Array) -> Transition:
        """Exact transition of the time-reversed stationary process over `tau >= 0`.

        This is the backward process whose score is that of the stationary law; SSCS alternates it
        with kicks by the difference of the two scores.
        """
        return self._reversed_flow.transition(_not_negative("tau", tau))

    def marginal(self, t: Array, objective: str = "hsm") -> Marginal:
        """Perturbation kernel at time(s) t, computed in float64 in the array library of t.

        objective: "hsm" (velocity integrated out) or "dsm" (conditional on x0 and v0).
        """
        return self.marginal_at(self.tau(_not_negative("t", t)), objective)

    def marginal_at(self, tau: Array, objective: str = "hsm") -> Marginal:
        """`marginal` at the time(s) where the integral of beta is `tau >= 0`."""
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
        tau = _not_negative("tau", tau)
        step = self._flow.transition(tau)
        if objective == "dsm":
            return Marginal(step.phi, step.covariance, tau)
        m_x, p_x, m_v, p_v = step.entries
        xp = array_namespace(m_x)
        return Marginal(
            xp.stack([m_x, m_v], axis=-1), step.covariance.plus_outer(self.v0_var, p_x, p_v), tau
        )

    def prior(self) -> Marginal:
        """The stationary law, from which sampling starts: mean 0; x and v correlated if D_x > 0."""
        return Marginal(np.zeros(2), self._flow.stationary)

    def prior_gap(self, second_moment: float, dim: int = 1) -> PriorGap:
        """How far the law of (x, v) at T is from `prior`, at most, over data of a second moment.

        second_moment: `E |x0|^2`, summed over the coordinates. dim: number of coordinates.

        Raises ValueError for a second moment < 0 or dim < 1.
        """
        law = self.marginal(self.T)
        return prior_gap(law.mean, law.cov, self.prior().cov, second_moment, dim)

    @property
    def reversed_drift(self) -> np.ndarray:
        """`A~ = -A - D S^-1 = S A^T S^-1`, S the stationary covariance: time reversed."""
        return self._reversed_flow.drift

    def contraction(self, slack: float = 0.05) -> Contraction:
        """Metric M and rate eta in which the renormalised backward process contracts.

        Written with the score of `p_t/p_inf` the backward drift is `beta (A~ u + D grad log
        p_t/p_inf)`, A~ = `reversed_drift`; A~ is similar to A^T, so no rate exceeds that of the
        slowest eigenvalue of A. It is attained where the eigenvalues are apart. At critical damping
        it is a supremum (Jordan block), and near it the metric degenerates: there the rate stays
        below by up to `2 slack` relative, with a condition of M of order `1/slack^2`.

        slack: in [0, 0.5); 0 asks for the spectral rate itself.

        Raises ValueError for a slack outside, or 0 at critical damping.
        Sources: Arnold and Erb (2014), lemma 4.3; used by Strasman, Surendran et al. (2025).
        """
        if not 0.0 <= _number("slack", slack, minimum=0.0) < 0.5:
            raise ValueError(f"slack must lie in [0, 0.5), got {slack}")
        metric, rate = self._reversed_flow.contraction(slack)
        return Contraction(self.reversed_drift, metric, rate)

    def config(self) -> dict[str, Any]:
        """The process as plain data; `sde_from_config` is the inverse."""
        values = {name: getattr(self, name) for name in self._arguments}
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
        return {"kind": self._kind, **plain, "beta": schedule_config(self.schedule)}


class CLD(LinearPhaseSDE):
    """Critically-damped Langevin diffusion, with optional noise on the position.

    `dX = beta a^2 V dt + sqrt(beta) x_noise dB`, `dV = -beta (X + 2 a damping V) dt +
    sqrt(beta) sigma dB'`.

    a: inverse time scale > 0, `a^2 = 1/M`.
    sigma: noise on the velocity, > 0; None is `2 sqrt(damping/a)`, with which x has stationary
        variance 1 if x_noise = 0. Position noise adds `5 x_noise^2/(4 a)` at critical damping.
    x_noise: noise on the position, >= 0 (epsilon of Strasman, Surendran et al. 2025).
    v0_var: variance of the initial velocity; None is `0.04/a^2`, that is `gamma M` with the
        published gamma = 0.04.
    beta, T: rate (number, schedule or callable) and end time.
    damping: friction over its critical value: 1 critical, < 1 underdamped, > 1 overdamped.

    Sources: Dockhorn, Vahdat, Kreis (2022), eq. 5; Strasman, Surendran et al. (2025) for x_noise.
    """

    _kind = "cld"
    _arguments = ("a", "sigma", "x_noise", "v0_var", "T", "damping")

    def __init__(
        self,
        a: float = 2.0,
        sigma: float | None = None,
        x_noise: float = 0.0,
        v0_var: float | None = None,
        beta: object = 4.0,
        T: float = 1.0,
        *,
        damping: float = 1.0,
    ) -> None:
        self.a = _number("a", a, minimum=0.0, open_end=True)
        self.damping = _number("damping", damping, minimum=0.0, open_end=True)
        if sigma is None:
            # Fluctuation-dissipation: without position noise `sigma^2 = 2 Gamma` keeps N(0, 1).
            sigma = 2.0 * math.sqrt(self.damping / self.a)
        self.sigma = _number("sigma", sigma, minimum=0.0, open_end=True)
        self.x_noise = _number("x_noise", x_noise, minimum=0.0)
        A = [[0.0, self.a * self.a], [-1.0, -2.0 * self.a * self.damping]]
        D = [self.x_noise * self.x_noise, self.sigma * self.sigma]
        v0_var = 0.04 / self.a / self.a if v0_var is None else v0_var
        super().__init__(A, D, v0_var, beta, T)

    @classmethod
    def from_mass(
        cls,
        mass_inv: float = 4.0,
        gamma: float = 0.04,
        beta: object = 4.0,
        T: float = 1.0,
        *,
        friction: float | None = None,
        x_noise: float = 0.0,
    ) -> CLD:
        """The parameters of Dockhorn, Vahdat, Kreis (2022): `a^2 = 1/M`, `v0_var = gamma M`.

        mass_inv: 1/M > 0. gamma: initial velocity variance over M, >= 0.
        friction: their Gamma, `sigma^2 = 2 Gamma`; None is critical, `Gamma^2 = 4 M`.
        """
        mass_inv = _number("mass_inv", mass_inv, minimum=0.0, open_end=True)
        gamma = _number("gamma", gamma, minimum=0.0)
        a = math.sqrt(mass_inv)
        critical = 2.0 / a
        given = critical if friction is None else friction
        friction = _number("friction", given, minimum=0.0, open_end=True)
        sigma, v0_var = math.sqrt(2.0 * friction), gamma / mass_inv
        return cls(a, sigma, x_noise, v0_var, beta, T, damping=friction / critical)


class PSLD(LinearPhaseSDE):
    """Phase-space Langevin diffusion: `A = 1/2 [[-Gamma, 1/M], [-1, -nu]]`, `D = (Gamma, M nu)`.

    position_friction: Gamma >= 0. velocity_friction: nu > Gamma. mass_inv: 1/M; None is critical,
    `1/M = (Gamma - nu)^2 / 4`. kappa: initial velocity variance over M.

    Source: Pandey and Mandt (2023), eqs. 10 and 11.
    """

    _kind = "psld"
    _arguments = ("position_friction", "velocity_friction", "mass_inv", "kappa", "T")

    def __init__(
        self,
        position_friction: float = 0.01,
        velocity_friction: float = 4.01,
        mass_inv: float | None = None,
        kappa: float = 0.04,
        beta: object = 8.0,
        T: float = 1.0,
    ) -> None:
        self.position_friction = _number("position_friction", position_friction, minimum=0.0)
        self.velocity_friction = _number("velocity_friction", velocity_friction, minimum=0.0)
        if mass_inv is None:
            mass_inv = (self.position_friction - self.velocity_friction) ** 2 / 4.0
        self.mass_inv = _number("mass_inv", mass_inv, minimum=0.0, open_end=True)
        self.kappa = _number("kappa", kappa, minimum=0.0)
        on_x, on_v = self.position_friction, self.velocity_friction
        A = [[-0.5 * on_x, 0.5 * self.mass_inv], [-0.5, -0.5 * on_v]]
        D = [on_x, on_v / self.mass_inv]
        super().__init__(A, D, self.kappa / self.mass_inv, beta, T)


_KINDS = {sde._kind: sde for sde in (LinearPhaseSDE, CLD, PSLD)}


def sde_from_config(config: dict[str, Any]) -> LinearPhaseSDE:
    """Inverse of `sde.config()`; ValueError for an unknown kind or field."""
    fields = dict(config)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"unknown SDE kind {kind!r}; expected one of {', '.join(_KINDS)}")
    if isinstance(fields.get("beta"), dict):
        fields["beta"] = schedule_from_config(fields["beta"])
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise ValueError(f"bad fields for the SDE kind {kind}: {error}") from error


def _checked(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    array = np.array(value, dtype=np.float64)
    if array.shape != shape or not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite with shape {shape}, got {value!r}")
    array.flags.writeable = False
    return array


def _number(name: str, value: object, *, minimum: float, open_end: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or number < minimum or (open_end and number == minimum):
        relation = ">" if open_end else ">="
        raise ValueError(f"{name} must be finite and {relation} {minimum:g}, got {value!r}")
    return number


def _not_negative(name: str, value: Array) -> Array:
    """The value in float64; numbers on the host are checked, device arrays are not synchronised."""
    array = as_float64(value)
    if isinstance(array, _ON_HOST) and not np.all(np.asarray(array) >= 0.0):
        raise ValueError(f"{name} must be >= 0, got {np.min(array)}")
    return array
