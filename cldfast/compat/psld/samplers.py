"""The samplers of mandt-lab/PSLD in its `(config, sde, score_fn)` form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from cldfast.compat.draws import Draws, StageNoise
from cldfast.compat.psld.process import factor, output_map_of, process_of, training_mode
from cldfast.compat.published import check_mode
from cldfast.compat.steps import Flow, denoising, fold, published_splitting
from cldfast.kernels import stage as stage_op
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.planner.stage import Stage
from cldfast.sampling.callbacks import StateCallback
from cldfast.sampling.probability_flow import odeint
from cldfast.sampling.run import run

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Corrector = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Request(NamedTuple):
    """What `sample` was asked for; ts holds the times of the steps alone, float64."""

    batch: Any
    ts: torch.Tensor
    denoise: bool
    eps: float
    noise: Sequence[torch.Tensor | None] | None


class Sampler:
    """What the samplers share.

    config: the codebase's configuration. sde: its PSLD object (or anything with gamma, nu, kappa,
    beta_0, beta_1, T, eps and decomp_mode). score_fn: `score_fn(u, t)`, float32, the noise.
    corrector_fn: `corrector_fn(u, t, dt) -> (u, mean)` after each step, in the sampler's time.
    mode: "exact" or "published", see docs/codebases.md; None is the class's own.

    Source: Pandey and Mandt (2023), "A complete recipe for diffusion generative models", with the
        code of the same authors.
    """

    mode = "exact"
    solver = "em"
    # Stages after which a step is complete.
    stages_per_step = 1

    def __init__(
        self,
        config: Any,
        sde: Any,
        score_fn: Score,
        corrector_fn: Corrector | None = None,
        *,
        mode: str | None = None,
    ) -> None:
        self.mode = check_mode(mode or self.mode)
        self.config, self.sde, self.nfe = config, sde, 0
        self.score_fn, self.corrector_fn = score_fn, corrector_fn
        process_of(sde)

    @property
    def n_steps(self) -> int:
        """`config.evaluation.n_discrete_steps`."""
        return self.config.evaluation.n_discrete_steps

    def sample(
        self,
        batch: Any,
        ts: torch.Tensor,
        n_discrete_steps: int,
        denoise: bool = True,
        eps: float = 1e-3,
        *,
        noise: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """States after the steps `ts[0] ... ts[n_discrete_steps]` of the sampler's time `T - t`.

        batch: states (B, 2d) or (B, 2C, H, W) at ts[0]. denoise: a last step without noise from
        eps to 0. noise: exact: normals per stage, see `cldfast.run`; published: the codebase's
        draws in its order. Published states are float64, exact ones keep the dtype of batch.

        Raises ValueError for too few times.
        """
        count = n_discrete_steps + 1
        if not isinstance(ts, torch.Tensor) or ts.dim() != 1 or len(ts) < count:
            raise ValueError(f"ts must be a flat tensor of n_discrete_steps + 1 = {count} times")
        ts = ts[:count].detach().to(torch.float64)
        return self._run(Request(batch, ts, denoise, eps, noise))

    def _run(self, asked: Request) -> torch.Tensor:
        plan, self.nfe = self.plan(asked), len(asked.ts) - 1
        u, noise = asked.batch, asked.noise
        if self.mode == "published":
            # Published draws come from PyTorch's generator alone, in the order of the codebase.
            noise = StageNoise(plan.stages, self._normals(u, Draws(noise)))
            u = u.to(torch.float64)
        callback = self._corrected(asked.ts)
        seed = None if self.mode == "exact" else 0
        return run(plan, self._network, u, seed=seed, noise=noise, callback=callback)

    def plan(self, asked: Request) -> Plan:
        """The steps, for networks that return the predicted noise and what `_guidance` weighs."""
        process, ts = process_of(self.sde), asked.ts.cpu()
        grid = process.T - ts.numpy()
        stages = self._stages(ts, grid)
        if asked.denoise:
            end = length = float(grid[-1])
            if self.mode == "published":
                end, length = process.T - _rounded(process.T - asked.eps), _rounded(asked.eps)
            stages = [*stages, *denoising(process, end, length)]
            grid = np.array([*grid, 0.0])
        output_map = output_map_of(self.sde, training_mode(self.config), self.mode)
        stages = fold(stages, output_map, self._guidance())
        return Plan(
            tuple(stages), process, self.solver, 1, f"eps, {self.sde.decomp_mode} factor", grid
        )

    def _stages(self, ts: torch.Tensor, grid: np.ndarray) -> Sequence[Stage]:
        """The steps for the full score; those of Euler-Maruyama are alike in both modes."""
        # A corrector wants every step to end in a state of its own.
        options = {"merge": False} if self.solver == "sscs" and self.corrector_fn else {}
        process = process_of(self.sde)
        return make_plan(
            process, self.solver, grid=grid, parameterization="full_score", **options
        ).stages

    def _guidance(self) -> float | None:
        """Strength of the second output of the network, None where there is none."""
        return None

    def _normals(self, batch: torch.Tensor, draws: Draws) -> Callable[[int], torch.Tensor]:
        """Published normals by stage: drawn in the dtype of the batch first, then in float64."""

        def make(index: int) -> torch.Tensor:
            dtype = batch.dtype if index == 0 else torch.float64
            return draws.normal(batch.shape, dtype, batch.device).to(torch.float64)

        return make

    def _network(self, u: torch.Tensor, t: torch.Tensor) -> Any:
        return self.score_fn(u.to(torch.float32), t.to(torch.float32))

    def _corrected(self, ts: torch.Tensor) -> StateCallback | None:
        corrector, every = self.corrector_fn, self.stages_per_step
        if corrector is None:
            return None

        def callback(index: int, t: float, u: torch.Tensor) -> torch.Tensor | None:
            step, rest = divmod(index + 1, every)
            if rest or step >= len(ts):
                return None
            start, end = ts[step - 1].to(u.device), ts[step].to(u.device)
            return corrector(u, start, end - start)[0]

        return callback


class EulerMaruyamaSampler(Sampler):
    """Registered as `em_sde`."""


class SSCSSampler(Sampler):
    """Registered as `sscs_sde`: the symmetric splitting of Dockhorn, Vahdat, Kreis (2022)."""

    solver = "sscs"

    @property
    def stages_per_step(self) -> int:  # type: ignore[override]
        """Stages after which a step is complete."""
        return 3 if self.mode == "exact" else 2

    def _stages(self, ts: torch.Tensor, grid: np.ndarray) -> Sequence[Stage]:
        if self.mode == "exact":
            return super()._stages(ts, grid)
        sde = self.sde
        stages, half = published_splitting(process_of(sde), ts, float(sde.eps), "numerical_eps")
        # A stage needs a lower factor. An upper factor is a lower one times a rotation, which is
        # applied to the normals.
        self._turns = None
        if sde.decomp_mode == "upper":
            self._turns = np.linalg.solve(half.factor, factor(half.covariance, "upper"))
        return stages

    def _normals(self, batch: torch.Tensor, draws: Draws) -> Callable[[int], torch.Tensor]:
        plain, turns = super()._normals(batch, draws), self._turns
        if turns is None:
            return plain

        def make(index: int) -> torch.Tensor:
            table = np.concatenate([turns[index // 2], np.zeros((2, 2))], 1)[None]
            return stage_op(plain(index), (), (), torch.from_numpy(table)).state

        return make


def log_probability_gradient(
    classifier: Score, u: torch.Tensor, t: torch.Tensor, label: Any
) -> torch.Tensor:
    """`grad_u log p(label | u, t)`, shaped like u; the classifier sees float32."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = u.detach().clone().requires_grad_()
        logits = classifier(leaf.to(torch.float32), t.to(torch.float32))
        rows = torch.arange(len(logits), device=logits.device)
        chosen = torch.log_softmax(logits, dim=-1)[rows, label]
        return torch.autograd.grad(chosen.sum(), leaf)[0]


