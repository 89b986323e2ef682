"""States of which a network sees one plane, by the law of two normals given a third."""

from __future__ import annotations

import numpy as np
import torch

import cldfast
from cldfast.kernels import Stream


def first_covariance(plan: cldfast.Plan, before: int) -> np.ndarray:
    """Of the states at the first evaluation: the stages before it move the stationary law."""
    cov = plan.sde.prior().cov
    for stage in plan.stages[:before]:
        cov = stage.P @ cov @ stage.P.T + stage.L @ stage.L.T
    return np.asarray(cov)


def next_seed(source: torch.Generator) -> int:
    """The seed that a scheduler draws from a generator."""
    return int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64, generator=source))


def state_behind(plane: np.ndarray, row: np.ndarray, cov: np.ndarray, seed: int) -> np.ndarray:
    """States N(0, cov) whose plane `row u` is this one, float64.

    seed: of the normals of states at T, whose v half is what the plane does not show.
    """
    pull = cov @ row / (row @ cov @ row)
    left = cov - np.outer(pull, cov @ row)
    # Of rank one; its direction shows nothing in the plane.
    x, v = np.sqrt(np.diag(left)) * np.sign([-row[1], row[0]])
    address = cldfast.NoiseAddress(seed, 0, stream=Stream.INITIAL_STATE)
    pairs = cldfast.kernels.normals(plane.shape, address, dtype=torch.float64, device="cpu")
    z = pairs.chunk(2, dim=1)[1].numpy()
    return np.concatenate([pull[0] * plane + x * z, pull[1] * plane + v * z], axis=1)
