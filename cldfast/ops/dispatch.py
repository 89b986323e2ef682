"""Which backend serves a device, and the functions that it brings.

A backend takes its arguments as valid, as `cldfast.ops` leaves them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch

from cldfast import reference

try:
    from cldfast.backends import cpu, cpu_residual
except ImportError as error:  # the compiled core was not built
    _core_missing = str(error)
else:
    _core_missing = ""

BACKENDS = ("auto", "cpu", "reference")
StageResult = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class BackendWarning(UserWarning):
    """The compiled core is missing and the reference runs instead."""


_warned = False


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that serves `device`: "cpu" or "reference" for "auto", else the name checked.

    Raises ValueError for an unknown name or one that cannot serve the device or is not built.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return backend
    if backend == "cpu":
        if device.type != "cpu":
            raise ValueError(f"backend 'cpu' needs tensors on the CPU, got device {device}")
        if _core_missing:
            raise ValueError(f"backend 'cpu' is not available: {_core_missing}")
        return backend
    if device.type != "cpu":
        return "reference"
    if _core_missing:
        _warn_once()
        return "reference"
    return "cpu"


def missing_core() -> str:
    """Why the compiled core could not be loaded, or an empty string."""
    return _core_missing


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"cldfast: the compiled core is missing ({_core_missing}); the slower plain PyTorch "
            "reference runs instead. Reinstall with a C++17 compiler at hand to build it.",
            BackendWarning,
            stacklevel=4,
        )


def backend_stage(name: str) -> Callable[..., StageResult]:
    """The stage function of a resolved backend; it takes its arguments as valid."""
    return cpu.stage if name == "cpu" else _reference_stage


def backend_residual(name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The residual function of a resolved backend with a kernel, as `cpu_residual.residual`."""
    return {"cpu": cpu_residual.residual}[name]


def _reference_stage(
    u: torch.Tensor | None,
    outputs: Sequence[torch.Tensor],
    history: Sequence[torch.Tensor],
    weights: torch.Tensor,
    *,
    seed: int = 0,
    first_index: int = 0,
    stage_index: int = 0,
    stream: int = 0,
    noise: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    cast: torch.dtype | None = None,
) -> StageResult:
    if weights.shape[0] == 1 and not all(map(math.isfinite, weights.flatten().tolist())):
        raise ValueError("weights must be finite, got NaN or infinity")
    state, row = reference.stage(
        u, outputs, history, weights,
        seed=seed, first_index=first_index, stage_index=stage_index, stream=stream, noise=noise,
    )  # fmt: skip
    if out is not None:
        state = out.copy_(state)
    return state, row, None if cast is None else state.to(cast)
