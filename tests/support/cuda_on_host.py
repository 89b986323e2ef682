"""The CUDA backend over its own sources, compiled for the host and run there thread by thread."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cldfast.kernels.backends.cuda import CudaBackend

ROOT = Path(__file__).resolve().parents[2]
# Compiled modules, which are the same for all tests and runs until a source changes.
KEPT = ROOT / "build" / "cuda_on_host"
SOURCES = (
    "bind/cuda.cpp",
    "cuda/calls.cpp",
    "cuda/residual.cu",
    "cuda/stage.cu",
    "cuda/stage_fast.cu",
    "cuda/table.cu",
)


def cuda_home() -> Path | None:
    """The toolkit's folder, or None where there is no nvcc."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        return None
    told = subprocess.run(
        [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True
    )
    for line in told.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    return Path(nvcc).resolve().parents[2]


def needs_cuda_toolkit() -> Path:
    """The toolkit's folder; skips the test, with a reason that a machine can read, without one."""
    home = cuda_home()
    if home is None:
        pytest.skip("NO_NVCC: the CUDA toolkit is not installed")
    return home


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compile_all(sources: list[Path], module: Path, home: Path, include: list[str]) -> None:
    """Compiles CUDA sources, with the host in the GPU's place, to a shared library."""
    flags = [
        os.environ.get("CXX", "c++"), "-O1", "-std=c++17", "-fPIC", "-w", "-ffp-contract=off",
        '-DCLDFAST_ARCHITECTURES="host"', *(f"-I{path}" for path in include),
        f"-I{ROOT / 'csrc'}", f"-I{home / 'include'}",
    ]  # fmt: skip
    sanitize = os.environ.get("CLDFAST_SANITIZE")
    sanitizers = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"] if sanitize else []
    host = Path(__file__).with_suffix(".cpp")

    def compiled(source: Path) -> str:
        made = module.with_name(f"{source.parent.name}_{source.name}.o")
        header = ["-include", str(host.with_suffix(".h")), "-x", "c++", "-c"]
        run([*flags, *sanitizers, *header, str(source), "-o", str(made)])
        return str(made)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [host, *sources]))
    # A PyTorch with CUDA has the functions of the runtime as well; the library means its own.
    run([flags[0], *sanitizers, "-shared", "-Wl,-Bsymbolic", *objects, "-o", str(module)])


def build() -> ModuleType:
    """Compiles the module, unless it has been compiled of the same sources, and loads it."""
    home = needs_cuda_toolkit()
    pybind11 = pytest.importorskip("pybind11", reason="NO_PYBIND11: pybind11 is not installed")
    include = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    folder = KEPT / _fingerprint(str(home), *include)
    module = folder / "_cuda.so"
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not module.exists():
            with tempfile.TemporaryDirectory(dir=KEPT) as made:
                place = Path(made) / "build"
                place.mkdir()
                compile_all(
                    [ROOT / "csrc" / name for name in SOURCES], place / "_cuda.so", home, include
                )
                place.rename(folder)
    spec = importlib.util.spec_from_file_location("_cuda", module)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _fingerprint(*more: str) -> str:
    """A name for what the module is made of: sources, compiler and options."""
    parts = [*more, sys.version, os.environ.get("CXX", ""), os.environ.get("CLDFAST_SANITIZE", "")]
    files = [*(ROOT / "csrc").rglob("*"), *Path(__file__).parent.glob("cuda_on_host.*")]
    digest = hashlib.sha256("\n".join(parts).encode())
    for file in sorted(path for path in files if path.is_file()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class OnHost(CudaBackend):
    """The backend of such a module, for tensors on the CPU."""

    def queue(self, device: torch.device) -> tuple[int, int]:
        return 0, 0


def backend() -> OnHost:
    """The backend of the sources as they are."""
    return OnHost(build())


def launches(cuda: CudaBackend) -> Callable[[], int]:
    """Counts the kernels launched by such a backend."""
    return ctypes.CDLL(cuda.kernels.__file__).emulated_launches  # type: ignore[no-any-return]
