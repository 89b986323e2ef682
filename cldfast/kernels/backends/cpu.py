"""The compiled core, for tensors on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from cldfast.kernels import native
from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.backends.compiled import CompiledBackend, Layout, NoiseWords
from cldfast.kernels.backends.planes import Description
from cldfast.kernels.backends.registry import register_backend
from cldfast.kernels.time_tables import AtTimes, Table

# Fewer rows than this are not worth a second thread, whose start costs some microseconds.
_SERIAL_ROWS = 2048


class CpuBackend(CompiledBackend):
    """The kernels of `cldfast._core`, on PyTorch's number of threads.

    core: the compiled module. level: one of `core.levels()` instead of the best one, for tests.
    """

    def __init__(self, core: Any, level: str = "") -> None:
        super().__init__("cpu", reads_tables=True)
        self.core, self.level = core, level
        self._stage, self._serial_pairs = core.stage, core.SERIAL_PAIRS

    def _threads(self, layout: Layout) -> int:
        rows, channels, inner, _ = layout
        return 1 if rows * channels * inner < self._serial_pairs else torch.get_num_threads()

    def _launch_stage(
        self,
        device: torch.device,
        layout: Layout,
        planes: tuple[Description, Description],
        weights: torch.Tensor | AtTimes,
        noise: NoiseWords,
        step: torch.Tensor | None,
        used: int,
    ) -> None:
        inside = self._stage(
            layout, *planes, *self._matrices(weights), noise, self._threads(layout), self.level
        )
        if not inside:
            raise weights.table.outside()  # type: ignore[union-attr]

    def _launch_residual(
        self,
        layout: Layout,
        planes: tuple[Description, Description, Description],
        weights: torch.Tensor | AtTimes,
        scale: torch.Tensor | None,
        factor: float,
        loss: torch.Tensor,
        reduce: bool,
    ) -> None:
        inside = self.core.residual(
            layout, *planes, *self._matrices(weights), 0 if scale is None else scale.data_ptr(),
            factor, loss.data_ptr(), reduce, self._threads(layout), self.level,
        )  # fmt: skip
        if not inside:
            raise weights.table.outside()  # type: ignore[union-attr]

    def covers(self, weights: AtTimes) -> bool:
        t = weights.t
        return weights.inside or self.core.covers(_described(weights.table), t.data_ptr(), len(t))

    def matrices(self, weights: AtTimes) -> torch.Tensor | None:
        count, rows, columns = weights.shape
        result = torch.empty((count, rows, columns), dtype=torch.float64, device="cpu")
        inside = self.core.matrices(
            _described(weights.table), weights.t.data_ptr(), count, rows * columns,
            result.data_ptr(), 1 if count < _SERIAL_ROWS else torch.get_num_threads(), self.level,
        )  # fmt: skip
        return result if inside else None

    def words(
        self, address: NoiseAddress, count: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        words = torch.empty((2, count), dtype=torch.uint32, device="cpu")
        start = words.data_ptr()
        first = (address.seed, address.first_index, address.stage_index, address.stream)
        self.core.philox_words(first, count, start, start + 4 * count, self.level)
        radius, angle = words.to(torch.int64).unbind(0)
        return radius, angle

    def _matrices(
        self, weights: torch.Tensor | AtTimes
    ) -> tuple[tuple[int, int, int, int], tuple[float, ...] | None, int]:
        """Where the core finds matrices: an array, or a table and times."""
        if isinstance(weights, AtTimes):
            return (0, *weights.shape), _described(weights.table), weights.t.data_ptr()
        return (weights.data_ptr(), *weights.shape), None, 0


def _described(table: Table) -> tuple[float, ...]:
    """A table as the core takes it: addresses, sizes, its end and the columns that it uses."""
    known = table.copies.get("core")
    if known is None:
        count, (_, terms, stride) = table.octaves.shape[0], table.coefficients.shape
        pointers = table.coefficients.data_ptr(), table.octaves.data_ptr()
        known = (*pointers, count, terms, stride, table.end, table.used)
        table.copies["core"] = known
    return known


def load() -> CpuBackend:
    """The backend; ImportError where the core was not built."""
    if native.core is None:
        raise ImportError(native.core_missing)
    return CpuBackend(native.core)


register_backend(
    "cpu", load, ("cpu",), "Reinstall with a C++17 compiler at hand to build the compiled core."
)
