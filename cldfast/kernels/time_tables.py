"""Small matrices as smooth functions of time, tabulated: what a training step asks for at each row.

The coefficients of a perturbation or a loss take a hundred array operations from the time t. A
table replaces them by one polynomial per entry: the octaves `end (2^-(i+1), 2^-i]` are cut into
equal panels, as many as each needs, and on a panel every entry is interpolated in Chebyshev points.
Power laws, t^(-3/2) and the like, vary by a bounded factor over an octave, so the error is relative
at every time down to `end 2^-OCTAVES`. The panel and the place in it are read off the bits of t.

Nothing here knows what the matrices are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev

from cldfast.kernels.limits import MOST_COLUMNS

# Down to end 2^-34 = 6e-11 end; a table of fewer than the second, end/4096, is not worth having.
OCTAVES, _FEWEST_OCTAVES = 34, 12
# Coefficients of a panel. A power law's singularity, at 0, lies 2^(bits+1) + 1 half-widths from the
# centre of the lowest panel of an octave, so its series converges as 17.9^-k at bits = 2: to 1e-18.
TERMS = 16
# Panels of an octave: at most 2^8, then the function is taken not to be smooth.
MOST_BITS = 8
# Largest error between the nodes, of the largest size that an entry has on the panel. Some formulas
# round more (the error of a large exponent's `tau`), so what narrow panels do not bring below the
# first is taken if it is below the second.
TOLERANCE, ROUNDING = 2e-14, 2e-13
_NARROW_BITS = 4
# An entry far smaller than its row is a difference that has cancelled, good to some units in the
# last place of the row.
_ROW_ROUNDING = 8 * 2.0**-52
# Panels in all that a smooth function may need; more are not worth their cost.
_MOST_PANELS = 2048
# The compiled evaluation works on whole vectors.
_VECTOR = 8
# The bits of 1.0.
_ONE_BITS = 0x3FF << 52

Function = Callable[[torch.Tensor], torch.Tensor]


class OutsideTableError(ValueError):
    """A time lies outside a table, where the formula that it was made of must serve."""


@dataclass(frozen=True, eq=False)
class Table:
    """Matrices (rows, columns) for times in (end 2^-n, end], n octaves, OCTAVES as a rule.

    coefficients: float64 (panels, TERMS, n), n >= rows * columns, of x^0, x^1 ... on [-1, 1].
    octaves: int64 (n, 2), of each octave, from the end down, its first panel and the binary
        logarithm of its number of panels, which follow each other in time.
    copies: of both by their devices, and what the compiled core is told of the table.
    """

    coefficients: torch.Tensor
    octaves: torch.Tensor
    rows: int
    columns: int
    end: float
    copies: dict[str, Any] = field(default_factory=dict, repr=False, init=False)

    @cached_property
    def used(self) -> int:
        """Bit j: column j of the matrices is not 0 at all times."""
        entries = self.coefficients[:, :, : self.rows * self.columns].any(0).any(0)
        columns = entries.reshape(self.rows, self.columns).any(0)
        return sum(1 << j for j, some in enumerate(columns[:MOST_COLUMNS].tolist()) if some)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "copies": {}}

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients and octaves on a device, where they stay as long as the table."""
        return kept_on(self.copies, (self.coefficients, self.octaves), device)  # type: ignore[return-value]

    def at(self, t: torch.Tensor, bounds: tuple[float, float] | None = None) -> AtTimes:
        """The matrices at each row's time t (B,), any float dtype, as weights of an operation.

        They are evaluated where they are used, which raises OutsideTableError for a time outside. A
        contiguous float64 t is not copied: it must not change before that.
        bounds: the least and the largest time that there may be. Where the table covers them nobody
            looks at t, for which the host would have to wait for a GPU.
        Raises TypeError for anything but such a tensor, NotImplementedError for times that require
        gradients.
        """
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"t must be a tensor, got {type(t).__name__}")
        if t.dim() != 1 or not (t.dtype is torch.float64 or t.is_floating_point()):
            raise TypeError(f"t must be a float tensor (B,), got {tuple(t.shape)} {t.dtype}")
        if t.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("gradients with respect to times are not supported: detach t")
        if t.dtype is not torch.float64 or not t.is_contiguous():
            t = t.to(torch.float64).contiguous()
        if bounds is None:
            return AtTimes(self, t)
        low, high = self.ends
        return AtTimes(self, t, low < bounds[0] and bounds[1] <= high)

    @property
    def ends(self) -> tuple[float, float]:
        """The times that the table covers lie above the first, and not above the second."""
        return self.end * 0.5 ** self.octaves.shape[0], self.end * (1.0 + 2.0**-20)

    def outside(self) -> OutsideTableError:
        """What to raise where a time lies outside."""
        low, _ = self.ends
        return OutsideTableError(f"times must lie in ({low:.3g}, {self.end:g}], as the table's do")

    def covers(self, t: torch.Tensor) -> torch.Tensor:
        """Whether each time lies in the table, or beyond its end by the rounding of a float32."""
        s = t / self.end
        return (s > 0.5 ** self.octaves.shape[0]) & (s <= 1.0 + 2.0**-20)

    def locate(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The panel of each time and its place in it, in [-1, 1]; float64 (B,) in the table."""
        inside = (t / self.end).clamp(max=1.0)
        bits = inside.view(torch.int64) - 1
        octave = (_ONE_BITS - 1 - bits) >> 52
        first, split = self.on(t.device)[1].index_select(0, octave).unbind(1)
        mantissa = bits & (2**52 - 1)
        number = mantissa >> (52 - split)
        rest = mantissa - (number << (52 - split)) + 1
        x = torch.ldexp(rest.to(torch.float64), split - 51) - 1.0
        beyond = torch.ldexp((t / self.end - 1.0).clamp(min=0.0), split + 2)
        return first + number, x + beyond

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        """The matrices at float64 times (B,) in the table, (B, rows, columns): the reference."""
        panel, x = self.locate(t)
        coefficients = self.on(t.device)[0].index_select(0, panel)
        made = coefficients[:, -1]
        for k in range(coefficients.shape[1] - 2, -1, -1):  # Horner's rule
            made = made * x[:, None] + coefficients[:, k]
        return made[:, : self.rows * self.columns].reshape(-1, self.rows, self.columns)


def kept_on(
    copies: dict[str, Any], tensors: tuple[torch.Tensor, ...], device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Tensors of one device on another: `copies` keeps them by the device's name."""
    if device == tensors[0].device:
        return tensors
    found = copies.get(str(device))
    if found is None:
        found = tuple(tensor.to(device) for tensor in tensors)
        if not torch.compiler.is_compiling():  # a graph's memory is not anybody's to keep
            copies[str(device)] = found
    return found  # type: ignore[no-any-return]


class AtTimes:
    """A table's matrices at the times of rows, (B, rows, columns); `Table.at` makes it.

    table: the Table. t: float64 (B,), contiguous. inside: whether the table is known to cover them.
    shape: of the matrices. Indexed by rows, as tensors are.
    """

    __slots__ = ("inside", "shape", "t", "table")

    def __init__(self, table: Table, t: torch.Tensor, inside: bool = False) -> None:
        self.table, self.t, self.inside = table, t, inside
        self.shape = (t.shape[0], table.rows, table.columns)

    @property
    def device(self) -> torch.device:
        return self.t.device

    def __getitem__(self, rows: slice) -> AtTimes:
        return AtTimes(self.table, self.t[rows].contiguous(), self.inside)


def make_table(function: Function, end: float, terms: Function | None = None) -> Table | None:
    """Tabulate `function`, float64 times (n,) -> matrices (n, rows, columns), on (0, end].

    terms: like function; the sizes of what cancels in the entries, which their errors are measured
        by where they are larger than the entries.

    The table ends above the times at which the function is not smooth enough to be interpolated, or
    not finite; None where that leaves too little.
    """
    left = np.arange(OCTAVES)
    panels: dict[int, np.ndarray] = {}
    bits = np.zeros(OCTAVES, dtype=np.int64)
    shape = (0, 0)
    for split in range(MOST_BITS + 1):
        coefficients, error, shape = _interpolate(function, terms, end, left, split)
        allowed = TOLERANCE if split < _NARROW_BITS else ROUNDING
        good = np.all(error <= allowed, axis=1)
        for octave, panel in zip(left[good], coefficients[good], strict=True):
            panels[int(octave)] = panel
        bits[left[good]] = split
        left = left[~good]
        if not left.size or left.size * 2 ** (split + 1) > _MOST_PANELS:
            break
    # Where small times fail, large ones are still worth having.
    count = int(left.min()) if left.size else OCTAVES
    if count < _FEWEST_OCTAVES:
        return None
    bits = bits[:count]
    starts = np.concatenate([[0], np.cumsum(2**bits)[:-1]])
    entries = shape[0] * shape[1]
    stacked = np.concatenate([panels[octave] for octave in range(count)])
    padded = np.zeros((*stacked.shape[:2], -(-entries // _VECTOR) * _VECTOR))
    padded[:, :, :entries] = stacked
    return Table(
        torch.from_numpy(padded), torch.from_numpy(np.stack([starts, bits], axis=1)), *shape, end
    )


def _interpolate(
    function: Function, terms: Function | None, end: float, octaves: np.ndarray, split: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Coefficients (octaves, panels, TERMS, n) and errors (octaves, panels) with 2^split panels."""
    nodes = chebyshev.chebpts1(TERMS)
    # The nodes of another degree, and the end, where interpolation errs most; the other end belongs
    # to the panel below.
    between = np.append(chebyshev.chebpts1(TERMS - 5), 1.0)
    count = 2**split
    where = (np.arange(count)[:, None] + 0.5 * (np.concatenate([nodes, between]) + 1.0)) / count
    t = end * np.ldexp(0.5 * (1.0 + where), -octaves[:, None, None])
    matrices = function(torch.from_numpy(t.ravel()))
    shape = (int(matrices.shape[1]), int(matrices.shape[2]))
    values = matrices.detach().numpy().reshape(*t.shape, -1)
    # In Chebyshev points the matrix of the series is orthogonal up to the norms of its columns.
    basis = chebyshev.chebvander(nodes, TERMS - 1)
    to_series = (basis / np.sum(basis**2, axis=0)).T
    to_powers = np.zeros((TERMS, TERMS))
    for k in range(TERMS):
        to_powers[: k + 1, k] = chebyshev.cheb2poly(np.eye(TERMS)[k])[: k + 1]
    with np.errstate(all="ignore"):  # what is not finite fails the comparison
        series = np.einsum("kn,opne->opke", to_series, values[:, :, :TERMS])
        coefficients = np.einsum("jk,opke->opje", to_powers, series)
        made = np.zeros((*values.shape[:2], len(between), values.shape[3]))
        for k in range(TERMS - 1, -1, -1):
            made = made * between[:, None] + coefficients[:, :, k, None]
        size = np.max(np.abs(values), axis=2, keepdims=True)
        rows = size.reshape(*size.shape[:3], *shape).max(axis=-1, keepdims=True)
        floor = np.broadcast_to(rows, (*rows.shape[:-1], shape[1])).reshape(size.shape)
        size = np.maximum(size, floor * (_ROW_ROUNDING / TOLERANCE))
        if terms is not None:
            cancelled = terms(torch.from_numpy(t.ravel())).detach().numpy().reshape(values.shape)
            size = np.maximum(size, np.max(cancelled, axis=2, keepdims=True))
        # Subnormal sizes have no relative accuracy, and no use.
        error = np.abs(made - values[:, :, TERMS:]) / np.maximum(size, np.finfo(np.float64).tiny)
        largest = np.max(error, axis=(2, 3))
    return coefficients, np.where(np.isfinite(largest), largest, np.inf), shape
