"""Tables of small matrices on the CPU."""

from __future__ import annotations

import torch

from cldfast import _core
from cldfast.kernels.time_tables import AtTimes, Table

_covers, _run = _core.covers, _core.matrices
# Fewer rows than this are not worth a second thread, whose start costs some microseconds.
_SERIAL_ROWS = 2048


def address(weights: torch.Tensor | AtTimes) -> tuple[int, int, int]:
    """Where the core finds matrices: an array, or a table and times; 0 for what there is not."""
    if isinstance(weights, AtTimes):
        return 0, _native(weights.table), weights.t.data_ptr()
    return weights.data_ptr(), 0, 0


def _native(table: Table) -> int:
    """The address of the core's view of a table, which is made once and lives as long."""
    known = table.native.get("cpu")
    if known is None:
        count, (_, terms, stride) = table.octaves.shape[0], table.coefficients.shape
        made = _core.Table(
            table.coefficients.data_ptr(), table.octaves.data_ptr(), count, terms, stride,
            table.end, table.used,
        )  # fmt: skip
        # Where two threads get here together, both take the one that stays.
        known = table.native.setdefault("cpu", (made.address, made))
    return known[0]  # type: ignore[no-any-return]


def covers(weights: AtTimes) -> bool:
    """Whether the table covers all of the times."""
    table = _native(weights.table)
    return weights.inside or _covers(table, weights.t.data_ptr(), weights.t.shape[0])


def matrices(weights: AtTimes, level: str = "") -> torch.Tensor | None:
    """The matrices, float64 (B, rows, columns); None where a time lies outside the table."""
    count, rows, columns = weights.shape
    result = torch.empty((count, rows, columns), dtype=torch.float64)
    inside = _run(
        _native(weights.table), weights.t.data_ptr(), count, rows * columns, result.data_ptr(),
        1 if count < _SERIAL_ROWS else torch.get_num_threads(), level,
    )  # fmt: skip
    return result if inside else None
