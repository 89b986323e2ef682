"""Training times: how a batch covers [t_min, T]."""

from __future__ import annotations

import numpy as np
import torch

from cldfast.philox import STREAM_TIMES, pair_words
from cldfast.sde import LinearPhaseSDE

TIME_SAMPLING = ("uniform", "stratified", "importance")
# The inverse of the importance density's distribution function is tabulated at this many times,
# log-spaced; the density is exact for the piecewise linear table, so the table only costs variance.
_TABLE = 1024


def sample_times(
    rows: int,
    sde: LinearPhaseSDE,
    *,
    t_min: float = 1e-3,
    method: str = "uniform",
    seed: int = 0,
    first_index: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Times on [t_min, T] and the factors that keep averages unbiased, both float64 (rows,).

    method: "uniform"; "stratified", one uniform time in each of `rows` equal intervals, in order
        (lower variance of batch averages); "importance", density proportional to the likelihood
        weight `beta D_vv ell^2`, factor `1 / ((T - t_min) density)`.
    seed, first_index: row i takes the addressed uniform of sample `first_index + i`.

    Raises ValueError for an unknown method. Source of the importance density: Song, Durkan, Murray,
    Ermon (2021), "Maximum likelihood training of score-based diffusion models", section 5.1.
    """
    if method not in TIME_SAMPLING:
        raise ValueError(
            f"unknown time sampling {method!r}; expected one of {', '.join(TIME_SAMPLING)}"
        )
    word, _ = pair_words(seed, first_index, rows, 0, STREAM_TIMES, device)
    # The half keeps the draw inside (0, 1).
    uniform = (word.to(torch.float64) + 0.5) * 2.0**-32
    if method == "stratified":
        uniform = (torch.arange(rows, dtype=torch.float64, device=device) + uniform) / rows
    if method == "importance":
        return _importance(uniform, sde, t_min)
    return t_min + (sde.T - t_min) * uniform, torch.ones_like(uniform)


def _importance(
    uniform: torch.Tensor, sde: LinearPhaseSDE, t_min: float
) -> tuple[torch.Tensor, torch.Tensor]:
    nodes = np.geomspace(t_min, sde.T, _TABLE)
    weight = sde.beta(nodes) * sde.marginal(nodes).ell ** 2
    # A piecewise constant density over the cells, its height the geometric mean of the ends.
    height = np.sqrt(weight[1:] * weight[:-1])
    mass = height * np.diff(nodes)
    cumulative = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    density = height / mass.sum()
    table = [torch.from_numpy(a).to(uniform.device) for a in (nodes, cumulative, density)]
    cell = (torch.searchsorted(table[1], uniform, right=True) - 1).clamp(0, _TABLE - 2)
    inside = (uniform - table[1][cell]) / (table[1][cell + 1] - table[1][cell])
    t = table[0][cell] + inside * (table[0][cell + 1] - table[0][cell])
    return t, 1.0 / ((sde.T - t_min) * table[2][cell])
