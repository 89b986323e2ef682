"""The adaptive ODE sampler of mandt-lab/PSLD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.compat.psld import published
from cldfast.compat.psld.plans import score_columns
from cldfast.compat.psld.process import process_of, training_mode
from cldfast.compat.psld.samplers import Corrector, Sampler, Score

Blocks = tuple[np.ndarray, np.ndarray]


class BBODESampler(Sampler):
    """Registered as `bb_ode`: SciPy's ODE solvers on the probability flow, through torchdiffeq.

    `config.evaluation.sampler` has rtol, atol and solver (a method of `scipy.integrate.solve_ivp`).
    """

    solver = "ode"

    def __init__(
        self,
        config: Any,
        sde: Any,
        score_fn: Score,
        corrector_fn: Corrector | None = None,
        *,
        mode: str | None = None,
    ) -> None:
        super().__init__(config, sde, score_fn, corrector_fn, mode=mode)
        self.rtol = config.evaluation.sampler.rtol
        self.atol = config.evaluation.sampler.atol
        self.solver_opts = {"solver": config.evaluation.sampler.solver}
        self._counter = 0

    @property
    def n_steps(self) -> int:
        """Network evaluations so far."""
        return self.nfe

    @property
    def mean_nfe(self) -> float:
        """Network evaluations per call of `sample`; ValueError before the first."""
        if self._counter == 0:
            raise ValueError("mean_nfe needs a call of sample() first")
        return self.nfe / self._counter

    def sample(
        self,
        batch: torch.Tensor,
        ts: torch.Tensor,
        n_discrete_steps: int,
        denoise: bool = True,
        eps: float = 1e-3,
        *,
        noise: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """States at time eps (or 0, `denoise`) from states at T; ts and n_discrete_steps unused.

        Raises ImportError without torchdiffeq, ValueError for noise: a flow has none.
        """
        if noise is not None:
            raise ValueError("the probability flow takes no noise")
        try:
            from torchdiffeq import odeint
        except ImportError as error:
            raise ImportError(
                "adaptive ODE solving needs torchdiffeq: pip install 'cldfast[ode]'"
            ) from error
        self._counter += 1
        end = float(self.sde.T) - eps
        times = torch.tensor([0.0, end], dtype=torch.float64, device=batch.device)

        def rate(s: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            return self._step(u, float(self.sde.T) - float(s), self._flow)

        with torch.no_grad():
            u: torch.Tensor = odeint(
                rate, batch, times, rtol=self.rtol, atol=self.atol, method="scipy_solver",
                options=self.solver_opts,
            )[-1]  # fmt: skip
            if not denoise:
                return u
            u = u if self.mode == "exact" else u.to(torch.float64)
            return self._step(u, float(self.sde.T) - end, lambda t: self._last(t, eps))

    def _step(self, u: torch.Tensor, t: float, blocks: Callable[[float], Blocks]) -> torch.Tensor:
        """`P u + E eps` with the network's output at t, in one pass."""
        self.nfe += 1
        P, E = blocks(t)
        at = torch.full((u.shape[0],), t, dtype=torch.float64, device=u.device)
        output = self._network(u, at)
        table = torch.from_numpy(np.concatenate([P, E, np.zeros((2, 2))], 1))[None]
        return kernels.stage(u, (output,), (), table)[0]

    def _flow(self, t: float) -> Blocks:
        """`du/ds = P u + E eps`, s the sampler's time."""
        if self.mode == "published":
            return published.flow_blocks(self.sde, torch.tensor([t], dtype=torch.float64))
        process = process_of(self.sde)
        beta = float(process.beta(t))
        columns = score_columns(self.sde, training_mode(self.config), np.array([t]))[0]
        return -beta * process.A, 0.5 * beta * (np.diag(process.D) @ columns)

    def _last(self, t: float, length: float) -> Blocks:
        if self.mode == "published":
            stage = published.denoising_stage(self.sde, length, probability_flow=True)
            return stage.P, stage.E[0]
        P, E = self._flow(t)
        return np.eye(2) + length * P, length * E
