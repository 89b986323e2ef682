"""What the exponential solvers of Gaussian paths share: `exponential` with numbers for matrices.

With `rho(s, r) = (sigma_s/alpha_s)/(sigma_r/alpha_r)` and churn c, from 0 for the probability flow
to 1 for the reverse SDE, all reverse processes of a path are

    x_s = F x_t + alpha_s int_t^s x0(r) d rho(s, r)^(1 + c) + sigma_s (1 - rho(s, t)^(2c))^(1/2) z

with `F = (sigma_s/sigma_t) rho(s, t)^c` and x0 interpolated (Lu et al. 2022, DPM-Solver++).
"""

from __future__ import annotations

import numpy as np

from cldfast.planner.parameterization import LinearMap
from cldfast.planner.path_forms import blocks, pair_map
from cldfast.planner.solvers.exponential import Exponential
from cldfast.process.path import Path

VARIABLES = ("auto", "log_snr", "t")


class PathExponential(Exponential):
    """Coefficients for one path, churn and variable of the polynomials.

    variable: "auto" is that of the path, log_snr but for flow matching.

    Raises ValueError for a churn outside [0, 1], an unknown variable, or one that is infinite at T.
    """

    form = "x0"
    planes = 2

    def __init__(
        self, path: Path, grid: np.ndarray, parameterization: str, churn: float,
        variable: str = "auto",
    ) -> None:  # fmt: skip
        if not 0.0 <= churn <= 1.0:
            raise ValueError(f"churn must lie in [0, 1], got {churn!r}")
        if variable not in VARIABLES:
            raise ValueError(
                f"unknown variable {variable!r}; expected one of {', '.join(VARIABLES)}"
            )
        self.path, self.parameterization, self.churn = path, parameterization, churn
        self.variable = path.variable if variable == "auto" else variable
        if self.variable == "log_snr" and path.alpha(grid[0]) == 0.0:
            raise ValueError(f"log_snr of {path} is infinite at t = {grid[0]}: use variable='t'")

    def quantity(self, t: np.ndarray) -> LinearMap:
        return pair_map(self.path, t, self.parameterization, "x0")

    def move(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        return blocks(self.path.sigma(s) / self.path.sigma(t) * self._power(s, t, self.churn))

    def noise(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        left = -np.expm1(2.0 * self.churn * self._log_rho(s, t)) if self.churn else 0.0 * s
        return blocks(self.path.sigma(s) * np.sqrt(left))

    def _log_rho(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        return self.path.log_sigma(s) - self.path.log_sigma(t)

    def _power(self, s: np.ndarray, t: np.ndarray, exponent: float) -> np.ndarray:
        return np.exp(exponent * self._log_rho(s, t)) if exponent else np.ones_like(s)

    def _integrals(self, s: np.ndarray, t: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        if nodes.shape[1] > 1:
            return super()._integrals(s, t, nodes)
        whole = -np.expm1((1.0 + self.churn) * self._log_rho(s, t))
        return blocks(self.path.alpha(s) * whole)[:, None]

    def _end(self, s: np.ndarray) -> np.ndarray:
        return blocks(self.path.alpha(s))

    def _carried(self, s: np.ndarray, r: np.ndarray) -> np.ndarray:
        return blocks(self.path.alpha(s) * self._power(s, r, 1.0 + self.churn))

    def _coordinate(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.variable == "t":
            return t, np.ones_like(t)
        falling, growing = self.path.slopes(t)
        return self.path.log_sigma(t), growing / self.path.sigma(t) - falling / self.path.alpha(t)
