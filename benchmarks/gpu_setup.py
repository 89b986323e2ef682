"""What `make gpu-check` and `make gpu-bench` begin with: a GPU, and the library built beside it.

Nothing is installed or downloaded: the interpreter that runs this is the one that has PyTorch.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
# Where SciPy and scikit-learn keep the package that the planner imports, for machines without it.
_VENDORED = ("sklearn.externals.array_api_compat", "scipy._lib.array_api_compat")


def require_gpu(target: str) -> None:
    """End the program with one sentence where PyTorch sees no GPU."""
    try:
        import torch
    except ImportError:
        raise SystemExit(
            f"{target} needs PyTorch with CUDA, which {sys.executable} lacks."
        ) from None
    if not torch.cuda.is_available():
        raise SystemExit(
            f"{target} needs an NVIDIA GPU, and PyTorch {torch.__version__} sees none here."
        )


def build() -> dict[str, str]:
    """Build both modules in place; the environment in which this tree is imported from anywhere.

    The kernels are compiled for the machine's own GPU unless CLDFAST_CUDA_ARCHITECTURES says for
    which. A module that cannot be built is left out with a line that says so: the other backends
    can be checked without it.
    """
    sys.path.insert(0, str(ROOT / "tools"))
    from cmake_build import build_module, cuda_options

    def made(module: str, *options: str) -> None:
        try:
            build_module(BUILD / f"gpu-{module}", ROOT / "cldfast", *options)
        except (ImportError, OSError, subprocess.CalledProcessError, SystemExit) as error:
            print(f"the module {module} was not built: {error}", flush=True)
            for old in (ROOT / "cldfast").glob(f"_{module}*.so"):
                old.unlink()  # it would not be what these sources are

    with ThreadPoolExecutor(2) as pool:
        pool.submit(made, "core")
        pool.submit(made, "cuda", *cuda_options(own_architecture()))
    paths = [str(ROOT)]
    if importlib.util.find_spec("array_api_compat") is None:
        paths.append(str(stand_in()))
    paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def own_architecture() -> str:
    """The compute capability of the machine's GPU, such as "90"; empty where there is none."""
    import torch

    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def stand_in() -> Path:
    """A folder in which `array_api_compat` is the copy that another package brings."""
    folder = BUILD / "array_api_compat"
    folder.mkdir(parents=True, exist_ok=True)
    for name in _VENDORED:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if found:
            text = f"from {name} import *\n"
            (folder / "array_api_compat.py").write_text(text)
            return folder
    raise SystemExit("array-api-compat is missing, and no copy of it was found in other packages.")
