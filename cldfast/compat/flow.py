"""The probability flow of a codebase's process and network, by way of torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cldfast.compat.steps import OutputMap
from cldfast.extras import extra_module
from cldfast.network import Network
from cldfast.process.sde import LinearPhaseSDE
from cldfast.sampling import probability_flow


class Flow(probability_flow.Flow):
    """`cldfast.sampling.probability_flow.Flow` for networks whose outputs `output_map` explains."""

    def __init__(self, net: Network, sde: LinearPhaseSDE, output_map: OutputMap) -> None:
        super().__init__(net, sde, "full_score")  # which `blocks` takes from the map
        self.output_map = output_map

    def blocks(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """(2, 2) on the state and (2, r) on the network output."""
        score = self.output_map(np.array([t]))
        beta = float(self.sde.beta(t))
        pull = score.then(-0.5 * beta * np.diag(self.sde.D))
        return beta * self.sde.A + pull.from_state[0], pull.from_output[0]


def odeint(
    rate: Callable[..., Any],
    start: Any,
    ends: tuple[float, float],
    method: str,
    options: dict[str, Any] | None,
    **tolerances: float,
) -> Any:
    """The solution of `du/ds = rate(s, u)` at ends[1]; other arguments as in torchdiffeq.

    An adaptive method is told to land on the end: past it there may be no score.
    Raises ImportError without torchdiffeq.
    """
    first = start[0] if isinstance(start, tuple) else start
    times = torch.tensor(ends, dtype=torch.float64, device=first.device)
    # torchdiffeq makes tensors on the default device: when it is imported, and when it solves.
    with torch.device(first.device):
        solver = extra_module("torchdiffeq", "the probability flow needs torchdiffeq")
        if method in probability_flow.ADAPTIVE:
            options = {"step_t": times[1:], **(options or {})}
        path = solver.odeint(rate, start, times, method=method, options=options, **tolerances)
    return tuple(part[-1] for part in path) if isinstance(start, tuple) else path[-1]
