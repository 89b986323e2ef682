"""What this installation can do on this machine, and why not more."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from cldfast import kernels
from cldfast.kernels import native
from cldfast.version import __version__


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of Python, of this library and of those it stands on; None for what is missing."""
    found = {name: _version(name) for name in ("torch", "numpy", "scipy", "triton")}
    return {"python": platform.python_version(), "cldfast": __version__, **found}


def info() -> dict[str, Any]:
    """Versions, backends with the reason where one is missing, SIMD level and threads.

    Keys: `versions` (name -> version or None), `backends` (name -> "available" or the reason it is
    not), `auto` (device type -> backend that "auto" takes), `core` (what the compiled module says
    of itself, None if missing), `cuda` (architectures and runtime that the CUDA kernels were built
    for, None if they were not), `threads` (PyTorch's count), `platform`, `device`.
    """
    names = [name for name in kernels.backend_names() if name != "auto"]
    missing = {name: kernels.missing_backend(name) for name in names}
    built = native.cuda
    cuda = built and {"architectures": built.ARCHITECTURES.split(), "runtime": built.CUDART_VERSION}
    return {
        "versions": versions(),
        "backends": {
            name: f"not available: {reason}" if reason else "available"
            for name, reason in missing.items()
        },
        "auto": {device: kernels.automatic_backend(device).name for device in ("cpu", "cuda")},
        "core": None if native.core is None else native.core.info(),
        "cuda": cuda,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
