"""The process of a configuration, and the class of the codebase that carries it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partialmethod
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.compat.draws import Draws, StageNoise, widened
from cldfast.compat.laws import exact
from cldfast.compat.published import check_mode, numbers_of
from cldfast.compat.steps import euler, fold, rows_of_score
from cldfast.compat.strasman import published
from cldfast.compat.strasman.published import Entries
from cldfast.compat.strasman.schedule import beta_parametric
from cldfast.kernels import NoiseAddress, Stream
from cldfast.planner.grids import make_grid
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.process.linear_flow import Transition
from cldfast.process.sde import CLD
from cldfast.sampling.run import initial_state, run

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@lru_cache(maxsize=64)
def _process(
    a: float, epsilon: float, sigma: float, v0_var: float, T: float,
    shape: float, beta_min: float, beta_max: float,
) -> CLD:  # fmt: skip
    beta = beta_parametric(shape, T, beta_min, beta_max).schedule
    return CLD(a=a, sigma=sigma, x_noise=epsilon, v0_var=v0_var, beta=beta, T=T)


def process_of(sde: Any) -> CLD:
    """The forward process of an object with the codebase's attributes, theirs or ours.

    Raises TypeError where one is missing, ValueError for values without a stationary law.
    """
    own = ("a", "epsilon", "sigma", "v0_var", "final_time")
    names = (*own, "beta.a", "beta.beta_min", "beta.beta_max")
    return _process(*numbers_of(sde, "CriticallyDampedLangevin", names))


class CriticallyDampedLangevin:
    """`CriticallyDampedLangevin(config)`: kernels, prior, both samplers of StanislasStrasman/CLD.

    config: with a, epsilon (noise on the position), sigma, device, T, beta_min, beta_max, v0_var
        and numerical_eps.
    mode: "exact" (right times, no jitter, the fused kernels) or "published", which repeats the
        codebase; None is the class's own. docs/codebases.md lists the differences.

    States are (B, 2d) or (B, 2C, H, W), x half then v half. Without `noise`, exact draws are
    addressed by a seed from PyTorch's default generator; published ones come from that generator
    itself, in the order of the codebase.

    Source: Strasman, Surendran et al. (2025), "Wasserstein convergence of critically damped
        Langevin diffusions".
    """

    mode = "exact"

    def __init__(self, config: Any, mode: str | None = None) -> None:
        self.mode = check_mode(mode or self.mode)
        self.a, self.epsilon, self.sigma = config.a, config.epsilon, config.sigma
        self.device, self.final_time = config.device, config.T
        self.beta_min, self.beta_max = config.beta_min, config.beta_max
        self.beta = beta_parametric(0, self.final_time, self.beta_min, self.beta_max, self.mode)
        self.v0_var, self.jitter = config.v0_var, config.numerical_eps
        process_of(self)

    @property
    def process(self) -> CLD:
        """The same forward process for the rest of `cldfast`."""
        return process_of(self)

    # --- kernels ---------------------------------------------------------------------------------

    def mean(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean of `U_t | U_0 = u`, shaped like u; t (B,)."""
        return self._moved(u, (), self._phi(t))

    def mean_hsm(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean of `U_t | X_0 = x`, (B, 2d) or (B, 2C, H, W); t (B,)."""
        return self._moved(None, (x,), self._phi(t)[:, :, :1])

    def cov(self, t: torch.Tensor) -> Entries:
        """Entries (xx, xv, vv) of the covariance of `U_t | U_0`, (B,) each; t (B,) or (B, 1)."""
        return self._entries(t, hybrid=False)

    def cov_hsm(self, t: torch.Tensor) -> Entries:
        """Entries (xx, xv, vv) of the covariance of `U_t | X_0`, (B,) each; t (B,) or (B, 1)."""
        return self._entries(t, hybrid=True)

    def compute_cholesky(
        self, var_x: torch.Tensor, cov_xv: torch.Tensor, var_v: torch.Tensor
    ) -> Entries:
        """Lower factor (l_xx, l_vx, l_vv) of covariances given by their entries.

        Exact: differences in float64, a matrix that rounding has left indefinite taken as singular.
        """
        if self.mode == "published":
            return published.cholesky(var_x, cov_xv, var_v)
        xx, xv, vv = (entry.to(torch.float64) for entry in (var_x, cov_xv, var_v))
        l_xx = xx.sqrt()
        l_vx = torch.where(xx > 0.0, xv / l_xx, 0.0)
        l_vv = (vv - l_vx**2).clamp_min(0.0).sqrt()
        return l_xx.to(var_x.dtype), l_vx.to(var_x.dtype), l_vv.to(var_x.dtype)

    def generate_forward(
        self,
        u: torch.Tensor,
        t: torch.Tensor,
        hsm: bool = False,
        *,
        noise: torch.Tensor | None = None,
    ) -> Entries:
        """States of `U_t | U_0 = u` (`hsm`: `U_t | X_0 = u`): (u_t, its noise L z, z).

        u: (B, 2d) or (B, 2C, H, W), `hsm`: the data, half as wide. t: (B,). noise: z to use.
        """
        phi, factor = self._phi(t), self.factor(t, hsm)
        mean = phi[:, :, :1] if hsm else phi
        identity = torch.eye(2, dtype=torch.float64, device=factor.device).expand_as(factor)
        # One pass makes the state and, as further rows, L z and z.
        rest = torch.zeros(len(t), 4, mean.shape[2], dtype=torch.float64, device=factor.device)
        right = torch.cat([factor, factor, identity], 1)
        weights = torch.cat([torch.cat([mean, rest], 1), right], 2)
        if noise is None and self.mode == "published":
            noise = Draws().normal(widened(u.shape) if hsm else u.shape, u.dtype, u.device)
        state, rows, _ = kernels.stage(
            None if hsm else u, (u,) if hsm else (), (), weights,
            noise=kernels.noise_address(stream=Stream.PERTURBATION) if noise is None else noise,
        )  # fmt: skip
        assert rows is not None
        scaled, z = rows.chunk(2, dim=1)
        return state, scaled, z

    def factor(self, t: torch.Tensor, hsm: bool) -> torch.Tensor:
        """Lower factor of the covariance at times t (B,), (B, 2, 2) float64."""
        own = self.law(t, hsm).covariance
        if self.mode == "exact":
            return own.factor
        l_xx, l_vx, l_vv = published.cholesky(own.xx, own.xv, own.vv)
        rows = [l_xx, torch.zeros_like(l_xx), l_vx, l_vv]
        return torch.stack(rows, -1).reshape(-1, 2, 2).to(torch.float64)

    def law(self, t: torch.Tensor, hybrid: bool) -> Transition:
        """The law of `U_t | U_0`, or hybrid of `U_t | X_0`; exact float64, published like t."""
        process = self.process
        if self.mode == "published":
            return published.law(self, process, self.beta.integrate(t), hybrid)
        start = process.v0_var if hybrid else 0.0
        return exact(process, process.tau(t.to(torch.float64)), 0.0, start)

    def _phi(self, t: torch.Tensor) -> torch.Tensor:
        phi: torch.Tensor = self.law(t, False).phi
        return phi.to(torch.float64)

    @staticmethod
    def _moved(
        u: torch.Tensor | None, outputs: Sequence[torch.Tensor], matrix: torch.Tensor
    ) -> torch.Tensor:
        quiet = matrix.new_zeros(matrix.shape[0], 2, 2)
        return kernels.stage(u, outputs, (), torch.cat([matrix, quiet], 2)).state

    def _entries(self, t: torch.Tensor, hybrid: bool) -> Entries:
        own = self.law(t.squeeze(1) if t.dim() == 2 else t, hybrid).covariance
        return own.xx.to(t.dtype), own.xv.to(t.dtype), own.vv.to(t.dtype)

    # --- sampling --------------------------------------------------------------------------------

    def sample_final(
        self, num_samples: int, dim: int | Sequence[int], *, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """States from the stationary law: dim d gives (n, 2d), (C, H, W) (n, 2C, H, W)."""
        channels, *rest = [dim] if isinstance(dim, int) else dim
        if noise is None and self.mode == "exact":
            return initial_state(self.process, (num_samples, channels, *rest), device=self.device)
        if noise is None:
            shape = widened((num_samples, channels, *rest))
            noise = Draws().normal(shape, torch.get_default_dtype(), self.device)
        z_x, z_v = noise.chunk(2, dim=1)
        # The codebase holds the variances in single precision.
        entries = self.process.prior().covariance
        xx, xv, vv = (
            torch.tensor(float(entry), dtype=torch.float32, device=noise.device)
            for entry in (entries.xx, entries.xv, entries.vv)
        )
        l_xx, l_vx, l_vv = self.compute_cholesky(xx, xv, vv)
        return torch.cat([l_xx * z_x, l_vx * z_x + l_vv * z_v], dim=1)

    def get_time_steps(self, num_steps: int, epsilon_s: float = 1e-3) -> torch.Tensor:
        """`num_steps` descending times at which the samplers ask the network.

        Published: from 1 to epsilon_s. Exact: the starts of `num_steps` steps from T to epsilon_s.
        """
        if self.mode == "published":
            return published.time_steps(num_steps, epsilon_s, self.device)
        grid = make_grid("linear", T=self.process.T, t_min=epsilon_s, steps=num_steps)
        return torch.tensor(grid[:-1].tolist(), device=self.device)

    def _step(
        self,
        solver: str,
        u: torch.Tensor,
        score_xv: torch.Tensor,
        t: torch.Tensor,
        step_size: float,
        is_cld: bool,
        score_theta: Score | None = None,
        *,
        noise: Iterable[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The state a step below t (a scalar tensor), from the state and its score there.

        is_cld: scores are velocity scores alone. score_theta: asked once more by leapfrog, inside
        the step. noise: the draws (x, v).
        """
        score = score_xv
        for index, stage in enumerate(self.stages(solver, t.reshape(1), step_size, is_cld)):
            if index > 0 and score_theta is not None:
                score = score_theta(u, torch.tensor(stage.t, dtype=t.dtype, device=t.device))
            z: kernels.Noise = NoiseAddress(stage_index=index)
            if np.any(stage.L):
                given = self.mode == "published" or noise is not None
                z = _halves(u, Draws(noise)) if given else kernels.noise_address().at_stage(index)
            table = torch.from_numpy(stage.matrix())[None]
            u = kernels.stage(u, (score,), (), table, noise=z).state
        return u

    Euler_Maruyama_discr_step = partialmethod(_step, "em")
    leapfrog_step = partialmethod(_step, "leapfrog")

    def _sampler(
        self,
        solver: str,
        init: torch.Tensor,
        score_theta: Score,
        num_steps: int,
        epsilon_s: float,
        is_cld: bool = False,
        *,
        noise: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Samples x from states `init` by Euler-Maruyama or the leapfrog scheme.

        score_theta: `score_theta(u, t)` with t (B,), by leapfrog a scalar, asked twice a step.
        num_steps: steps. epsilon_s: last time. is_cld: the network gives the velocity score alone.
        noise: exact: normals per stage, see `cldfast.run`; published: the codebase's draws in its
        order.
        """
        name, process, normals = _score_name(is_cld), self.process, noise
        if self.mode == "exact":
            plan = make_plan(process, solver, num_steps, "linear", epsilon_s, name)
        else:
            times = published.time_steps(num_steps, epsilon_s, self.device)
            stages = self.stages(solver, times, (times[0] - times[1]).item(), is_cld)
            grid = np.array([*times.tolist(), stages[-1].t_next])
            plan = Plan(tuple(stages), process, solver, 1, name, grid)
            draws = Draws(noise)
            normals = StageNoise(stages, lambda _: _halves(init, draws))  # type: ignore[assignment]

        def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return score_theta(u, t if solver == "em" else t[0])

        seed = None if self.mode == "exact" else 0
        u = run(plan, score, init, seed=seed, noise=normals)
        return u.chunk(2, dim=1)[0].contiguous()

    Euler_Maruyama_discr_sampler = partialmethod(_sampler, "em")
    leapfrog_sampler = partialmethod(_sampler, "leapfrog")

    def stages(
        self, solver: str, times: torch.Tensor, step: float, is_cld: bool
    ) -> Sequence[Stage]:
        """The stages of one step of length `step` from each time; exact: from one time only."""
        process = self.process
        if self.mode == "exact":
            start = float(times[0])
            grid = [start, start - step]
            name = _score_name(is_cld)
            return make_plan(process, solver, grid=grid, parameterization=name).stages
        t, late = _host(times), times + 0.5 * step
        ends = np.array([*t[1:], t[-1] - step])
        way = _host(step * self.beta(times))
        if solver == "em":
            stages = euler(process, t, ends, way)
        else:
            ways = (way, _host(step * self.beta(late)))
            stages = published.leapfrog(process, t, _host(late), ends, ways)
        # As published, a network of the velocity score has a position score of 0.
        return fold(stages, rows_of_score(np.eye(2)[:, 1:] if is_cld else np.eye(2)))


def _score_name(is_cld: bool) -> str:
    return "score" if is_cld else "full_score"


def _host(values: torch.Tensor) -> np.ndarray:
    return values.to(device="cpu", dtype=torch.float64).numpy()


def _halves(u: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Normals for x, then normals for v, in the order of the codebase."""
    half = (u.shape[0], u.shape[1] // 2, *u.shape[2:])
    return torch.cat([draws.normal(half, u.dtype, u.device) for _ in range(2)], dim=1).to(u.dtype)
