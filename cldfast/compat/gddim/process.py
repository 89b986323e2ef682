"""The CLD of gDDIM: its covariance factors R_t and L_t, and its multistep coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cldfast.compat.gddim.published import ORDER0_SUM_POINTS, SUM_POINTS, factor_table, interpolate
from cldfast.compat.laws import exact, propagator
from cldfast.compat.published import check_mode, check_name
from cldfast.planner.reverse import Bridge
from cldfast.planner.solvers.exponential import Exponential, lagrange
from cldfast.process.linear_flow import stack_matrix
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import CLD as Process
from cldfast.process.sde import Marginal

FORMS = ("R", "L")
# What the codebase adds to both variances at t = 0, whatever the configuration says.
PUBLISHED_NUMERICAL_EPS = 1e-6
# Intervals, equal in log t, that the integrals over a step are split into.
_PIECES = 8

# Ends s and starts t of steps (n,) and node times (n, k) -> a matrix per node, (n, k, 2, 2).
Weights = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class CLD:
    """`dx = beta v / M dt`, `dv = -beta (x + Gamma v / M) dt + sqrt(2 Gamma beta) dB`.

    m_inv: 1/M > 0; the friction Gamma is critical. beta_0, beta_1: `beta(t) = beta_0 + beta_1 t` on
    [0, 1]. vv_gamma: initial velocity variance over M, >= 0.
    numerical_eps: added to both initial variances; None is 0 in the mode "exact" and 1e-6, the
        codebase's constant, in "published". A network of the codebase was trained with 1e-6.
    mixed_score: the network returns the noise less the part `R^-1 (0, v)`.
    is_R_rk, R_dt: how the codebase makes its table of R_t; read in the mode "published" only.
    mode: "exact", or "published" for the codebase's own tables and left sums, in float64.

    `sde` is the same process as a `cldfast.CLD` (without numerical_eps).

    Raises ValueError or TypeError for numbers out of range.
    Source: Zhang, Tao, Chen (2022), gDDIM, section 3 and appendix C.
    """

    T = 1.0
    sampling_eps = 1e-3

    def __init__(
        self,
        m_inv: float = 4.0,
        beta_0: float = 4.0,
        beta_1: float = 0.0,
        vv_gamma: float = 0.04,
        numerical_eps: float | None = None,
        mixed_score: bool = False,
        is_R_rk: bool = False,
        R_dt: float = 1e-5,
        *,
        mode: str = "exact",
    ) -> None:
        published = check_mode(mode) == "published"
        if numerical_eps is None:
            numerical_eps = PUBLISHED_NUMERICAL_EPS if published else 0.0
        if not (math.isfinite(numerical_eps) and numerical_eps >= 0.0):
            raise ValueError(f"numerical_eps must be finite and >= 0, got {numerical_eps!r}")
        if published and not (numerical_eps > 0.0 and 0.0 < R_dt <= 1e-3):
            raise ValueError(
                "the published tables need numerical_eps > 0 and 0 < R_dt <= 1e-3, "
                f"got {numerical_eps} and {R_dt}"
            )
        beta = LinearBeta(beta_0, beta_0 + beta_1)
        self.sde = Process.from_mass(m_inv, vv_gamma, beta, self.T)
        self.m_inv, self.beta_0, self.beta_1 = float(m_inv), float(beta_0), float(beta_1)
        self.Gamma = 2.0 / math.sqrt(m_inv)
        self.numerical_eps, self.mixed_score = float(numerical_eps), bool(mixed_score)
        self.mode = mode
        self.beta, self.beta_int = self.sde.beta, self.sde.tau
        self._bridge = Bridge(self.sde)
        if self.numerical_eps > 0.0:
            self._bridge = _JitteredBridge(self.sde, self.numerical_eps)
        self._table: tuple[np.ndarray, np.ndarray] | None = None
        if published:
            start = math.sqrt(self.sde.v0_var + self.numerical_eps)
            self._table = factor_table(
                self.m_inv, self.beta_0, self.beta_1, math.sqrt(self.numerical_eps), start,
                bool(is_R_rk), float(R_dt),
            )  # fmt: skip

    def times(self, rev_timesteps: Any) -> np.ndarray:
        """Times of a sampler as float64 (N + 1,), checked.

        They descend, but for the mode "published": `hybdeis` jumps back to T there.
        """
        times = np.asarray(rev_timesteps, np.float64)
        if times.ndim != 1 or times.size < 2 or not np.all((times > 0.0) & (times <= self.T)):
            raise ValueError(
                f"rev_timesteps must be a flat array of at least 2 times in (0, {self.T}], "
                f"got {rev_timesteps!r}"
            )
        if self.mode == "exact" and not np.all(np.diff(times) < 0.0):
            raise ValueError(f"rev_timesteps must descend, got {rev_timesteps!r}")
        return times

    def F(self, t: Any) -> np.ndarray:
        """Drift matrix at times t, (..., 2, 2)."""
        return np.asarray(self.beta(t))[..., None, None] * self.sde.A

    def G(self, t: Any) -> np.ndarray:
        """Noise amplitude at times t, (..., 2, 2): `G G^T = diag(0, 2 Gamma beta)`."""
        return np.sqrt(np.asarray(self.beta(t))[..., None, None] * np.diag(self.sde.D))

    def psi(self, s: Any, t: Any) -> np.ndarray:
        """`exp` of the drift's integral from s to t, either may be the later, (..., 2, 2)."""
        way = np.asarray(self.beta_int(t) - self.beta_int(s))
        return stack_matrix(*propagator(self.sde, way))

    def R(self, t: Any) -> np.ndarray:
        """The square root of the covariance that the probability flow carries, (..., 2, 2)."""
        t = _times(t)
        if self._table is not None:
            return interpolate(t, *self._table)
        return self._bridge.factor(self.sde.tau(t))

    def cov(self, t: Any) -> np.ndarray:
        """Covariance of the state given the data, (..., 2, 2)."""
        if self._table is None:
            return self._bridge.marginal(self.sde.tau(_times(t))).cov
        R = self.R(t)
        return R @ np.swapaxes(R, -1, -2)

    def L(self, t: Any) -> np.ndarray:
        """The lower triangular square root, (..., 2, 2)."""
        if self._table is not None:
            return np.linalg.cholesky(self.cov(t))
        return self._bridge.marginal(self.sde.tau(_times(t))).factor

    def factor(self, t: Any, form: str = "R") -> np.ndarray:
        """R or L by name."""
        return self.R(t) if check_name("form", form, FORMS) == "R" else self.L(t)

    def inverse_factor(self, t: Any, form: str = "R") -> np.ndarray:
        """The inverse of `factor`, (..., 2, 2), at times where it is not singular."""
        return np.linalg.inv(self.factor(t, form))

    def pull(self, t: Any, form: str = "R") -> np.ndarray:
        """`G G^T K_t^-T / 2`, the drift that a unit noise adds, (..., 2, 2); K is R or L."""
        G = self.G(t)
        return 0.5 * G @ G @ np.swapaxes(self.inverse_factor(t, form), -1, -2)

    def step_weights(self, s: Any, t: Any, nodes: np.ndarray, form: str = "R") -> np.ndarray:
        """The integrals `int_t^s psi(r, s) G G^T K_r^-T l_j(r) / 2 dr`, (n, k, 2, 2).

        K is R or L, as `form` says; l_j the Lagrange polynomials of the node times (n, k); t the
        start and s the end of each step, (n,).
        """
        s, t, nodes = (np.asarray(times, np.float64) for times in (s, t, nodes))
        if self._table is not None:
            return self._left_sums(s, t, nodes, form, SUM_POINTS)
        form = check_name("form", form, FORMS)
        rule = Exponential(self.sde, np.array([1.0, self.sampling_eps]), "full_score", form)
        rule.bridge = self._bridge
        edges = np.exp(np.linspace(np.log(t), np.log(s), _PIECES + 1))
        edges[0], edges[-1] = t, s
        total = np.zeros((*nodes.shape, 2, 2))
        for high, low in zip(edges[:-1], edges[1:], strict=True):
            move = self.psi(high, low)[:, None]
            total = move @ total + rule.weights(low, high, nodes)
        return total

    def _left_sums(
        self, s: np.ndarray, t: np.ndarray, nodes: np.ndarray, form: str, points: int
    ) -> np.ndarray:
        """`step_weights` as published: the values at the left ends of `points` intervals."""
        sums = []
        for end, start, at in zip(s, t, nodes, strict=True):
            r = np.linspace(start, end, points, endpoint=False)
            inner = self.psi(r, end) @ self.pull(r, form)
            basis = lagrange(at[None], r[None])[0][0]
            sums.append(np.einsum("kp,pab->kab", basis, inner) * ((end - start) / points))
        return np.stack(sums)

    def get_deis_coef(self, order: int, rev_timesteps: Any, form: str = "R") -> np.ndarray:
        """Adams-Bashforth coefficients of degree `order` >= 0 on N steps, (N, order + 3, 2, 2).

        For each step psi, then one matrix per network noise, the newest first; the first steps have
        the noises that there are. The last matrix is zero, as in the codebase's array, so that
        entry by entry it serves its own step function. form: "R" or "L" noise.
        """
        return self.coefficients(order, rev_timesteps, partial(self.step_weights, form=form))

    def coefficients(self, order: int, rev_timesteps: Any, weights: Weights) -> np.ndarray:
        """psi and the `weights` of each step in the layout of `get_deis_coef`.

        ValueError for an order that is none.
        """
        if isinstance(order, bool) or not isinstance(order, int | np.integer) or order < 0:
            raise ValueError(f"order must be an integer >= 0, got {order!r}")
        times = self.times(rev_timesteps)
        t, s = times[:-1], times[1:]
        result = np.zeros((len(t), order + 3, 2, 2))
        result[:, 0] = self.psi(t, s)
        for count in range(1, order + 2):
            # The steps whose polynomial goes through `count` nodes.
            steps = np.flatnonzero(np.minimum(np.arange(len(t)), order) + 1 == count)
            if len(steps):
                nodes = np.stack([times[steps - j] for j in range(count)], axis=1)
                result[steps, 1 : 1 + count] = weights(s[steps], t[steps], nodes)
        return result

    def get_order0_coef(self, rev_timesteps: Any, is_em: bool = False) -> np.ndarray:
        """psi and the one noise matrix of each step, (N, 2, 2, 2): `get_deis_coef` of order 0.

        is_em: Euler's step instead. In the mode "published" the sum has 1,000 points.
        """
        if is_em:
            times = self.times(rev_timesteps)
            t, way = times[:-1], np.diff(times)[:, None, None]
            return np.stack([np.eye(2) + self.F(t) * way, self.pull(t) * way], axis=1)
        weights: Weights = self.step_weights
        if self.mode == "published":
            weights = partial(self._left_sums, form="R", points=ORDER0_SUM_POINTS)
        return self.coefficients(0, rev_timesteps, weights)[:, :2]


class _JitteredBridge(Bridge):
    """A bridge with initial variances numerical_eps of x and v0_var + numerical_eps of v."""

    def __init__(self, sde: Process, numerical_eps: float) -> None:
        self._numerical_eps = numerical_eps
        # Below tau ~ numerical_eps the angle is linear: at this floor it is below rounding.
        super().__init__(sde, 0.0, 1e-12 * numerical_eps)

    def marginal(self, tau: np.ndarray) -> Marginal:
        law = exact(self.sde, tau, self._numerical_eps, self.sde.v0_var + self._numerical_eps)
        return Marginal(law.phi[..., 0], law.covariance)


def _times(t: Any) -> np.ndarray:
    t = np.asarray(t, np.float64)
    if not np.all((t >= 0.0) & (t <= CLD.T)):
        raise ValueError(f"times must lie in [0, {CLD.T}], got {t}")
    return t
