"""Networks whose weights are shared out among processes (PyTorch's `fully_shard`, FSDP2).

Each process holds a part of each weight as a `DTensor`. Whole weights come together in process 0
alone, for a checkpoint, by PyTorch's own state dicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.training.ema import EMA


def is_sharded(net: nn.Module) -> bool:
    """Whether the weights are in parts."""
    return any(is_part(parameter) for parameter in net.parameters())


def is_part(tensor: Tensor) -> bool:
    """Whether this process has but a part of the tensor."""
    return hasattr(tensor, "to_local")


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or the whole of one in parts; then all processes must ask."""
    return tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


class ShardedEMA(EMA):
    """A running average of weights in parts: each process averages its own.

    Args:
        model: the whole network as a plain copy, which `gather` fills in process 0.
        source: the sharded network.  decay: see `cldfast.training.ema.EMA`.
    """

    def __init__(self, model: nn.Module, source: nn.Module, decay: float) -> None:
        self.decay, self.updates, self.model = decay, 0, model
        self._current = [p.to_local() for p in source.parameters()]  # type: ignore[attr-defined]
        self._averaged = [part.detach().clone() for part in self._current]
        self._buffers = list(zip(model.buffers(), source.buffers(), strict=True))
        self._source = source

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the block `model` has the averaged weights; afterwards its own again."""
        kept = [part.detach().clone() for part in self._current]
        with torch.no_grad():
            torch._foreach_copy_(self._current, self._averaged)
        try:
            yield model
        finally:
            # A call without a backward pass has left whole weights, which the next call would take.
            for module in self._source.modules():
                if hasattr(module, "reshard"):
                    module.reshard()  # type: ignore[operator]
            with torch.no_grad():
                torch._foreach_copy_(self._current, kept)

    def gather(self) -> dict[str, Tensor]:
        """The whole average in process 0, where `model` gets it too; all processes must call."""
        with self.swapped_into(self._source) as net:
            state = whole_weights(net)
        if state:
            self.model.load_state_dict(state)
        return state

    def load_whole(self, state: dict[str, Tensor]) -> None:
        """Take an average that all processes have as a whole."""
        kept = [part.detach().clone() for part in self._current]
        load_whole_weights(self._source, state)
        with torch.no_grad():
            torch._foreach_copy_(self._averaged, self._current)
            torch._foreach_copy_(self._current, kept)
        self.model.load_state_dict(state)


def whole_weights(net: nn.Module) -> dict[str, Tensor]:
    """The state dict of a sharded network on the host, in process 0; empty in the others."""
    package = _state_dicts()
    return package.get_model_state_dict(net, options=_whole(package))  # type: ignore[no-any-return]


def load_whole_weights(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Give each process its parts of a state dict that all of them have."""
    package = _state_dicts()
    options = package.StateDictOptions(full_state_dict=True)
    package.set_model_state_dict(net, dict(state), options=options)  # changes what it is given


def whole_optimizer(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The optimiser's state by the number of a parameter, as a plain optimiser has it."""
    if not optimizer.state:
        return {}  # PyTorch would make a step to have something to return
    package = _state_dicts()
    state = package.get_optimizer_state_dict(net, optimizer, options=_whole(package))
    numbers = _numbers(net)
    return {numbers[name]: entry for name, entry in (state or {}).get("state", {}).items()}


def load_whole_optimizer(
    net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]
) -> None:
    """The inverse of `whole_optimizer`, where all processes have the whole."""
    package = _state_dicts()
    names = {number: name for name, number in _numbers(net).items()}
    group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    whole = {
        "state": {names[number]: entry for number, entry in state.items()},
        "param_groups": [group | {"params": list(names.values())}],
    }
    package.set_optimizer_state_dict(
        net, optimizer, whole, options=package.StateDictOptions(full_state_dict=True)
    )


def _numbers(net: nn.Module) -> dict[str, int]:
    trained = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    return {name: number for number, name in enumerate(trained)}


def _whole(package: Any) -> Any:
    return package.StateDictOptions(full_state_dict=True, cpu_offload=True)


def _state_dicts() -> Any:
    # Not every build of PyTorch has torch.distributed.
    from torch.distributed.checkpoint import state_dict

    return state_dict
