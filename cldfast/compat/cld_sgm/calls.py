"""Calling the codebase's models, and the states around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cldfast.compat.cld_sgm.interface import PublishedInterface
from cldfast.network import Network
from cldfast.sampling.run import initial_state

Tensor = torch.Tensor
Samples = tuple[Tensor, Tensor | None, int]


def state_shape(sde: PublishedInterface, shape: Sequence[int]) -> tuple[int, ...]:
    """Of the states whose positions have `shape`."""
    rows, channels, *rest = shape
    return (rows, channels * (2 if sde.is_augmented else 1), *rest)


def network(sde: PublishedInterface, model: Any, shape: Sequence[int]) -> Network:
    """The model as a `net(u, t)` of cldfast; it is called in float32, as the codebase does."""

    def net(u: Tensor, t: Tensor) -> Tensor:
        states = sde.unpack(u, shape).to(torch.float32)
        return sde.pack(model(states, t.to(torch.float32)))

    return net


def exact_prior(sde: PublishedInterface, shape: Sequence[int], device: Any, seed: int) -> Tensor:
    """States of the stationary law by addressed noise."""
    if sde.is_augmented:
        return initial_state(sde.process, shape, seed=seed, device=device)
    planes = sde.pack(torch.empty((1, *shape[1:]), device="meta")).shape[1]
    pairs = initial_state(sde.process, (shape[0], planes // 2), seed=seed, device=device)
    return sde.unpack(pairs, shape)


def published_prior(sde: PublishedInterface, shape: Sequence[int]) -> Tensor:
    """States of the stationary law from PyTorch's generator, in the codebase's order."""
    x, v = sde.prior_sampling(shape)
    return x if v is None else torch.cat([x, v], dim=1)


def split(sde: PublishedInterface, u: Tensor, evaluations: int) -> Samples:
    """`x, v, nfe` of states u."""
    if not sde.is_augmented:
        return u, None, evaluations
    x, v = u.chunk(2, dim=1)
    return x, v, evaluations
