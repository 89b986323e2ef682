"""The samplers of mandt-lab/PSLD in its `(config, sde, score_fn)` form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cldfast.compat.draws import Draws, StageNoise
from cldfast.compat.psld import published
from cldfast.compat.psld.plans import exact_plan, published_plan
from cldfast.compat.psld.process import forward_grid, process_of, training_mode
from cldfast.compat.published import check_mode
from cldfast.kernels import stage as stage_op
from cldfast.network import draw_seed
from cldfast.planner.plan import Plan
from cldfast.sampling.run import Callback, run

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Corrector = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Sampler:
    """What the samplers share.

    config: the codebase's configuration. sde: its PSLD object (or anything with gamma, nu, kappa,
    beta_0, beta_1, T, mm_0, eps and decomp_mode). score_fn: `score_fn(u, t)`, float32, predicts
    the noise. corrector_fn: `corrector_fn(u, t, dt) -> (u, mean)` after each step, in the
    sampler's time. mode: "exact" or "published", see docs/codebases.md; None is the class's own.

    Source: Pandey and Mandt (2023), "A complete recipe for diffusion generative models", with the
        code of the same authors.
    """

    mode = "exact"
    solver = "em"
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
        self.config = config
        self.sde = sde
        self.score_fn = score_fn
        self.corrector_fn = corrector_fn
        self.nfe = 0
        process_of(sde)

    @property
    def n_steps(self) -> int:
        """`config.evaluation.n_discrete_steps`."""
        steps: int = self.config.evaluation.n_discrete_steps
        return steps

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
        """
        self.nfe = n_discrete_steps
        ts = self._times(ts, n_discrete_steps)
        plan, normals = self._plan(batch, ts, denoise, eps, noise)
        exact = self.mode == "exact"
        u = batch if exact else batch.to(torch.float64)
        # Published draws come from PyTorch's generator alone, in the order of the codebase.
        return run(
            plan, self._network, u, seed=draw_seed() if exact else 0, noise=normals,
            callback=self._corrected(ts, n_discrete_steps),
        )  # fmt: skip

    def _times(self, ts: torch.Tensor, steps: int) -> torch.Tensor:
        """The times of the steps on the host, float64."""
        forward_grid(self.sde, ts, steps)
        return ts[: steps + 1].detach().to(device="cpu", dtype=torch.float64)

    def _plan(
        self,
        batch: torch.Tensor,
        ts: torch.Tensor,
        denoise: bool,
        eps: float,
        noise: Sequence[torch.Tensor] | None,
    ) -> tuple[Plan, Any]:
        """The stages of a run and their normals."""
        grid = forward_grid(self.sde, ts, len(ts) - 1)
        if self.mode == "exact":
            return self._exact(grid, denoise), noise
        stages = published.em_stages(self.sde, ts, self._guidance())
        steps = len(stages)
        if denoise:
            stages = (*stages, published.denoising_stage(self.sde, eps, self._guidance()))
        plan = published_plan(self.sde, stages, grid, self.solver)
        return plan, self._published_noise(batch, Draws(noise), len(stages), steps)

    def _exact(self, grid: np.ndarray, denoise: bool) -> Plan:
        options = {} if self.corrector_fn is None else self._unmerged()
        objective = training_mode(self.config)
        return exact_plan(
            self.sde, self.solver, grid, objective, denoise, guidance=self._guidance(), **options
        )

    def _guidance(self) -> float | None:
        """Strength of the second output of the network, None where there is none."""
        return None

    def _unmerged(self) -> dict[str, Any]:
        """Options under which every step ends in a state of its own."""
        return {}

    def _published_noise(
        self, batch: torch.Tensor, draws: Draws, stages: int, noisy: int
    ) -> StageNoise:
        """Normals like the state: the first ones in the dtype of the batch, then float64."""

        def make(index: int) -> torch.Tensor | None:
            if index >= noisy:
                return None
            dtype = batch.dtype if index == 0 else torch.float64
            return draws.normal(batch.shape, dtype, batch.device).to(torch.float64)

        return StageNoise(stages, make)

    def _network(self, u: torch.Tensor, t: torch.Tensor) -> Any:
        return self.score_fn(u.to(torch.float32), t.to(torch.float32))

    def _corrected(self, ts: torch.Tensor, steps: int) -> Callback | None:
        if self.corrector_fn is None:
            return None
        corrector, every = self.corrector_fn, self.stages_per_step

        def callback(index: int, t: float, u: torch.Tensor) -> torch.Tensor | None:
            step, rest = divmod(index + 1, every)
            if rest or step > steps:
                return None
            k = step - 1
            return corrector(u, ts[k].to(u.device), (ts[k + 1] - ts[k]).to(u.device))[0]

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

    def _unmerged(self) -> dict[str, Any]:
        return {"merge": False}

    def _plan(
        self,
        batch: torch.Tensor,
        ts: torch.Tensor,
        denoise: bool,
        eps: float,
        noise: Sequence[torch.Tensor] | None,
    ) -> tuple[Plan, Any]:
        grid = forward_grid(self.sde, ts, len(ts) - 1)
        if self.mode == "exact":
            return self._exact(grid, denoise), noise
        stages, rotations = published.sscs_stages(self.sde, ts)
        if denoise:
            stages = (*stages, published.denoising_stage(self.sde, eps))
        plan = published_plan(self.sde, stages, grid, self.solver)
        plain = self._published_noise(batch, Draws(noise), len(stages), len(rotations))

        def make(index: int) -> torch.Tensor | None:
            z = plain[index]
            turn = rotations[index] if index < len(rotations) else None
            if z is None or turn is None:
                return z
            table = torch.cat([turn, torch.zeros(2, 2, dtype=torch.float64)], 1)[None]
            return stage_op(z, (), (), table)[0]

        return plan, StageNoise(len(stages), make)


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
        # The codebase asks its classifier, trained on forward times, at the sampler's time.
        at = t if self.mode == "exact" else self.sde.T - t
        return super()._network(u, t), log_probability_gradient(self.clf_fn, u, at, self.y)
