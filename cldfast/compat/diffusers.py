"""A diffusers scheduler whose steps are the stages of a plan; extra `diffusers`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.compat.diffusers_noise import Generators, Seeds, draw_seeds, seeded_normals
from cldfast.compat.diffusers_state import HiddenState, SeenPlane
from cldfast.compat.diffusers_table import (
    PREDICTIONS,
    check_levels,
    cut_to_table,
    noised,
    trained_with,
)
from cldfast.compat.noise_tables import NoiseTable
from cldfast.kernels import NoiseAddress, Stream
from cldfast.planner.automatic import resolved
from cldfast.planner.data_forms import DataForm
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import data_form
from cldfast.planner.plan import Plan
from cldfast.planner.solvers import SOLVERS
from cldfast.planner.stage import Stage
from cldfast.process.sde import CLD, LinearPhaseSDE, sde_from_config
from cldfast.sampling.steps import Steps, stage_tables
from cldfast.training.losses import perturb

try:
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
except ImportError as error:
    raise ImportError(
        "cldfast.compat.diffusers needs diffusers: pip install 'cldfast[diffusers]'"
    ) from error


class CLDScheduler(SchedulerMixin, ConfigMixin):
    """Any fixed-grid solver of cldfast behind the scheduler interface of diffusers.

    sde: a process such as `cldfast.CLD`, or its `config()`; None is `cldfast.CLD()`.
    solver, grid, t_min, parameterization, denoise: see `cldfast.make_plan`; a grid given as times
        fixes the number of steps. solver_options: the solver's own options, by name.
    num_train_timesteps: the network is asked at `t / T` times this, a float; one of a
        parameterisation of y at the argument of that.
    trained_betas: (K,) of DDPM, for a network of "epsilon" or "v_prediction" that is asked at its
        own timesteps, 0 to K - 1; fractions lie between. See `from_scheduler`.
    plan: a plan for this process and parameterisation, such as `cldfast.fit_plan` makes, or its
        `config()`. It takes the place of those that solver, grid and options make; a run of it
        begins at its first timestep.

    A network of the state: samples are states (B, 2C, H, W), x half then v half, float32 or
    float64, but for the first one: it is unit normal noise (`init_noise_sigma` is 1), of which
    `scale_model_input` makes the state at the first timestep, in law exactly. The x half of the
    last sample is the data.

    A network of y ("denoiser", "epsilon", "v_prediction", "edm"): samples are what the network
    sees, (B, C, H, W) of any float dtype, and the last one is the data. The scheduler keeps the
    state.

    Raises ValueError or TypeError for what `make_plan` would refuse.
    """

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
        trained_betas: Sequence[float] | None = None,
    ) -> None:
        if not num_train_timesteps > 0:
            raise ValueError(f"num_train_timesteps must be > 0, got {num_train_timesteps}")
        sde = CLD() if sde is None else sde
        self.sde = sde if isinstance(sde, LinearPhaseSDE) else sde_from_config(sde)
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
            trained_betas=None if trained_betas is None else [float(b) for b in trained_betas],
            plan=None if self._given is None else self._given.config(),
        )
        self._table = None if trained_betas is None else NoiseTable.from_betas(trained_betas)
        # Refuses what is wrong in the configuration now, not at the first run.
        made = self._make_plan(1 if grid is None or isinstance(grid, str) else None)
        made = made if self._given is None else self._given
        form = data_form(made.parameterization)
        # The form of a network that sees y.
        self._form: DataForm | None = form if form is not None and form.sees_y else None
        if trained_betas is not None and str(form) not in PREDICTIONS:
            raise ValueError(
                f"trained_betas: expected the parameterization {' or '.join(PREDICTIONS)} with it, "
                f"got {parameterization!r}"
            )
        self._prepare(made)
        self._timesteps(made)
        self.plan: Plan | None = None
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self._begin_index: int | None
        self._step_index: int | None
        self._seeds: Seeds | None
        self._steps: Steps | None
        self._forget_run()

    @classmethod
    def from_config(cls, config: Any = None, **options: Any) -> Any:
        """As for every scheduler of diffusers, from a config that a `CLDScheduler` has written.

        Raises ValueError for the config of another scheduler: its keys would mean nothing here.
        """
        own = inspect.signature(cls.__init__).parameters
        other = [key for key in config or () if not key.startswith("_") and key not in own]
        if other:
            raise ValueError(
                f"the config is that of another scheduler, with {', '.join(other[:3])}: call "
                f"{cls.__name__}.from_scheduler(pipeline.scheduler)"
            )
        return super().from_config(config, **options)

    @classmethod
    def from_scheduler(
        cls, scheduler: Any, sde: LinearPhaseSDE | None = None, solver: str = "auto", **options: Any
    ) -> CLDScheduler:
        """The scheduler under which a network of diffusers runs as it is, in its own pipeline.

        scheduler: the one that the network was trained with: betas, and the `prediction_type`
            "epsilon" or "v_prediction".
        sde: None is `cldfast.CLD()`. Its T is lowered to where sigma_y is the last noise level of
            the betas, if it is more.
        options: of the class. By default the grid ends where sigma_y is the first noise level of
            the betas; there one more evaluation, `denoise`, gives the data, as the last step of
            DDPM does.

        Raises ValueError for a scheduler without betas or of another prediction.
        """
        betas, parameterization = trained_with(scheduler)
        sde, t_min = cut_to_table(CLD() if sde is None else sde, NoiseTable.from_betas(betas))
        settings: dict[str, Any] = {"t_min": t_min, "denoise": True} | options
        return cls(
            sde, solver, parameterization=parameterization, trained_betas=betas,
            num_train_timesteps=len(betas),
            **settings,
        )  # fmt: skip

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first sample, that a pipeline multiplies unit noise by.

        1 for a network of the state; for "epsilon" and "v_prediction" 1 up to 1 / sigma_y^2.
        """
        return 1.0 if self._form is None else self._plane(0).std

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
        """Unit normals to begin with, sample by sample the same for any batch size.

        shape: (B, 2C, H, W), or (B, C, H, W) for a network of y, to be multiplied by
            `init_noise_sigma`.
        generator: one, which gives all rows their seed; or one per row; None is PyTorch's default.
        first_index: number of row 0 among the samples of one generator.
        """
        rows, channels, *rest = shape
        address = NoiseAddress(0, first_index, stream=Stream.INITIAL_STATE)
        seeds = draw_seeds(generator, rows)
        if self._form is not None:
            # The v half belongs to what the network does not see: `HiddenState.behind`.
            return seeded_normals(shape, seeds, address, dtype, device).chunk(2, dim=1)[0]
        if channels % 2:
            raise ValueError(f"shape must be (B, 2C, H, W), x half then v half, got {tuple(shape)}")
        return seeded_normals((rows, channels // 2, *rest), seeds, address, dtype, device)

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the network is asked about: the sample, or for a network of the state at the first
        timestep a state made of the unit noise."""
        if self._form is not None:
            return sample
        self._begin(timestep)
        if self._step_index != 0:
            return sample
        weights = np.concatenate([np.linalg.cholesky(self._first_cov), np.zeros((2, 2))], axis=1)
        return kernels.stage(sample, weights=torch.from_numpy(weights)[None]).state

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
            (B, C, H, W) or (B, 2C, H, W), as `parameterization` says; any float dtype. Of a
            network of y with a variance behind it, as of DDPM, the variance is not read.
        timestep: one of `timesteps`; looked up in the first step only. sample: (B, 2C, H, W), or
            (B, C, H, W) for a network of y; not changed. Where a sample of y is not what the last
            step returned, the state moves with it, as E[u | y] does.
        generator: gives the seed of all noise of the run in its first step, one per row if it is a
            list. first_index: as in `initial_noise`.
        variance_noise: normals (B, 2C, H, W) for this step instead.
        return_dict: False for a tuple of one.

        Raises ValueError or TypeError for tensors of the wrong shape or dtype, or for steps before
        `set_timesteps` or beyond the last.
        """
        if self._form is None:
            kernels.check_state("sample", sample)
        else:
            self._hidden.check(sample)
        self._begin(timestep)
        if self._step_index is None or self._step_index >= len(self._groups):
            raise ValueError(
                f"all {len(self._groups)} timesteps of this run are done; call set_timesteps"
            )
        assert self.plan is not None
        group = self._groups[self._step_index]
        state = sample
        if self._form is not None:
            if self._seeds is None:
                self._seeds = draw_seeds(generator, len(sample))
            plane = self._plane(self._step_index)
            state = self._hidden.behind(sample, plane, self._seeds, first_index)
            if kernels.check_planes("model_output", model_output, state, sample.shape[1]) == 2:
                model_output = model_output[:, : sample.shape[1]]
        kernels.check_output(
            "model_output", model_output, state, state.shape[1] // 2,
            self._stages[group[0]].E[0].shape[1], str(self.plan.parameterization),
        )  # fmt: skip
        drawn = [index for index in group if self._draws[index]]
        if variance_noise is not None and len(drawn) > 1:
            raise ValueError(f"this timestep draws {len(drawn)} times; variance_noise serves one")
        if drawn and variance_noise is None and self._seeds is None:
            self._seeds = draw_seeds(generator, sample.shape[0])
        if self._steps is None:
            self._steps = self._run()
        for index in group:
            stage = self._stages[index]
            noise: kernels.Noise = NoiseAddress()  # of a stage that draws nothing
            if index in drawn:
                given = variance_noise
                noise = self._noise(state, first_index, index) if given is None else given
            state = self._steps.take(
                index, stage, state, (model_output,) if stage.evaluates else (), noise, checked=True
            ).state
        self._step_index += 1
        if self._form is not None:
            state = self._hidden.keep(state, self._row(self._step_index), sample.dtype)
        return SchedulerOutput(prev_sample=state) if return_dict else (state,)

    def _plane(self, index: int) -> SeenPlane:
        """What a network of y sees at a timestep: of the law that a run begins with, and later of
        the marginal for data of unit variance."""
        stage = self._stages[self._groups[index][0]]
        if index == 0:
            return SeenPlane.of(self._row(index), self._first_cov)
        marginal = self.sde.marginal(stage.t)
        return SeenPlane.of(self._row(index), marginal.cov + np.outer(marginal.mean, marginal.mean))

    def _row(self, index: int) -> np.ndarray:
        """The row (2,) of the state that a network of y sees at a timestep; x behind the last."""
        if index == len(self._groups):
            return np.array([1.0, 0.0])
        seen = self._stages[self._groups[index][0]].seen
        assert seen is not None
        return np.asarray(seen[0])

    def _noise(self, state: torch.Tensor, first_index: int, index: int) -> kernels.Noise:
        """The noise of a stage: an address, or with a seed per row the normals themselves."""
        if isinstance(self._seeds, list):
            shape = (len(state), state.shape[1] // 2, *state.shape[2:])
            address = NoiseAddress(0, 0, index)
            return seeded_normals(shape, self._seeds, address, state.dtype, state.device)
        assert self._seeds is not None  # drawn with the first noise of a run
        return NoiseAddress(self._seeds.seed, self._seeds.first_index + first_index, index)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """States (B, 2C, H, W) at timesteps (B,) or (): `m x0 + L noise`, the velocity noise too.

        original_samples: data (B, C, H, W), float32 or float64. noise: (B, 2C, H, W) normals, whose
        v half is what a network of the parameterisation "noise" learns, and the whole of it one of
        "full_noise". timesteps: > 0, as the network gets them.

        For a network of y it is what the network sees: a scale times `x0 + sigma_y noise`, noise
        (B, C, H, W). The first `step` draws the state behind it, from the law of u given y, which
        depends on no x0.
        """
        t = torch.as_tensor(timesteps, device=original_samples.device).to(torch.float64)
        t = t.expand(len(original_samples))
        if self._form is None:
            t = t * (self.sde.T / self.config.num_train_timesteps)
            return perturb(self.sde, original_samples, t, noise=noise)[0]
        return noised(self._form, self._table, original_samples, noise, t)

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
        found = [
            stage.t * scale if stage.argument is None else stage.argument
            for stage in plan.stages
            if stage.t is not None
        ]
        times = torch.tensor(found, dtype=torch.float64, device="cpu")
        if self._table is not None:
            # Arguments of "epsilon" and "v_prediction" are noise levels.
            check_levels(times.numpy(), self._table)
            times = self._table(times)[2]
        return times.to(device, torch.float32)

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
        self._first_cov = cov

    def _take(self, stages: tuple[Stage, ...]) -> None:
        self._stages = stages
        self._draws = [bool(np.any(stage.L)) for stage in stages]

    def _forget_run(self) -> None:
        self._begin_index = self._step_index = self._seeds = self._steps = None
        self._hidden = HiddenState()

    def _run(self) -> Steps:
        """The stages of this run; for a network of the state the first one takes the unit noise
        that a run begins with."""
        matrices = [stage.matrix() for stage in self._stages]
        if self._step_index == 0 and self._form is None:
            first = self._groups[0][0]
            unit = matrices[first][:, :2] @ np.linalg.cholesky(self._first_cov)
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
