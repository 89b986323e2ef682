"""Training times: how a batch covers [t_min, T]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from cldfast.kernels import Stream, noise_address, uniforms
from cldfast.kernels.time_tables import kept_on
from cldfast.process.sde import LinearPhaseSDE

TIME_SAMPLING = ("uniform", "stratified", "importance", "log", "half_log", "log_snr", "edm")
# The inverse of the importance density's distribution function is tabulated at this many times,
# log-spaced; the density is exact for the piecewise linear table, so the table only costs variance.
_TABLE = 1024
# Karras et al. (2022), table 1: `ln sigma ~ N(-1.2, 1.2^2)` for data of standard deviation 0.5.
_EDM_MEAN, _EDM_DEVIATION, _EDM_SIGMA_DATA = -1.2, 1.2, 0.5
_NORMAL = NormalDist()


def sample_times(
    rows: int,
    sde: LinearPhaseSDE,
    *,
    t_min: float = 1e-3,
    method: str = "uniform",
    batch: int | None = None,
    seed: int | None = None,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    sigma_data: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Times on [t_min, T] and the factors that keep averages unbiased, both float64 (rows,).

    method: "uniform"; "stratified", one uniform time in each of `batch` equal intervals, in order
        (lower variance of batch averages); "importance", density proportional to the likelihood
        weight `beta trace(D Sigma^-1)`; "log", uniform in log t; "half_log", half of
        the rows uniform and half of them uniform in log t; "log_snr", uniform in the log of
        the signal-to-noise ratio of x0; "edm", a log-normal noise level `sigma_y = snr^(-1/2)` as
        in Karras et al. (2022), cut off at t_min and T. The last two leave out times at which an
        underdamped process swings back and the noise level falls. Factors are
        `1 / ((T - t_min) density)`.
    batch: rows of one stratified grid; `rows` must be whole batches. None: all rows are one.
    sigma_data: standard deviation of the data, to which the noise levels of "edm" are relative.
    seed, first_index: row i takes the addressed uniform of sample `first_index + i`; None draws a
        seed from `generator`, see `cldfast.sample`.

    Raises ValueError for an unknown method, or rows that are no whole batches. Source of the
    importance density: Song, Durkan, Murray, Ermon (2021), "Maximum likelihood training of
    score-based diffusion models", section 5.1.
    """
    if method not in TIME_SAMPLING:
        known = ", ".join(TIME_SAMPLING)
        raise ValueError(f"unknown time sampling {method!r}; expected one of {known}")
    batch = rows if batch is None else batch
    if batch < 1 or rows % batch:
        raise ValueError(f"rows must be whole batches of {batch}, got {rows}")
    address = noise_address(seed, first_index, generator, stream=Stream.TIMES)
    uniform = uniforms(address, rows, device)
    if method == "stratified":
        stratum = torch.arange(rows, device=device) % batch
        uniform = (stratum + uniform) / batch
    if method in ("uniform", "stratified"):
        return t_min + (sde.T - t_min) * uniform, torch.ones_like(uniform)
    if method in ("log", "half_log"):
        length, range_ = sde.T - t_min, math.log(sde.T / t_min)
        if method == "log":
            t = t_min * torch.exp(uniform * range_)
            return t, t * range_ / length
        # The lower half of the uniform number is uniform times, the upper half those of log t.
        even, logarithmic = 2.0 * uniform, t_min * torch.exp((2.0 * uniform - 1.0) * range_)
        t = torch.where(uniform < 0.5, t_min + length * even, logarithmic)
        return t, 2.0 / (1.0 + length / (t * range_))
    table = _density_table(sde, t_min, method, sigma_data)
    nodes, cumulative, density = kept_on(table.copies, table.arrays, uniform.device)
    cell = (torch.searchsorted(cumulative, uniform, right=True) - 1).clamp(0, _TABLE - 2)
    inside = (uniform - cumulative[cell]) / (cumulative[cell + 1] - cumulative[cell])
    t = nodes[cell] + inside * (nodes[cell + 1] - nodes[cell])
    return t, 1.0 / ((sde.T - t_min) * density[cell])


def given_times(t: object, T: float, rows: int, device: torch.device) -> torch.Tensor:
    """Times (B,) that a user gives, float64.

    Raises TypeError for what is no float tensor, ValueError for another shape or device or for a
    time outside (0, T]. Where the host would have to wait for a GPU to say so, such a time becomes
    NaN, and so does what is made of it.
    """
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"t must be a tensor, got {type(t).__name__}")
    if t.shape != (rows,) or t.device != device:
        raise ValueError(f"t must be ({rows},) on {device}, got {tuple(t.shape)} on {t.device}")
    advice = f"for a step number k of N pass T * (k + 1) / N, here T = {T:g}"
    if not t.is_floating_point():
        raise TypeError(f"t must be float times in (0, {T:g}], got {t.dtype}: {advice}")
    t = t.to(torch.float64)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return t  # nobody can look at values there
    last = T * (1.0 + 2.0**-20)  # T rounded to a float32 is no mistake
    if t.device.type != "cpu":
        return torch.where((t > 0.0) & (t <= last), t, torch.nan)
    low, high = (float(end) for end in t.detach().aminmax())
    if not (low > 0.0 and high <= last):
        raise ValueError(f"t must lie in (0, {T:g}], got {low:g} to {high:g}: {advice}")
    return t


@dataclass(frozen=True)
class _Density:
    """Nodes, distribution function at them, and density in the cells between them.

    copies: of them by their devices, so that a step of training copies nothing to a GPU.
    """

    arrays: tuple[torch.Tensor, ...]
    copies: dict[str, Any] = field(default_factory=dict)


# A process is not changed after it was made, so its table can be kept.
@lru_cache(maxsize=16)
def _density_table(sde: LinearPhaseSDE, t_min: float, method: str, sigma_data: float) -> _Density:
    nodes = np.geomspace(t_min, sde.T, _TABLE)
    marginal = sde.marginal(nodes)
    if method == "importance":
        covariance, (on_x, on_v) = marginal.covariance, sde.diffusion
        trace = (on_x * covariance.vv + on_v * covariance.xx) / covariance.det
        weight = sde.beta(nodes) * trace
        # A piecewise constant density over the cells, its height the geometric mean of the ends.
        mass = np.sqrt(weight[1:] * weight[:-1]) * np.diff(nodes)
    elif method == "log_snr":
        mass = np.diff(np.log(marginal.sigma_y))
    else:
        relative = np.log(marginal.sigma_y * (_EDM_SIGMA_DATA / sigma_data))
        mass = np.diff([_NORMAL.cdf((value - _EDM_MEAN) / _EDM_DEVIATION) for value in relative])
    mass = np.maximum(mass, 0.0)
    cumulative = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    density = mass / mass.sum() / np.diff(nodes)
    return _Density(tuple(map(torch.from_numpy, (nodes, cumulative, density))))
