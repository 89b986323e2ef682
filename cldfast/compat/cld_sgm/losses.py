"""The codebase's loss: `loss_fn(model, x)` of score matching, one value a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.compat.cld_sgm.sde import Kernel, PublishedInterface, as_served, objective_of
from cldfast.compat.published import check_name
from cldfast.kernels.philox import STREAM_PERTURBATION
from cldfast.network import draw_seed

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
        shape = served.state_shape(x.shape)
        if noise is None and served.mode == "published":
            noise = torch.randn(shape, dtype=x.dtype, device=x.device)
        seed = draw_seed() if noise is None else 0
        z = None if noise is None else served.pack(noise)
        kernel = served.kernel(t)
        u = _perturb(served, x, v0, kernel, seed, z)
        output = served.network(model, shape)(u, t)
        assert isinstance(output, Tensor)
        weights = _residual_weights(served, t, kernel, weighting)
        return kernels.residual(
            output, u, weights, seed=seed, stream=STREAM_PERTURBATION,
            noise=None if z is None else z.to(u.dtype),
        )  # fmt: skip

    return loss_fn


def _perturb(
    sde: PublishedInterface,
    x: Tensor,
    v0: Tensor | None,
    kernel: Kernel,
    seed: int,
    z: Tensor | None,
) -> Tensor:
    """States at the rows' times; the published are made in float64 and rounded to float32."""
    published, mean = sde.mode == "published", kernel.mean
    if published:
        x = x.to(torch.float64)
        v0 = None if v0 is None else v0.to(torch.float64)
    if z is not None:
        z = z.to(x.dtype)
    if not sde.is_augmented:
        start: tuple[Tensor | None, tuple[Tensor, ...]] = (sde.pack(x), ())
    elif v0 is None:
        start, mean = (None, (x,)), mean[:, :, :1]
    else:
        start = (None, (x, v0))
    state, _, rounded = kernels.stage(
        *start, (), torch.cat([mean, kernel.factor], 2), seed=seed, stream=STREAM_PERTURBATION,
        noise=z, cast=torch.float32 if published else None,
    )  # fmt: skip
    return state if rounded is None else rounded


def _residual_weights(sde: PublishedInterface, t: Tensor, kernel: Kernel, weighting: str) -> Tensor:
    """Per row the blocks of `M (gain o + shift u + ell z)`, (B, q, r + 4)."""
    scale = torch.ones_like(t) if weighting == "likelihood" else 1.0 / kernel.ell
    if weighting != "reweightedv2":
        scale = scale * (0.5 * float(sde.process.D[1]) * sde.process.beta(t)).sqrt()
    rows = torch.from_numpy(np.array(sde.rows.T)).to(t.device)
    unit = torch.eye(rows.shape[0], dtype=torch.float64, device=t.device)
    columns = [(kernel.gain, unit), (kernel.shift, rows), (kernel.ell, rows)]
    return torch.cat([(scale * c)[:, None, None] * block for c, block in columns], dim=2)
