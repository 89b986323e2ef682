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
from functools import cache
from pathlib import Path

from cmake_build import build_module, cuda_options, find_compiler, find_nvcc, say
from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CORE, CUDA = "cldfast._core", "cldfast._cuda"


def wanted(variable: str, there: bool, what: str, how: str) -> bool:
    """Whether a module is built; ends the build where it is demanded and cannot be."""
    choice = os.environ.get(variable, "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"cldfast: {variable} must be 0 or 1, got {choice!r}")
    if choice == "1" and not there:
        raise SystemExit(f"cldfast: {variable}=1, but {what} was not found; {how}")
    return there and choice != "0"


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
        try:
            self.build_with_cmake(ext, "cuda", *cuda_options())
        except (OSError, subprocess.CalledProcessError):
            if os.environ.get("CLDFAST_CUDA") == "1":
                raise
            # Left over from an earlier build, it would not be what these sources are.
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            say(f"{find_nvcc()} failed, as said above, so the CUDA kernels are left out")

    def build_with_cmake(self, ext: Extension, name: str, *options: str) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        sanitize = os.environ.get("CLDFAST_SANITIZE", "")
        kind = sanitize.replace(",", "-") or "release"
        build = Path(self.build_temp).resolve() / f"{name}-{kind}"
        options = f"-DCLDFAST_SANITIZE={sanitize}", *options
        build_module(build, module.parent, *options, debug=bool(self.debug))


COMMANDS = {"build_py": BuildPython, "build_ext": BuildModules}
