"""The noise level of a phase-space process at time t, as one number, and the time that has it.

What u = (x, v) says about x0 is one noisy copy of it: with `snr = m^T Sigma^-1 m` the statistic
`m^T Sigma^-1 u / snr` is `N(x0, 1/snr)`, and nothing else in u depends on x0. So `sigma = snr^-1/2`
is what a classical diffusion calls its noise level, and grids that are good in sigma carry over.
"""

from __future__ import annotations

import numpy as np

from cldfast.process.path import Path, Process, bisected
from cldfast.process.sde import LinearPhaseSDE


class NoiseLevel:
    """`log sigma` as a function of time, and its inverse, for one process."""

    def __init__(self, sde: LinearPhaseSDE) -> None:
        self.sde = sde

    def log_sigma(self, t: np.ndarray) -> np.ndarray:
        """At times t (n,); -inf at t = 0."""
        return self._of_tau(self.sde.tau(np.asarray(t, dtype=np.float64)))

    def time(self, log_sigma: np.ndarray) -> np.ndarray:
        """The times (n,) at which log sigma has these values, clipped to [0, T]."""
        tau = bisected(self._of_tau, log_sigma, float(self.sde.tau(self.sde.T)))
        times: np.ndarray = self.sde.time(tau)
        return np.minimum(times, self.sde.T)

    def _of_tau(self, tau: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            level = -0.5 * np.log(self.sde.marginal_at(tau).snr)
        return np.where(tau > 0.0, level, -np.inf)


Levels = NoiseLevel | Path


def noise_level(sde: Process) -> Levels:
    """What gives `log_sigma` and `time` of a process; a path does so itself."""
    return sde if isinstance(sde, Path) else NoiseLevel(sde)
