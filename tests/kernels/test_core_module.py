"""The compiled module itself: torch-free, one OpenMP runtime, honest about what it found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cldfast import _core

MODULE = Path(_core.__file__)


def tool_output(tool: str, *arguments: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"binutils' {tool} is missing")
    return subprocess.run(
        [tool, *arguments, str(MODULE)], check=True, capture_output=True, text=True
    ).stdout


def test_needs_no_torch_and_no_openmp_library() -> None:
    needed = [line for line in tool_output("readelf", "-d").splitlines() if "NEEDED" in line]
    assert needed
    for line in needed:
        assert not any(name in line for name in ("torch", "c10", "gomp", "iomp", "libomp")), line


def test_has_no_undefined_torch_symbol() -> None:
    undefined = tool_output("nm", "-D", "-u", "-C")
    for name in ("torch", "c10", "at::", "GOMP", "omp_", "kmpc"):
        assert name not in undefined


def test_exports_its_entry_point_only() -> None:
    lines = tool_output("nm", "-D", "--defined-only").splitlines()
    exported = {line.split()[-1] for line in lines if line.split()[-2] in "TDB"}
    assert exported <= {"PyInit__core"}


def test_imports_without_torch() -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('_core', {str(MODULE)!r})\n"
        "core = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(core)\n"
        "assert 'torch' not in sys.modules and core.info()['threading'] == 'serial'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps here")
def test_one_openmp_runtime() -> None:
    code = """
import torch
from cldfast import _core, kernels
torch.set_num_threads(2)
u = torch.randn(100_000, 2)
w = torch.randn(1, 2, 4, dtype=torch.float64)
kernels.stage(u, weights=w, backend="cpu")
torch.randn(1000, 1000) @ torch.randn(1000, 1000)
names = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
runtimes = [n for n in names if any(k in n.rsplit("/", 1)[-1] for k in ("gomp", "iomp", "libomp"))]
print(_core.info()["threading"], len(runtimes), runtimes)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    threading, runtimes = out.split()[:2]
    assert int(runtimes) <= 1, out
    if sys.platform == "linux":
        assert threading == "gomp", out


def test_info() -> None:
    info = _core.info()
    assert info["levels"][0] == "portable" and info["levels"][-1] == info["level"]
    assert info["threading"] in ("gomp", "serial")
