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
        self, u, outputs, history, weights, *, noise: torch.Tensor | None = None, out=None,
        cast=None, step=None, used=None, row_out=None, **parts: int,
    ) -> StageResult:  # fmt: skip
        more: dict[str, Any] = {"out": out, "cast": cast, "step": step, "row_out": row_out}
        if used is not None:
            more["used"] = used
        return self.backend.stage(
            u, outputs, history, weights, address(**parts) if noise is None else noise, **more
        )

    def residual(self, *tensors: Any, **options: Any) -> Any:
        return self.backend.residual(*tensors, **options)


REFERENCE = Calls(get_backend("reference", "cpu"))


def at_level(level: str = "") -> Calls:
    """The CPU's kernels on one of their instruction sets, the best one by default."""
    found = get_backend("cpu", "cpu")
    assert isinstance(found, CpuBackend)
    return Calls(CpuBackend(found.core, level))
