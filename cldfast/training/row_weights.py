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
from cldfast.planner.data_forms import DataForm, Preconditioned
from cldfast.planner.parameterization import (
    ROWS,
    LinearMap,
    Parameterization,
    data_form,
    data_score,
)
from cldfast.process.linear_flow import Covariance, stack_matrix
from cldfast.process.sde import LinearPhaseSDE, Marginal

Bounds = tuple[float, float] | None

WEIGHTINGS = ("reweighted", "reweighted_g2", "likelihood", "det", "edm")


def perturbation_weights(kernel: Marginal) -> torch.Tensor:
    """The blocks (mean, L) by which data are perturbed, (B, 2, 3), or (B, 2, 4) given (x0, v0)."""
    mean = kernel.mean if kernel.mean.dim() == 3 else kernel.mean[..., None]
    return torch.cat([mean, kernel.factor], 2)


def residual_weights(
    sde: LinearPhaseSDE,
    t: torch.Tensor,
    kernel: Marginal,
    weighting: str,
    parameterization: Parameterization,
) -> torch.Tensor:
    """The blocks `(R_o, R_u, R_z)` of `M (C_o o + C_u u + L^-T z)` side by side, (B, q, r + 4).

    The parameterisation C is that of hybrid score matching, as in sampling; L and M belong to the
    kernel of the loss. Divided out in float64: the factors span many orders near t = 0.
    """
    given_x0 = kernel.mean.dim() == 2
    hybrid = kernel if given_x0 else sde.marginal(t)
    form = data_form(parameterization)
    if form is not None and given_x0:
        return _data_residual(sde, t, kernel, weighting, form)
    if form is None:
        rows = ROWS[str(parameterization)](sde, hybrid)
    else:  # given (x0, v0) too, the velocity row, as for a velocity score
        both = data_score(form, hybrid)
        rows = LinearMap(both.from_output[:, 1:], both.from_state[:, 1:])
    planes = rows.from_state.shape[1]
    # L^-T z; the velocity row is (0, ell).
    unit = kernel.covariance.inverse_factor.mT[:, -planes:]
    blocks = torch.cat([rows.from_output, rows.from_state, unit], 2)
    if weighting in ("likelihood", "det"):
        squares = _row_squares(sde, t, kernel, weighting)
        if planes == 1:
            m_x, m_v = hybrid.mean.unbind(1)
            along_x, along_v = hybrid.covariance.adjugate_times(m_x, m_v)
            # An error of the velocity row is one of x0, and the position row has its part of it.
            of_x = squares[:, :1] * ((along_x / along_v) ** 2)[:, None]
            squares = squares[:, 1:] + of_x if sde.diffusion[0] > 0.0 else squares[:, 1:]
        return blocks * squares.sqrt()[:, :, None]
    if planes == 1:
        weights = blocks / kernel.ell[:, None, None]
    else:
        # L^T L^-T is written down: its entries cancel to rounding errors that grow as t goes to 0.
        identity = torch.eye(2, dtype=unit.dtype, device=t.device).expand_as(unit)
        if parameterization == "full_noise" and given_x0:
            known = torch.cat([-identity, rows.from_state], 2)
        else:
            known = kernel.factor.mT @ blocks[:, :, :-2]
        weights = torch.cat([known, identity], 2)
    if weighting == "reweighted_g2":
        weights = weights * (0.5 * sde.diffusion[1] * sde.beta(t)).sqrt()[:, None, None]
    if weighting == "edm":
        weights = weights * _edm_size(hybrid, 1.0)[:, None, None]
    return weights


def _edm_size(kernel: Marginal, sigma_data: float) -> torch.Tensor:
    """The root (B,) of the EDM weight of `|nu^ - nu|^2`, `(sigma^2 + sigma_data^2)/sigma_data^2`.

    Source: Karras et al. (2022), table 1, where it multiplies `sigma^2 |D - x0|^2`.
    """
    return ((kernel.sigma_y / sigma_data) ** 2 + 1.0).sqrt()


def _row_squares(
    sde: LinearPhaseSDE, t: torch.Tensor, kernel: Marginal, weighting: str
) -> torch.Tensor:
    """The weights (B, 2) of the squared errors of both rows of the score."""
    if weighting == "det":
        return kernel.det[:, None].expand(-1, 2)
    D = torch.tensor(sde.diffusion, dtype=torch.float64, device=t.device)
    return 0.5 * sde.beta(t)[:, None] * D


def data_size(
    sde: LinearPhaseSDE, t: torch.Tensor, kernel: Marginal, weighting: str, form: DataForm
) -> torch.Tensor:
    """The factor (B,) of the error of nu, the unit noise of y, in the residual.

    1 for "reweighted": `|nu^ - nu|^2 = |L^T (s - s*)|^2`, both rows. An error of x0 makes errors
    `Sigma^-1 m (x0^ - x0)` of the score, of which "likelihood" and "det" weight the squares.
    """
    if weighting == "edm":
        return _edm_size(kernel, form.sigma_data if isinstance(form, Preconditioned) else 1.0)
    if weighting == "reweighted_g2":
        return (0.5 * sde.diffusion[1] * sde.beta(t)).sqrt()
    if weighting == "reweighted":
        return torch.ones_like(kernel.det)
    along = kernel.covariance.adjugate_times(kernel.mean[:, 0], kernel.mean[:, 1])
    squares = (_row_squares(sde, t, kernel, weighting) * torch.stack(along, 1) ** 2).sum(1)
    return (squares / (kernel.det * kernel.signal)).sqrt()


