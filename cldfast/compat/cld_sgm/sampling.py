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
from cldfast.compat.published import check_name
from cldfast.compat.steps import Flow, denoising, fold, published_splitting, rows_of_score
from cldfast.network import Network
from cldfast.planner.grids import make_grid
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.sampling.probability_flow import odeint
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

    Returns `sampler(model, u=None, *, noise=None, seed=None) -> x, v, nfe` with
    u: states to start from, (B, 2d) or (B, 2C, H, W); None draws the stationary law.
    noise: normals to use, (B, 2C, ...) each: in published mode those of the codebase in its order,
        two a step of SSCS and one of Euler-Maruyama; in exact mode one per stage of the plan.
    seed: key of the addressed noise of exact runs; None draws one from PyTorch's generator.
        Published runs draw from that generator, in the codebase's order.
    Raises ValueError for an unknown method, striding or mode.
    """
    makers = {"em": get_em_sampler, "sscs": get_sscs_sampler, "ode": get_ode_sampler}
    method = check_name("sampling_method", config.sampling_method, tuple(makers))
    return makers[method](config, sde, sampling_shape, eps, mode=mode)


def get_em_sampler(
    config: Any, sde: Any, sampling_shape: Sequence[int], eps: float, *, mode: str | None = None
) -> Sampler:
    """Euler-Maruyama; arguments and result as in `get_sampling_fn`."""
    return _Sampler(config, as_served(sde, mode), tuple(sampling_shape), float(eps), "em")


def get_sscs_sampler(
    config: Any, sde: Any, sampling_shape: Sequence[int], eps: float, *, mode: str | None = None
) -> Sampler:
    """The symmetric splitting sampler, for CLD only; arguments and result as above."""
    return _Sampler(config, as_served(sde, mode), tuple(sampling_shape), float(eps), "sscs")


def get_ode_sampler(
    config: Any, sde: Any, sampling_shape: Sequence[int], eps: float, *, mode: str | None = None
) -> Sampler:
    """Probability flow with `config.sampling_solver` of torchdiffeq and the config's tolerances.

    Arguments and result as in `get_sampling_fn`, but there is no noise; nfe counts network calls.
    """
    return _Sampler(config, as_served(sde, mode), tuple(sampling_shape), float(eps), "ode")


@dataclass(frozen=True)
class _Sampler:
    config: Any
    sde: PublishedInterface
    shape: tuple[int, ...]
    eps: float
    solver: str

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        u: Tensor | None = None,
        *,
        noise: Sequence[Tensor] | None = None,
        seed: int | None = None,
    ) -> Samples:
        sde, exact = self.sde, self.sde.mode == "exact"
        if isinstance(model, torch.nn.Module):
            model.eval()
        where = kernels.noise_address(seed if exact else 0)
        key: dict[str, Any] = {"seed": where.seed, "first_index": where.first_index}
        u = sde.prior(self.shape, where) if u is None else u
        net = sde.network(model, sde.state_shape(self.shape))
        calls = self.config.n_discrete_steps
        if self.solver == "ode":
            state, calls = self._flow(net, u)
        elif exact:
            plan = self._plan(fold(self.stages(), sde.output_map))
            state = run(plan, net, sde.pack(u), **key, noise=noise)
        else:
            state = self._published(net, u, Draws(noise))
        if self.config.denoising:
            last = denoising(sde.process, self.eps, self.eps)
            if exact:
                state = run(self._plan(fold(last, sde.output_map)), net, state, **key)
            else:
                narrow = 0 if self.solver == "em" else 1
                state = self._scored(last, net, u, narrow, state.to(torch.float64))
                if noise is None:
                    # The codebase draws this noise, too, and does not use it.
                    Draws().normal(u.shape, sde.normals_dtype(torch.float64), u.device)
        return sde.samples(state, self.shape, calls)

    def stages(self) -> Sequence[Stage]:
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

    def _plan(self, stages: Sequence[Stage]) -> Plan:
        """Stages as a plan for the networks of the codebase."""
        start = next(stage.t for stage in stages if stage.t is not None)
        grid = np.array([start, *(stage.t_next for stage in stages)])
        return Plan(tuple(stages), self.sde.process, self.solver, 1, "velocity output", grid)

    def _published(self, net: Network, u: Tensor, draws: Draws) -> Tensor:
        """Published steps from states u.

        The first step of Euler-Maruyama makes the state float64; SSCS keeps the dtype of u.
        """
        sde, sscs, stages = self.sde, self.solver == "sscs", self.stages()
        state = sde.pack(u if sscs else u.to(torch.float64))

        def make(index: int) -> Tensor:
            dtype = u.dtype if sscs or index == 0 else torch.float64
            z = draws.normal(u.shape, dtype if sscs else sde.normals_dtype(dtype), u.device)
            return sde.pack(z).to(state.dtype)

        narrow = len(stages) if sscs else 1
        return self._scored(stages, net, u, narrow, state, StageNoise(stages, make))

    def _scored(
        self,
        stages: Sequence[Stage],
        raw: Network,
        u: Tensor,
        narrow: int,
        state: Tensor,
        noise: StageNoise | None = None,
    ) -> Tensor:
        """Published stages; the score is made before each stage, with float32 factors as published.

        raw: the network. narrow: in so many evaluations the codebase's state has the dtype of u;
        later the state is float64.
        """
        sde = self.sde
        evaluated = [stage.t for stage in stages if stage.t is not None]
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

        # All noise is given: a seed drawn here would be one draw too many.
        plan = self._plan(fold(stages, rows_of_score(sde.rows)))
        return run(plan, net, state, seed=0, noise=noise)

    def _flow(self, net: Network, u: Tensor) -> tuple[Tensor, int]:
        """States of the probability flow at eps, and the network's calls with that of denoising."""
        sde = self.sde
        flow = Flow(net, sde.process, sde.output_map)

        def rate(t: Tensor, state: Tensor) -> Tensor:
            # The codebase's float64 times make the state float64.
            state = state if sde.mode == "exact" else state.to(torch.float64)
            return -flow(1.0 - t.to(torch.float64), state)

        state = solve(self.config, "sampling", rate, sde.pack(u), (0.0, 1.0 - self.eps))
        return state, flow.evaluations + bool(self.config.denoising)


def solve(
    config: Any, kind: str, rate: Callable[..., Any], start: Any, ends: tuple[float, float]
) -> Any:
    """`odeint` with the options of config whose names begin with `kind`."""
    rtol, atol, method, options = (
        getattr(config, f"{kind}_{name}") for name in ("rtol", "atol", "solver", "solver_options")
    )
    return odeint(rate, start, ends, rtol=rtol, atol=atol, method=method, options=options)
