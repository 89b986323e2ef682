"""Which backend serves a device, and the functions that it brings.

A backend takes its arguments as valid, as `cldfast.kernels` leaves them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from cldfast.kernels import philox
from cldfast.kernels.checks import CPU
from cldfast.kernels.time_tables import AtTimes

StageResult = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class BackendWarning(UserWarning):
    """A faster backend is missing and a slower one runs instead."""


@dataclass(frozen=True)
class _Backend:
    """devices: types of device that it serves, None for any. modules: where its functions are."""

    devices: tuple[str, ...] | None
    stage: str
    residual: str
    tables: str


_MODULES = "cldfast.kernels.backends"


def _modules(name: str) -> list[str]:
    return [f"{_MODULES}.{name}.{part}" for part in ("stage", "residual", "tables")]


_TABLE = {
    "cpu": _Backend(("cpu",), *_modules("cpu")),
    "cuda": _Backend(("cuda",), *_modules("cuda")),
    "triton": _Backend(("cuda",), *_modules("triton")),
    "reference": _Backend(None, *[f"{_MODULES}.plain"] * 3),
}
BACKENDS = ("auto", *_TABLE)
# The fastest first; the reference serves every device.
_PREFERRED = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_NAMES = {"cpu": "the CPU", "cuda": "a CUDA device"}


@cache
def _load(name: str) -> str:
    """Why a backend cannot run on this machine, or an empty string; imports it if it can."""
    try:
        module = importlib.import_module(_TABLE[name].stage)
        importlib.import_module(_TABLE[name].residual)
        importlib.import_module(_TABLE[name].tables)
        if hasattr(module, "require_device"):
            module.require_device()
    except ImportError as error:
        return str(error)
    return ""


def _constant(function: Callable[[str], str]) -> Callable[[str], str]:
    """For a graph compiler, its answer is a constant.

    What `torch.compiler.assume_constant_result` does, but that imports the compiler, which takes
    longer than all else that importing this library does.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def missing_backend(name: str) -> str:
    """Why a backend cannot run on this machine, or an empty string."""
    return _load(name)


def missing_core() -> str:
    """Why the compiled core of the CPU could not be loaded, or an empty string."""
    return missing_backend("cpu")


@cache
def _first_found(device_type: str) -> str:
    return next(name for name in _PREFERRED.get(device_type, ("reference",)) if not _load(name))


@_constant
def automatic_backend(device_type: str) -> str:
    """The backend that "auto" takes for a type of device."""
    return _first_found(device_type)


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that serves `device`: the fastest one found for "auto", else the name checked.

    Raises ValueError for an unknown name or one that cannot serve the device or run here.
    """
    if backend == "auto":
        # A device's type takes longer to ask for than all the rest.
        found = automatic_backend("cpu" if device == CPU else device.type)
        if found == "reference" and device.type in _PREFERRED:
            _warn_once(device.type)
        return found
    if backend not in _TABLE:
        raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    devices = _TABLE[backend].devices
    if devices is not None and device.type not in devices:
        wanted = " or ".join(_NAMES[name] for name in devices)
        raise ValueError(f"backend {backend!r} needs tensors on {wanted}, got device {device}")
    missing = missing_backend(backend)
    if missing:
        raise ValueError(f"backend {backend!r} is not available: {missing}")
    return backend


_REINSTALL = {
    "cpu": "the compiled core is missing ({}); the slower plain PyTorch reference runs instead. "
    "Reinstall with a C++17 compiler at hand to build it.",
    "cuda": "no GPU kernels were found ({}); the slower plain PyTorch reference runs instead. "
    "Reinstall with nvcc at hand to build them, or install Triton.",
}


@cache
def _warn_once(device_type: str) -> None:
    text = _REINSTALL[device_type].format(_load(_PREFERRED[device_type][0]))
    warnings.warn(f"cldfast: {text}", BackendWarning, stacklevel=4)


def backend_stage(name: str) -> Callable[..., StageResult]:
    """The stage function of a resolved backend; it takes its arguments as valid."""
    return _function(name, "stage", "stage")  # type: ignore[no-any-return]


def backend_residual(name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The residual function of a resolved backend with a kernel, as `cpu_residual.residual`."""
    return _function(name, "residual", "residual")  # type: ignore[no-any-return]


def backend_matrices(name: str) -> Callable[[AtTimes], torch.Tensor | None]:
    """The evaluation of tables by a resolved backend: None where a time lies outside."""
    return _function(name, "tables", "matrices")  # type: ignore[no-any-return]


def backend_covers(name: str) -> Callable[[AtTimes], bool]:
    """Whether a table covers the times of rows, by a resolved backend."""
    return _function(name, "tables", "covers")  # type: ignore[no-any-return]


def pair_words(
    seed: int,
    first_pair: int,
    count: int,
    stage_index: int,
    stream: int,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The words of `kernels.philox.pair_words` by the fastest backend that has a kernel."""
    device = torch.device(device)
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    name = "reference" if traced else automatic_backend(device.type)
    if name == "reference":
        return philox.pair_words(seed, first_pair, count, stage_index, stream, device)
    return _function(name, "stage", "philox_words")(  # type: ignore[no-any-return]
        seed, first_pair, count, stage_index, stream, device
    )


def backend_advance(name: str) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None:
    """`advance(step, times, time)` of a backend that keeps the step on its device, else None."""
    return getattr(importlib.import_module(_TABLE[name].stage), "advance", None)


@cache
def _function(name: str, operation: str, function: str) -> Any:
    return getattr(importlib.import_module(getattr(_TABLE[name], operation)), function)
