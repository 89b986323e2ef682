"""The stochastic samplers of gDDIM (`sdeis`): the reverse processes between the ODE and the SDE.

The deviation from the predicted data moves down in time by `hat F`,

    hat F = F + (1 + lambda^2)/2 G G^T Sigma^-1,    hat psi(s, t) = R_t C(s, t) R_s^-1,
    dC(r, t)/dr = -lambda^2/2 C N_r,                N = R^-1 G G^T R^-T,     C(t, t) = I,

and gets noise of the covariance `R_t (I - C C^T) R_t^T`, which keeps its law; lambda is 0 for the
probability flow and 1 for the reverse SDE.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from cldfast.compat.gddim.process import CLD
from cldfast.planner.reverse import lower_factor
from cldfast.planner.solvers.exponential import lagrange

# Tolerances of the Runge-Kutta method of order 8; C and the integrals are of order 1.
_RTOL, _ATOL = 1e-11, 1e-13


class LambdaCLD:
    """Coefficients of `sdeis` for a process and a lambda >= 0.

    The mode "published" of the process has none: the codebase's equation for the covariance lacks a
    transpose, so it keeps no law that could be repeated.

    Raises ValueError for that mode, or lambda_coef < 0.
    Source: Zhang, Tao, Chen (2022), gDDIM, propositions 4 to 6.
    """

    def __init__(self, cld: CLD, lambda_coef: float = 1.0) -> None:
        if cld.mode != "exact":
            raise ValueError("sdeis needs the mode 'exact': its published covariance is none")
        if not (math.isfinite(lambda_coef) and lambda_coef >= 0.0):
            raise ValueError(f"lambda_coef must be finite and >= 0, got {lambda_coef}")
        self.cld, self.lambda_coef = cld, float(lambda_coef)

    def get_deis_coef(self, order: int, rev_timesteps: Any) -> np.ndarray:
        """Coefficients of degree `order` >= 0 on N steps, (N, order + 4, 2, 2).

        As those of `CLD`, and last the covariance of the step's noise.
        """
        factor = self.noise_factors(rev_timesteps)
        cov = factor @ np.swapaxes(factor, -1, -2)
        return np.concatenate([self.weights(order, rev_timesteps), cov[:, None]], axis=1)

    def noise_factors(self, rev_timesteps: Any) -> np.ndarray:
        """Lower factors of the covariances of the steps' noises, (N, 2, 2)."""
        times = self.cld.times(rev_timesteps)
        C, _ = self._solve(times[1:], times[:-1], times[:-1, None])
        # I - C C^T by its eigenvalues, none of which rounding may leave below 0.
        shrink, axes = np.linalg.eigh(np.eye(2) - C @ np.swapaxes(C, -1, -2))
        R, spread = self.cld.R(times[1:]), np.sqrt(np.maximum(shrink, 0.0))
        root = R @ (axes * spread[:, None, :])
        return lower_factor(root, np.linalg.det(R) * np.prod(spread, axis=-1))

    def weights(self, order: int, rev_timesteps: Any) -> np.ndarray:
        """psi and the noises' coefficients alone, (N, order + 3, 2, 2)."""
        return self.cld.coefficients(order, rev_timesteps, self._step_weights)

    def _step_weights(self, s: np.ndarray, t: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        """The counterpart of `CLD.step_weights`."""
        _, integrals = self._solve(s, t, nodes)
        return self.cld.R(s)[:, None] @ integrals @ self.cld.R(t)[:, None]

    def _solve(
        self, end: np.ndarray, start: np.ndarray, nodes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """C(start, end) (n, 2, 2), and `-(1 + lambda^2)/2 int C N R^-1 psi(start, r) l_j dr` from
        end to start, (n, k, 2, 2), all steps as one equation in log r."""
        n, k = nodes.shape
        squared = self.lambda_coef**2
        span = np.log(start / end)

        def slope(share: float, flat: np.ndarray) -> np.ndarray:
            C = flat.reshape(n, 1 + k, 2, 2)[:, :1]
            r = np.clip(end * np.exp(share * span), end, start)
            inverse = self.cld.inverse_factor(r)
            half = inverse @ self.cld.pull(r)
            rate = (C @ half[:, None]) * (r * span)[:, None, None, None]
            basis, _ = lagrange(nodes, r[:, None])
            inner = rate @ (inverse @ self.cld.psi(start, r))[:, None]
            parts = -squared * rate, -(1.0 + squared) * inner * basis[..., None]
            return np.concatenate(parts, axis=1).ravel()

        first = np.zeros((n, 1 + k, 2, 2))
        first[:, 0] = np.eye(2)
        solution = solve_ivp(
            slope, (0.0, 1.0), first.ravel(), "DOP853", t_eval=[1.0], rtol=_RTOL, atol=_ATOL
        )
        result = solution.y[:, -1].reshape(n, 1 + k, 2, 2)
        return result[:, 0], result[:, 1:]
