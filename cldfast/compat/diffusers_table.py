"""What a network of y knows: what its scheduler says of it, and its noise levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cldfast.compat.noise_tables import FAR, NoiseTable
from cldfast.network import per_row
from cldfast.planner.data_forms import DataForm
from cldfast.process.noise_level import NoiseLevel
from cldfast.process.sde import LinearPhaseSDE, sde_from_config

# The predictions of diffusers that are parameterisations by the same name.
PREDICTIONS = ("epsilon", "v_prediction")


def trained_with(scheduler: Any) -> tuple[list[float], str]:
    """The betas (K,) and the prediction that the network of a scheduler was trained with.

    Raises ValueError for a scheduler without betas or of another prediction.
    """
    config = getattr(scheduler, "config", None)
    predicts = getattr(config, "prediction_type", "epsilon")
    betas = getattr(scheduler, "betas", None)
    if betas is None:
        raise ValueError(
            "scheduler: expected one with betas, such as DDPMScheduler, got "
            f"{type(scheduler).__name__}; give the network's table to cldfast.from_denoiser"
        )
    if predicts not in PREDICTIONS:
        raise ValueError(
            f"prediction_type: expected one of {', '.join(PREDICTIONS)}, got {predicts!r}; "
            "cldfast.from_diffusers makes a denoiser of networks that predict the sample"
        )
    return [float(beta) for beta in betas], predicts


def cut_to_table(sde: LinearPhaseSDE, table: NoiseTable) -> tuple[LinearPhaseSDE, float]:
    """The process up to the last noise level of a table, and the time of the first level."""
    first, last = table.sigma_range
    t_min, T = NoiseLevel(sde).time(np.log([first, last]))
    if float(sde.marginal(sde.T).sigma_y) > last:
        sde = sde_from_config(sde.config() | {"T": float(T)})
    return sde, float(t_min)


def check_levels(sigma: np.ndarray, table: NoiseTable) -> None:
    """ValueError for noise levels (n,) far above the last one of a table."""
    most = table.sigma_range[1]
    if np.any(sigma > FAR * most):
        raise ValueError(
            f"trained_betas: the process begins at noise level {np.max(sigma):.4g}, expected at "
            f"most {FAR * most:.4g}, {FAR:.0f} times the largest that the network was trained at; "
            "choose a smaller T, or CLDScheduler.from_scheduler"
        )


def noised(
    form: DataForm, table: NoiseTable | None, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """What a network of y sees at timesteps t (B,): a scale times `x0 + sigma_y noise`.

    x0, noise: (B, C, ...). table: from noise levels to timesteps; None: they are the arguments.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise: expected {tuple(x0.shape)}, got {tuple(noise.shape)}")
    levels = form.noise_level(t) if table is None else table.noise_level(t)
    scale = form.coefficients(levels).scale
    assert scale is not None  # of a form that sees y
    return per_row(scale, x0) * (x0 + per_row(levels, x0) * noise)
