"""The coefficients that the codebase computes: its times, jitter, and single-precision scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cldfast.compat.psld.process import rows_of
from cldfast.planner.stage import Stage

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Factor = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def beta(sde: Any, t: torch.Tensor) -> torch.Tensor:
    """Its rate."""
    result: torch.Tensor = sde.beta_0 + t * (sde.beta_1 - sde.beta_0)
    return result


def integral(sde: Any, t: torch.Tensor) -> torch.Tensor:
    """Its integral of the rate over [0, t]."""
    result: torch.Tensor = sde.beta_0 * t + 0.5 * (t**2) * (sde.beta_1 - sde.beta_0)
    return result


def propagator(sde: Any, b: torch.Tensor) -> torch.Tensor:
    """`exp(A b)`, (..., 2, 2), of the critically damped drift."""
    gap = (sde.nu - sde.gamma) / 4
    decay = torch.exp(-(sde.nu + sde.gamma) / 4 * b)
    rows = [gap * b + 1.0, 2 * gap**2 * b, -0.5 * b, 1.0 - gap * b]
    return torch.stack([decay * r for r in rows], -1).reshape(*b.shape, 2, 2)


def covariance(sde: Any, m_var: float, b: torch.Tensor) -> Entries:
    """Entries (xx, xm, mm) after an integrated rate b from momentum variance m_var, jitter on."""
    total, gap = sde.nu + sde.gamma, sde.nu - sde.gamma
    mass_inv = gap**2 / 4
    mass = 1 / mass_inv
    shrink, grown = torch.exp(-total / 2 * b), torch.exp(total / 2 * b) - 1
    b2 = b**2
    xx = mass_inv**2 / 4 * b2 * m_var - mass_inv / 2 * b2 - gap / 2 * b + grown
    xm = -mass_inv * gap / 8 * b2 * m_var + mass_inv / 2 * b * m_var + gap / 4 * b2
    mm = (
        mass_inv / 4 * b2 * m_var
        - gap / 2 * b * m_var
        - 0.5 * b2
        + mass * gap / 2 * b
        + mass * grown
        + m_var
    )
    return xx * shrink + sde.eps, xm * shrink, mm * shrink + sde.eps


def factor(sde: Any, entries: Entries) -> torch.Tensor:
    """Its triangular factor, (..., 2, 2); ValueError where rounding leaves a negative square."""
    xx, xm, mm = entries
    zero = torch.zeros_like(xx)
    if sde.decomp_mode == "lower":
        first = torch.sqrt(xx)
        cross = xm / first
        rows = [first, zero, cross, torch.sqrt(mm - cross**2)]
    else:
        first = torch.sqrt(mm)
        cross = xm / first
        rows = [torch.sqrt(xx - cross**2), cross, zero, first]
    return _finite(torch.stack(rows, -1).reshape(*xx.shape, 2, 2))


def noise_to_score(sde: Any, t: torch.Tensor) -> np.ndarray:
    """`-C^-T` at times t, rounded to single precision, columns of the predicted noises."""
    xx, xm, mm = covariance(sde, sde.mm_0, integral(sde, t))
    det = xx * mm - xm**2
    zero = torch.zeros_like(xx)
    if sde.decomp_mode == "lower":
        cross = -xm / (torch.sqrt(xx) * torch.sqrt(det))
        rows = [torch.sqrt(1 / xx), cross, zero, torch.sqrt(xx / det)]
    else:
        cross = -xm / (torch.sqrt(mm) * torch.sqrt(det))
        rows = [torch.sqrt(mm / det), zero, cross, torch.sqrt(1 / mm)]
    inverse = _finite(torch.stack(rows, -1).reshape(*xx.shape, 2, 2)).to(torch.float32)
    chosen = list(rows_of(sde))
    result: np.ndarray = -inverse.to(torch.float64).numpy()
    result = result[..., chosen]
    # One noise stands for one score; the other is set to zero.
    if len(chosen) == 1:
        result[..., 1 - chosen[0], :] = 0.0
    return result


def _finite(matrix: torch.Tensor) -> torch.Tensor:
    if bool(torch.isnan(matrix).any()):
        raise ValueError(
            "the published covariance is not positive definite at some time; raise numerical_eps, "
            'or use mode="exact"'
        )
    return matrix


def drift(sde: Any) -> np.ndarray:
    """A, (2, 2)."""
    mass_inv = (sde.nu - sde.gamma) ** 2 / 4
    return 0.5 * np.array([[-sde.gamma, mass_inv], [-1.0, -sde.nu]])


def diffusion(sde: Any) -> np.ndarray:
    """Squared noise amplitudes per rate, (2, 2) diagonal."""
    return np.diag([sde.gamma, sde.nu / ((sde.nu - sde.gamma) ** 2 / 4)])


def em_stages(sde: Any, ts: torch.Tensor, guidance: float | None = None) -> tuple[Stage, ...]:
    """A step from each time of ts (sampler's time, running up) to the next.

    guidance: the network returns a second output, an addition to the score of this strength.
    """
    t, dt = sde.T - ts[:-1], ts[1:] - ts[:-1]
    P, E, gain = _euler(sde, t, dt, 1.0)
    times, ends = t.tolist(), (sde.T - ts[1:]).tolist()
    return tuple(
        Stage(
            t=times[k],
            t_next=ends[k],
            P=P[k],
            E=(E[k],) if guidance is None else (E[k], guidance * gain[k]),
            L=np.sqrt(gain[k]),
        )
        for k in range(len(times))
    )


def denoising_stage(
    sde: Any, eps: float, guidance: float | None = None, probability_flow: bool = False
) -> Stage:
    """A step without noise from eps to 0; the SDE samplers hold both in PyTorch's default dtype."""
    if probability_flow:
        t = float(sde.T) - (float(sde.T) - eps)
        length = eps
    else:
        t = float(sde.T) - torch.tensor(sde.T - eps).item()
        length = torch.tensor(eps).item()
    one = torch.ones(1, dtype=torch.float64)
    P, E, gain = _euler(sde, t * one, length * one, 0.5 if probability_flow else 1.0)
    outputs = (E[0],) if guidance is None else (E[0], guidance * gain[0])
    return Stage(t=t, t_next=0.0, P=P[0], E=outputs)


def flow_blocks(sde: Any, t: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`du/ds = P u + E eps` of the probability flow in the sampler's time, at one time t (1,)."""
    P, E, _ = _euler(sde, t, torch.ones_like(t), 0.5)
    return P[0] - np.eye(2), E[0]


def _euler(
    sde: Any, t: torch.Tensor, dt: torch.Tensor, weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of `u + dt (-beta A u + weight beta D score)`, and `dt beta D`, (n, 2, ...) each."""
    way = (dt * beta(sde, t)).numpy()[:, None, None]
    gain = way * diffusion(sde)
    return np.eye(2) - way * drift(sde), weight * (gain @ noise_to_score(sde, t)), gain


def sscs_stages(sde: Any, ts: torch.Tensor) -> tuple[tuple[Stage, ...], list[torch.Tensor | None]]:
    """Two stages a step: half a step of the free process; the score kick and the other half.

    Kick and rate are those at the step's start, and the second half repeats the first one's
    integral of the rate. Also returned, per stage: what its normals are multiplied by first, a
    rotation where the codebase's factor is upper triangular (a stage's is lower), else None.
    """
    dt = ts[1:] - ts[:-1]
    t = sde.T - ts[:-1]
    middle = sde.T - (ts[:-1] + dt / 2)
    b = integral(sde, t) - integral(sde, middle)
    free = _reversed_propagator(sde, b)
    # The reversed process differs from the forward one by a sign in the covariance xm.
    xx, xm, mm = covariance(sde, 0.0, b)
    own = factor(sde, (xx, -xm, mm))
    noise = own
    rotations: list[torch.Tensor | None] = [None] * (2 * len(t))
    if sde.decomp_mode == "upper":
        noise = _lower(own)
        turns = torch.linalg.solve_triangular(noise, own, upper=False)
        rotations = [turns[k // 2] for k in range(2 * len(t))]
    gain = diffusion(sde)
    way = (dt * beta(sde, t)).numpy()[:, None, None]
    mass_inv = (sde.nu - sde.gamma) ** 2 / 4
    kick = np.eye(2) + way * (gain @ np.diag([1.0, mass_inv]))
    push = way * (gain @ noise_to_score(sde, t))
    P, L = free.numpy(), noise.numpy()
    times, halves, ends = t.tolist(), middle.tolist(), (sde.T - ts[1:]).tolist()
    stages: list[Stage] = []
    for k in range(len(times)):
        stages += [
            Stage(t=None, t_next=halves[k], P=P[k], L=L[k]),
            Stage(t=times[k], t_next=ends[k], P=P[k] @ kick[k], E=(P[k] @ push[k],), L=L[k]),
        ]
    return tuple(stages), rotations


def _reversed_propagator(sde: Any, b: torch.Tensor) -> torch.Tensor:
    """Of the time-reversed stationary process: the off-diagonal entries change sign."""
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    return propagator(sde, b) * signs


def _lower(matrix: torch.Tensor) -> torch.Tensor:
    """The lower factor of `matrix matrix^T`."""
    xx = (matrix[:, 0] ** 2).sum(-1)
    xm = (matrix[:, 0] * matrix[:, 1]).sum(-1)
    root = torch.sqrt(xx)
    # det(matrix) over the root: no difference of squares.
    last = matrix[:, 0, 0] * matrix[:, 1, 1] / root
    zero = torch.zeros_like(root)
    return torch.stack([root, zero, xm / root, last], -1).reshape(-1, 2, 2)


def kernel(sde: Any, m_var: float, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Propagator and factor of the perturbation kernel at times t, (n, 2, 2) each."""
    b = integral(sde, t.to(torch.float64))
    return propagator(sde, b), factor(sde, covariance(sde, m_var, b))
