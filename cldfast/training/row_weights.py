"""The coefficients of training: how a row is perturbed and what its residual is, at its time t.

One formula each, in float64, for times of any number. A step reads them from tables made of those
formulas, one for each process and loss, kept as long as the process; where the formula is
not smooth in t there is no table, and the formula itself is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch

from cldfast import kernels
from cldfast.kernels.time_tables import Function, Table, make_table
from cldfast.planner.parameterization import ROWS
from cldfast.process.linear_flow import Covariance
from cldfast.process.sde import LinearPhaseSDE, Marginal

Bounds = tuple[float, float] | None

WEIGHTINGS = ("reweighted", "reweighted_g2", "likelihood", "det")


def perturbation_weights(kernel: Marginal) -> torch.Tensor:
    """The blocks (mean, L) by which data are perturbed, (B, 2, 3), or (B, 2, 4) given (x0, v0)."""
    mean = kernel.mean if kernel.mean.dim() == 3 else kernel.mean[..., None]
    return torch.cat([mean, kernel.factor], 2)


def residual_weights(
    sde: LinearPhaseSDE,
    t: torch.Tensor,
    kernel: Marginal,
    weighting: str,
    parameterization: str,
) -> torch.Tensor:
    """The blocks `(R_o, R_u, R_z)` of `M (C_o o + C_u u + L^-T z)` side by side, (B, q, r + 4).

    The parameterisation C is that of hybrid score matching, as in sampling; L and M belong to the
    kernel of the loss. Divided out in float64: the factors span many orders near t = 0.
    """
    beta = sde.beta(t)
    hybrid = kernel if kernel.mean.dim() == 2 else sde.marginal(t)
    rows = ROWS[parameterization](sde, hybrid)
    planes = rows.from_state.shape[1]
    # L^-T z; the velocity row is (0, ell).
    unit = kernel.covariance.inverse_factor.mT[:, -planes:]
    blocks = torch.cat([rows.from_output, rows.from_state, unit], 2)
    if weighting == "likelihood":
        D = torch.tensor(sde.diffusion[-planes:], dtype=torch.float64, device=t.device)
        return blocks * (0.5 * beta[:, None] * D).sqrt()[:, :, None]
    if weighting == "det":
        return blocks * kernel.det.sqrt()[:, None, None]
    if planes == 1:
        weights = blocks / kernel.ell[:, None, None]
    else:
        # L^T L^-T is written down: its entries cancel to rounding errors that grow as t goes to 0.
        identity = torch.eye(2, dtype=unit.dtype, device=t.device).expand_as(unit)
        if parameterization == "full_noise" and kernel.mean.dim() == 2:
            known = torch.cat([-identity, rows.from_state], 2)
        else:
            known = kernel.factor.mT @ blocks[:, :, :4]
        weights = torch.cat([known, identity], 2)
    if weighting == "reweighted_g2":
        weights = weights * (0.5 * sde.diffusion[1] * beta).sqrt()[:, None, None]
    return weights


def split_weights(
    perturbation: torch.Tensor, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same residual in two halves: what is known when data are perturbed, and the output.

    `R_o o + R_u u + R_z z` with `u = P (x0, z)` is `R_o o + e`, where the offset `e = (R_u P +
    (0, R_z)) (x0, z)` has the residual's planes and costs a perturbation as many more rows.

    perturbation: P, (B, 2, n). residual: (B, q, r + 4). Returns the weights of the first half,
    (B, 2 + q, n), rows u and e, and of the second, (B, q, r + q), columns o and e.
    """
    planes = residual.shape[2] - 4
    of_output, of_state, of_noise = residual.split([planes, 2, 2], 2)
    offset = of_state @ perturbation
    data = perturbation.shape[2] - 2
    offset = torch.cat([offset[:, :, :data], offset[:, :, data:] + of_noise], 2)
    identity = torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)
    second = torch.cat([of_output, identity.expand(len(residual), -1, -1)], 2)
    return torch.cat([perturbation, offset], 1), second


