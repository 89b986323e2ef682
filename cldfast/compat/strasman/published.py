"""What the codebase computes in its own order and dtype: covariances with jitter, leapfrog's times.

Single precision cannot hold the covariance, a difference, near t = 0 (the jitter covers this up).
So the order of the operations is part of the behaviour, and this covariance has a formula of its
own beside `cldfast.compat.laws.naive`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch

from cldfast.compat.laws import naive_covariance, propagator
from cldfast.planner.solvers.leapfrog import half_steps
from cldfast.planner.stage import Stage, affine_stages
from cldfast.process.linear_flow import Transition
from cldfast.process.sde import CLD

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def law(sde: Any, process: CLD, tau: torch.Tensor, hybrid: bool) -> Transition:
    """The codebase's perturbation kernel over tau, in the dtype of tau, jitter on the diagonal.

    sde: with a, epsilon, sigma, v0_var and jitter. hybrid: the initial velocity is integrated out.
    """
    a, e2, s2 = sde.a, sde.epsilon**2, sde.sigma**2
    shrink = torch.exp(-2 * a * tau) / 4
    rest_xx = (1 / 4) * (5 * e2 / a + a * s2)
    rest_xv = (1 / 4) * (-2 * e2 / a**2)
    rest_vv = (1 / 4) * (e2 + a**2 * s2) / a**3
    s = a * tau
    lost_xx = (-(5 + 2 * s * (3 + s)) * e2 - a**2 * (1 + 2 * s * (1 + s)) * s2) / a
    lost_xv = 2 * ((sde.epsilon + s * sde.epsilon) ** 2 + a**4 * (tau**2) * s2) / a**2
    lost_vv = (-(1 + 2 * s * (1 + s)) * e2 - a**2 * (1 + 2 * s * (-1 + s)) * s2) / a**3
    xx = rest_xx + shrink * lost_xx + sde.jitter
    xv = rest_xv + shrink * lost_xv
    vv = rest_vv + shrink * lost_vv + sde.jitter
    if hybrid:
        x, v = a**2 * tau, 1 - s
        weight = sde.v0_var * torch.exp(-2 * a * tau)
        xx, xv, vv = xx + weight * x**2, xv + weight * (x * v), vv + weight * v**2
    return Transition(propagator(process, tau), naive_covariance(xx, xv, vv))


def cholesky(xx: torch.Tensor, xv: torch.Tensor, vv: torch.Tensor) -> Entries:
    """(l_xx, l_vx, l_vv) of the lower factor."""
    l_xx = torch.sqrt(xx)
    l_vx = xv / l_xx
    return l_xx, l_vx, torch.sqrt(vv - l_vx**2)


def time_steps(count: int, end: float, device: torch.device | str) -> torch.Tensor:
    """`count` times from 1 down to `end`, in PyTorch's default dtype; as published, T is 1."""
    share = torch.arange(count, device=device) / (count - 1)
    return 1 + share * (end - 1)


def leapfrog(
    process: CLD,
    t: np.ndarray,
    late: np.ndarray,
    t_next: np.ndarray,
    ways: tuple[np.ndarray, np.ndarray],
) -> list[Stage]:
    """Half a kick, half a drift, the noise; then half a drift and a kick at the times `late`.

    ways: step times rate at t and at `late`. All (n,).
    """
    (P, E), (Q, F) = half_steps(process, 0.5 * ways[0], 0.5 * ways[1])
    L = np.sqrt(ways[0][:, None, None] * np.diag(process.D))
    halves = affine_stages(t, late, P, E, L), affine_stages(late, t_next, Q, F, 0.0 * L)
    return list(chain.from_iterable(zip(*halves, strict=True)))