class ClassCondEulerMaruyamaSampler(Sampler):
    """Registered as `cc_em_sde`: Euler-Maruyama guided by a classifier of noisy states.

    clf_fn: `clf_fn(u, t)`, float32, the logits. The label and the strength are
    `config.clf.evaluation.label_to_sample` and `clf_temp`.
    """

    def __init__(
        self,
        config: Any,
        sde: Any,
        score_fn: Score,
        clf_fn: Score,
        corrector_fn: Corrector | None = None,
        *,
        mode: str | None = None,
    ) -> None:
        super().__init__(config, sde, score_fn, corrector_fn, mode=mode)
        self.clf_fn = clf_fn
        self.y = config.clf.evaluation.label_to_sample
        self.clf_temp = config.clf.evaluation.clf_temp

    def _guidance(self) -> float | None:
        return float(self.clf_temp)

    def _network(self, u: torch.Tensor, t: torch.Tensor) -> Any:
        # The codebase trains the classifier on forward times and asks it at the sampler's time.
        at = t if self.mode == "exact" else self.sde.T - t
        return super()._network(u, t), log_probability_gradient(self.clf_fn, u, at, self.y)


class BBODESampler(Sampler):
    """Registered as `bb_ode`: SciPy's ODE solvers on the probability flow, through torchdiffeq.

    `config.evaluation.sampler` has rtol, atol and solver (a method of `scipy.integrate.solve_ivp`).
    `sample` leads from T to eps (or 0, `denoise`) whatever its times are; it raises ImportError
    without torchdiffeq, ValueError for noise: a flow has none.
    """

    solver = "ode"
    _runs = 0

    @property
    def n_steps(self) -> int:
        """Network evaluations so far."""
        return self.nfe

    @property
    def mean_nfe(self) -> float:
        """Network evaluations per call of `sample`; ValueError before the first."""
        if self._runs == 0:
            raise ValueError("mean_nfe needs a call of sample() first")
        return self.nfe / self._runs

    def _run(self, asked: Request) -> torch.Tensor:
        if asked.noise is not None:
            raise ValueError("the probability flow takes no noise")
        process, options = process_of(self.sde), self.config.evaluation.sampler
        output_map = output_map_of(self.sde, training_mode(self.config), self.mode)
        flow = Flow(self._network, process, output_map)

        def rate(s: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            return -flow(process.T - s.to(torch.float64), u)

        with torch.no_grad():
            u: torch.Tensor = odeint(
                rate, asked.batch, (0.0, process.T - asked.eps), rtol=options.rtol,
                atol=options.atol, method="scipy_solver", options={"solver": options.solver},
            )  # fmt: skip
            if asked.denoise:
                u = u if self.mode == "exact" else u.to(torch.float64)
                u = u - asked.eps * flow(torch.tensor(asked.eps, device=u.device).double(), u)
        self._runs += 1
        self.nfe += flow.evaluations
        return u


def _rounded(value: float) -> float:
    """The number as a tensor of PyTorch's default dtype holds it."""
    return float(torch.tensor(value, dtype=torch.get_default_dtype(), device="cpu"))
