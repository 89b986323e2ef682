"""A network that is always called with the same number of rows.

The last bit of a matrix product depends on the number of its rows. Samples that must be alike,
however a run is cut into pieces, therefore come from calls whose rows are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.network import ClassifierFree, Network, at_times

Output = Tensor | tuple[Tensor, ...]


class FixedCalls(nn.Module):
    """Calls a network with `rows` rows at a time, and the rest of them in a last call.

    net: the network `net(u, t)`, or with labels `net(u, t, labels=labels)`.
    labels: int64 (B,) for all rows of a call of this module, or None.
    guided: return (conditional, unconditional), as plans with a `guidance_scale` ask for.
    """

    def __init__(
        self, net: Network, rows: int, labels: Tensor | None = None, guided: bool = False
    ) -> None:
        super().__init__()
        self.net, self.rows, self.labels, self.guided = net, rows, labels, guided

    def forward(self, u: Tensor, t: Tensor) -> Output:
        """The network's output for all rows."""
        return self._parts(self.net, u, t)

    def at_times(self, t: Tensor) -> Sequence[Callable[[Tensor, Tensor], Output]]:
        """The network at each of the times t (N,), see `cldfast.network.at_times`."""
        if self.labels is not None:
            return [self] * len(t)
        nets = at_times(self.net, t)
        return [lambda u, t, net=net: self._parts(net, u, t) for net in nets]  # type: ignore[misc]

    def _parts(self, net: Any, u: Tensor, t: Tensor) -> Output:
        made = [
            self._call(net, u[start : start + self.rows], t[start : start + self.rows], start)
            for start in range(0, len(u), self.rows)
        ]
        if len(made) == 1:
            return made[0]  # type: ignore[no-any-return]
        if isinstance(made[0], Tensor):
            return torch.cat(made)
        return tuple(torch.cat(parts) for parts in zip(*made, strict=True))

    def _call(self, net: Any, u: Tensor, t: Tensor, start: int) -> Any:
        if self.labels is None:
            return net(u, t)
        labels = self.labels[start : start + len(u)]
        return ClassifierFree(net, labels)(u, t) if self.guided else net(u, t, labels=labels)
