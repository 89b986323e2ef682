"""How `setup.py` builds the compiled modules: with CMake and Ninja, where a compiler is at hand.

Nothing here imports torch, looks for a GPU or downloads. Environment variables of a build:

CLDFAST_CORE                0 leaves the core out, 1 demands it; else it is built where there is a
                            C++ compiler. Without the core every call runs, slower, in PyTorch.
CLDFAST_CUDA                0 leaves the CUDA kernels out, 1 demands them; else they are built where
                            there is nvcc, and left out where nvcc fails.
CLDFAST_CUDA_ARCHITECTURES  for CMake, such as "80;90"; the last one's PTX is kept too.
CLDFAST_SANITIZE            address, undefined or address,undefined, for the core (`make sanitize`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
CORE, CUDA = "cldfast._core", "cldfast._cuda"


def say(text: str) -> None:
    """A line of a build's log, at once: what follows may take minutes."""
    print(f"cldfast: {text}", file=sys.stderr, flush=True)


def wanted(variable: str, there: bool, what: str, how: str) -> bool:
    """Whether a module is built; ends the build where it is demanded and cannot be."""
    choice = os.environ.get(variable, "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"cldfast: {variable} must be 0 or 1, got {choice!r}")
    if choice == "1" and not there:
        raise SystemExit(f"cldfast: {variable}=1, but {what} was not found; {how}")
    return there and choice != "0"


def find_compiler() -> str | None:
    """The C++ compiler: CXX, or the first of the usual names that there is."""
    named = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, named)), None)


def find_nvcc() -> str | None:
    """The CUDA compiler: CUDACXX, the PATH's, CUDA_HOME's, or the usual folder's."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    named = os.environ.get("CUDACXX") or shutil.which("nvcc") or str(home / "bin" / "nvcc")
    return shutil.which(named)


@cache
def names() -> tuple[str, ...]:
    """The modules that this build makes."""
    how = "install g++ or clang++, or set CXX"
    compiler, nvcc = find_compiler(), find_nvcc()
    core = wanted("CLDFAST_CORE", compiler is not None, "a C++ compiler", how)
    how = "install the CUDA toolkit, or set CUDACXX or CUDA_HOME"
    cuda = wanted("CLDFAST_CUDA", None not in (nvcc, compiler), "nvcc with a C++ compiler", how)
    cuda = cuda and not os.environ.get("CLDFAST_SANITIZE")
    return (CORE,) * core + (CUDA,) * cuda


def modules() -> list[Extension]:
    """What `setup` is given: with no module the wheel is pure Python and fits every machine."""
    return [Extension(name, sources=[], optional=name == CUDA) for name in names()]


@cache
def announce() -> None:
    """Say once what is built and what is left out."""
    if CORE not in names():
        why = "CLDFAST_CORE=0" if find_compiler() else "no C++ compiler was found (g++, clang++)"
        say(
            f"{why}, so this is an installation of pure Python: everything runs, slower. To have "
            "the compiled core, install a compiler and cldfast again, with pip's --no-cache-dir"
        )
    if CUDA not in names() and os.environ.get("CLDFAST_CUDA") != "0":
        say("the CUDA kernels are left out, for want of nvcc or of a C++ compiler")


def tool(name: str) -> str:
    """The program of the environment that builds, whether or not its folder is on the PATH."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise SystemExit(f"cldfast needs {name} to build its core: pip install {name}")
    return found


class BuildPython(build_py):
    """Copies the package without what an earlier build left in its folder."""

    def run(self) -> None:
        announce()
        made = Path(self.build_lib) / "cldfast"
        if made.exists() and not self.editable_mode:
            say(f"{made} is of an earlier build and is made anew")
            shutil.rmtree(made)
        super().run()


class BuildModules(build_ext):
    """Runs CMake for each module, and puts the module where setuptools wants it."""

    def run(self) -> None:
        announce()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        if ext.name == CORE:
            say("compiling the core, about a minute on two cores")
            self.build_with_cmake(ext, "core")
            return
        say("compiling the CUDA kernels, some minutes; CLDFAST_CUDA=0 leaves them out")
        more = ["-DCLDFAST_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={find_nvcc()}"]
        if architectures := os.environ.get("CLDFAST_CUDA_ARCHITECTURES"):
            more.append(f"-DCLDFAST_CUDA_ARCHITECTURES={architectures}")
        try:
            self.build_with_cmake(ext, "cuda", *more)
        except (OSError, subprocess.CalledProcessError):
            if os.environ.get("CLDFAST_CUDA") == "1":
                raise
            # Left over from an earlier build, it would not be what these sources are.
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            say(f"{find_nvcc()} failed, as said above, so the CUDA kernels are left out")

    def build_with_cmake(self, ext: Extension, name: str, *more: str) -> None:
        import pybind11  # present where something is built

        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        sanitize = os.environ.get("CLDFAST_SANITIZE", "")
        kind = sanitize.replace(",", "-") or "release"
        build = Path(self.build_temp).resolve() / f"{name}-{kind}"
        forget_other_sources(build)
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            tool("cmake"), "-S", str(SOURCES), "-B", str(build), "-G", "Ninja",
            # Given every time: a build folder may outlive the environment that it was made in.
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={module.parent}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCLDFAST_SANITIZE={sanitize}", *more,
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run([tool("cmake"), "--build", str(build)], check=True)


def forget_other_sources(build: Path) -> None:
    """Remove a build folder that CMake made of sources elsewhere: CMake would refuse it."""
    cache = build / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={SOURCES}\n" not in cache.read_text():
        say(f"{build} was made of other sources and is made anew")
        shutil.rmtree(build)


COMMANDS = {"build_py": BuildPython, "build_ext": BuildModules}
