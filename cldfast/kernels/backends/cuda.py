"""The compiled CUDA kernels, for NVIDIA GPUs, on PyTorch's current stream."""

from __future__ import annotations

from typing import Any

import torch

from cldfast.kernels import native
from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.backends.compiled import CompiledBackend, Layout, NoiseWords
from cldfast.kernels.backends.planes import Description, current
from cldfast.kernels.backends.registry import register_backend
from cldfast.kernels.limits import MOST_OVERWRITTEN
from cldfast.kernels.time_tables import AtTimes


class CudaBackend(CompiledBackend):
    """The kernels of `cldfast._cuda`. The same inputs give the same bits: sums are in fixed order.

    kernels: the compiled module. fast_normals: make normals of float32 by the hardware's logarithm,
    sine and cosine, which differ from those of other backends by more than a rounding.
    """

    def __init__(self, kernels: Any, fast_normals: bool = False) -> None:
        super().__init__("cuda-fast-normals" if fast_normals else "cuda", counts_steps=True)
        self.kernels, self.fast_normals = kernels, fast_normals

    def queue(self, device: torch.device) -> tuple[int, int]:
        """Device number and stream handle of PyTorch's current stream."""
        stream = torch.cuda.current_stream(device)
        return stream.device_index, stream.cuda_stream

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
        assert isinstance(weights, torch.Tensor)
        matrices, rows, columns = weights.shape
        on_device = step is not None or matrices > 1 or weights.is_cuda
        count = matrices if step is None else 1
        with current(device):
            self.kernels.stage(
                layout, *planes, (weights.data_ptr(), count, rows, columns), on_device,
                0 if step is None else step.data_ptr(), used, noise, self.queue(device),
                self.fast_normals,
            )  # fmt: skip

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
        assert isinstance(weights, torch.Tensor)
        rows, channels, inner, _ = layout
        size = rows, self.kernels.pieces_of(channels * inner)
        sums = torch.empty(size, dtype=torch.float64, device=loss.device)
        with current(loss.device):
            self.kernels.residual(
                layout, *planes, (weights.data_ptr(), *weights.shape),
                0 if scale is None else scale.data_ptr(), factor, sums.data_ptr(),
                self.queue(loss.device),
            )  # fmt: skip
        loss.copy_(sums.sum() if reduce else sums.sum(1))

    def _may_overwrite(self, output_planes: int) -> bool:
        return output_planes <= MOST_OVERWRITTEN

    def matrices(self, weights: AtTimes) -> torch.Tensor | None:
        if not self.covers(weights):
            return None
        device, (count, rows, columns) = weights.device, weights.shape
        coefficients, octaves = weights.table.on(device)
        _, terms, stride = coefficients.shape
        result = torch.empty((count, rows, columns), dtype=torch.float64, device=device)
        with current(device):
            self.kernels.matrices(
                coefficients.data_ptr(), octaves.data_ptr(), octaves.shape[0], terms, stride,
                weights.table.end, weights.t.data_ptr(), count, rows * columns, result.data_ptr(),
                self.queue(device),
            )  # fmt: skip
        return result

    def words(
        self, address: NoiseAddress, count: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        words = torch.empty(2, count, dtype=torch.int32, device=device)
        first = (address.seed, address.first_index, address.stage_index, address.stream)
        with current(device):
            self.kernels.philox_words(
                first, count, words[0].data_ptr(), words[1].data_ptr(), self.queue(device)
            )
        unsigned = words.to(torch.int64) & 0xFFFFFFFF
        return unsigned[0], unsigned[1]

    def advance(self, step: torch.Tensor, times: torch.Tensor, time: torch.Tensor) -> None:
        with current(step.device):
            self.kernels.advance(
                step.data_ptr(), times.data_ptr(), time.data_ptr(), len(times),
                times.dtype == torch.float64, self.queue(step.device),
            )  # fmt: skip


def load(fast_normals: bool = False) -> CudaBackend:
    """The backend; ImportError where the kernels were not built or no device runs them."""
    if native.cuda is None:
        raise ImportError(native.cuda_missing)
    try:
        if native.cuda.device_count() == 0 or not torch.cuda.is_available():
            raise ImportError(f"no CUDA device: PyTorch {torch.__version__} sees none")
        with torch.cuda.device(0):
            native.cuda.check_device(0)
    except native.cuda.CudaError as error:
        raise ImportError(f"no CUDA device: {error}") from error
    return CudaBackend(native.cuda, fast_normals)


register_backend(
    "cuda",
    load,
    ("cuda",),
    "Reinstall with nvcc at hand to build the CUDA kernels, or install Triton.",
)
register_backend("cuda-fast-normals", lambda: load(fast_normals=True), ("cuda",))
