"""Builds a compiled module with CMake and Ninja, by any Python: setuptools is not asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "csrc"


def say(text: str) -> None:
    """A line of a build's log, at once: what follows may take minutes."""
    print(f"cldfast: {text}", file=sys.stderr, flush=True)


def find_compiler() -> str | None:
    """The C++ compiler: CXX, or the first of the usual names that there is."""
    named = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, named)), None)


def find_nvcc() -> str | None:
    """The CUDA compiler: CUDACXX, the PATH's, CUDA_HOME's, or the usual folder's."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    named = os.environ.get("CUDACXX") or shutil.which("nvcc") or str(home / "bin" / "nvcc")
    return shutil.which(named)


def tool(name: str) -> str:
    """The program of the environment that builds, whether or not its folder is on the PATH."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise SystemExit(f"cldfast needs {name} to build its core: pip install {name}")
    return found


def cuda_options(architectures: str = "") -> list[str]:
    """What CMake is told of a build of the CUDA kernels.

    architectures: those to build for where CLDFAST_CUDA_ARCHITECTURES does not say; empty: CMake's.
    """
    options = ["-DCLDFAST_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={find_nvcc()}"]
    if architectures := os.environ.get("CLDFAST_CUDA_ARCHITECTURES") or architectures:
        options.append(f"-DCLDFAST_CUDA_ARCHITECTURES={architectures}")
    return options


def build_module(build: Path, folder: Path, *options: str, debug: bool = False) -> None:
    """Configure and compile in `build`; the module goes to `folder`.

    Raises OSError or CalledProcessError where that fails.
    """
    import pybind11  # present where something is built

    forget_other_sources(build)
    build.mkdir(parents=True, exist_ok=True)
    configure = [
        tool("cmake"), "-S", str(SOURCES), "-B", str(build), "-G", "Ninja",
        # Given every time: a build folder may outlive the environment that it was made in.
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}",
        f"-DCMAKE_BUILD_TYPE={'Debug' if debug else 'Release'}", *options,
    ]  # fmt: skip
    subprocess.run(configure, check=True)
    subprocess.run([tool("cmake"), "--build", str(build)], check=True)


def forget_other_sources(build: Path) -> None:
    """Remove a build folder that CMake made of sources elsewhere: CMake would refuse it."""
    cache = build / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={SOURCES}\n" not in cache.read_text():
        say(f"{build} was made of other sources and is made anew")
        shutil.rmtree(build)
