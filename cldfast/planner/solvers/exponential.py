"""What the exponential solvers share: the linear part exact, a polynomial for the network's part.

Each solver of this family moves from t to s < t by variation of constants,

    u_s = F(s, t) u_t + int K(s, r) q(r) dr + noise,        q(r) ~ sum_j l_j(r) q_j,

where q is a quantity of the network, known at some nodes, and l_j the Lagrange polynomials of
those nodes. Three forms of q (F is what remains when q is 0):

    "x0"  E[x0 | u]      F of the frozen data prediction, `cldfast.planner.reverse`; K m-weighted
    "R"   -R^T score     F = Phi(s, t);  K = d/dr [Phi(s, r) R_r]   (gDDIM: Zhang, Tao, Chen 2022)
    "L"   -L^T score     F = Phi(s, t);  K = -Phi(s, r) D L_r^-T / 2     (DEIS: Zhang, Chen 2022)

In the first two forms K is a derivative, `d/dr G(s, r)` with G = F(s, r) m_r or Phi(s, r) R_r, so

    int_t^s K l_j dr = G(s, s) l_j(s) - G(s, t) l_j(t) + int_s^t G(s, r) l_j'(r) dr

and a constant q is integrated exactly, by construction: no quadrature for order 1, and data that
are a single point come back exactly. The integral that is left is a Gauss-Legendre sum.
"""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import LinearMap, Parameterization, noise_map, x0_map
from cldfast.planner.reverse import Bridge
from cldfast.planner.stage import Stage
from cldfast.process.linear_flow import stack_matrix
from cldfast.process.sde import LinearPhaseSDE

FORMS = ("x0", "R", "L")
VARIABLES = ("t", "tau", "log_snr", "sigma")
# Nodes per step, in log t. A step over a factor of 3 in t is integrated to about 1e-10.
_NODES = 8
# The "L" form starts its last step, to t = 0, where the integrand is a power of sqrt(t).
_NODES_TO_ZERO = 32


