"""Addressed noise for a scheduler: seeds of generators, and normals of one seed or one a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from cldfast import kernels
from cldfast.kernels import NoiseAddress

Generators = torch.Generator | Sequence[torch.Generator] | None


def draw_seeds(generator: Generators, rows: int) -> int | list[int]:
    """A seed of the noise, or one per row for a list of generators."""
    if generator is None or isinstance(generator, torch.Generator):
        return _seed(generator)
    if len(generator) != rows:
        raise ValueError(f"expected one generator per row, {rows}, got {len(generator)}")
    return [_seed(one) for one in generator]


def _seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    drawn = torch.randint(0, 2**63 - 1, (), dtype=torch.int64, generator=generator, device=device)
    return int(drawn.item())


def seeded_normals(
    shape: Sequence[int],
    seeds: int | list[int],
    address: NoiseAddress,
    dtype: torch.dtype,
    device: torch.device | str,
) -> torch.Tensor:
    """Unit normals for data of a shape; with a seed per row, each row is the first of its seed.

    address: of the normals, but for the seed.
    """
    if isinstance(seeds, int):
        return kernels.normals(shape, replace(address, seed=seeds), dtype=dtype, device=device)
    one = (1, *shape[1:])
    addresses = [replace(address, seed=seed, first_index=0) for seed in seeds]
    return torch.cat([kernels.normals(one, a, dtype=dtype, device=device) for a in addresses])
