"""What the codebase's SDE object says, as a process of ours and the map from noise to score.

The codebase's networks predict the noise `eps` of `u = mean + C eps`, C the lower or the upper
triangular factor of the covariance, so `score = -C^-T eps`. Where only one coordinate is noised
(`gamma = 0` under the lower factor, `nu = 0` under the upper) they predict its part alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from array_api_compat import array_namespace

from cldfast.process.linear_flow import Covariance, stack_matrix
from cldfast.process.schedules import LinearBeta
from cldfast.process.sde import PSLD

Array = Any
DECOMPOSITIONS = ("lower", "upper")
TRAINING_MODES = ("hsm", "dsm")


@lru_cache(maxsize=64)
def _process(gamma: float, nu: float, kappa: float, beta_0: float, beta_1: float, T: float) -> PSLD:
    return PSLD(gamma, nu, kappa=kappa, beta=LinearBeta(beta_0, beta_1, T), T=T)


def process_of(sde: Any) -> PSLD:
    """The forward process of an SDE object of the codebase: gamma, nu, kappa, beta_0, beta_1, T.

    Raises TypeError where one is missing, ValueError for values without a stationary law.
    """
    try:
        values = (sde.gamma, sde.nu, sde.kappa, sde.beta_0, sde.beta_1, sde.T)
        decomposition_of(sde)
    except AttributeError as error:
        raise TypeError(
            "sde must be a PSLD object with gamma, nu, kappa, beta_0, beta_1, T and decomp_mode, "
            f"got {type(sde).__name__}: {error}"
        ) from None
    return _process(*(float(value) for value in values))


def decomposition_of(sde: Any) -> str:
    """Which factor of the covariance its noise goes through, "lower" or "upper"."""
    name: str = sde.decomp_mode
    if name not in DECOMPOSITIONS:
        raise ValueError(f"decomp_mode must be one of {', '.join(DECOMPOSITIONS)}, got {name!r}")
    return name


def rows_of(sde: Any) -> tuple[int, ...]:
    """The coordinates whose noise the network predicts: (0, 1), or x or m alone."""
    if sde.gamma == 0 and sde.decomp_mode == "lower":
        return (1,)
    if sde.nu == 0 and sde.decomp_mode == "upper":
        return (0,)
    return (0, 1)


def training_mode(config: Any) -> str:
    """`config.training.mode`, in a joint configuration `config.diffusion.training.mode`."""
    training = getattr(config, "training", None)
    if training is None:
        training = config.diffusion.training
    mode: str = training.mode
    if mode not in TRAINING_MODES:
        raise ValueError(f"training.mode must be one of {', '.join(TRAINING_MODES)}, got {mode!r}")
    return mode


def factor(cov: Covariance, decomposition: str) -> Array:
    """The triangular factor C, `C C^T = cov`, (..., 2, 2)."""
    if decomposition == "lower":
        return cov.factor
    flipped = Covariance(cov.vv, cov.xv, cov.xx, cov.det).factor
    zero = cov.xx * 0.0
    return stack_matrix(flipped[..., 1, 1], flipped[..., 1, 0], zero, flipped[..., 0, 0])


def noise_to_score(cov: Covariance, decomposition: str, rows: tuple[int, ...]) -> Array:
    """`-C^-T` on the noises of `rows`, (..., 2, len(rows)); the score of a row left out is 0."""
    xp = array_namespace(cov.det)
    zero = cov.det * 0.0
    if decomposition == "lower":
        cross = -cov.xv / xp.sqrt(cov.xx * cov.det)
        inverse = stack_matrix(1.0 / xp.sqrt(cov.xx), cross, zero, xp.sqrt(cov.xx / cov.det))
    else:
        cross = -cov.xv / xp.sqrt(cov.vv * cov.det)
        inverse = stack_matrix(xp.sqrt(cov.vv / cov.det), zero, cross, 1.0 / xp.sqrt(cov.vv))
    return -inverse if len(rows) == 2 else -inverse[..., rows[0] : rows[0] + 1]


def forward_grid(sde: Any, ts: torch.Tensor, steps: int) -> np.ndarray:
    """The sampler's times `ts` (they run up from 0) as forward times, descending, float64."""
    if not isinstance(ts, torch.Tensor) or ts.dim() != 1 or len(ts) < steps + 1:
        raise ValueError(f"ts must be a flat tensor of n_discrete_steps + 1 = {steps + 1} times")
    host: np.ndarray = ts[: steps + 1].to(device="cpu", dtype=torch.float64).numpy()
    return float(sde.T) - host
