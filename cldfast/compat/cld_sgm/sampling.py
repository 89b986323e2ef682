"""The codebase's sampling functions: `sampler(model, u=None) -> x, v, nfe`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.compat.cld_sgm.sde import PublishedInterface, Samples, as_served
from cldfast.compat.draws import Draws, StageNoise
from cldfast.compat.flow import Flow, odeint
from cldfast.compat.published import check_name
from cldfast.compat.steps import denoising, fold, published_splitting, rows_of_score
from cldfast.network import Network, draw_seed
from cldfast.planner.grids import make_grid
from cldfast.planner.plan import Plan
from cldfast.planner.solvers import make_plan
from cldfast.planner.stage import Stage
from cldfast.sampling.run import run

Tensor = torch.Tensor
Sampler = Callable[..., Samples]
STRIDINGS = ("linear", "quadratic")


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
    method = check_name("sampling_method", config.sampling_method, tuple(makers))
    return makers[method](config, sde, sampling_shape, eps, mode=mode)


def get_em_sampler(
    config: Any, sde: Any, sampling_shape: Sequence[int], eps: float, *, mode: str | None = None
) -> Sampler:
    """Euler-Maruyama; arguments as in `get_sampling_fn`, the sampler's as in `get_sscs_sampler`."""
    return _FixedGrid(config, as_served(sde, mode), tuple(sampling_shape), float(eps), "em")


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
    return _FixedGrid(config, as_served(sde, mode), tuple(sampling_shape), float(eps), "sscs")


def get_ode_sampler(
    config: Any, sde: Any, sampling_shape: Sequence[int], eps: float, *, mode: str | None = None
) -> Sampler:
    """Probability flow with `config.sampling_solver` of torchdiffeq and the config's tolerances.

    Arguments as in `get_sampling_fn`. Returns `sampler(model, u=None, *, seed=None) -> x, v, nfe`;
    u, seed: see `get_sscs_sampler`. nfe counts network calls.
    """
    served, shape = as_served(sde, mode), tuple(sampling_shape)

    @torch.no_grad()
    def ode_sampler(model: Any, u: Tensor | None = None, *, seed: int | None = None) -> Samples:
        net = _asked(served, model, shape)
        u = _start(served, shape, u, seed)[0]
        flow = Flow(served.process, served.output_map, net)

        def rate(t: Tensor, state: Tensor) -> Tensor:
            return flow(1.0 - float(t), _promoted(served, state))

        state = solve(config, "sampling", rate, served.pack(u), (0.0, 1.0 - eps))
        if config.denoising:
            if served.mode == "published":
                _spent(served, u)
            last = fold([denoising(served.process, eps)], served.output_map)
            state = run(_plan(served, last, "em"), net, _promoted(served, state))
            flow.calls += 1
        return served.samples(state, shape, flow.calls)

    return ode_sampler


def solve(
    config: Any, kind: str, rate: Callable[..., Any], start: Any, ends: tuple[float, float]
) -> Any:
    """`odeint` with the options of config whose names begin with `kind`."""
    rtol, atol, method, options = (
        getattr(config, f"{kind}_{name}") for name in ("rtol", "atol", "solver", "solver_options")
    )
    return odeint(rate, start, ends, rtol=rtol, atol=atol, method=method, options=options)


