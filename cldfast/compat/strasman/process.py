"""The process of a configuration, and the class of the codebase that carries it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.compat.draws import Draws, StageNoise
from cldfast.compat.published import check_mode
from cldfast.compat.strasman import published
from cldfast.compat.strasman.schedule import beta_parametric
from cldfast.kernels import NoiseAddress, Stream
from cldfast.network import draw_seed
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.process.sde import CLD
from cldfast.sampling.run import initial_state, run

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


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
    try:
        values = (
            sde.a, sde.epsilon, sde.sigma, sde.v0_var, sde.final_time,
            sde.beta.a, sde.beta.beta_min, sde.beta.beta_max,
        )  # fmt: skip
    except AttributeError as error:
        raise TypeError(
            "sde must be a CriticallyDampedLangevin with a, epsilon, sigma, v0_var, final_time and "
            f"beta, got {type(sde).__name__}: {error}"
        ) from None
    return _process(*(float(value) for value in values))


@lru_cache(maxsize=16)
def _exact_plan(process: CLD, solver: str, steps: int, t_min: float, parameterization: str) -> Plan:
    return make_plan(process, solver, steps, "linear", t_min, parameterization)


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
        self.a = config.a
        self.epsilon = config.epsilon
        self.sigma = config.sigma
        self.device = config.device
        self.final_time = config.T
        self.beta_min = config.beta_min
        self.beta_max = config.beta_max
        self.beta = beta_parametric(0, self.final_time, self.beta_min, self.beta_max, self.mode)
        self.v0_var = config.v0_var
        self.jitter = config.numerical_eps
        process_of(self)

    @property
    def process(self) -> CLD:
        """The same forward process for the rest of `cldfast`."""
        return process_of(self)

    @property
    def numbers(self) -> published.Numbers:
        """The parameters of the published formulas."""
        return published.Numbers(self.a, self.epsilon, self.sigma, self.v0_var, self.jitter)

    # --- kernels ---------------------------------------------------------------------------------

    def mean(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean of `U_t | U_0 = u`, shaped like u; t (B,)."""
        return self._moved(u, self._phi(t), None)

    def mean_hsm(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean of `U_t | X_0 = x`, (B, 2d) or (B, 2C, H, W); t (B,)."""
        return self._moved(None, self._phi(t)[:, :, :1], x)

    def cov(self, t: torch.Tensor) -> Entries:
        """Entries (xx, xv, vv) of the covariance of `U_t | U_0`, (B,) each; t (B,) or (B, 1)."""
        return self._entries(t, "dsm")

    def cov_hsm(self, t: torch.Tensor) -> Entries:
        """Entries (xx, xv, vv) of the covariance of `U_t | X_0`, (B,) each; t (B,) or (B, 1)."""
        return self._entries(t, "hsm")

    def compute_cholesky(
        self, var_x: torch.Tensor, cov_xv: torch.Tensor, var_v: torch.Tensor
    ) -> Entries:
        """Lower factor (l_xx, l_vx, l_vv) of covariances given by their entries.

        Exact: differences in float64, a matrix that rounding has left indefinite taken as singular.
        """
        if self.mode == "published":
            return published.cholesky((var_x, cov_xv, var_v))
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
        # All three in one pass: the state, then L z and z as rows beside it.
        rest = torch.zeros(len(t), 4, mean.shape[2], dtype=torch.float64, device=factor.device)
        right = torch.cat([factor, factor, identity], 1)
        weights = torch.cat([torch.cat([mean, rest], 1), right], 2)
        if noise is None and self.mode == "published":
            channels = 2 * u.shape[1] if hsm else u.shape[1]
            noise = Draws().normal((u.shape[0], channels, *u.shape[2:]), u.dtype, u.device)
        state, rows, _ = kernels.stage(
            None if hsm else u, (u,) if hsm else (), (), weights,
            noise=NoiseAddress(draw_seed(), stream=Stream.PERTURBATION) if noise is None else noise,
        )  # fmt: skip
        assert rows is not None
        scaled, z = rows.chunk(2, dim=1)
        return state, scaled, z

    def factor(self, t: torch.Tensor, hsm: bool) -> torch.Tensor:
        """Lower factor of the covariance at times t (B,), (B, 2, 2) float64."""
        if self.mode == "exact":
            result: torch.Tensor = self.process.marginal(
                t.to(torch.float64), "hsm" if hsm else "dsm"
            ).factor
            return result
        l_xx, l_vx, l_vv = published.cholesky(self.cov_hsm(t) if hsm else self.cov(t))
        rows = [l_xx, torch.zeros_like(l_xx), l_vx, l_vv]
        return torch.stack(rows, -1).reshape(-1, 2, 2).to(torch.float64)

    def _phi(self, t: torch.Tensor) -> torch.Tensor:
        if self.mode == "published":
            return published.propagator(self.numbers, self.beta.integrate(t)).to(torch.float64)
        process = self.process
        phi: torch.Tensor = process.transition(process.tau(t.to(torch.float64))).phi
        return phi

    def _moved(
        self, u: torch.Tensor | None, matrix: torch.Tensor, x: torch.Tensor | None
    ) -> torch.Tensor:
        quiet = matrix.new_zeros(matrix.shape[0], 2, 2)
        state, _, _ = kernels.stage(u, () if x is None else (x,), (), torch.cat([matrix, quiet], 2))
        return state

    def _entries(self, t: torch.Tensor, objective: str) -> Entries:
        t = t.squeeze(1) if t.dim() == 2 else t
        if self.mode == "published":
            tau = self.beta.integrate(t)
            kernel = published.hybrid_covariance if objective == "hsm" else published.covariance
            return kernel(self.numbers, tau)
        cov = self.process.marginal(t.to(torch.float64), objective).covariance
        return cov.xx.to(t.dtype), cov.xv.to(t.dtype), cov.vv.to(t.dtype)

    # --- sampling --------------------------------------------------------------------------------

    def sample_final(
        self, num_samples: int, dim: int | Sequence[int], *, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """States from the stationary law: dim d gives (n, 2d), (C, H, W) (n, 2C, H, W)."""
        channels, *rest = [dim] if isinstance(dim, int) else dim
        if noise is None and self.mode == "exact":
            return initial_state(
                self.process, (num_samples, channels, *rest), seed=draw_seed(), device=self.device
            )
        if noise is None:
            shape = (num_samples, 2 * channels, *rest)
            noise = Draws().normal(shape, torch.get_default_dtype(), self.device)
        z_x, z_v = noise.chunk(2, dim=1)
        # Variances of single precision, whatever the draws are.
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
        plan = _exact_plan(self.process, "em", num_steps, epsilon_s, "full_score")
        return torch.tensor(plan.grid[:-1].tolist(), device=self.device)

    def Euler_Maruyama_discr_step(
        self,
        u: torch.Tensor,
        score_xv: torch.Tensor,
        t: torch.Tensor,
        step_size: float,
        is_cld: bool,
        *,
        noise: Iterable[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The state a step below t (a scalar tensor), from the state and its score there.

        is_cld: score_xv is the velocity score alone. noise: the draws (x, v).
        """
        stages = self._stages("em", t.reshape(1), step_size, is_cld)
        return self._advance(u, score_xv, stages[0], self._normals(u, Draws(noise), noise), 0)

    def leapfrog_step(
        self,
        u: torch.Tensor,
        score_xv: torch.Tensor,
        t: torch.Tensor,
        step_size: float,
        is_cld: bool,
        score_theta: Score,
        *,
        noise: Iterable[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """A leapfrog step down from t (a scalar tensor); asks `score_theta` once more inside."""
        first, second = self._stages("leapfrog", t.reshape(1), step_size, is_cld)
        u = self._advance(u, score_xv, first, self._normals(u, Draws(noise), noise), 0)
        score = score_theta(u, torch.tensor(second.t, dtype=t.dtype, device=t.device))
        return self._advance(u, score, second, None, 1)

    def Euler_Maruyama_discr_sampler(
        self,
        init: torch.Tensor,
        score_theta: Score,
        num_steps: int,
        epsilon_s: float,
        is_cld: bool = False,
        *,
        noise: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Samples x by Euler-Maruyama from states `init`; `score_theta(u, t)` with t (B,).

        num_steps: network evaluations. epsilon_s: last time. is_cld: the network returns the
        velocity score alone. noise: exact: normals per stage, see `cldfast.run`; published: the
        codebase's draws in its order.
        """
        return self._sample("em", init, score_theta, num_steps, epsilon_s, is_cld, noise)

    def leapfrog_sampler(
        self,
        init: torch.Tensor,
        score_theta: Score,
        num_steps: int,
        epsilon_s: float,
        is_cld: bool = False,
        *,
        noise: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Samples x by the leapfrog scheme, two evaluations a step; `score_theta(u, t)`, t scalar.

        Arguments as for `Euler_Maruyama_discr_sampler`.
        """

        def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return score_theta(u, t[0])

        return self._sample("leapfrog", init, score, num_steps, epsilon_s, is_cld, noise)

    def _sample(
        self,
        solver: str,
        init: torch.Tensor,
        score: Score,
        num_steps: int,
        epsilon_s: float,
        is_cld: bool,
        noise: Sequence[torch.Tensor] | None,
    ) -> torch.Tensor:
        if self.mode == "exact":
            plan = _exact_plan(self.process, solver, num_steps, epsilon_s, _score_name(is_cld))
            u = run(plan, score, init, seed=draw_seed(), noise=noise)
            return u.chunk(2, dim=1)[0].contiguous()
        times = published.time_steps(num_steps, epsilon_s, self.device)
        step = (times[0] - times[1]).item()
        stages = self._stages(solver, times, step, is_cld)
        grid = np.array([*times.tolist(), times[-1].item() - step])
        plan = Plan(stages, self.process, solver, 1, _score_name(is_cld), grid)
        draws = Draws(noise)
        normals = StageNoise(
            len(stages), lambda k: _halves(init, draws) if np.any(stages[k].L) else None
        )
        return run(plan, score, init, noise=normals).chunk(2, dim=1)[0].contiguous()

    def _stages(
        self, solver: str, times: torch.Tensor, step: float, is_cld: bool
    ) -> tuple[Stage, ...]:
        """The stages of one step from each time."""
        if self.mode == "published":
            planes = 1 if is_cld else 2
            build = published.em_stages if solver == "em" else published.leapfrog_stages
            return build(self.numbers, self.beta, times, step, planes)
        start = float(times[0])
        return make_plan(
            self.process, solver, grid=[start, start - step], parameterization=_score_name(is_cld)
        ).stages

    def _normals(self, u: torch.Tensor, draws: Draws, recorded: object) -> torch.Tensor | None:
        exact = self.mode == "exact" and recorded is None
        return None if exact else _halves(u, draws)

    @staticmethod
    def _advance(
        u: torch.Tensor,
        score: torch.Tensor,
        stage: Stage,
        noise: torch.Tensor | None,
        index: int,
    ) -> torch.Tensor:
        table = torch.from_numpy(stage.matrix())[None]
        address = NoiseAddress(draw_seed() if np.any(stage.L) else 0, stage_index=index)
        return kernels.stage(
            u, (score,), (), table, noise=address if noise is None else noise
        ).state


def _score_name(is_cld: bool) -> str:
    return "score" if is_cld else "full_score"


def _halves(u: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Normals drawn as the codebase does, for x and then for v."""
    half = (u.shape[0], u.shape[1] // 2, *u.shape[2:])
    return torch.cat([draws.normal(half, u.dtype, u.device) for _ in range(2)], dim=1).to(u.dtype)
