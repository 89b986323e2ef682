"""`PSLDScoreLoss(config, sde)`: score matching as noise prediction."""

from __future__ import annotations

import math
from typing import Any

import torch

from cldfast import kernels
from cldfast.compat.draws import Draws, widened
from cldfast.compat.losses import row_losses
from cldfast.compat.psld.process import factor, law_of, process_of, rows_of, training_mode
from cldfast.compat.psld.samplers import Score
from cldfast.compat.published import check_mode
from cldfast.kernels import Stream


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
        if (weighting := config.training.loss.weighting) != "fid":
            raise ValueError(f"training.loss.weighting must be 'fid', got {weighting!r}")
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
        process, shape = process_of(self.sde), x_0.shape
        law = law_of(self.sde, t.to(torch.float64), self.training_mode, self.mode)
        # Published draws come from PyTorch's generator alone, in the order of the codebase.
        address = kernels.noise_address(None if self.mode == "exact" else 0)
        if self.mode == "published":
            # The codebase draws momenta for "hsm", too, and does not use them there.
            given = Draws(None if momentum is None else [momentum])
            momentum = given.normal(shape, x_0.dtype, x_0.device)
            if eps is None:
                eps = Draws().normal(widened(shape), x_0.dtype, x_0.device)
        planes, moved = [x_0], law.phi[:, :, :1]
        if self.training_mode == "dsm":
            if momentum is None:
                drawn = address.in_stream(Stream.VELOCITY)
                normals = kernels.normals(shape, drawn, dtype=x_0.dtype, device=x_0.device)
                momentum = normals[:, : shape[1]]
            # Momenta come as unit normals.
            planes, spread = [x_0, momentum], process.v0_var**0.5
            moved = torch.stack([law.phi[:, :, 0], spread * law.phi[:, :, 1]], 2)
        rows = rows_of(self.sde)

        def ask(u: torch.Tensor) -> torch.Tensor:
            output = score_fn(u.to(torch.float32), t.to(torch.float32))
            got = kernels.check_planes("the network's output", output, u, shape[1])
            if got != len(rows):
                raise ValueError(
                    f"the network must predict {len(rows)} noise(s) per coordinate, "
                    f"{len(rows) * shape[1]} along dimension 1, got {output.shape[1]}"
                )
            return output

        perturbation = torch.cat([moved, factor(law.covariance, self.sde.decomp_mode)], 2)
        # The residual is the predicted noise less the drawn noise.
        unit = torch.eye(2, dtype=torch.float64, device=x_0.device)
        chosen = unit[list(rows)]
        residual = torch.cat([unit[: len(rows), : len(rows)], 0.0 * chosen, -chosen], 1)
        weights = (perturbation, residual.expand(len(x_0), -1, -1))
        noise = address.in_stream(Stream.PERTURBATION) if eps is None else eps
        total = row_losses(ask, None, planes, weights, noise).sum()
        return total / math.prod([*shape, len(rows)]) if self.mean else total