@dataclass(frozen=True)
class _FixedGrid:
    """Euler-Maruyama and SSCS."""

    config: Any
    sde: PublishedInterface
    shape: tuple[int, ...]
    eps: float
    solver: str

    def stages(self) -> tuple[Stage, ...]:
        """The steps on the config's grid, for the full score; denoising takes one of the steps.

        In the published mode a normal is spent wherever the codebase spends one, so SSCS has two
        stages a step; in the exact mode neighbouring half-steps are one.
        """
        config, sde = self.config, self.sde
        check_name("striding", config.striding, STRIDINGS)
        steps = config.n_discrete_steps - bool(config.denoising)
        grid = make_grid(config.striding, T=1.0, t_min=self.eps, steps=steps)
        if self.solver == "sscs" and not sde.is_augmented:
            raise ValueError(f"the sscs sampler is for CLD only, got an sde of type {sde.type}")
        if self.solver == "em" or sde.mode == "exact":
            plan = make_plan(sde.process, self.solver, grid=grid, parameterization="full_score")
            return plan.stages
        end = 1.0 - self.eps
        t = torch.linspace(0.0, end, steps + 1, dtype=torch.float64, device="cpu")
        if config.striding == "quadratic":
            t = end * torch.flip(1.0 - (t / end) ** 2, dims=[0])
        num_stab = getattr(config, "sscs_num_stab", None) or 0.0
        return published_splitting(sde.process, t, num_stab, "sscs_num_stab")[0]

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        u: Tensor | None = None,
        *,
        noise: Sequence[Tensor] | None = None,
        seed: int | None = None,
    ) -> Samples:
        sde, stages = self.sde, self.stages()
        last = [denoising(sde.process, self.eps)] if self.config.denoising else []
        net = _asked(sde, model, self.shape)
        u, seed = _start(sde, self.shape, u, seed)
        if sde.mode == "exact":
            plan = _plan(sde, fold(stages, sde.output_map), self.solver)
            state = run(plan, net, sde.pack(u), seed=seed, noise=noise)
            if last:
                state = run(_plan(sde, fold(last, sde.output_map), "em"), net, state)
        else:
            state = self._published(stages, last, net, u, Draws(noise))
            if last and noise is None:
                _spent(sde, u)
        return sde.samples(state, self.shape, self.config.n_discrete_steps)

    def _published(
        self, stages: tuple[Stage, ...], last: list[Stage], net: Network, u: Tensor, draws: Draws
    ) -> Tensor:
        """The codebase's own precisions: what its float64 times have touched becomes float64.

        The first step of Euler-Maruyama promotes the state; with SSCS it is like u until the end.
        """
        sde, sscs = self.sde, self.solver == "sscs"
        state = sde.pack(u if sscs else u.to(torch.float64))

        def make(index: int) -> Tensor:
            dtype = u.dtype if sscs or index == 0 else torch.float64
            z = draws.normal(u.shape, dtype if sscs else sde.normals_dtype(dtype), u.device)
            return sde.pack(z).to(state.dtype)

        output_map = rows_of_score(sde.rows)
        plan = _plan(sde, fold(stages, output_map), self.solver)
        score = _published_score(sde, plan, net, u, plan.evaluations if sscs else 1)
        state = run(plan, score, state, noise=StageNoise(stages, make))
        if not last:
            return state
        plan = _plan(sde, fold(last, output_map), "em")
        score = _published_score(sde, plan, net, u, 1 if sscs else 0)
        return run(plan, score, state.to(torch.float64))


def _published_score(
    sde: PublishedInterface, plan: Plan, raw: Network, u: Tensor, narrow: int
) -> Network:
    """The score in the codebase's precisions: its float32 factors, made outside the stage.

    To be called in the order of the plan's evaluations; in the first `narrow` of them the
    codebase's state has the dtype of u.
    """
    evaluated = [stage.t for stage in plan.stages if stage.t is not None]
    times = torch.tensor(evaluated, dtype=torch.float64, device="cpu")
    dtypes = [u.dtype if k < narrow else torch.float64 for k in range(len(times))]
    factors = variances = sde.gain_and_shift(times)[0].float().to(u.device)
    if sde.mixed_score:
        early, late = (sde.mixed_variance(times, dtype) for dtype in (u.dtype, torch.float64))
        variances = torch.cat([early[:narrow], late[narrow:]]).float().to(u.device)
    terms = zip(factors, variances, dtypes, strict=True)

    def net(u: Tensor, t: Tensor) -> Tensor:
        gain, variance, dtype = next(terms)
        score = gain * raw(u, t)  # type: ignore[operator]
        if sde.mixed_score:
            own = u.chunk(2, dim=1)[1] if sde.is_augmented else u
            score = score - own.to(dtype) / variance
        return score

    return net


def _plan(sde: PublishedInterface, stages: Sequence[Stage], solver: str) -> Plan:
    """Stages as a plan for the networks of the codebase."""
    start = next(stage.t for stage in stages if stage.t is not None)
    grid = np.array([start, *(stage.t_next for stage in stages)])
    return Plan(tuple(stages), sde.process, solver, 1, "velocity output", grid)


def _asked(sde: PublishedInterface, model: Any, shape: Sequence[int]) -> Network:
    """The network of a sampler, its module no longer training."""
    if isinstance(model, torch.nn.Module):
        model.eval()
    return sde.network(model, sde.state_shape(shape))


def _start(
    sde: PublishedInterface, shape: Sequence[int], u: Tensor | None, seed: int | None
) -> tuple[Tensor, int]:
    """The states to start from, and the key of the noise; published runs have none."""
    if sde.mode == "exact":
        seed = draw_seed() if seed is None else kernels.check_seed(seed)
    seed = seed or 0
    return (sde.prior(shape, seed) if u is None else u), seed


def _promoted(sde: PublishedInterface, state: Tensor) -> Tensor:
    """What the codebase's float64 times make of a state that they touch."""
    return state if sde.mode == "exact" else state.to(torch.float64)


def _spent(sde: PublishedInterface, u: Tensor) -> None:
    """The draw of a last step, which is not used: it leaves the generator where the codebase does."""
    Draws().normal(u.shape, sde.normals_dtype(torch.float64), u.device)
