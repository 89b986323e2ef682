"""The samplers of gDDIM as plans, for a network that returns R noise: `score = -R^-T eps`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cldfast.compat.gddim.process import CLD
from cldfast.compat.gddim.stochastic import LambdaCLD
from cldfast.compat.steps import OutputMap, euler, fold, splitting
from cldfast.compat.steps import denoising as denoising_step
from cldfast.planner.parameterization import LinearMap
from cldfast.planner.plan import Plan
from cldfast.planner.solvers.exponential import interpolation
from cldfast.planner.stage import Stage

# The network's noise belongs to the process with numerical_eps, which no general
# parameterisation knows; `gaussian_law` refuses the name.
PARAMETERIZATION = "gddim_noise"


def rev_times(num_steps: int, ts_order: float = 2.0, t_min: float = CLD.sampling_eps) -> np.ndarray:
    """Times linear in `t^(1/ts_order)` from T down to t_min, (num_steps + 1,)."""
    root = 1.0 / ts_order
    return np.linspace(CLD.T**root, t_min**root, num_steps + 1) ** ts_order


def hybrid_times(
    num_steps: int,
    noise_nfe_ratio: float = 0.3,
    img_t_ratio: float = 0.3,
    ts_order: float = 2.0,
    mode: str = "exact",
) -> np.ndarray:
    """The grid of `hybdeis` from its configuration values, (num_steps + 1,).

    A linear part down to `img_t_ratio T`, excluded, with the share `noise_nfe_ratio` of the steps;
    then the power grid on from there, or, in the mode "published", from T once more.
    """
    middle, count = CLD.T * img_t_ratio, int(num_steps * noise_nfe_ratio)
    high = (CLD.T if mode == "published" else middle) ** (1.0 / ts_order)
    low = CLD.sampling_eps ** (1.0 / ts_order)
    power = np.linspace(high, low, num_steps - count + 1) ** ts_order
    return np.concatenate([np.linspace(CLD.T, middle, count, endpoint=False), power])


def deis_plan(
    cld: CLD, rev_timesteps: Any, order: int = 1, form: str = "R", denoising: bool = False
) -> Plan:
    """The multistep sampler of degree `order`, interpolating R noise (gDDIM) or L noise (DEIS).

    One evaluation per step. denoising: one more step, Euler's from there to 0 without its noise.
    """
    coefficients = cld.get_deis_coef(order, rev_timesteps, form)
    return multistep_plan(cld, rev_timesteps, coefficients, form, denoising)


def order0_plan(cld: CLD, rev_timesteps: Any, is_em: bool = False, denoising: bool = False) -> Plan:
    """The sampler with a constant noise over a step; is_em: Euler's method on the ODE."""
    return multistep_plan(
        cld, rev_timesteps, cld.get_order0_coef(rev_timesteps, is_em), "R", denoising
    )


def multistep_plan(
    cld: CLD, rev_timesteps: Any, coefficients: np.ndarray, form: str = "R", denoising: bool = False
) -> Plan:
    """A plan from coefficients in the layout of `CLD.get_deis_coef`, `CLD`'s or your own.

    coefficients: (N, k, 2, 2), psi and then one matrix per noise, the newest first; those of
    noises that there are not yet must be zero.
    """
    times = cld.times(rev_timesteps)
    t = times[:-1]
    if coefficients.ndim != 4 or coefficients.shape[0] != len(t):
        raise ValueError(
            f"coefficients must be ({len(t)}, k, 2, 2), one row per step, got {coefficients.shape}"
        )
    used = np.any(coefficients != 0.0, axis=(2, 3))
    noise, still = noise_map(cld, t, form), np.zeros((2, 2))
    stages: list[Stage] = []
    for k, (psi, *weights) in enumerate(coefficients):
        last = max((j for j in range(len(weights)) if used[k, 1 + j]), default=0)
        if last > k:
            raise ValueError(
                f"step {k} has coefficients for {last + 1} noises, but there are {k + 1}"
            )
        keep = bool(np.any(used[k + 1 :, 2:]))
        span = (t[k], times[k + 1])
        stages.append(interpolation(noise, k, span, psi, weights[: last + 1], still, keep))
    # The first step has order 0, and with that a local error of second order.
    order = min(int(used[:, 1:].sum(axis=1).max()), 2)
    return _plan(cld, times, stages, order, denoising)


