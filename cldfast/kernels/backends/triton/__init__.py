"""The kernels in Triton, for GPUs without compiled CUDA kernels."""

from __future__ import annotations

import torch

from cldfast.kernels.backends.protocol import Backend
from cldfast.kernels.backends.registry import register_backend


def load() -> Backend:
    """The backend; ImportError where Triton is missing or PyTorch has no GPU for its kernels."""
    # Triton is optional, and takes long to import.
    try:
        from cldfast.kernels.backends.triton.backend import TritonBackend
    except ImportError as error:
        raise ImportError(
            f"Triton is not installed: pip install 'cldfast[triton]' ({error})"
        ) from error
    if not torch.cuda.is_available():
        raise ImportError("no CUDA device: torch.cuda.is_available() is False")
    return TritonBackend()


register_backend("triton", load, ("cuda",))
