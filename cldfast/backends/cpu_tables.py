"""Tables of small matrices on the CPU."""

from __future__ import annotations

import torch

from cldfast import _core
from cldfast.tables import Table

_run = _core.matrices
# Fewer rows than this are not worth a second thread, whose start costs some microseconds.
_SERIAL_ROWS = 1024


def matrices(table: Table, t: torch.Tensor, level: str = "") -> torch.Tensor | None:
    """`table(t)`, (B, rows, columns), at contiguous float64 times; None where one lies outside."""
    count = t.shape[0]
    rows, columns = table.rows, table.columns
    _, terms, stride = table.coefficients.shape
    result = torch.empty((count, rows, columns), dtype=torch.float64)
    inside = _run(
        table.coefficients.data_ptr(), table.octaves.data_ptr(), table.octaves.shape[0], terms,
        stride, table.end, t.data_ptr(), count, rows * columns, result.data_ptr(),
        1 if count < _SERIAL_ROWS else torch.get_num_threads(), level,
    )  # fmt: skip
    return result if inside else None