def sdeis_plan(
    cld: CLD, rev_timesteps: Any, order: int = 1, lambda_coef: float = 1.0, denoising: bool = False
) -> Plan:
    """`deis_plan` with noise: lambda_coef 0 is the probability flow, 1 the reverse SDE."""
    rule = LambdaCLD(cld, lambda_coef)
    factors = rule.noise_factors(rev_timesteps)
    flow = multistep_plan(cld, rev_timesteps, rule.weights(order, rev_timesteps))
    stages = [replace(stage, L=L) for stage, L in zip(flow.stages, factors, strict=True)]
    # The network sees the noise of a step one step later.
    return _plan(cld, flow.grid, stages, 1 if lambda_coef > 0.0 else flow.order, denoising)


def em_plan(
    cld: CLD, rev_timesteps: Any, lambda_coef: float = 1.0, denoising: bool = False
) -> Plan:
    """Euler's method on `dU = (F U - (1 + lambda^2)/2 G G^T s) dt + lambda G dB`, t running down.

    In the mode "published" the score has the factor (1 + lambda)/2, the same at 0 and 1.
    """
    times = cld.times(rev_timesteps)
    t, power = times[:-1], 1 if cld.mode == "published" else 2
    stages = euler(
        cld.sde, t, times[1:], -np.diff(times) * cld.beta(t),
        pull=0.5 * (1.0 + lambda_coef**power), spread=lambda_coef,
    )  # fmt: skip
    return _plan(cld, times, fold(stages, score_map(cld)), 1, denoising)


def sscs_plan(cld: CLD, rev_timesteps: Any, denoising: bool = False) -> Plan:
    """Half a step of the reversed stationary process, a score kick, another half.

    The kick takes the score at the middle time and its own integral of beta; in the mode
    "published" the score at the start of the step, and the step times `beta(1 - t)`. The first
    half is a stage without evaluation; the kick and the other half are one stage with evaluation.
    """
    times = cld.times(rev_timesteps)
    t, s = times[:-1], times[1:]
    middle = 0.5 * (t + s)
    tau_t, tau_middle, tau_s = (cld.sde.tau(at) for at in (t, middle, s))
    halves = (
        cld.sde.reversed_transition(tau_t - tau_middle),
        cld.sde.reversed_transition(tau_middle - tau_s),
    )
    asked, way = middle, tau_t - tau_s
    if cld.mode == "published":
        asked, way = t, cld.beta(1.0 - t) * (t - s)
    stages = splitting(cld.sde, (t, middle, s), halves, asked, way)
    return _plan(cld, times, fold(stages, score_map(cld)), 1, denoising)


def noise_map(cld: CLD, t: np.ndarray, form: str) -> LinearMap:
    """The noise of a form from what the network returns and the state."""
    output = np.broadcast_to(np.eye(2), (len(t), 2, 2))
    if form != "R":
        back = np.swapaxes(cld.inverse_factor(t), -1, -2)
        output = np.swapaxes(cld.factor(t, form), -1, -2) @ back
    if not cld.mixed_score:
        return LinearMap(output, np.zeros_like(output))
    return LinearMap(output, output @ cld.inverse_factor(t) @ np.diag([0.0, 1.0]))


def score_map(cld: CLD) -> OutputMap:
    """What the outputs of the codebase's networks mean: `score = -R^-T noise`."""

    def output_map(t: np.ndarray) -> LinearMap:
        return noise_map(cld, t, "R").then(-np.swapaxes(cld.inverse_factor(t), -1, -2))

    return output_map


def _plan(
    cld: CLD, times: np.ndarray, stages: Sequence[Stage], order: int, denoising: bool
) -> Plan:
    last = float(times[-1])
    if denoising:
        if not math.isclose(last, cld.sampling_eps):
            raise ValueError(f"denoising starts at t = {cld.sampling_eps}, the grid ends at {last}")
        step = denoising_step(cld.sde, cld.sampling_eps, cld.sampling_eps)
        stages = [*stages, *fold(step, score_map(cld))]
    return Plan(tuple(stages), cld.sde, "gddim", order, PARAMETERIZATION, times)
