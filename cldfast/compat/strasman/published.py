"""What the codebase computes, in its order and dtype: kernels with jitter, samplers with its times.

The covariance is a difference that float32 cannot hold near t = 0 (the jitter covers it up), so
the order of the operations is part of the behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cldfast.planner.stage import Stage

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Rate(Protocol):
    """The schedule of the codebase, or ours in its place."""

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        """beta(t)."""

    def integrate(self, t: torch.Tensor) -> torch.Tensor:
        """Integral of beta over [0, t]."""


@dataclass(frozen=True)
class Numbers:
    """Its parameters: epsilon is the noise on the position, jitter its `numerical_eps`."""

    a: float
    epsilon: float
    sigma: float
    v0_var: float
    jitter: float


def propagator(n: Numbers, tau: torch.Tensor) -> torch.Tensor:
    """`exp(A tau)`, (..., 2, 2), in the dtype of tau."""
    decay = torch.exp(-n.a * tau)
    drift = n.a * tau
    rows = [1 + drift, n.a**2 * tau, -tau, 1 - drift]
    return torch.stack([decay * r for r in rows], -1).reshape(*tau.shape, 2, 2)


def covariance(n: Numbers, tau: torch.Tensor) -> Entries:
    """Entries (xx, xv, vv) given the initial state, jitter on the diagonal."""
    a, e2, s2 = n.a, n.epsilon**2, n.sigma**2
    shrink = torch.exp(-2 * a * tau) / 4
    rest_xx = (1 / 4) * (5 * e2 / a + a * s2)
    rest_xv = (1 / 4) * (-2 * e2 / a**2)
    rest_vv = (1 / 4) * (e2 + a**2 * s2) / a**3
    s = a * tau
    lost_xx = (-(5 + 2 * s * (3 + s)) * e2 - a**2 * (1 + 2 * s * (1 + s)) * s2) / a
    lost_xv = 2 * ((n.epsilon + s * n.epsilon) ** 2 + a**4 * (tau**2) * s2) / a**2
    lost_vv = (-(1 + 2 * s * (1 + s)) * e2 - a**2 * (1 + 2 * s * (-1 + s)) * s2) / a**3
    return (
        rest_xx + shrink * lost_xx + n.jitter,
        rest_xv + shrink * lost_xv,
        rest_vv + shrink * lost_vv + n.jitter,
    )


def hybrid_covariance(n: Numbers, tau: torch.Tensor) -> Entries:
    """The same with the initial velocity integrated out."""
    xx, xv, vv = covariance(n, tau)
    shrink = torch.exp(-2 * n.a * tau)
    x, v = n.a**2 * tau, 1 - n.a * tau
    weight = n.v0_var * shrink
    return xx + weight * x**2, xv + weight * (x * v), vv + weight * v**2


def cholesky(entries: Entries) -> Entries:
    """(l_xx, l_vx, l_vv) of the lower factor."""
    xx, xv, vv = entries
    l_xx = torch.sqrt(xx)
    l_vx = xv / l_xx
    return l_xx, l_vx, torch.sqrt(vv - l_vx**2)


def time_steps(count: int, end: float, device: torch.device | str) -> torch.Tensor:
    """`count` times from 1 down to `end`, in PyTorch's default dtype; T is taken to be 1."""
    share = torch.arange(count, device=device) / (count - 1)
    return 1 + share * (end - 1)


def em_stages(
    n: Numbers, rate: Rate, times: torch.Tensor, step: float, planes: int
) -> tuple[Stage, ...]:
    """A step of length `step` from every time, the last one too: it ends below zero time.

    planes: 1 for a velocity score, whose model has no position score; 2 for both.
    """
    beta = rate(times)
    drift = _drift(n, beta)
    E = _columns(step * _host(beta)[:, None, None] * _diffusion(n), planes)
    L = _noise(n, step, beta)
    P = np.eye(2) - step * drift
    t = times.tolist()
    ends = [*t[1:], t[-1] - step]
    return tuple(Stage(t=t[k], t_next=ends[k], P=P[k], E=(E[k],), L=L[k]) for k in range(len(t)))


def leapfrog_stages(
    n: Numbers, rate: Rate, times: torch.Tensor, step: float, planes: int
) -> tuple[Stage, ...]:
    """Half a kick, half a drift, the noise; then half a drift and a kick at `t + step/2`.

    Time runs down, so that second time lies outside the step, on the side it came from.
    """
    later = times + 0.5 * step
    half = 0.5 * step
    beta, beta_later = rate(times), rate(later)
    rows_x, rows_v = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
    gain = half * _diffusion(n)
    L = _noise(n, step, beta)
    t, s = times.tolist(), later.tolist()
    ends = [*t[1:], t[-1] - step]

    def parts(rate: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        b = _host(rate)[:, None, None]
        A = np.array([[0.0, n.a**2], [-1.0, -2 * n.a]])
        move, weight = np.eye(2) - half * b * A, b * gain
        kick = rows_x + rows_v @ move
        drift = rows_v + rows_x @ move
        return kick, rows_v @ weight, drift, rows_x @ weight

    kick, kick_o, drift, drift_o = parts(beta)
    P, E = drift @ kick, _columns(drift @ kick_o + drift_o, planes)
    kick, kick_o, drift, drift_o = parts(beta_later)
    Q, F = kick @ drift, _columns(kick @ drift_o + kick_o, planes)
    stages: list[Stage] = []
    for k in range(len(t)):
        stages += [
            Stage(t=t[k], t_next=s[k], P=P[k], E=(E[k],), L=L[k]),
            Stage(t=s[k], t_next=ends[k], P=Q[k], E=(F[k],)),
        ]
    return tuple(stages)


def _host(values: torch.Tensor) -> np.ndarray:
    result: np.ndarray = values.to(device="cpu", dtype=torch.float64).numpy()
    return result


def _drift(n: Numbers, beta: torch.Tensor) -> np.ndarray:
    """`beta A` (n, 2, 2), its products rounded to the dtype of beta as the codebase does."""
    zero = torch.zeros_like(beta)
    rows = [zero, n.a**2 * beta, -1 * beta, -2 * n.a * beta]
    return _host(torch.stack(rows, -1)).reshape(-1, 2, 2)


def _diffusion(n: Numbers) -> np.ndarray:
    return np.diag([n.epsilon**2, n.sigma**2])


def _noise(n: Numbers, step: float, beta: torch.Tensor) -> np.ndarray:
    amplitude = np.diag([n.epsilon, n.sigma])
    result: np.ndarray = np.sqrt(_host(step * beta))[:, None, None] * amplitude
    return result


def _columns(blocks: np.ndarray, planes: int) -> np.ndarray:
    return blocks if planes == 2 else blocks[:, :, 1:]
