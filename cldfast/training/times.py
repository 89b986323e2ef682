"""Training times: how a batch covers [t_min, T]."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from cldfast.kernels import NoiseAddress, Stream, pair_words
from cldfast.process.sde import LinearPhaseSDE

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
    batch: int | None = None,
    seed: int = 0,
    first_index: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Times on [t_min, T] and the factors that keep averages unbiased, both float64 (rows,).

    method: "uniform"; "stratified", one uniform time in each of `batch` equal intervals, in order
        (lower variance of batch averages); "importance", density proportional to the likelihood
        weight `beta D_vv ell^2`, factor `1 / ((T - t_min) density)`.
    batch: rows of one stratified grid; `rows` must be whole batches. None: all rows are one.
    seed, first_index: row i takes the addressed uniform of sample `first_index + i`.

    Raises ValueError for an unknown method, or rows that are no whole batches. Source of the
    importance density: Song, Durkan, Murray, Ermon (2021), "Maximum likelihood training of
    score-based diffusion models", section 5.1.
    """
    if method not in TIME_SAMPLING:
        raise ValueError(
            f"unknown time sampling {method!r}; expected one of {', '.join(TIME_SAMPLING)}"
        )
    batch = rows if batch is None else batch
    if batch < 1 or rows % batch:
        raise ValueError(f"rows must be whole batches of {batch}, got {rows}")
    word, _ = pair_words(NoiseAddress(seed, first_index, stream=Stream.TIMES), rows, device)
    # The half keeps the draw inside (0, 1).
    uniform = (word.to(torch.float64) + 0.5) * 2.0**-32
    if method == "stratified":
        stratum = torch.arange(rows, device=device) % batch
        uniform = (stratum + uniform) / batch
    if method == "importance":
        return _importance(uniform, sde, t_min)
    return t_min + (sde.T - t_min) * uniform, torch.ones_like(uniform)


def _importance(
    uniform: torch.Tensor, sde: LinearPhaseSDE, t_min: float
) -> tuple[torch.Tensor, torch.Tensor]:
    nodes, cumulative, density = (a.to(uniform.device) for a in _density_table(sde, t_min))
    cell = (torch.searchsorted(cumulative, uniform, right=True) - 1).clamp(0, _TABLE - 2)
    inside = (uniform - cumulative[cell]) / (cumulative[cell + 1] - cumulative[cell])
    t = nodes[cell] + inside * (nodes[cell + 1] - nodes[cell])
    return t, 1.0 / ((sde.T - t_min) * density[cell])


# A process is not changed after it was made, so its table can be kept.
@lru_cache(maxsize=16)
def _density_table(
    sde: LinearPhaseSDE, t_min: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nodes, distribution function at them, and density in the cells between them."""
    nodes = np.geomspace(t_min, sde.T, _TABLE)
    weight = sde.beta(nodes) * sde.marginal(nodes).ell ** 2
    # A piecewise constant density over the cells, its height the geometric mean of the ends.
    height = np.sqrt(weight[1:] * weight[:-1])
    mass = height * np.diff(nodes)
    cumulative = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    table = (torch.from_numpy(a) for a in (nodes, cumulative, height / mass.sum()))
    return next(table), next(table), next(table)
