"""`PSLDScoreLoss(config, sde)`: score matching as noise prediction."""

from __future__ import annotations

import math
from typing import Any

import torch

from cldfast import kernels
from cldfast.compat.draws import Draws, widened
from cldfast.compat.psld.process import factor, law_of, process_of, rows_of, training_mode
from cldfast.compat.psld.samplers import Score
from cldfast.compat.published import check_mode
from cldfast.kernels.philox import STREAM_PERTURBATION, STREAM_VELOCITY
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
                eps = Draws().normal(widened(x_0.shape), x_0.dtype, x_0.device)
        planes: tuple[torch.Tensor, ...] = (x_0,)
        if self.training_mode == "dsm":
            planes = (x_0, self._momentum(x_0, momentum, seed))
            # The momentum plane holds unit normals.
            scale = torch.tensor([1.0, mean_var**0.5], dtype=torch.float64, device=phi.device)
            phi = phi * scale
        weights = torch.cat([phi[:, :, : len(planes)], root], 2)
        u, _, _ = kernels.stage(
            None, planes, (), weights, seed=seed, stream=STREAM_PERTURBATION, noise=eps
        )
        output = score_fn(u.to(torch.float32), t.to(torch.float32))
        rows = rows_of(self.sde)
        planes_out = kernels.check_planes("the network's output", output, u, x_0.shape[1])
        if planes_out != len(rows):
            raise ValueError(
                f"the network must predict {len(rows)} noise(s) per coordinate, "
                f"{len(rows) * x_0.shape[1]} along dimension 1, got {output.shape[1]}"
            )
        losses = kernels.residual(
            output, u, _difference(rows, weights), seed=seed, stream=STREAM_PERTURBATION, noise=eps
        )
        total = losses.sum()
        return total / math.prod([*x_0.shape, len(rows)]) if self.mean else total

    def _kernel(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Propagator and factor at times t, (B, 2, 2) float64, and the variance of momenta."""
        law = law_of(self.sde, t.to(torch.float64), self.training_mode, self.mode)
        root = factor(law.covariance, self.sde.decomp_mode)
        return law.phi, root, process_of(self.sde).v0_var

    @staticmethod
    def _momentum(x_0: torch.Tensor, momentum: torch.Tensor | None, seed: int) -> torch.Tensor:
        """Unit normals like x_0."""
        if momentum is not None:
            return momentum
        table = torch.zeros(1, 2, 3, dtype=torch.float64, device="cpu")
        table[0, 0, 1] = 1.0
        state, _, _ = kernels.stage(None, (x_0,), (), table, seed=seed, stream=STREAM_VELOCITY)
        return state[:, : x_0.shape[1]]


def _difference(rows: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """The residual `output - z` of the rows predicted, (B, r, r + 4)."""
    r = len(rows)
    table = torch.zeros(r, r + 4, dtype=torch.float64, device=like.device)
    for k, row in enumerate(rows):
        table[k, k], table[k, r + 2 + row] = 1.0, -1.0
    return table.expand(like.shape[0], r, r + 4).contiguous()
