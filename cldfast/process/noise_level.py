"""The noise level of a phase-space process at time t, as one number, and the time that has it.

What u = (x, v) says about x0 is one noisy copy of it: with `snr = m^T Sigma^-1 m` the statistic
`m^T Sigma^-1 u / snr` is `N(x0, 1/snr)`, and nothing else in u depends on x0. So `sigma = snr^-1/2`
is what a classical diffusion calls its noise level, and grids that are good in sigma carry over.
"""

from __future__ import annotations

import numpy as np

from cldfast.process.path import Path, Process
from cldfast.process.sde import LinearPhaseSDE

# sigma is monotone in tau, and a bisection from this part of the largest tau to all of it ends
# after 60 halvings below the spacing of float64.
_FLOOR = 1e-12
_HALVINGS = 60


class NoiseLevel:
    """`log sigma` as a function of time, and its inverse, for one process."""

    def __init__(self, sde: LinearPhaseSDE) -> None:
        self.sde = sde

    def log_sigma(self, t: np.ndarray) -> np.ndarray:
        """At times t (n,); -inf at t = 0."""
        return self._of_tau(self.sde.tau(np.asarray(t, dtype=np.float64)))

    def time(self, log_sigma: np.ndarray) -> np.ndarray:
        """The times (n,) at which log sigma has these values, clipped to [0, T]."""
        largest = np.log(float(self.sde.tau(self.sde.T)))
        low = np.full(np.shape(log_sigma), largest + np.log(_FLOOR))
        high = np.full(np.shape(log_sigma), largest)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            above = self._of_tau(np.exp(middle)) > log_sigma
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        times: np.ndarray = self.sde.time(np.exp(high))
        return np.minimum(times, self.sde.T)

    def _of_tau(self, tau: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            level = -0.5 * np.log(self.sde.marginal_at(tau).snr)
        return np.where(tau > 0.0, level, -np.inf)


Levels = NoiseLevel | Path


def noise_level(sde: Process) -> Levels:
    """What gives `log_sigma` and `time` of a process; a path does so itself."""
    return sde if isinstance(sde, Path) else NoiseLevel(sde)
