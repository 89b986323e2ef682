"""Any pretrained isotropic network as a denoiser `D(y, sigma) = E[x0 | y]`, `y = x0 + sigma n`.

A network was trained on `z = alpha x0 + s n` at times of its own. What it must be told of y is the
time at which `s / alpha` is sigma; it is then asked about `z = alpha y`. Its output o gives x0 by

    x0: D = o      epsilon: D = y - sigma o      v: D = (y - sigma o / alpha) / (1 + sigma^2)
    flow: D = (y - sigma o) / (1 + sigma)

with `v = (alpha n - s x0)`, `alpha^2 + s^2 = 1` (Salimans and Ho 2022), and the velocity `n - x0`
of the straight path `alpha + s = 1` (Liu, Gong, Liu 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.compat.noise_tables import FAR, FlowTable, NoiseTable, SigmaTable, Table, Values
from cldfast.conditions import Conditions, null_of
from cldfast.network import network_dtype, per_row
from cldfast.training.trained import remember_training

# How x0 follows from y and the output: the factors of both, of the noise level r and of alpha.
_FACTORS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "x0": lambda r, alpha: (torch.zeros_like(r), torch.ones_like(r)),
    "epsilon": lambda r, alpha: (torch.ones_like(r), -r),
    "v": lambda r, alpha: (1.0 / (1.0 + r * r), -r / (alpha * (1.0 + r * r))),
    "flow": lambda r, alpha: (1.0 / (1.0 + r), -r / (1.0 + r)),
}
PREDICTIONS = tuple(_FACTORS)


class Denoiser(nn.Module):
    """A network as `D(y, sigma)`; made by `from_denoiser` and `from_diffusers`.

    sigma_range: the smallest and the largest noise level that the network knows.
    """

    # A network of half precision sees y rounded, but x0 is made of y itself.
    input_dtype = None

    def __init__(self, net: Callable[..., Tensor], predicts: str, table: Table) -> None:
        super().__init__()
        self.net, self.predicts, self.table = net, predicts, table
        remember_training(self, "denoiser")

    @property
    def null(self) -> Conditions:
        return null_of(self.net)

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.table.sigma_range

    def forward(self, y: Tensor, sigma: Tensor, *arguments: Any, **conditions: Any) -> Tensor:
        """`E[x0 | y]`, shaped like y (B, d) or (B, C, H, W), at noise levels sigma (B,).

        arguments, conditions: more arguments of the network, such as labels.

        Raises ValueError or TypeError for a sigma or an output that does not fit, and on the CPU
        for a sigma far above the table; elsewhere the host would have to wait for the number.
        """
        if sigma.shape != (y.shape[0],):
            raise ValueError(f"sigma: expected shape ({y.shape[0]},), got {tuple(sigma.shape)}")
        # One row where an expanded view says that all are equal.
        rows = sigma[:1] if sigma.stride(0) == 0 else sigma
        most = self.sigma_range[1]
        looks = rows.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks and math.isfinite(most) and bool((rows > FAR * most).any()):
            raise ValueError(
                f"sigma: expected at most {FAR * most:.4g}, {FAR:.0f} times the largest noise "
                f"level that the network was trained at, got {float(rows.max()):.4g}; choose a "
                "process that ends at less noise, or a smaller T"
            )
        r, alpha, t = self.table(rows)
        keep, gain = _FACTORS[self.predicts](r, alpha)
        if math.isfinite(most):
            # Above the table y is shrunk until its noise is that of the table's end.
            shrink = (most / rows).clamp_max(1.0)
            keep, alpha = keep * shrink, alpha * shrink
        keep, gain, alpha = (per_row(part, y) for part in (keep, gain, alpha))
        seen = (alpha * y).to(network_dtype(self.net) or y.dtype)
        output = self.net(seen, t.expand(y.shape[0]), *arguments, **conditions)
        if not isinstance(output, Tensor):
            raise TypeError(f"the network's output must be a tensor, got {type(output).__name__}")
        if output.shape != y.shape:
            raise ValueError(
                f"the network's output: expected {tuple(y.shape)}, got {tuple(output.shape)}"
            )
        output = output.to(y.dtype)
        return output if self.predicts == "x0" else keep * y + gain * output


def from_denoiser(
    net: Callable[..., Tensor],
    *,
    predicts: str = "x0",
    alpha: Values | None = None,
    sigma: Values | None = None,
    times: Values | None = None,
    betas: Values | None = None,
    discrete: bool = False,
) -> Denoiser:
    """A pretrained network as `D(y, sigma)`, to sample with `parameterization="denoiser"`.

    net: `net(z, t, ...)` with `z = alpha_k x0 + sigma_k n` and its own times t (B,).
    predicts: "x0", "epsilon" (n), "v" (alpha n - sigma x0, where alpha^2 + sigma^2 = 1) or "flow"
        (n - x0, where alpha + sigma = 1).
    alpha, sigma, times: (K,) what the network was trained at; alpha None is 1, times None is 0 to
        K - 1. betas: (K,) of DDPM instead of alpha and sigma. Without any of them times are noise
        levels, as for EDM and VE; for "flow" alpha is 1 - t and sigma is t. Entries with alpha or
        sigma 0 are left out.
    discrete: ask at times of the table only, the nearest in log(sigma / alpha). Else time and log
        alpha are interpolated in it.

    Below the table the denoiser is that of its first noise level, whose error is that level at
    most; above it y is shrunk to the last level, which is right where the data are lost in noise.

    Raises ValueError for an unknown prediction or a table that does not fit; TypeError for a net
    that cannot be called.
    Source: Karras, Aittala, Aila, Laine (2022), appendix C.3.
    """
    if not callable(net):
        raise TypeError(f"net must be callable as net(z, t), got {type(net).__name__}")
    if predicts not in PREDICTIONS:
        raise ValueError(f"predicts: expected one of {', '.join(PREDICTIONS)}, got {predicts!r}")
    table: Table
    if betas is not None:
        if alpha is not None or sigma is not None:
            raise ValueError("betas: expected betas, or alpha and sigma, got both")
        table = NoiseTable.from_betas(betas, times, discrete)
    elif sigma is not None:
        table = NoiseTable(alpha, sigma, times, discrete)
    elif alpha is not None or times is not None or discrete:
        raise ValueError("sigma: expected a table of sigma with alpha, times or discrete, got none")
    else:
        table = FlowTable() if predicts == "flow" else SigmaTable()
    return Denoiser(net, predicts, table)


# What a scheduler of diffusers calls the predictions.
_DIFFUSERS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


def from_diffusers(
    model: Any, scheduler: Any = None, *, discrete: bool = False, **conditions: Any
) -> Denoiser:
    """A `UNet2DModel` or `UNet2DConditionModel` of diffusers as `D(y, sigma)`.

    model: the network, or a pipeline with `unet` and `scheduler`. scheduler: whose `alphas_cumprod`
        and `prediction_type` the network was trained with; None is the pipeline's.
    discrete: ask at whole timesteps only.
    conditions: handed to the network in every call, such as `class_labels` (B,) or
        `encoder_hidden_states` (B, L, D); tensors of one row serve all rows.

    y is what the network sees: images as it was trained on, or latents. What schedulers do to x0
    besides, such as clipping to [-1, 1], is not done.

    Raises ValueError for a scheduler without such a table or of another prediction.
    """
    unet = getattr(model, "unet", model)
    scheduler = getattr(model, "scheduler", None) if scheduler is None else scheduler
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None:
        raise ValueError(
            "scheduler: expected one with alphas_cumprod, such as DDPMScheduler, got "
            f"{type(scheduler).__name__}; give other tables to cldfast.from_denoiser"
        )
    predicts = getattr(scheduler.config, "prediction_type", "epsilon")
    if predicts not in _DIFFUSERS:
        raise ValueError(
            f"prediction_type: expected one of {', '.join(_DIFFUSERS)}, got {predicts!r}"
        )
    squares = torch.as_tensor(products, device="cpu").double()
    table = NoiseTable(squares.sqrt(), (1.0 - squares).sqrt(), None, discrete)
    return Denoiser(_OfDiffusers(unet, conditions), _DIFFUSERS[predicts], table)


class _OfDiffusers(nn.Module):
    """A network of diffusers, its conditions given, as a function that returns a tensor."""

    def __init__(self, unet: Callable[..., Any], conditions: dict[str, Any]) -> None:
        super().__init__()
        self.unet, self.conditions = unet, conditions

    def forward(self, z: Tensor, t: Tensor, *arguments: Any, **conditions: Any) -> Tensor:
        given = self.conditions | conditions
        for name, value in given.items():
            if isinstance(value, Tensor) and value.ndim and len(value) == 1:
                given[name] = value.expand(len(z), *value.shape[1:])
        output: Tensor = self.unet(z, t, *arguments, return_dict=False, **given)[0]
        # Twice the channels: the second half is a variance, which a denoiser has no use for.
        return output[:, : z.shape[1]] if output.shape[1] == 2 * z.shape[1] else output
