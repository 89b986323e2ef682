"""Hybrid score matching as `loss_hsm(score_theta, sde, eps)`."""

from __future__ import annotations

import math
from typing import Any

import torch

from cldfast.compat.draws import Draws, widened
from cldfast.compat.losses import row_losses
from cldfast.compat.strasman.process import CriticallyDampedLangevin, Score, process_of
from cldfast.process.linear_flow import Covariance
from cldfast.training.losses import hsm_loss


class loss_hsm:
    """`loss_hsm(score_theta, sde, eps)(x0, is_cld)`: the hybrid score matching loss.

    score_theta: `score_theta(u, t)`, u (B, 2d) or (B, 2C, H, W), t (B,). sde: a
    CriticallyDampedLangevin, ours (whose mode it takes) or the codebase's. eps: earliest time.

    `is_cld`: the network returns the velocity score, held to its target in units of its noise; else
    both scores, weighed by the determinant of the covariance. Summed over dimension 1, averaged
    over the rest.

    Source: Strasman, Surendran et al. (2025), with the code of the same authors.
    """

    def __init__(self, score_theta: Score, sde: Any, eps: float) -> None:
        self.score_theta, self.sde, self.eps = score_theta, sde, eps
        process_of(sde)

    def __call__(
        self,
        x0: torch.Tensor,
        is_cld: bool = False,
        *,
        t: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of data x0 (B, d) or (B, C, H, W), a scalar; t (B,) and noise to use instead."""
        sde = self.sde
        if isinstance(sde, CriticallyDampedLangevin) and sde.mode == "published":
            return self._published(sde, x0, is_cld, t, noise)
        loss = hsm_loss(
            self.score_theta, process_of(sde), x0, "reweighted" if is_cld else "det",
            "score" if is_cld else "full_score", t=t, t_min=self.eps, noise=noise,
        )  # fmt: skip
        positions = math.prod(x0.shape[2:])
        return loss / positions if positions > 1 else loss

    def _published(
        self,
        sde: CriticallyDampedLangevin,
        x0: torch.Tensor,
        is_cld: bool,
        t: torch.Tensor | None,
        noise: torch.Tensor | None,
    ) -> torch.Tensor:
        if t is None:
            uniform = torch.rand(x0.shape[0], device=x0.device)
            t = uniform * (sde.final_time - self.eps) + self.eps
        if noise is None:
            noise = Draws().normal(widened(x0.shape), x0.dtype, x0.device)
        law, factor = sde.law(t, hybrid=True), sde.factor(t, hsm=True)
        residual = _velocity(law.covariance) if is_cld else _both(law.covariance, factor)
        weights = torch.cat([law.phi[:, :, :1].to(torch.float64), factor], 2), residual
        losses = row_losses(lambda u: self.score_theta(u, t), None, (x0,), weights, noise)
        return losses.sum() / math.prod([x0.shape[0], *x0.shape[2:]])


def _velocity(own: Covariance) -> torch.Tensor:
    """The residual `-score/ell - z_v`, (B, 1, 5)."""
    ell = torch.sqrt(own.xx / own.det)
    zero = torch.zeros_like(ell)
    row = torch.stack([-(1 / ell), zero, zero, zero, zero - 1.0], 1)
    return row.to(torch.float64)[:, None, :]


def _both(own: Covariance, factor: torch.Tensor) -> torch.Tensor:
    """The residual `-adj(Sigma) (Sigma score + L z) / sqrt(det)`, (B, 2, 6)."""
    inverse_det = (1 / own.det).to(torch.float64)
    sigma, adjugate = own.matrix.to(torch.float64), own.adjugate.to(torch.float64)
    scaled = -inverse_det.sqrt()[:, None, None] * adjugate
    return torch.cat([scaled @ sigma, torch.zeros_like(sigma), scaled @ factor], 2)
