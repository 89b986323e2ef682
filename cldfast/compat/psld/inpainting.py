"""The inpainting sampler of mandt-lab/PSLD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cldfast import kernels
from cldfast.compat.draws import Draws, StageNoise
from cldfast.compat.psld import published
from cldfast.compat.psld.plans import published_plan
from cldfast.compat.psld.process import forward_grid, process_of, training_mode
from cldfast.compat.psld.samplers import Sampler
from cldfast.kernels import NoiseAddress
from cldfast.network import draw_seed
from cldfast.sampling.inpainting import Inpainting
from cldfast.sampling.run import initial_state, run


class ES3EulerMaruyamaInpainter(Sampler):
    """Registered as `ip_em_sde`: known data follow their forward law beside the sampled rest."""

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
        """States after the steps, from `batch = (data, mask)`, the mask 1 where data are known.

        data: (B, d) or (B, C, H, W). mask: broadcastable to it; exact: of zeros and ones. Other
        arguments as in `Sampler.sample`; with `denoise` exact ends on the known data themselves.
        """
        data, mask = batch
        self.nfe = n_discrete_steps
        device = ts.device
        ts = self._times(ts, n_discrete_steps)
        data, mask = data.to(device), torch.as_tensor(mask).to(device)
        if self.mode == "published":
            return self._published(data, mask, ts, denoise, eps, noise)
        if bool(((mask != 0) & (mask != 1)).any()):
            raise ValueError("mask must hold zeros and ones; fractions mix states of unequal law")
        known = Inpainting(data, mask != 0)
        seed = draw_seed()
        u = initial_state(
            process_of(self.sde), data.shape, seed=seed, device=device, dtype=data.dtype
        )
        plan, normals = self._plan(u, ts, denoise, eps, noise)
        steps = len(plan.stages)
        # The data themselves are put in only where a step leads to time 0.
        backend = kernels.resolve_backend("auto", u.device)
        process = plan.sde

        def replaced(u: torch.Tensor, t: float, index: int) -> torch.Tensor:
            return known.apply(
                process, u, t, t == 0.0, NoiseAddress(seed, stage_index=index), backend
            )

        correct = self._corrected(ts, n_discrete_steps)

        def callback(index: int, t: float, u: torch.Tensor) -> torch.Tensor:
            u = replaced(u, t, index)
            corrected = None if correct is None else correct(index, t, u)
            return u if corrected is None else corrected

        # The stage index past the last one addresses the draw at T.
        u = replaced(u, float(plan.grid[0]), steps)
        return run(plan, self._network, u, seed=seed, noise=normals, callback=callback)

    def _published(
        self,
        data: torch.Tensor,
        mask: torch.Tensor,
        ts: torch.Tensor,
        denoise: bool,
        eps: float,
        noise: Sequence[torch.Tensor] | None,
    ) -> torch.Tensor:
        """The known part is that of a step's start, one step noisier than the state beside it."""
        sde, draws = self.sde, Draws(noise)
        wide = (data.shape[0], 2 * data.shape[1], *data.shape[2:])
        stages = published.em_stages(sde, ts)
        steps = len(stages)
        if denoise:
            stages = (*stages, published.denoising_stage(sde, eps))
        plan = published_plan(sde, stages, forward_grid(sde, ts, steps), self.solver)
        both = torch.cat([mask.expand(data.shape)] * 2, dim=1).to(torch.float64)

        def mixed(u: torch.Tensor, t: float, mean_only: bool) -> torch.Tensor:
            return u * (1 - both) + self._perturbed(data, t, draws, mean_only) * both

        dtype = torch.get_default_dtype()
        prior = [draws.normal(data.shape, dtype, "cpu").to(data.device) for _ in range(2)]
        u = torch.cat([prior[0], prior[1] * self._momentum_spread()], dim=1).to(torch.float64)
        u = mixed(u, float(sde.T), False)

        def make(index: int) -> torch.Tensor | None:
            z = draws.normal(wide, torch.float64, data.device).to(torch.float64)
            return z if index < steps else None

        def callback(index: int, t: float, u: torch.Tensor) -> torch.Tensor:
            start = stages[index].t
            assert start is not None
            return mixed(u, start, index == steps)

        return run(plan, self._network, u, noise=StageNoise(len(stages), make), callback=callback)

    def _perturbed(
        self, data: torch.Tensor, t: float, draws: Draws, mean_only: bool
    ) -> torch.Tensor:
        """A draw of the kernel at t given the data (or its mean), float64."""
        sde = self.sde
        hybrid = training_mode(self.config) == "hsm"
        momentum = draws.normal(data.shape, data.dtype, data.device) * float(sde.mm_0) ** 0.5
        wide = (data.shape[0], 2 * data.shape[1], *data.shape[2:])
        z = draws.normal(wide, data.dtype, data.device).to(torch.float64)
        times = torch.tensor([t], dtype=torch.float64)
        phi, factor = published.kernel(sde, float(sde.mm_0) if hybrid else 0.0, times)
        known = (data,) if hybrid else (data, momentum)
        mean = phi[:, :, : len(known)]
        right = torch.zeros_like(factor) if mean_only else factor
        planes = [p.to(torch.float64) for p in known]
        state, _, _ = kernels.stage(None, planes, (), torch.cat([mean, right], 2), noise=z)
        return state

    def _momentum_spread(self) -> float:
        return float(process_of(self.sde).mass_inv) ** -0.5
