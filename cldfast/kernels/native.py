"""The compiled modules, imported here and nowhere else: a module, or None and the reason."""

from __future__ import annotations

import sys
from typing import Any

core: Any = None
cuda: Any = None
core_missing = cuda_missing = ""

try:
    from cldfast import _core  # type: ignore[attr-defined]

    core = _core
except ImportError as error:
    core_missing = str(error)

# The core asks a free-threaded Python to take its lock, which PYTHON_GIL=0 forbids.
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "cldfast was never tested without Python's global lock: start Python with PYTHON_GIL=1"
    )

try:
    from cldfast import _cuda  # type: ignore[attr-defined]

    cuda = _cuda
except ImportError as error:
    cuda_missing = (
        "the CUDA kernels were not built: nvcc was missing or failed when cldfast was installed "
        f"({error})"
    )
