"""Recordings kept for the runs to come: one for each plan, shape and network."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import chain

import torch
from torch import nn

from cldfast.kernels import Backend, NoiseAddress, recorded_step
from cldfast.network import Network
from cldfast.planner.plan import Plan
from cldfast.sampling.graphs import Recording

# So many recordings are kept, of so large a share of the device's memory together.
MOST, SHARE = 8, 0.25


class KeptRecordings:
    """Recordings by what they depend on; those used least lately go first.

    most: how many are kept. bytes: the memory of a device that they may hold, or None for `SHARE`.
    A run takes a recording out and gives it back: no two runs have the same one.
    """

    def __init__(self, most: int = MOST, bytes: int | None = None) -> None:
        self.most, self.bytes = most, bytes
        self._kept: OrderedDict[Hashable, Recording] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, key: Hashable, make: Callable[[], Recording]) -> Recording:
        """The recording of a key, or a new one."""
        with self._lock:
            found = None if key is None else self._kept.pop(key, None)
        return make() if found is None else found

    def give(self, key: Hashable, net: Network, recording: Recording) -> None:
        """Keep a recording as long as its network lives and there is room; key None: do not."""
        if key is None or not recording.possible:
            return
        if recording.runs == 1:  # else it was kept before
            weakref.finalize(net, self._kept.pop, key, None).atexit = False
        limit = self.bytes
        if limit is None:
            limit = int(SHARE * torch.cuda.mem_get_info(recording.u.device)[1])
        with self._lock:
            self._kept[key] = recording
            while self._kept and (
                len(self._kept) > self.most
                or sum(kept.bytes for kept in self._kept.values()) > limit
            ):
                self._kept.popitem(last=False)

    def forget(self) -> None:
        """Free all of them."""
        with self._lock:
            self._kept.clear()


recordings = KeptRecordings()


def forget_graphs() -> None:
    """Free what is kept, and record anew: after a change of a network that no parameter shows."""
    recordings.forget()


def key_of(
    plan: Plan, net: Network, u: torch.Tensor, address: NoiseAddress, backend: Backend
) -> Hashable:
    """What a recording depends on; None for a network that is no module, which nobody can look at.

    Of a module its parameters and buffers count by their places, and the modes of its parts.
    """
    if not isinstance(net, nn.Module):
        return None
    tensors = chain(net.parameters(), net.buffers())
    network = (
        id(net), tuple(tensor.data_ptr() for tensor in tensors),
        tuple(module.training for module in net.modules()),
        torch.is_autocast_enabled(u.device.type), torch.get_autocast_dtype(u.device.type),
    )  # fmt: skip
    state = (u.shape, u.stride(), u.dtype, u.device)
    return network, state, backend.name, recorded_step(address)[0], contents(plan)


def contents(plan: Plan) -> Hashable:
    """What a recording reads of a plan: plans that are made alike have the same."""
    return tuple(
        (
            stage.t, stage.argument, len(stage.H), stage.history_planes,
            tuple(block.shape for block in stage.E) if stage.evaluates else None,
            None if stage.seen is None else stage.seen.tobytes(), matrix.shape, matrix.tobytes(),
        )
        for stage, matrix in zip(plan.stages, plan.matrices(), strict=True)
    )  # fmt: skip
