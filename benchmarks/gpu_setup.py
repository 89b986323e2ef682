"""What `make gpu-check` and `make gpu-bench` begin with: a GPU, and the library built beside it.

Nothing is installed or downloaded: the interpreter that runs this is the one that has PyTorch.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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
    """Build both halves in place; the environment in which this tree is imported from anywhere."""
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=ROOT, check=True
    )
    paths = [str(ROOT)]
    if importlib.util.find_spec("array_api_compat") is None:
        paths.append(str(stand_in()))
    paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def stand_in() -> Path:
    """A folder in which `array_api_compat` is the copy that another package brings."""
    folder = ROOT / "build" / "array_api_compat"
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
