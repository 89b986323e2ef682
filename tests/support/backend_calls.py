"""Backends called directly, with the parts of a noise address by keyword."""

from __future__ import annotations

from typing import Any

import torch

from cldfast.kernels import Backend, NoiseAddress, StageResult, get_backend
from cldfast.kernels.backends.cpu import CpuBackend


def address(
    seed: int = 0, first_index: int = 0, stage_index: int = 0, stream: int = 0
) -> NoiseAddress:
    """A noise address; a negative seed is taken modulo 2^64."""
    return NoiseAddress(seed % 2**64, first_index, stage_index, stream)


class Calls:
    """A backend whose stage takes seed, first_index, stage_index, stream or `noise` by keyword."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def stage(  # type: ignore[no-untyped-def]
        self, u, outputs, history, weights, *, noise: torch.Tensor | None = None, seed: int = 0,
        first_index: int = 0, stage_index: int = 0, stream: int = 0, **options: Any,
    ) -> StageResult:  # fmt: skip
        if noise is None:
            noise = address(seed, first_index, stage_index, stream)
        return self.backend.stage(u, outputs, history, weights, noise, **options)

    def stage_and_copy(  # type: ignore[no-untyped-def]
        self, u, outputs, history, weights, dtype: torch.dtype, **options: Any
    ) -> StageResult:
        """A stage whose network sees the state itself, in a dtype of its own."""
        return self.stage(
            u, outputs, history, torch.cat([weights, weights[:, :2]], dim=1),
            seen_planes=2, seen_dtype=dtype, **options,
        )  # fmt: skip

    def residual(self, *tensors: Any, **options: Any) -> Any:
        return self.backend.residual(*tensors, **options)


REFERENCE = Calls(get_backend("reference", "cpu"))


def at_level(level: str = "") -> Calls:
    """The CPU's kernels on one of their instruction sets, the best one by default."""
    found = get_backend("cpu", "cpu")
    assert isinstance(found, CpuBackend)
    return Calls(CpuBackend(found.core, level))
