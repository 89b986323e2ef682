"""From a noise level to the time at which a network was trained at it.

A table is called with noise levels (B,) and returns `(r, alpha, t)`, each (B,): the nearest noise
level that the network knows, the factor of y in what it sees, and its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Values = Sequence[float] | np.ndarray | Tensor

# A noise level so many times the largest of a table is refused: the network knows nothing of it.
FAR = 10.0


class Table(Protocol):
    """What a denoiser asks of a table; sigma_range are its smallest and largest noise level."""

    sigma_range: tuple[float, float]

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


class SigmaTable:
    """Networks that are asked at `z = y` and whose time is the noise level: EDM and VE."""

    sigma_range = (0.0, math.inf)

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return sigma, torch.ones_like(sigma), sigma


class FlowTable:
    """`z = (1 - t) x0 + t n`, so that `sigma = t / (1 - t)`."""

    sigma_range = (0.0, math.inf)

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha = 1.0 / (1.0 + sigma)
        return sigma, alpha, sigma * alpha


class NoiseTable:
    """`z = alpha_k x0 + sigma_k n` at times_k; time and log alpha are linear in log(sigma / alpha).

    alpha, sigma, times: (K,), see `cldfast.from_denoiser`. discrete: only entries of the table, the
    nearest ones.

    Raises ValueError for values that are no such table.
    """

    def __init__(
        self, alpha: Values | None, sigma: Values, times: Values | None, discrete: bool = False
    ) -> None:
        s = _array("sigma", sigma)
        a = np.ones_like(s) if alpha is None else _array("alpha", alpha)
        t = np.arange(float(len(s))) if times is None else _array("times", times)
        if not len(a) == len(s) == len(t):
            raise ValueError(
                f"alpha, sigma, times: expected one length, got {len(a)}, {len(s)}, {len(t)}"
            )
        whole = times is None or np.array_equal(t, np.round(t))
        # At alpha = 0 or sigma = 0 there is nothing to learn, and no logarithm.
        inside = (a != 0.0) & (s != 0.0)
        a, s, t = a[inside], s[inside], t[inside]
        if len(s) < 2 or np.any(a < 0.0) or np.any(s < 0.0):
            raise ValueError("alpha, sigma: expected two or more entries, all > 0")
        level = np.log(s / a)
        order = slice(None) if level[-1] > level[0] else slice(None, None, -1)
        rows = np.stack([level, np.log(a), t], axis=1)[order]
        if np.any(np.diff(rows[:, 0]) <= 0.0):
            raise ValueError("sigma / alpha: expected to rise, or to fall, from entry to entry")
        self.sigma_range = (float(np.exp(rows[0, 0])), float(np.exp(rows[-1, 0])))
        self.discrete, self.whole = discrete, discrete and whole
        self._rows = torch.from_numpy(rows.copy())
        self._on_device: dict[torch.device, Tensor] = {}

    @classmethod
    def from_betas(
        cls, betas: Values, times: Values | None = None, discrete: bool = False
    ) -> NoiseTable:
        """The table of DDPM: alpha_k^2 is the product of `1 - beta` up to k, sigma_k^2 the rest.

        Source: Ho, Jain, Abbeel (2020), eq. 4.
        """
        values = _array("betas", betas)
        if np.any(values <= 0.0) or np.any(values > 1.0):
            raise ValueError("betas: expected numbers in (0, 1]")
        with np.errstate(divide="ignore"):  # a last beta of 1 is the pure noise at the end
            log_squares = np.cumsum(np.log1p(-values))
        return cls(np.exp(0.5 * log_squares), np.sqrt(-np.expm1(log_squares)), times, discrete)

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if sigma.device not in self._on_device:
            self._on_device[sigma.device] = self._rows.to(sigma.device)
        rows = self._on_device[sigma.device]
        level = sigma.double().log()
        above = torch.searchsorted(rows[:, 0].contiguous(), level).clamp(1, len(rows) - 1)
        low, high = rows[above - 1], rows[above]
        share = ((level - low[:, 0]) / (high[:, 0] - low[:, 0])).clamp(0.0, 1.0)
        if self.discrete:
            share = share.round()
        found = torch.lerp(low, high, share[:, None])
        t = found[:, 2].long() if self.whole else found[:, 2].to(sigma.dtype)
        return found[:, 0].exp().to(sigma.dtype), found[:, 1].exp().to(sigma.dtype), t

    def noise_level(self, times: Tensor) -> Tensor:
        """The noise levels (B,) at times (B,), the inverse of the call; float64."""
        level, _, t = self._rows.numpy().T
        rise = slice(None) if t[-1] > t[0] else slice(None, None, -1)
        found = np.interp(times.detach().cpu().double().numpy(), t[rise], level[rise])
        return torch.from_numpy(np.exp(found)).to(times.device)


def _array(name: str, values: Values) -> np.ndarray:
    """Values as float64 (K,)."""
    host = values.detach().cpu() if isinstance(values, Tensor) else values
    array = np.asarray(host, dtype=np.float64)
    if array.ndim != 1 or not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: expected finite numbers (K,), got shape {array.shape}")
    return array
