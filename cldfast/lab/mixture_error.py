"""What a sampler does on data whose score is known: Monte Carlo with confidence intervals.

On Gaussian data the law of a plan is exact (`Plan.error_budget`). On a Gaussian mixture the score
still is, but the law is not, so samples of the plan are compared with exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cldfast.lab.metrics import sliced_w2
from cldfast.lab.mixture import GaussianMixture
from cldfast.planner.plan import Plan
from cldfast.sampling.run import initial_state, run

Metric = Callable[[torch.Tensor, torch.Tensor], float]


@dataclass(frozen=True)
class Interval:
    """`mean +- half_width` at the confidence asked for, and the values behind it."""

    mean: float
    half_width: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class MixtureError:
    """Distance of a plan's samples from exact ones, and its floor: that of two exact samples."""

    error: Interval
    floor: Interval


def mixture_error(
    plan: Plan,
    mixture: GaussianMixture,
    samples: int,
    seeds: Sequence[int],
    metric: Metric = sliced_w2,
    *,
    confidence: float = 0.95,
    dtype: torch.dtype = torch.float64,
) -> MixtureError:
    """Run a plan with the exact score of a mixture, once for each seed, and measure x.

    samples: rows n of a run and of the exact samples. seeds: at least 2, different integers.
    metric: distance of two (n, d) tensors; sliced W2 with 500 projections by default.
    confidence: of the intervals, in (0, 1). dtype: of the states, float64 or float32.

    The exact samples are of x at the time of the plan's last state: the data for a plan that
    denoises, otherwise the data noised to t_min. Each seed has its own pair of them; one serves the
    error and, against the other, the floor.

    Raises ValueError for fewer than 2 samples or seeds, or a confidence outside (0, 1).
    """
    if samples < 2 or len(set(seeds)) < 2 or len(set(seeds)) != len(seeds):
        raise ValueError(
            f"expected at least 2 samples and 2 different seeds, got {samples} and {list(seeds)}"
        )
    net = mixture.network(plan.sde, plan.parameterization)
    errors, floors = [], []
    for seed in seeds:
        u = initial_state(plan.sde, (samples, mixture.dim), seed=seed, dtype=dtype)
        x = run(plan, net, u, seed=seed)[:, : mixture.dim]
        exact, other = (_exact_sample(plan, mixture, samples, 2 * seed + k) for k in (0, 1))
        errors.append(float(metric(x, exact.to(dtype))))
        floors.append(float(metric(other.to(dtype), exact.to(dtype))))
    return MixtureError(interval(errors, confidence), interval(floors, confidence))


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval for the mean of independent values, at least 2."""
    from scipy.stats import t as student

    if len(values) < 2 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"expected at least 2 values and a confidence in (0, 1), got {len(values)} "
            f"and {confidence}"
        )
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    quantile = float(student.ppf(0.5 * (1.0 + confidence), len(values) - 1))
    return Interval(float(np.mean(values)), quantile * spread, tuple(values))


def _exact_sample(plan: Plan, mixture: GaussianMixture, n: int, seed: int) -> torch.Tensor:
    """x (n, d) of the forward process at the plan's last time, float64."""
    x = mixture.sample(n, seed=seed).double()
    marginal = plan.sde.marginal(plan.stages[-1].t_next)
    # Another seed than that of the mixture's own draws.
    generator = torch.Generator().manual_seed(seed + 2**32)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu")
    return float(marginal.mean[0]) * x + math.sqrt(float(marginal.cov[0, 0])) * noise