def _data_residual(
    sde: LinearPhaseSDE, t: torch.Tensor, kernel: Marginal, weighting: str, form: DataForm
) -> torch.Tensor:
    """`residual_weights` of a form: `nu^ - nu = (drop y - gain o)/sigma - nu`, (B, 1, 5)."""
    size = data_size(sde, t, kernel, weighting, form)
    made, sigma = form.coefficients(kernel.sigma_y), kernel.sigma_y
    xx, det, signal = kernel.covariance.xx, kernel.det, kernel.signal
    _, along_v = kernel.covariance.adjugate_times(kernel.mean[:, 0], kernel.mean[:, 1])
    # nu as a row on z: `m^T Sigma^-1 L / sqrt(snr)`, in which a factor det has been cancelled.
    unit = torch.stack([det.sqrt() * kernel.mean[:, 0], along_v], 1) / (xx * signal).sqrt()[:, None]
    blocks = [
        -(made.gain / sigma)[:, None], (made.drop / sigma)[:, None] * kernel.statistic, -unit,
    ]  # fmt: skip
    return (torch.cat(blocks, 1) * size[:, None])[:, None]


def isotropic_weights(
    sde: LinearPhaseSDE, t: torch.Tensor, weighting: str, form: DataForm
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A loss on a network that sees y, in halves as of `split_weights`, and its argument (B,).

    One plane of noise makes `scale y = scale (x0 + sigma nu)` and the offset of

        nu^ - nu = -gain/sigma o + drop/sigma x0 - keep nu.

    Two coordinates of the data are one pair, so the blocks stand twice: (B, 4, 4), rows of what the
    network sees and of the offset, columns of data and noise; and (B, 2, 4), columns o and e.
    """
    kernel = sde.marginal(t)
    sigma, size = kernel.sigma_y, data_size(sde, t, kernel, weighting, form)
    made = form.coefficients(sigma)
    assert made.scale is not None and made.argument is not None  # of a form that sees y
    first = stack_matrix(
        made.scale, made.scale * sigma, size * made.drop / sigma, -size * made.keep
    )
    second = torch.stack([-size * made.gain / sigma, torch.ones_like(sigma)], 1)[:, None]
    return _twice(first), _twice(second), made.argument


def _twice(blocks: torch.Tensor) -> torch.Tensor:
    """Blocks (B, p, n) for both coordinates of a pair, (B, 2p, 2n)."""
    identity = torch.eye(2, dtype=blocks.dtype, device=blocks.device)
    both = blocks[:, :, None, :, None] * identity[:, None, :]
    return both.reshape(len(blocks), 2 * blocks.shape[1], 2 * blocks.shape[2])


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
    parameterization: Parameterization,
    bounds: Bounds = None,
) -> tuple[torch.Tensor | kernels.AtTimes, torch.Tensor | kernels.AtTimes, torch.Tensor]:
    """Both halves of a loss, as `split_weights`, at float64 times (B,): tables', or by formula.

    The third is the second argument (B,) of the network.
    bounds: the least and the largest time that there may be, if that is known.
    """
    found = _looked_up(t, bounds, lambda: loss_tables(sde, objective, weighting, parameterization))
    if found is None:
        return loss_weights(sde, t, objective, weighting, parameterization)
    first, second, *argument = found
    return first, second, kernels.matrices(argument[0])[:, 0, 0] if argument else t


def loss_weights(
    sde: LinearPhaseSDE,
    t: torch.Tensor,
    objective: str,
    weighting: str,
    parameterization: Parameterization,
    sizes: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`row_loss` by its formula. sizes: those of the terms of each entry, which may cancel."""
    form = data_form(parameterization)
    if form is not None and form.sees_y:
        return isotropic_weights(sde, t, weighting, form)
    kernel = sde.marginal(t, objective)
    first = perturbation_weights(kernel)
    second = residual_weights(sde, t, kernel, weighting, parameterization)
    halves = split_weights(first.abs(), second.abs()) if sizes else split_weights(first, second)
    return (*halves, t)


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
    if not (kernels.automatic_backend("cpu").reads_tables if on_host else bounds):
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
    sde: LinearPhaseSDE, objective: str, weighting: str, parameterization: Parameterization
) -> tuple[Table | None, ...]:
    """The two halves of a loss, as `split_weights`, as tables, or None; made once.

    A third table holds the second argument of a network that sees y.
    """
    form = data_form(parameterization)
    key = (objective, weighting, parameterization if form is None else form)

    def part(index: int, sizes: bool = False) -> Function:
        def function(t: torch.Tensor) -> torch.Tensor:
            made = loss_weights(sde, t, objective, weighting, parameterization, sizes)[index]
            return made[:, None, None] if made.dim() == 1 else made

        return function

    if form is not None and form.sees_y:
        return tuple(_table(sde, (*key, index), part(index)) for index in range(3))
    return tuple(_table(sde, (*key, index), part(index), part(index, True)) for index in range(2))


def _table(
    sde: LinearPhaseSDE, key: Hashable, function: Function, terms: Function | None = None
) -> Table | None:
    known = _tables.setdefault(sde, {})
    if key not in known:
        with torch.no_grad():
            known[key] = make_table(function, sde.T, terms)
    return known[key]
