"""Builds the compiled core with CMake and Ninja; all metadata is in pyproject.toml.

Nothing here imports torch, looks for a GPU or downloads. One build-time option, an environment
variable: CLDFAST_SANITIZE=address, undefined or address,undefined builds the core with sanitizers;
`make sanitize` does, and runs the kernels' tests.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path(__file__).resolve().parent / "csrc"
CORE, CUDA = "cldfast._core", "cldfast._cuda"


def tool(name: str) -> str:
    """The program of the environment that builds, whether or not its folder is on the PATH."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise SystemExit(f"cldfast needs {name} to build its core: pip install {name}")
    return found


def find_nvcc() -> str | None:
    """The CUDA compiler: CUDACXX, the PATH's, CUDA_HOME's, or the usual folder's."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    named = os.environ.get("CUDACXX") or shutil.which("nvcc") or str(home / "bin" / "nvcc")
    return shutil.which(named)


class CMakeBuild(build_ext):
    """Runs CMake for each extension, and puts the module where setuptools wants it.

    The CUDA kernels are a module and a build of their own, and optional: without nvcc they are left
    out, and if nvcc fails the message says so and the rest is installed.
    """

    def build_extension(self, ext: Extension) -> None:
        nvcc = find_nvcc()
        if ext.name == CORE:
            self.build_with_cmake(ext, "core")
        elif nvcc is None:
            print("cldfast: no nvcc was found, so the CUDA kernels are left out")
        elif not os.environ.get("CLDFAST_SANITIZE"):
            self.build_cuda(ext, nvcc)

    def build_cuda(self, ext: Extension, nvcc: str) -> None:
        try:
            self.build_with_cmake(ext, "cuda", "-DCLDFAST_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}")
        except (OSError, subprocess.CalledProcessError):
            # Left over from an earlier build, it would not be what these sources are.
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            print(
                f"cldfast: {nvcc} failed, as said above, so the CUDA kernels are left out",
                file=sys.stderr,
            )

    def build_with_cmake(self, ext: Extension, name: str, *more: str) -> None:
        compiler = os.environ.get("CXX", "").split() or ["c++", "g++", "clang++"]
        if not any(shutil.which(name) for name in compiler):
            raise SystemExit(
                "cldfast needs a C++17 compiler to build its core, and none was found "
                f"(looked for {', '.join(compiler)}); install g++ or clang++, or set CXX"
            )
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        sanitize = os.environ.get("CLDFAST_SANITIZE", "")
        kind = sanitize.replace(",", "-") or "release"
        build = Path(self.build_temp).resolve() / f"{name}-{kind}"
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


setup(
    ext_modules=[Extension(CORE, sources=[]), Extension(CUDA, sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
