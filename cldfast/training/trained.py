"""What networks were trained to return, so that a sampler which is told otherwise can say so.

A wrong parameterisation has the right shape as often as not, and its samples are nowhere near the
data. Nothing is written to a network: this process remembers its modules as long as they live.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cldfast.conditions import Conditioned
from cldfast.planner.parameterization import Parameterization, same_parameterization

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_trained: WeakKeyDictionary[nn.Module, Parameterization] = WeakKeyDictionary()


def remember_training(net: object, parameterization: Parameterization) -> None:
    """That a network is one of this parameterisation; for a function nothing is remembered."""
    if not torch.compiler.is_compiling() and isinstance(net := _innermost(net), nn.Module):
        _trained[net] = parameterization


def check_training(net: object, parameterization: Parameterization) -> None:
    """ValueError where a module was last trained with another parameterisation."""
    net = _innermost(net)
    known = _trained.get(net) if isinstance(net, nn.Module) else None
    if known is not None and not same_parameterization(known, parameterization):
        raise ValueError(
            f"the network was trained with parameterization {str(known)!r}, and this run is for "
            f"{str(parameterization)!r}: pass parameterization={str(known)!r} (or, if you know "
            "better, a function around the network: lambda u, t: net(u, t))"
        )


def _innermost(net: object) -> object:
    """The module inside what `torch.compile` and data-parallel training wrap around it."""
    if isinstance(net, Conditioned):
        return _innermost(net.net)
    if isinstance(net, _WRAPPERS):
        return _innermost(net.module)
    return _innermost(net._orig_mod) if hasattr(net, "_orig_mod") else net