def row_perturbation(
    sde: LinearPhaseSDE, t: torch.Tensor, objective: str
) -> torch.Tensor | kernels.AtTimes:
    """`perturbation_weights` at float64 times (B,): a table's, or by the formula."""
    found = _looked_up(t, None, lambda: (perturbation_table(sde, objective),))
    return perturbation_weights(sde.marginal(t, objective)) if found is None else found[0]


def row_loss(
    sde: LinearPhaseSDE,
    t: torch.Tensor,
    objective: str,
    weighting: str,
    parameterization: str,
    bounds: Bounds = None,
) -> tuple[torch.Tensor | kernels.AtTimes, torch.Tensor | kernels.AtTimes]:
    """Both halves of a loss, as `split_weights`, at float64 times (B,): tables', or by formula.

    bounds: the least and the largest time that there may be, if that is known.
    """
    found = _looked_up(t, bounds, lambda: loss_tables(sde, objective, weighting, parameterization))
    if found is not None:
        return found[0], found[1]
    kernel = sde.marginal(t, objective)
    return split_weights(
        perturbation_weights(kernel), residual_weights(sde, t, kernel, weighting, parameterization)
    )


class RowKernels(Marginal):
    """Kernels that cost a hundred array operations, made for those who look at them."""

    def __init__(self, make: Callable[[], Marginal]) -> None:
        object.__setattr__(self, "_make", make)

    @cached_property
    def _made(self) -> Marginal:
        return self._make()  # type: ignore[attr-defined, no-any-return]

    @property
    def mean(self) -> torch.Tensor:  # type: ignore[override]
        return self._made.mean

    @property
    def covariance(self) -> Covariance:  # type: ignore[override]
        return self._made.covariance

    @property
    def tau(self) -> Any:
        return self._made.tau


def _looked_up(
    t: torch.Tensor, bounds: Bounds, tables: Callable[[], tuple[Table | None, ...]]
) -> list[kernels.AtTimes] | None:
    """Tables' matrices at times t; None where one is missing, or the formula serves better.

    A traced graph, `torch.func`, and times with gradients need the operations of the formula
    itself; so do times on a device of which the host knows nothing: it would have to wait for them.
    """
    if t.requires_grad or torch.compiler.is_compiling():
        return None
    on_host = t.device.type == "cpu"
    if torch._C._are_functorch_transforms_active():
        return None
    if on_host:
        if not kernels.automatic_backend("cpu").reads_tables:
            return None
    elif bounds is None:
        return None
    found = []
    for table in tables():
        weights = None if table is None else table.at(t, bounds)
        if weights is None or not (weights.inside or (on_host and kernels.covers(weights))):
            return None
        found.append(weights)
    return found


# A process is not changed after it was made.
_tables: WeakKeyDictionary[LinearPhaseSDE, dict[Hashable, Table | None]] = WeakKeyDictionary()


def perturbation_table(sde: LinearPhaseSDE, objective: str) -> Table | None:
    """`perturbation_weights` of a process and an objective as a table, or None; made once."""
    return _table(sde, objective, lambda t: perturbation_weights(sde.marginal(t, objective)))


def loss_tables(
    sde: LinearPhaseSDE, objective: str, weighting: str, parameterization: str
) -> tuple[Table | None, Table | None]:
    """The two halves of a loss, as `split_weights`, as tables, or None; made once."""

    def half(index: int) -> Table | None:
        def whole(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            kernel = sde.marginal(t, objective)
            residual = residual_weights(sde, t, kernel, weighting, parameterization)
            return perturbation_weights(kernel), residual

        def function(t: torch.Tensor) -> torch.Tensor:
            return split_weights(*whole(t))[index]

        def terms(t: torch.Tensor) -> torch.Tensor:
            perturbation, residual = whole(t)
            return split_weights(perturbation.abs(), residual.abs())[index]

        return _table(sde, (objective, weighting, parameterization, index), function, terms)

    return half(0), half(1)


def _table(
    sde: LinearPhaseSDE, key: Hashable, function: Function, terms: Function | None = None
) -> Table | None:
    known = _tables.get(sde)
    if known is None:
        known = _tables.setdefault(sde, {})
    if key not in known:
        with torch.no_grad():
            known[key] = make_table(function, sde.T, terms)
    return known[key]
