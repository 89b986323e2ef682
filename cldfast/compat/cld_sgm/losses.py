"""The codebase's loss: `loss_fn(model, x)` of score matching, one value a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cldfast import kernels
from cldfast.compat.cld_sgm.sde import PublishedInterface, as_served, objective_of
from cldfast.compat.losses import row_losses
from cldfast.compat.published import check_name
from cldfast.kernels import Stream

Tensor = torch.Tensor
WEIGHTINGS = ("reweightedv1", "likelihood", "reweightedv2")


def get_loss_fn(
    sde: Any, train: bool, config: Any, *, mode: str | None = None
) -> Callable[..., Tensor]:
    """Hybrid ("hsm") or denoising ("dsm") score matching, as `config.cld_objective` says.

    sde: a process of the codebase's `sde_lib` or of this package. train: calls the model in its
    training mode. config.weighting: of `|s - s*|^2`, "likelihood" `beta f` (VPSDE: `beta/2`),
    "reweightedv2" `1/ell^2`, "reweightedv1" their product. mode: as in `get_sampling_fn`.

    Returns `loss_fn(model, x, *, t=None, noise=None, v0=None)`, (B,), summed over coordinates, with
    x: (B, d) or (B, C, H, W). t: (B,) float64 times; None draws them on [loss_eps, 1].
    noise: normals like the perturbed state. v0: initial velocities like x, for "dsm".
    What is not given comes from PyTorch's generator: in published mode in the codebase's order and
    precision, in exact mode as the key of addressed noise.
    Raises ValueError for an unknown weighting or objective, or a v0 that it has no use for.
    """
    served = as_served(sde, mode)
    weighting = check_name("weighting", config.weighting, WEIGHTINGS)
    with_velocity = served.is_augmented and objective_of(config) == "dsm"
    # Published states are made in float64 and rounded.
    wide, narrow = (torch.float64, torch.float32) if served.mode == "published" else (None, None)

    def loss_fn(
        model: Any,
        x: Tensor,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        v0: Tensor | None = None,
    ) -> Tensor:
        if isinstance(model, torch.nn.Module):
            model.train(train)
        if v0 is not None and not with_velocity:
            raise ValueError("v0 is for the objective dsm: the others start no velocity")
        if with_velocity and v0 is None:
            v0 = torch.randn_like(x) * served.process.v0_var**0.5
        if t is None:
            uniform = torch.rand(x.shape[0], device=x.device, dtype=torch.float64)
            t = uniform * (1.0 - config.loss_eps) + config.loss_eps
        shape, dtype = served.state_shape(x.shape), wide or x.dtype
        if noise is None and served.mode == "published":
            noise = torch.randn(shape, dtype=x.dtype, device=x.device)
        if noise is None:
            z: Any = kernels.noise_address(stream=Stream.PERTURBATION)
        else:
            z = served.pack(noise).to(dtype)
        net = served.network(model, shape)
        state, planes = None, [part.to(dtype) for part in (x, v0) if part is not None]
        if not served.is_augmented:
            state, planes = served.pack(planes[0]), []
        weights = _weights(served, t, weighting, len(planes) or 2)
        return row_losses(lambda u: net(u, t), state, planes, weights, z, narrow)

    return loss_fn


def _weights(
    sde: PublishedInterface, t: Tensor, weighting: str, moved: int
) -> tuple[Tensor, Tensor]:
    """Weights of the state (B, 2, n) and of the residual `M (gain o + shift u + ell z)`.

    moved: planes of the start. The residual's weights are (B, q, r + 4).
    """
    law = sde.law(t)
    own = sde.noised(law)
    ell = torch.sqrt(own.xx / own.det)
    scale = torch.ones_like(t) if weighting == "likelihood" else 1.0 / ell
    if weighting != "reweightedv2":
        scale = scale * (0.5 * sde.process.diffusion[1] * sde.process.beta(t)).sqrt()
    rows = torch.tensor(sde.rows.T.tolist(), dtype=torch.float64, device=t.device)
    unit = torch.eye(len(rows), dtype=torch.float64, device=t.device)
    gain, shift = sde.gain_and_shift(t, law)
    columns = [(gain, unit), (shift, rows), (ell, rows)]
    residual = torch.cat([(scale * c)[:, None, None] * block for c, block in columns], dim=2)
    return torch.cat([law.phi[:, :, :moved], own.factor], 2), residual
