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

from cldfast.compat.laws import LAWS, checked, jittered
from cldfast.compat.published import check_name, numbers_of
from cldfast.compat.steps import OutputMap
from cldfast.planner.parameterization import LinearMap
from cldfast.process.linear_flow import Covariance, Transition, stack_matrix
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
    names = ("gamma", "nu", "kappa", "beta_0", "beta_1", "T")
    values = numbers_of(sde, "PSLD object", names)
    check_name("decomp_mode", getattr(sde, "decomp_mode", None), DECOMPOSITIONS)
    return _process(*values)


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
    return check_name("training.mode", training.mode, TRAINING_MODES)


def law_of(sde: Any, t: torch.Tensor, objective: str, mode: str) -> Transition:
    """The perturbation kernel at float64 times t, published with jitter; its mean moves (x0, m0).

    objective: "hsm" integrates the momenta out, "dsm" starts from given ones.
    """
    process = process_of(sde)
    start = process.v0_var if objective == "hsm" else 0.0
    law = LAWS[mode](process, process.tau(t), 0.0, start)
    if mode == "exact":
        return law
    own = checked(jittered(law.covariance, float(sde.eps)), "numerical_eps")
    return Transition(law.entries, own)


def output_map_of(sde: Any, objective: str, mode: str) -> OutputMap:
    """What the outputs of the codebase's networks mean.

    As published, scores are of single precision, and those of a network that was trained by "dsm"
    are scaled by the hybrid kernel, too.
    """

    def output_map(times: np.ndarray) -> LinearMap:
        t = torch.tensor(times, dtype=torch.float64, device="cpu")
        law = law_of(sde, t, objective if mode == "exact" else "hsm", mode)
        columns = noise_to_score(law.covariance, sde.decomp_mode, rows_of(sde))
        if mode == "published":
            columns = columns.to(torch.float32).to(torch.float64)
        return LinearMap(columns.numpy(), np.zeros((len(times), 2, 2)))

    return output_map


def factor(cov: Covariance, decomposition: str) -> Array:
    """The triangular factor C, `C C^T = cov`, (..., 2, 2)."""
    return _by_order(cov, decomposition, "factor")


def noise_to_score(cov: Covariance, decomposition: str, rows: tuple[int, ...]) -> Array:
    """`-C^-T` on the noises of `rows`, (..., 2, len(rows)); the score of a row left out is 0."""
    inverse = _by_order(cov, decomposition, "inverse_factor")
    return -array_namespace(inverse).matrix_transpose(inverse)[..., list(rows)]


def _by_order(cov: Covariance, decomposition: str, part: str) -> Array:
    """A lower factor of the covariance, or the upper one: that of x and m in the other order."""
    if decomposition == "lower":
        return getattr(cov, part)
    matrix = getattr(Covariance(cov.vv, cov.xv, cov.xx, cov.det), part)
    return stack_matrix(matrix[..., 1, 1], matrix[..., 1, 0], matrix[..., 0, 1], matrix[..., 0, 0])
