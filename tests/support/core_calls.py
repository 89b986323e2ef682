"""Calls of the compiled core's own functions, as tensors."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from cldfast import _core

LEVELS = _core.levels()


def words(
    seed: int, first_pair: int, count: int, stage_index: int, stream: int, level: str = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two words of each pair of a run, int64 (count,)."""
    radius = torch.empty(count, dtype=torch.uint32)
    angle = torch.empty(count, dtype=torch.uint32)
    noise = (seed, first_pair, stage_index, stream)
    _core.philox_words(noise, count, radius.data_ptr(), angle.data_ptr(), level)
    return radius.to(torch.int64), angle.to(torch.int64)


def normals(
    seed: int,
    first_pair: int,
    count: int,
    stage_index: int = 0,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    level: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(z_x, z_v) of each pair of a run: a stage of noise alone makes the normals themselves."""
    state, unit = torch.empty(2, count, dtype=dtype), torch.eye(2, dtype=torch.float64)
    code = {torch.float32: 0, torch.float64: 1}[dtype]
    described = (state.data_ptr(), 2, code, 2 * count, count, 1, 1)
    _core.stage(
        (1, count, 1, code), (), described, (unit.data_ptr(), 1, 2, 2), None, 0,
        (seed, first_pair, stage_index, stream), 1, level,
    )  # fmt: skip
    return state[0], state[1]


def normals_from_words(
    radius: torch.Tensor, angle: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scalar form of the kernels, which device code shares."""
    z_x, z_v = torch.empty(len(radius), dtype=dtype), torch.empty(len(radius), dtype=dtype)
    words = radius.to(torch.uint32), angle.to(torch.uint32)
    fill = scalar().normals_float if dtype == torch.float32 else scalar().normals_double
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*words, z_x, z_v)]
    fill(*pointers[:2], ctypes.c_int64(len(radius)), *pointers[2:])
    return z_x, z_v


def philox4x32(counter: Sequence[int], key: int) -> tuple[int, ...]:
    """Four words of one counter, by the scalar form."""
    words = (ctypes.c_uint32 * 4)(*counter)
    scalar().philox(words, ctypes.c_uint64(key))
    return tuple(words)


@cache
def scalar() -> ctypes.CDLL:
    """The scalar form, compiled with the flags of csrc/CMakeLists.txt; skips without a compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("NO_COMPILER: there is no C++ compiler")
    source = Path(__file__).with_name("scalar_philox.cpp")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "scalar_philox.so"
        subprocess.run(
            [compiler, "-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off",
             "-fno-math-errno", f"-I{source.parents[2] / 'csrc'}", str(source), "-o", str(made)],
            check=True,
        )  # fmt: skip
        return ctypes.CDLL(str(made))


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest distance of two tensors in units in the last place."""
    integer = torch.int32 if a.dtype == torch.float32 else torch.int64

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.view(integer).to(torch.int64)
        lowest = torch.iinfo(integer).min
        return torch.where(bits < 0, lowest - bits, bits)

    return int((ordered(a) - ordered(b)).abs().max())


def some_times(end: float, count: int = 100) -> torch.Tensor:
    """Uniform and log-uniform down to 1e-10 of the end, the end itself, and edges of panels."""
    uniform, logs = (
        torch.rand(count, dtype=torch.float64),
        10.0 ** (-10.0 * torch.rand(count, dtype=torch.float64)),
    )
    edges = 2.0 ** -torch.arange(0, 30, dtype=torch.float64)
    above = torch.nextafter(edges[1:], torch.ones(1, dtype=torch.float64))
    return end * torch.cat([uniform.clamp(min=1e-10), logs, edges, above])
