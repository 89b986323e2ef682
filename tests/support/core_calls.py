"""Calls of the compiled core's own functions, as tensors."""

from __future__ import annotations

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
        (1, count, 1, code), (), described, (unit.data_ptr(), 1, 2, 2), 0, 0,
        (seed, first_pair, stage_index, stream), 1, level,
    )  # fmt: skip
    return state[0], state[1]


def normals_from_words(
    radius: torch.Tensor, angle: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scalar form of the kernels, which device code shares."""
    z_x, z_v = torch.empty(len(radius), dtype=dtype), torch.empty(len(radius), dtype=dtype)
    radius, angle = radius.to(torch.uint32), angle.to(torch.uint32)
    _core.normals_from_words(
        radius.data_ptr(), angle.data_ptr(), len(radius), dtype == torch.float64,
        z_x.data_ptr(), z_v.data_ptr(),
    )  # fmt: skip
    return z_x, z_v


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
