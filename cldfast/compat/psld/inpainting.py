"""The inpainting sampler of mandt-lab/PSLD."""

from __future__ import annotations

from typing import Any

import torch

from cldfast import kernels
from cldfast.compat.draws import Draws, StageNoise, widened
from cldfast.compat.psld.process import factor, law_of, process_of, training_mode
from cldfast.compat.psld.samplers import Request, Sampler
from cldfast.planner.plan import Plan
from cldfast.sampling.inpainting import Inpainting
from cldfast.sampling.run import initial_state, run


class ES3EulerMaruyamaInpainter(Sampler):
    """Registered as `ip_em_sde`: known data follow their forward law beside the sampled rest.

    `sample` takes `batch = (data, mask)`, the mask 1 where data are known, data (B, d) or (B, C, H,
    W), the mask broadcastable to it and in the exact mode of zeros and ones; it raises ValueError
    for another. With `denoise` the exact mode ends on the known data themselves.
    """

    def _run(self, asked: Request) -> torch.Tensor:
        device = asked.ts.device
        data, mask = (torch.as_tensor(part, device=device) for part in asked.batch)
        plan, self.nfe = self.plan(asked), len(asked.ts) - 1
        if self.mode == "published":
            return self._published(plan, data, mask, asked)
        if bool(((mask != 0) & (mask != 1)).any()):
            raise ValueError("mask must hold zeros and ones; fractions mix states of unequal law")
        known = Inpainting(data, mask != 0)
        process, noise, steps = plan.sde, kernels.noise_address(), len(plan.stages)
        key: dict[str, Any] = {"seed": noise.seed, "first_index": noise.first_index}
        u = initial_state(process, data.shape, **key, device=device, dtype=data.dtype)
        backend = kernels.resolve_backend("auto", u.device)
        correct = self._corrected(asked.ts)

        def replaced(u: torch.Tensor, t: float, index: int) -> torch.Tensor:
            # The data themselves are put in only where a step leads to time 0.
            return known.apply(process, u, t, t == 0.0, noise.at_stage(index), backend)

        def callback(index: int, t: float, u: torch.Tensor) -> torch.Tensor:
            u = replaced(u, t, index)
            corrected = None if correct is None else correct(index, t, u)
            return u if corrected is None else corrected

        # The draw at T has the stage index after the last one.
        u = replaced(u, float(plan.grid[0]), steps)
        return run(plan, self._network, u, **key, noise=asked.noise, callback=callback)

    def _published(
        self, plan: Plan, data: torch.Tensor, mask: torch.Tensor, asked: Request
    ) -> torch.Tensor:
        """Known data are drawn for the start of a step, one step noisier than the sampled rest."""
        draws, wide, device = Draws(asked.noise), widened(data.shape), data.device
        both = torch.cat([mask.expand(data.shape)] * 2, dim=1).to(torch.float64)

        def mixed(u: torch.Tensor, t: float, mean_only: bool) -> torch.Tensor:
            return u * (1 - both) + self._perturbed(data, t, draws, mean_only) * both

        def normals(index: int) -> torch.Tensor:
            return draws.normal(wide, torch.float64, device)

        def callback(index: int, t: float, u: torch.Tensor) -> torch.Tensor:
            start, last = plan.stages[index].t, index == len(asked.ts) - 1
            assert start is not None
            if last:
                normals(index)  # the codebase draws this noise and does not use it
            return mixed(u, start, last)

        dtype = torch.get_default_dtype()
        x, m = (draws.normal(data.shape, dtype, "cpu").to(device) for _ in range(2))
        spread = float(process_of(self.sde).mass_inv) ** -0.5
        u = mixed(torch.cat([x, m * spread], dim=1).to(torch.float64), plan.sde.T, False)
        noise = StageNoise(plan.stages, normals)
        return run(plan, self._network, u, seed=0, noise=noise, callback=callback)

    def _perturbed(
        self, data: torch.Tensor, t: float, draws: Draws, mean_only: bool
    ) -> torch.Tensor:
        """A draw of the kernel at t given the data (or its mean), float64."""
        sde, objective = self.sde, training_mode(self.config)
        momentum = draws.normal(data.shape, data.dtype, data.device)
        z = draws.normal(widened(data.shape), data.dtype, data.device).to(torch.float64)
        law = law_of(
            sde, torch.tensor([t], dtype=torch.float64, device="cpu"), objective, self.mode
        )
        spread = process_of(sde).v0_var ** 0.5
        known = (data,) if objective == "hsm" else (data, momentum * spread)
        root = factor(law.covariance, sde.decomp_mode) * (0.0 if mean_only else 1.0)
        weights = torch.cat([law.phi[:, :, : len(known)], root], 2)
        planes = [plane.to(torch.float64) for plane in known]
        return kernels.stage(None, planes, (), weights, noise=z).state
