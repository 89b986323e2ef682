"""The codebase's sampling functions: `sampler(model, u=None) -> x, v, nfe`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.compat.cld_sgm.calls import (
    Samples,
    exact_prior,
    network,
    published_prior,
    split,
    state_shape,
)
from cldfast.compat.cld_sgm.flow import get_ode_sampler
from cldfast.compat.cld_sgm.interface import PublishedInterface
from cldfast.compat.cld_sgm.plans import denoising_plan, sampler_plan
from cldfast.compat.cld_sgm.sde import as_served
from cldfast.network import Network, draw_seed
from cldfast.planner.plan import Plan
from cldfast.sampling.run import run

Tensor = torch.Tensor
Sampler = Callable[..., Samples]


def get_sampling_fn(
    config: Any, sde: Any, sampling_shape: Sequence[int], eps: float, *, mode: str | None = None
) -> Sampler:
    """The sampler that `config.sampling_method` names: "em", "sscs" or "ode".

    config: the codebase's options, as its command line makes them. sde: a process of its `sde_lib`,
    or of this package. sampling_shape: of the samples, (B, d) or (B, C, H, W). eps: last time, > 0.
    mode: "exact" or "published"; None keeps that of a process of this package, else "exact".

    Returns `sampler(model, u=None)`, see `get_sscs_sampler` and `get_ode_sampler`.
    Raises ValueError for an unknown method, striding or mode.
    """
    makers = {"em": get_em_sampler, "sscs": get_sscs_sampler, "ode": get_ode_sampler}
    if config.sampling_method not in makers:
        raise ValueError(
            f"sampling_method must be one of {', '.join(makers)}, got {config.sampling_method!r}"
        )
    return makers[config.sampling_method](config, sde, sampling_shape, eps, mode=mode)


def get_em_sampler(
    config: Any, sde: Any, sampling_shape: Sequence[int], eps: float, *, mode: str | None = None
) -> Sampler:
    """Euler-Maruyama; arguments as in `get_sampling_fn`, the sampler's as in `get_sscs_sampler`."""
    return _FixedGrid(config, as_served(sde, mode), sampling_shape, eps, "em")


def get_sscs_sampler(
    config: Any, sde: Any, sampling_shape: Sequence[int], eps: float, *, mode: str | None = None
) -> Sampler:
    """The symmetric splitting sampler, for CLD only; arguments as in `get_sampling_fn`.

    Returns `sampler(model, u=None, *, noise=None, seed=None) -> x, v, nfe` with
    u: states to start from, (B, 2d) or (B, 2C, H, W); None draws the stationary law.
    noise: normals to use, (B, 2C, ...) each: in published mode those of the codebase in its order,
        two a step of SSCS and one of Euler-Maruyama; in exact mode one per stage of the plan.
    seed: key of the addressed noise of exact runs; None draws one from PyTorch's generator.
        Published runs draw from that generator, in the codebase's order.
    """
    return _FixedGrid(config, as_served(sde, mode), sampling_shape, eps, "sscs")


