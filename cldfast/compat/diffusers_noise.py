"""Addressed noise for a scheduler: seeds of generators, and normals of one seed or one a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from cldfast import kernels
from cldfast.kernels import NoiseAddress

Generators = torch.Generator | Sequence[torch.Generator] | None
# The noise of all rows, from row 0 on, or a seed for each row.
Seeds = NoiseAddress | list[int]


def draw_seeds(generator: Generators, rows: int) -> Seeds:
    """The noise of a generator, or a seed per row for a list of generators."""
    if generator is None or isinstance(generator, torch.Generator):
        return kernels.noise_address(generator=generator)
    if len(generator) != rows:
        raise ValueError(f"expected one generator per row, {rows}, got {len(generator)}")
    return [kernels.noise_address(generator=one).seed for one in generator]


def seeded_normals(
    shape: Sequence[int],
    seeds: Seeds,
    address: NoiseAddress,
    dtype: torch.dtype,
    device: torch.device | str,
) -> torch.Tensor:
    """Unit normals for data of a shape; with a seed per row, each row is the first of its seed.

    address: of the normals, but for the seed; its first sample counts from that of `seeds`.
    """
    if isinstance(seeds, NoiseAddress):
        first = seeds.first_index + address.first_index
        address = replace(address, seed=seeds.seed, first_index=first)
        return kernels.normals(shape, address, dtype=dtype, device=device)
    one = (1, *shape[1:])
    addresses = [replace(address, seed=seed, first_index=0) for seed in seeds]
    return torch.cat([kernels.normals(one, a, dtype=dtype, device=device) for a in addresses])
