"""A linear network trained on Gaussian data reaches the exact score, position noise included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cldfast import CLD, LinearBeta, hsm_loss
from cldfast.planner.parameterization import input_map, score_map

SDE = CLD(a=1.2, x_noise=0.4, beta=LinearBeta(0.5, 6.0))
DATA_COV = np.array([[1.0, 0.6], [0.6, 0.8]])
ROWS = 200_000


def exact_score(t: float) -> np.ndarray:
    """S with score = S u for u = (x, v), (4, 4): `-(Sigma (x) I + m m^T (x) DATA_COV)^-1`."""
    kernel = SDE.marginal(t)
    cov = np.kron(kernel.cov, np.eye(2)) + np.kron(np.outer(kernel.mean, kernel.mean), DATA_COV)
    return -np.linalg.inv(cov)


@pytest.mark.parametrize("parameterization", ["score", "mixed", "data_noise", "edm"])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.9])
def test_the_trained_score_is_exact_to_one_percent(t: float, parameterization: str) -> None:
    """d outputs; the position rows of the score follow from them by the x0 identity."""
    generator = torch.Generator().manual_seed(1)
    root = torch.from_numpy(np.linalg.cholesky(DATA_COV))
    x0 = torch.randn(ROWS, 2, dtype=torch.float64, generator=generator) @ root.mT
    x0 = x0.float()
    times = torch.full((ROWS,), t, dtype=torch.float64)
    inputs = input_map(SDE, np.array([t]), parameterization)
    layer = torch.nn.Linear(4 if inputs is None else 2, 2, bias=False)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = hsm_loss(
            lambda u, t: layer(u), SDE, x0, parameterization=parameterization, t=times, seed=3
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    weight = layer.weight.detach().double().numpy()
    to_score = score_map(SDE, np.array([t]), parameterization)
    identity = np.eye(2)
    if inputs is not None:
        weight = weight @ np.kron(inputs[0][0], identity)
    learned = np.kron(to_score.from_output[0], identity) @ weight
    learned += np.kron(to_score.from_state[0], identity)
    exact = exact_score(t)
    # In the mean over states: E|A u|^2 = tr(A C A^T), C = -exact^-1. The error of 4 coefficients
    # an output is sqrt(4 / 200,000) = 0.45 % of the target's noise, itself below the score's size.
    cov = -np.linalg.inv(exact)

    def size(matrix: np.ndarray) -> float:
        return float(np.sqrt(np.trace(matrix @ cov @ matrix.T)))

    bound = 0.01 * size(exact)
    if parameterization in ("data_noise", "edm"):
        # An error of nu, whose variance given y is below 1, is one of `sigma Sigma^-1 m` times that
        # of the score: 4 of its deviations, of 2 outputs with so many coefficients each.
        kernel = SDE.marginal(t)
        along = np.linalg.solve(kernel.cov, kernel.mean) * float(kernel.sigma_y)
        deviation = np.linalg.norm(along) * np.sqrt(2.0 * layer.in_features / ROWS)
        bound = max(bound, 4.0 * float(deviation))
    assert size((learned - exact)[2:]) < 0.01 * size(exact[2:])
    assert size(learned - exact) < bound