class _FixedGrid:
    """Euler-Maruyama and SSCS. The plans are made at the first call, as their errors are."""

    def __init__(
        self,
        config: Any,
        sde: PublishedInterface,
        shape: Sequence[int],
        eps: float,
        solver: str,
    ) -> None:
        self.config, self.sde, self.solver = config, sde, solver
        self.shape, self.eps = tuple(shape), float(eps)
        self.state_shape = state_shape(sde, self.shape)

    @cached_property
    def plans(self) -> tuple[Plan, Plan | None]:
        """The steps, and the denoising step or None."""
        output_map = self.sde.output_map if self.sde.mode == "exact" else self._score_itself
        plan = sampler_plan(self.config, self.sde, self.solver, self.eps, output_map)
        denoises = bool(self.config.denoising)
        return plan, denoising_plan(self.sde, self.eps, output_map) if denoises else None

    def _score_itself(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Published scores are rounded to float32, so they are made outside the stage."""
        one = np.ones((len(times), 1, 1))
        return one * self.sde.rows, one * np.zeros((2, 2))

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        u: Tensor | None = None,
        *,
        noise: Sequence[Tensor] | None = None,
        seed: int | None = None,
    ) -> Samples:
        sde = self.sde
        plan, last = self.plans
        if isinstance(model, torch.nn.Module):
            model.eval()
        if sde.mode == "exact":
            seed = draw_seed() if seed is None else kernels.check_seed(seed)
            start = exact_prior(sde, self.shape, self.config.device, seed) if u is None else u
            state = sde.pack(start)
            net = network(sde, model, self.state_shape)
            state = run(plan, net, state, seed=seed, noise=noise)
            if last is not None:
                state = run(last, net, state)
        else:
            state = published_prior(sde, self.shape) if u is None else u
            state = self._published(plan, last, model, state, noise)
        return split(sde, sde.unpack(state, self.state_shape), self.config.n_discrete_steps)

    def _published(
        self,
        plan: Plan,
        last: Plan | None,
        model: Any,
        u: Tensor,
        noise: Sequence[Tensor] | None,
    ) -> Tensor:
        """The codebase's own precisions: what its float64 times have touched becomes float64."""
        sde = self.sde
        state = sde.pack(u if self.solver == "sscs" else u.to(torch.float64))
        normals = _Normals(sde, self.solver, u, len(plan.stages), state.dtype, noise)
        # Until a step has promoted it, and with SSCS until the end, the state is like u.
        sscs = self.solver == "sscs"
        net = _published_score(sde, model, plan, u, plan.evaluations if sscs else 1, self.shape)
        state = run(plan, net, state, noise=normals)  # type: ignore[arg-type]
        if last is not None:
            net = _published_score(sde, model, last, u, 1 if sscs else 0, self.shape)
            state = run(last, net, state.to(torch.float64))
            if noise is None:
                # Drawn and not used, so that the generator is where the codebase leaves it.
                sde.euler_normals(sde.unpack(state, self.state_shape))
        return state


class _Normals:
    """A published run's normals, stage by stage: those given, or drawn when they are asked for."""

    def __init__(
        self,
        sde: PublishedInterface,
        solver: str,
        u: Tensor,
        count: int,
        dtype: torch.dtype,
        given: Sequence[Tensor] | None,
    ) -> None:
        self.sde, self.solver, self.count, self.dtype = sde, solver, count, dtype
        self.given, self.like = given, u

    def __len__(self) -> int:
        return self.count if self.given is None else len(self.given)

    def __getitem__(self, index: int) -> Tensor:
        if self.given is not None:
            z = self.given[index]
        elif self.solver == "sscs":
            z = torch.randn_like(self.like)
        else:
            # The state is promoted by the first step, and the next draw may follow it.
            z = self.sde.euler_normals(self.like)
            self.like = self.like.to(torch.float64)
        return self.sde.pack(z).to(self.dtype)


def _published_score(
    sde: PublishedInterface, model: Any, plan: Plan, u: Tensor, narrow: int, shape: Sequence[int]
) -> Network:
    """The score in the codebase's precisions: its float32 factors, at the float64 times of a run.

    To be called in the order of the plan's evaluations; in the first `narrow` of them the
    codebase's state has the dtype of u.
    """
    evaluated = [stage.t for stage in plan.stages if stage.t is not None]
    times = torch.tensor(evaluated, dtype=torch.float64)
    gains, _ = sde.gain_and_shift(times)
    factors = gains.float().to(u.device)
    mixed = bool(getattr(sde.config, "mixed_score", False))
    dtypes = [u.dtype if k < narrow else torch.float64 for k in range(len(evaluated))]
    variances = factors
    if mixed:
        start = [sde.mixed_variance(times, dtype) for dtype in (u.dtype, torch.float64)]
        variances = torch.cat([start[0][:narrow], start[1][narrow:]]).float().to(u.device)
    rows = zip(factors, variances, dtypes, strict=True)
    raw = network(sde, model, state_shape(sde, shape))

    def net(u: Tensor, t: Tensor) -> Tensor:
        gain, variance, dtype = next(rows)
        score = raw(u, t)
        assert isinstance(score, Tensor)
        score = gain * score
        if mixed:
            own = u.chunk(2, dim=1)[1] if sde.is_augmented else u
            score = score - own.to(dtype) / variance
        return score

    return net
