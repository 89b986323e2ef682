"""The Triton kernels as a backend."""

from __future__ import annotations

from cldfast.kernels.backends.protocol import Backend
from cldfast.kernels.backends.reference import covers
from cldfast.kernels.backends.triton.residual import residual
from cldfast.kernels.backends.triton.stage import advance, pair_words, stage
from cldfast.kernels.backends.triton.tables import matrices


class TritonBackend(Backend):
    """Kernels that Triton compiles when they are first used, for GPUs."""

    stage = staticmethod(stage)
    residual = staticmethod(residual)
    covers = staticmethod(covers)
    matrices = staticmethod(matrices)
    words = staticmethod(pair_words)
    advance = staticmethod(advance)

    def __init__(self) -> None:
        super().__init__("triton", counts_steps=True)
