"""`PSLDScoreLoss(config, sde)`: score matching as noise prediction."""

from __future__ import annotations

import math
from typing import Any

import torch

from cldfast import kernels
from cldfast.compat.draws import Draws
from cldfast.compat.psld import published
from cldfast.compat.psld.process import (
    decomposition_of,
    factor,
    process_of,
    rows_of,
    training_mode,
)
from cldfast.compat.psld.samplers import Score
from cldfast.compat.published import check_mode
from cldfast.kernels import NoiseAddress, Stream
from cldfast.network import draw_seed


class PSLDScoreLoss(torch.nn.Module):
    """Registered as `psld_score_loss`: `|eps - score_fn(u_t, t)|^2`, `u_t = mean + C eps`.

    config: `training.mode` "hsm" or "dsm", `training.loss.weighting` "fid" and `reduce_mean` (over
    all numbers, else their sum), `model.sde.decomp_mode`. sde: see `Sampler`. mode: "exact" or
    "published"; None is the class's own.

    Source: Pandey and Mandt (2023), section 3.3.
    """

    mode = "exact"

    def __init__(self, config: Any, sde: Any, *, mode: str | None = None) -> None:
        super().__init__()
        self.mode = check_mode(mode or self.mode)
        if config.training.loss.weighting != "fid":
            raise ValueError(
                f"training.loss.weighting must be 'fid', got {config.training.loss.weighting!r}"
            )
        self.training_mode = training_mode(config)
        self.sde = sde
        self.mean = bool(config.training.loss.reduce_mean)
        process_of(sde)

    def forward(
        self,
        x_0: torch.Tensor,
        t: torch.Tensor,
        score_fn: Score,
        eps: torch.Tensor | None = None,
        *,
        momentum: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of data x_0 (B, d) or (B, C, H, W) at times t (B,), a scalar.

        eps: normals to use, twice as wide as x_0. momentum: those of "dsm" momenta, like x_0.
        """
        # Published draws come from PyTorch's generator alone, in the order of the codebase.
        seed = draw_seed() if self.mode == "exact" else 0
        phi, root, mean_var = self._kernel(t)
        if self.mode == "published":
            # The codebase draws momenta in either mode; "hsm" throws them away.
            momentum = Draws(None if momentum is None else [momentum]).normal(
                x_0.shape, x_0.dtype, x_0.device
            )
            if eps is None:
                wide = (x_0.shape[0], 2 * x_0.shape[1], *x_0.shape[2:])
                eps = Draws().normal(wide, x_0.dtype, x_0.device)
        planes: tuple[torch.Tensor, ...] = (x_0,)
        if self.training_mode == "dsm":
            planes = (x_0, self._momentum(x_0, momentum, seed))
            # The momentum plane holds unit normals.
            scale = torch.tensor([1.0, mean_var**0.5], dtype=torch.float64, device=phi.device)
            phi = phi * scale
        weights = torch.cat([phi[:, :, : len(planes)], root], 2)
        rows = rows_of(self.sde)
        # The noises that are predicted are rows of the perturbing pass, beside the state.
        picked = torch.zeros(
            len(weights), len(rows), weights.shape[2], dtype=torch.float64, device=weights.device
        )
        for k, row in enumerate(rows):
            picked[:, k, row - 2] = 1.0
        noise = NoiseAddress(seed, stream=Stream.PERTURBATION) if eps is None else eps
        u, target, _ = kernels.stage(None, planes, (), torch.cat([weights, picked], 1), noise=noise)
        assert target is not None
        output = score_fn(u.to(torch.float32), t.to(torch.float32))
        planes_out = kernels.check_planes("the network's output", output, u, x_0.shape[1])
        if planes_out != len(rows):
            raise ValueError(
                f"the network must predict {len(rows)} noise(s) per coordinate, "
                f"{len(rows) * x_0.shape[1]} along dimension 1, got {output.shape[1]}"
            )
        unit = torch.eye(len(rows), dtype=torch.float64, device=weights.device)
        difference = torch.cat([unit, -unit], 1).expand(len(weights), -1, -1).contiguous()
        losses = kernels.residual(output, target, difference, overwrite=True)
        total = losses.sum()
        return total / math.prod([*x_0.shape, len(rows)]) if self.mean else total

    def _kernel(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Propagator and factor at times t, (B, 2, 2) float64, and the variance of momenta."""
        t = t.to(torch.float64)
        process = process_of(self.sde)
        hybrid = self.training_mode == "hsm"
        if self.mode == "published":
            m_var = float(self.sde.mm_0)
            phi, root = published.kernel(self.sde, m_var if hybrid else 0.0, t)
            return phi, root, m_var
        cov = process.marginal(t, self.training_mode).covariance
        phi = process.transition(process.tau(t)).phi
        return phi, factor(cov, decomposition_of(self.sde)), process.v0_var

    @staticmethod
    def _momentum(x_0: torch.Tensor, momentum: torch.Tensor | None, seed: int) -> torch.Tensor:
        """Unit normals like x_0."""
        if momentum is not None:
            return momentum
        address = NoiseAddress(seed, stream=Stream.VELOCITY)
        drawn = kernels.normals(x_0.shape, address, dtype=x_0.dtype, device=x_0.device)
        return drawn[:, : x_0.shape[1]]