class Exponential:
    """Coefficients of the exponential solvers for one SDE, form and interpolation variable.

    form: one of `FORMS`. churn: 0 for the probability flow to 1 for the reverse SDE ("x0" form
    only). variable: in which the interpolating polynomials are polynomials.

    Raises ValueError for unknown names, or churn in another form than "x0".
    """

    def __init__(
        self,
        sde: LinearPhaseSDE,
        grid: np.ndarray,
        parameterization: Parameterization,
        form: str = "x0",
        churn: float = 0.0,
        variable: str = "t",
    ) -> None:
        for what, name, known in (("form", form, FORMS), ("variable", variable, VARIABLES)):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(known)}")
        if churn != 0.0 and form != "x0":
            raise ValueError(f"churn needs the form 'x0', got churn = {churn} and form {form!r}")
        self.sde, self.parameterization, self.form = sde, parameterization, form
        self.variable = variable
        tau = sde.tau(grid)
        self.bridge = Bridge(sde, churn, float(np.min(tau[tau > 0.0])))

    @property
    def planes(self) -> int:
        """Planes per coordinate of the quantity q."""
        return 1 if self.form == "x0" else 2

    def quantity(self, t: np.ndarray) -> LinearMap:
        """q as a map of network output and state at times t (n,)."""
        if self.form == "x0":
            return x0_map(self.sde, t, self.parameterization)
        tau = self.sde.tau(t)
        factor = self.bridge.factor(tau) if self.form == "R" else self.bridge.marginal(tau).factor
        return noise_map(self.sde, t, self.parameterization, factor)

    def move(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """F(s, t), (n, 2, 2)."""
        tau_s, tau_t = self.sde.tau(s), self.sde.tau(t)
        if self.form == "x0":
            return self.bridge.propagator(tau_s, tau_t)
        return self._backward(tau_s, tau_t)

    def noise(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Lower factor (n, 2, 2) of the noise added from t to s."""
        return self.bridge.noise_factor(self.sde.tau(s), self.sde.tau(t))

    def weights(self, s: np.ndarray, t: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        """The integrals of K l_j from t to s, (n, k, 2, planes), for node times (n, k).

        At s = 0 the polynomial is the constant of the first node: there K is singular in the row of
        v, and x is the data prediction itself.
        """
        result = np.zeros((*nodes.shape, 2, self.planes))
        for which, count in ((s > 0.0, nodes.shape[1]), (s == 0.0, 1)):
            if np.any(which):
                integrals = self._integrals(s[which], t[which], nodes[which, :count])
                result[which, :count] = integrals
        return result

    def _integrals(self, s: np.ndarray, t: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        if self.form == "L":
            return self._integrals_l(s, t, nodes)
        if nodes.shape[1] == 1:
            return (self._end(s) - self._carried(s, t))[:, None]
        at_nodes, _ = self._coordinate(nodes)
        at_s, _ = lagrange(at_nodes, self._coordinate(s)[0][:, None])
        at_t, _ = lagrange(at_nodes, self._coordinate(t)[0][:, None])
        result = at_s[..., 0, None, None] * self._end(s)[:, None]
        result = result - at_t[..., 0, None, None] * self._carried(s, t)[:, None]
        r, weight = _gauss_legendre(s, t, _NODES)
        at_r, rate = self._coordinate(r)
        _, slope = lagrange(at_nodes, at_r)
        inner = self._carried(np.broadcast_to(s[:, None], r.shape), r)
        slope = slope * (weight * rate)[:, None, :]
        return result + np.einsum("njp,npab->njab", slope, inner)

    def _end(self, s: np.ndarray) -> np.ndarray:
        """G(s, s), (n, 2, planes)."""
        tau = self.sde.tau(s)
        if self.form == "x0":
            return self.bridge.marginal(tau).mean[..., None]
        return self.bridge.factor(tau)

    def _carried(self, s: np.ndarray, r: np.ndarray) -> np.ndarray:
        """G(s, r), (..., 2, planes)."""
        tau_s, tau_r = self.sde.tau(s), self.sde.tau(r)
        if self.form == "x0":
            return self.bridge.mean_moved(tau_s, tau_r)[..., None]
        return self._backward(tau_s, tau_r) @ self.bridge.factor(tau_r)

    def _integrals_l(self, s: np.ndarray, t: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        """`int_s^t Phi(s, r) (-D/2) L_r^-T l_j dr` with the sign of the backward integral."""
        to_zero = bool(np.any(s == 0.0))
        r, weight = _gauss_legendre(s, t, _NODES_TO_ZERO if to_zero else _NODES)
        basis, _ = lagrange(self._coordinate(nodes)[0], self._coordinate(r)[0])
        tau_s, tau_r = self.sde.tau(s)[:, None], self.sde.tau(r)
        back = np.swapaxes(self.bridge.marginal(tau_r).covariance.inverse_factor, -1, -2)
        pull = -0.5 * self.sde.D[:, None] * back
        inner = self._backward(np.broadcast_to(tau_s, tau_r.shape), tau_r) @ pull
        return np.einsum("njp,npab->njab", basis * (weight * self.sde.beta(r))[:, None, :], inner)

    def _backward(self, tau_s: np.ndarray, tau_t: np.ndarray) -> np.ndarray:
        """`exp(-A (tau_t - tau_s))`, by the adjugate of the forward propagator."""
        way = tau_t - tau_s
        (a, b, c, d) = self.sde.transition(way).entries
        grow = np.exp(-way * float(np.trace(self.sde.A)))
        return stack_matrix(d * grow, -b * grow, -c * grow, a * grow)

    def _coordinate(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The interpolation variable at times t, and its derivative with respect to t."""
        if self.variable == "t":
            return t, np.ones_like(t)
        tau, beta = self.sde.tau(t), self.sde.beta(t)
        if self.variable == "tau":
            return tau, beta
        marginal = self.bridge.marginal(tau)
        # d/dtau (m^T Sigma^-1 m) = -p^T D p with p = Sigma^-1 m.
        pull = (marginal.precision @ marginal.mean[..., None])[..., 0]
        log_rate = -beta * np.sum(self.sde.D * pull**2, axis=-1) / marginal.snr
        if self.variable == "log_snr":
            return np.log(marginal.snr), log_rate
        sigma = marginal.snr**-0.5
        return sigma, -0.5 * sigma * log_rate


def interpolation(
    q: LinearMap,
    i: int,
    span: tuple[float, float],
    F: np.ndarray,
    weights: np.ndarray,
    L: np.ndarray,
    keep: bool,
) -> Stage:
    """The stage `u' = F u + sum_j weights_j q_j + L z`: q_0 is q at its time i, the rest history.

    span: times of the evaluation and of u'. weights: (k, 2, planes), newest first. keep: whether
    q_0 becomes a history row.
    """
    return Stage(
        t=float(span[0]),
        t_next=float(span[1]),
        P=F + weights[0] @ q.from_state[i],
        E=(weights[0] @ q.from_output[i],),
        H=tuple(weights[1:]),
        L=L,
        A=(q.from_output[i],) if keep else None,
        B=q.from_state[i] if keep else None,
    )


def add_weights(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of two stacks of weights, the shorter one filled up with zeros."""
    result = np.zeros((max(len(a), len(b)), *a.shape[1:]))
    result[: len(a)] += a
    result[: len(b)] += b
    return result


def lagrange(nodes: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lagrange polynomials of nodes (n, k) at points (n, p), and their derivatives: (n, k, p)."""
    n, k = nodes.shape
    values = np.ones((n, k, points.shape[1]))
    slopes = np.zeros_like(values)
    for j in range(k):
        for i in range(k):
            if i == j:
                continue
            width = (nodes[:, j] - nodes[:, i])[:, None]
            factor = (points - nodes[:, i : i + 1]) / width
            slopes[:, j] = slopes[:, j] * factor + values[:, j] / width
            values[:, j] = values[:, j] * factor
    return values, slopes


def _gauss_legendre(s: np.ndarray, t: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Times (n, count) in (s, t) and weights: in log t, or in sqrt(t) where s = 0."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    zero = s == 0.0
    low = np.where(zero, 0.0, np.log(np.where(zero, 1.0, s)))
    high = np.where(zero, np.sqrt(t), np.log(t))
    half = 0.5 * (high - low)[:, None]
    point = low[:, None] + half * (1.0 + nodes)
    r = np.where(zero[:, None], point**2, np.exp(np.where(zero[:, None], 0.0, point)))
    return r, half * weights * np.where(zero[:, None], 2.0 * point, r)
