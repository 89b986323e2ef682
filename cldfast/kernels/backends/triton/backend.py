"""The Triton kernels as a backend."""

from __future__ import annotations

import torch

from cldfast.kernels.backends.protocol import Backend
from cldfast.kernels.backends.triton.residual import residual
from cldfast.kernels.backends.triton.stage import advance, pair_words, stage
from cldfast.kernels.backends.triton.tables import matrices
from cldfast.kernels.time_tables import AtTimes


class TritonBackend(Backend):
    """Kernels that Triton compiles when they are first used, for GPUs."""

    stage = staticmethod(stage)
    residual = staticmethod(residual)
    words = staticmethod(pair_words)
    advance = staticmethod(advance)

    def __init__(self) -> None:
        super().__init__("triton", counts_steps=True, keeps_matrices=True)

    def matrices(self, weights: AtTimes) -> torch.Tensor | None:
        return matrices(weights) if self.covers(weights) else None
