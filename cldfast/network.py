"""What the library asks of a network, and where its seeds and its device come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

# `net(u, t)`: a state and the time of each of its rows, to one output or several.
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | Sequence[torch.Tensor]]


def network_dtype(net: Network) -> torch.dtype | None:
    """The floating dtype of a module's parameters; None for any other function."""
    if isinstance(net, torch.nn.Module):
        for parameter in net.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return None


def draw_seed() -> int:
    """A seed from PyTorch's default generator, so that `torch.manual_seed` governs it."""
    return int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device="cpu").item())


def device_of(net: Network) -> torch.device:
    """Where a module's parameters are; PyTorch's default device for any other function."""
    if isinstance(net, torch.nn.Module):
        for parameter in net.parameters():
            return parameter.device
    return torch.get_default_device()
