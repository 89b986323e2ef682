"""The compiled modules, imported here and nowhere else: a module, or None and the reason."""

from __future__ import annotations

import sys
from typing import Any

core: Any = None
cuda: Any = None
core_missing = cuda_missing = ""

try:
    import cldfast._core as _core  # type: ignore[import-not-found]

    core = _core
except ModuleNotFoundError:
    core_missing = (
        "the compiled core was not built: there was no C++ compiler when cldfast was installed, or "
        "CLDFAST_CORE=0"
    )
except ImportError as error:
    core_missing = str(error)

# The core asks a free-threaded Python to take its lock, which PYTHON_GIL=0 forbids.
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "cldfast was never tested without Python's global lock: start Python with PYTHON_GIL=1"
    )

try:
    import cldfast._cuda as _cuda  # type: ignore[import-not-found]

    cuda = _cuda
except ModuleNotFoundError:
    cuda_missing = (
        "the CUDA kernels were not built: nvcc was missing or failed when cldfast was installed, "
        "or CLDFAST_CUDA=0"
    )
except ImportError as error:
    cuda_missing = str(error)
