"""The state of a training as named tensors: the same for any number of processes.

model/..., ema/...        weights of the network and of the average
optimizer/NUMBER/...      Adam's, by the number of a parameter; the network's come first
scale/...                 of the loss in float16
uncertainty/...           learned weights of times
rng/cpu, rng/cuda         PyTorch's random states, with a row for each process of several
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cldfast.training.sharded import (
    ShardedEMA,
    load_whole_optimizer,
    load_whole_weights,
    whole_optimizer,
    whole_weights,
)
from cldfast.training.uncertainty import Uncertainty
from cldfast.training.update import WeightUpdate


def state_tensors(update: WeightUpdate, uncertainty: Uncertainty | None) -> dict[str, Tensor]:
    """All tensors; all processes must ask, and the first one gets them."""
    net, ema, accelerator = update.net, update.ema, update.accelerator
    if isinstance(ema, ShardedEMA):
        model, average = whole_weights(net), ema.gather()
        optimizer = whole_optimizer(net, update.optimizer)
    else:
        model, average = net.state_dict(), ema.model.state_dict()
        optimizer = update.optimizer.state_dict()["state"]
    if update.beside is not None:  # numbered after the network's parameters
        moments = update.beside.state_dict()["state"]
        optimizer = optimizer | {update.own + k: v for k, v in moments.items()}
    tensors = {f"model/{k}": v for k, v in model.items()}
    tensors |= {f"ema/{k}": v for k, v in average.items()}
    if uncertainty is not None:
        tensors |= {f"uncertainty/{k}": v for k, v in uncertainty.state_dict().items()}
    if update.scale is not None:
        tensors |= {f"scale/{k}": v for k, v in update.scale.state_dict().items()}
    for index, state in optimizer.items():
        tensors |= {f"optimizer/{index}/{k}": v for k, v in state.items()}
    # For networks that draw random numbers themselves, such as dropout.
    tensors["rng/cpu"] = _of_all(accelerator, torch.get_rng_state(), update.device)
    if update.device.type == "cuda":
        drawn = torch.cuda.get_rng_state(update.device)
        tensors["rng/cuda"] = _of_all(accelerator, drawn, update.device)
    return tensors


def load_state(
    update: WeightUpdate, uncertainty: Uncertainty | None, tensors: dict[str, Tensor], updates: int
) -> None:
    """Go on from what `state_tensors` returned, random states included.

    updates: of the average.
    Raises LookupError, RuntimeError or ValueError for tensors that do not fit.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        groups.setdefault(kind, {})[rest] = tensor
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups.get("optimizer", {}).items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    _check_moments(update, state)
    moments = {k - update.own: state.pop(k) for k in list(state) if k >= update.own}
    if update.beside is not None:
        _load_moments(update.beside, moments)
    if isinstance(update.ema, ShardedEMA):
        load_whole_weights(update.net, groups["model"])
        update.ema.load_whole(groups["ema"])
        update.ema.updates = updates
        if state:
            load_whole_optimizer(update.net, update.optimizer, state)
    else:
        update.net.load_state_dict(groups["model"])
        update.ema.load_state_dict({"model": groups["ema"], "updates": updates})
        _load_moments(update.optimizer, state)
    if uncertainty is not None:
        uncertainty.load_state_dict(groups["uncertainty"])
    if update.scale is not None and "scale" in groups:
        update.scale.load_state_dict(groups["scale"])
    own = _own(groups["rng"]["cpu"], update.accelerator)
    if own is not None:
        torch.set_rng_state(own)
    if "cuda" in groups["rng"] and update.device.type == "cuda":
        own = _own(groups["rng"]["cuda"], update.accelerator)
        if own is not None:
            torch.cuda.set_rng_state(own, update.device)


def most_bytes(update: WeightUpdate) -> int:
    """More bytes than the tensors of this training have."""
    weights = sum(t.numel() * t.element_size() for t in update.net.state_dict().values())
    # Weights, their average and two moments, uncertainty and random states of 1,000 processes.
    return 8 * weights + (1 << 24)


def _check_moments(update: WeightUpdate, state: dict[int, dict[str, Tensor]]) -> None:
    """ValueError for moments of Adam that are not as large as the weights."""
    for index, moments in state.items():
        shape = update.parameters[index].shape
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].shape != shape:
                raise ValueError(f"optimizer/{index}/{name} has another size than the weights")


def _load_moments(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _of_all(accelerator: Any, state: Tensor, device: torch.device) -> Tensor:
    if accelerator.num_processes == 1:
        return state
    return accelerator.gather(state[None].to(device)).cpu()  # type: ignore[no-any-return]


def _own(states: Tensor, accelerator: Any) -> Tensor | None:
    """This process's row; None where fewer processes wrote it."""
    rows = states if states.dim() == 2 else states[None]
    index = accelerator.process_index
    return rows[index].clone() if index < len(rows) else None
