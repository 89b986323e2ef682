"""The Triton kernels as a backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cldfast.kernels.address import NoiseAddress
from cldfast.kernels.backends.protocol import ALL_COLUMNS, Backend, Noise, StageResult
from cldfast.kernels.backends.reference import covers
from cldfast.kernels.backends.triton.residual import residual
from cldfast.kernels.backends.triton.stage import advance, pair_words, stage
from cldfast.kernels.backends.triton.tables import matrices
from cldfast.kernels.time_tables import AtTimes


class TritonBackend(Backend):
    """Kernels that Triton compiles when they are first used, for GPUs."""

    def __init__(self) -> None:
        super().__init__("triton", counts_steps=True)

    def stage(
        self,
        u: torch.Tensor | None,
        outputs: Sequence[torch.Tensor],
        history: Sequence[torch.Tensor],
        weights: torch.Tensor | AtTimes,
        noise: Noise,
        *,
        out: torch.Tensor | None = None,
        cast: torch.dtype | None = None,
        step: torch.Tensor | None = None,
        used: int = ALL_COLUMNS,
        row_out: torch.Tensor | None = None,
    ) -> StageResult:
        assert isinstance(weights, torch.Tensor)
        return stage(
            u, outputs, history, weights, noise, out=out, cast=cast, step=step, used=used,
            row_out=row_out,
        )  # fmt: skip

    def residual(
        self,
        output: torch.Tensor,
        offset: torch.Tensor,
        weights: torch.Tensor | AtTimes,
        *,
        scale: torch.Tensor | None = None,
        factor: float = 1.0,
        reduce: bool = False,
        gradient: bool = True,
        overwrite: bool = False,
        used: int = ALL_COLUMNS,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert isinstance(weights, torch.Tensor)
        return residual(
            output, offset, weights, scale=scale, factor=factor, reduce=reduce,
            gradient=gradient, overwrite=overwrite,
        )  # fmt: skip

    def covers(self, weights: AtTimes) -> bool:
        return covers(weights)

    def matrices(self, weights: AtTimes) -> torch.Tensor | None:
        return matrices(weights)

    def words(
        self, address: NoiseAddress, count: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return pair_words(address, count, device)

    def advance(self, step: torch.Tensor, times: torch.Tensor, time: torch.Tensor) -> None:
        advance(step, times, time)
