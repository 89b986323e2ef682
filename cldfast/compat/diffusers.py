"""A diffusers scheduler whose steps are the stages of a plan; extra `diffusers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.kernels import NoiseAddress, Stream
from cldfast.planner.automatic import resolved
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.solvers import SOLVERS
from cldfast.planner.stage import Stage
from cldfast.process.sde import CLD, LinearPhaseSDE, sde_from_config
from cldfast.sampling.steps import Steps, look, stage_tables
from cldfast.training.losses import perturb

try:
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
except ImportError as error:
    raise ImportError(
        "cldfast.compat.diffusers needs diffusers: pip install 'cldfast[diffusers]'"
    ) from error

Generators = torch.Generator | Sequence[torch.Generator] | None


class CLDScheduler(SchedulerMixin, ConfigMixin):
    """Any fixed-grid solver of cldfast behind the scheduler interface of diffusers.

    sde: a process such as `cldfast.CLD`, or its `config()`; None is `cldfast.CLD()`.
    solver, grid, t_min, parameterization, denoise: see `cldfast.make_plan`; a grid given as times
        fixes the number of steps. solver_options: the solver's own options, by name.
    num_train_timesteps: the network is asked at `t / T` times this, a float; one of a
        parameterisation of y at the argument of that.
    plan: a plan for this process and parameterisation, such as `cldfast.fit_plan` makes, or its
        `config()`. It takes the place of those that solver, grid and options make; a run of it
        begins at its first timestep.

    Samples are states (B, 2C, H, W), x half then v half, float32 or float64, but for the first one:
    it is unit normal noise (`init_noise_sigma` is 1), of which `scale_model_input` makes the state
    at the first timestep, in law exactly. The x half of the last sample is the data.

    Raises ValueError or TypeError for what `make_plan` would refuse.
    """

    init_noise_sigma = 1.0

    def __init__(
        self,
        sde: LinearPhaseSDE | dict[str, Any] | None = None,
        solver: str = "auto",
        grid: str | Sequence[float] | None = None,
        t_min: float = 1e-3,
        parameterization: str | None = None,
        denoise: bool = False,
        solver_options: dict[str, Any] | None = None,
        num_train_timesteps: int = 1000,
        plan: Plan | dict[str, Any] | None = None,
    ) -> None:
        if not num_train_timesteps > 0:
            raise ValueError(f"num_train_timesteps must be > 0, got {num_train_timesteps}")
        if isinstance(sde, LinearPhaseSDE):
            self.sde = sde
        else:
            self.sde = CLD() if sde is None else sde_from_config(sde)
        self._given = Plan.from_config(plan) if isinstance(plan, dict) else plan
        if self._given is not None:
            self._given.check_made_for(self.sde, parameterization)
        self.register_to_config(
            sde=self.sde.config(),
            solver=solver,
            grid=grid if grid is None or isinstance(grid, str) else [float(t) for t in grid],
            t_min=t_min,
            parameterization=parameterization,
            denoise=denoise,
            solver_options=dict(solver_options or {}),
            num_train_timesteps=num_train_timesteps,
            plan=None if self._given is None else self._given.config(),
        )
        # Refuses what is wrong in the configuration now, not at the first run.
        self._make_plan(1 if grid is None or isinstance(grid, str) else None)
        self.plan: Plan | None = None
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self._begin_index: int | None = None
        self._steps: Steps | None = None
        self._step_index: int | None = None
        self._seeds: int | list[int] | None = None
        self._forget_run()

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def order(self) -> int:
        """Timesteps, each a network call, per inference step."""
        if self.plan is None:
            return 1
        return (self.plan.evaluations - bool(self.config.denoise)) // self.plan.steps

    @property
    def step_index(self) -> int | None:
        """Index of the timestep that the next `step` is for; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the timestep that a run begins at; None to look the first one up."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a later timestep, with a state at that time such as `add_noise` makes."""
        self._begin_index = begin_index

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Plan a run of `num_inference_steps` grid intervals.

        `timesteps` then holds a timestep per network call. num_inference_steps may be None for a
        grid given as times and for a plan. device: of `timesteps`.
        """
        given = self._given
        if given is not None and num_inference_steps not in (None, given.steps):
            raise ValueError(f"the plan has {given.steps} steps, not {num_inference_steps}")
        self.plan = self._make_plan(num_inference_steps) if given is None else given
        self.num_inference_steps = self.plan.steps
        self._prepare(self.plan)
        self.timesteps = self._timesteps(self.plan, device)
        self._begin_index = None
        self._forget_run()

    def initial_noise(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        *,
        first_index: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Unit normals (B, 2C, H, W) to begin with, sample by sample the same for any batch size.

        generator: one, which gives all rows their seed; or one per row; None is PyTorch's default.
        first_index: number of row 0 among the samples of one generator.
        """
        rows, channels, *rest = shape
        if channels % 2:
            raise ValueError(f"shape must be (B, 2C, H, W), x half then v half, got {tuple(shape)}")
        address = NoiseAddress(0, first_index, stream=Stream.INITIAL_STATE)
        half = (rows, channels // 2, *rest)
        return _normals(half, _seeds(generator, rows), address, dtype, device)

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the network is asked about: the sample, or at the first timestep a state made of the
        unit noise; or, as `parameterization` says, the plane that the network sees of it."""
        self._begin(timestep)
        assert self._step_index is not None
        seen = self._stages[self._groups[self._step_index][0]].seen
        if self._step_index == 0:
            weights = np.concatenate([self._first_factor, np.zeros((2, 2))], axis=1)
            sample = kernels.stage(sample, weights=torch.from_numpy(weights)[None]).state
        return sample if seen is None else look(seen, sample, sample.dtype)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        *,
        variance_noise: torch.Tensor | None = None,
        first_index: int = 0,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample at the next timestep.

        model_output: what the network returned for `scale_model_input(sample, timestep)`,
            (B, C, H, W) or (B, 2C, H, W), as `parameterization` says; any float dtype.
        timestep: one of `timesteps`; looked up in the first step only. sample: (B, 2C, H, W), not
            changed.
        generator: gives the seed of all noise of the run in its first step, one per row if it is a
            list. first_index: as in `initial_noise`.
        variance_noise: normals (B, 2C, H, W) for this step instead.
        return_dict: False for a tuple of one.

        Raises ValueError or TypeError for tensors of the wrong shape or dtype, or for steps before
        `set_timesteps` or beyond the last.
        """
        kernels.check_state("sample", sample)
        self._begin(timestep)
        if self._step_index is None or self._step_index >= len(self._groups):
            raise ValueError(
                f"all {len(self._groups)} timesteps of this run are done; call set_timesteps"
            )
        assert self.plan is not None
        group = self._groups[self._step_index]
        kernels.check_output(
            "model_output", model_output, sample, sample.shape[1] // 2,
            self._stages[group[0]].E[0].shape[1], str(self.plan.parameterization),
        )  # fmt: skip
        drawn = [index for index in group if self._draws[index]]
        if variance_noise is not None and len(drawn) > 1:
            raise ValueError(f"this timestep draws {len(drawn)} times; variance_noise serves one")
        if drawn and variance_noise is None and self._seeds is None:
            self._seeds = _seeds(generator, sample.shape[0])
        if self._steps is None:
            self._steps = self._run()
        state = sample
        for index in group:
            stage = self._stages[index]
            noise: kernels.Noise = NoiseAddress()  # of a stage that draws nothing
            if index in drawn:
                if variance_noise is None:
                    noise = self._noise(state, first_index, index)
                else:
                    noise = variance_noise
            state = self._steps.take(
                index, stage, state, (model_output,) if stage.evaluates else (), noise, checked=True
            ).state
        self._step_index += 1
        return SchedulerOutput(prev_sample=state) if return_dict else (state,)

    def _noise(self, state: torch.Tensor, first_index: int, index: int) -> kernels.Noise:
        """The noise of a stage: an address, or with a seed per row the normals themselves."""
        if isinstance(self._seeds, list):
            shape = (len(state), state.shape[1] // 2, *state.shape[2:])
            address = NoiseAddress(0, 0, index)
            return _normals(shape, self._seeds, address, state.dtype, state.device)
        assert self._seeds is not None  # drawn with the first noise of a run
        return NoiseAddress(self._seeds, first_index, index)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """States (B, 2C, H, W) at timesteps (B,) or (): `m x0 + L noise`, the velocity noise too.

        original_samples: data (B, C, H, W), float32 or float64. noise: (B, 2C, H, W) normals, whose
        v half is what a network of the parameterisation "noise" learns, and the whole of it one of
        "full_noise". timesteps: > 0, as the network gets them.
        """
        t = torch.as_tensor(timesteps, device=original_samples.device).to(torch.float64)
        t = t * (self.sde.T / self.config.num_train_timesteps)
        return perturb(self.sde, original_samples, t.expand(len(original_samples)), noise=noise)[0]

    def _make_plan(self, steps: int | None, grid: Sequence[float] | None = None) -> Plan:
        c = self.config
        if grid is None:
            self._choice = resolved(c.solver, steps, c.grid, c.solver_options, SOLVERS)
        # A run that begins later goes on with the solver of the whole run.
        solver, own, options = self._choice
        return make_plan(
            self.sde, solver, steps, own if grid is None else grid, c.t_min, c.parameterization,
            c.denoise, **options,
        )  # fmt: skip

    def _timesteps(self, plan: Plan, device: torch.device | str | None = None) -> torch.Tensor:
        scale = self.config.num_train_timesteps / self.sde.T
        times = [
            stage.t * scale if stage.argument is None else stage.argument
            for stage in plan.stages
            if stage.t is not None
        ]
        return torch.tensor(times, dtype=torch.float32, device=device)

    def _prepare(self, plan: Plan) -> None:
        """Stages by timestep: each evaluation with what follows it up to the next one."""
        self._take(plan.stages)
        self._groups: list[list[int]] = []
        leading = []
        for index, stage in enumerate(plan.stages):
            if stage.evaluates:
                self._groups.append([index])
            elif self._groups:
                self._groups[-1].append(index)
            else:
                leading.append(stage)
        # What comes before the first evaluation only moves the stationary law to another normal.
        cov = self.sde.prior().cov
        for stage in leading:
            cov = stage.P @ cov @ stage.P.T + stage.L @ stage.L.T
        self._first_factor = np.linalg.cholesky(cov)

    def _take(self, stages: tuple[Stage, ...]) -> None:
        self._stages = stages
        self._draws = [bool(np.any(stage.L)) for stage in stages]

    def _forget_run(self) -> None:
        self._step_index = self._seeds = None
        self._steps = None

    def _run(self) -> Steps:
        """The stages of this run; the first one takes the unit noise that a run begins with."""
        matrices = [stage.matrix() for stage in self._stages]
        if self._step_index == 0:
            first = self._groups[0][0]
            unit = matrices[first][:, :2] @ self._first_factor
            matrices[first] = np.concatenate([unit, matrices[first][:, 2:]], axis=1)
        kept = max(len(stage.H) for stage in self._stages)
        return Steps(stage_tables(matrices), kept, [0] * len(matrices))

    def _begin(self, timestep: float | torch.Tensor | None) -> None:
        if self._step_index is not None:
            return
        if self.plan is None:
            raise ValueError("call set_timesteps before the first step")
        if self._begin_index is not None:
            index = self._begin_index
        elif timestep is None:
            index = 0
        else:
            found = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps)).nonzero()
            if not len(found):
                raise ValueError(f"timestep {timestep} is none of this run's: {self.timesteps}")
            index = int(found[0])
        if not 0 <= index < len(self._groups):
            raise ValueError(f"begin_index must lie in [0, {len(self._groups)}), got {index}")
        if index > 0 and self.plan.history_length:
            self._shorten(index)
        self._step_index = index

    def _shorten(self, index: int) -> None:
        """Replace the stages from a timestep on by those of a run that starts there.

        The stages of the whole run would read history rows of evaluations that were never made.
        """
        assert self.plan is not None
        if self._given is not None:
            raise ValueError("a run of a plan that was given can begin at its first timestep only")
        start = self.plan.stages[self._groups[index][0]].t
        later = np.flatnonzero(self.plan.grid == start)
        rest = None
        if len(later) and later[0] < self.plan.steps:
            rest = self._make_plan(None, self.plan.grid[later[0] :].tolist())
        if rest is None or len(self._groups) - index != rest.evaluations:
            raise ValueError(
                f"a run of {self.config.solver} can begin at the start of a step only, "
                f"and timestep {index} is none"
            )
        first = self._groups[index][0]
        self._take((*self._stages[:first], *rest.stages))


def _seeds(generator: Generators, rows: int) -> int | list[int]:
    """A seed of the noise, or one per row for a list of generators."""
    if generator is None or isinstance(generator, torch.Generator):
        return _seed(generator)
    if len(generator) != rows:
        raise ValueError(f"expected one generator per row, {rows}, got {len(generator)}")
    return [_seed(one) for one in generator]


def _seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    drawn = torch.randint(0, 2**63 - 1, (), dtype=torch.int64, generator=generator, device=device)
    return int(drawn.item())


def _normals(
    shape: Sequence[int],
    seeds: int | list[int],
    address: NoiseAddress,
    dtype: torch.dtype,
    device: torch.device | str,
) -> torch.Tensor:
    """Unit normals for data of a shape; with a seed per row, each row is the first of its seed.

    address: of the normals, but for the seed.
    """
    if isinstance(seeds, int):
        return kernels.normals(shape, replace(address, seed=seeds), dtype=dtype, device=device)
    one = (1, *shape[1:])
    addresses = [replace(address, seed=seed, first_index=0) for seed in seeds]
    return torch.cat([kernels.normals(one, a, dtype=dtype, device=device) for a in addresses])
