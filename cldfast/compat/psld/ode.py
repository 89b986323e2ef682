"""The adaptive ODE sampler of mandt-lab/PSLD."""

from __future__ import annotations

import torch

from cldfast.compat.psld.process import output_map_of, process_of, training_mode
from cldfast.compat.psld.samplers import Request, Sampler
from cldfast.compat.steps import Flow
from cldfast.sampling.probability_flow import odeint


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
