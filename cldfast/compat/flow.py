"""The probability flow of a codebase's process and network, by way of torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cldfast.compat.steps import OutputMap
from cldfast.network import Network
from cldfast.process.sde import LinearPhaseSDE
from cldfast.sampling.probability_flow import combine


class Flow:
    """`-dU/dt = beta (-A U + D score / 2)` at forward times, as the samplers follow it.

    output_map: what the outputs of net mean. calls: of the network so far.
    """

    def __init__(self, process: LinearPhaseSDE, output_map: OutputMap, net: Network) -> None:
        self.process, self.output_map, self.net = process, output_map, net
        self.calls = 0

    def blocks(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """(2, 2) on the state and (2, r) on the network's output."""
        score = self.output_map(np.array([t]))
        beta = float(self.process.beta(t))
        half = 0.5 * beta * np.diag(self.process.D)
        return half @ score.from_state[0] - beta * self.process.A, half @ score.from_output[0]

    def output(self, t: float, u: torch.Tensor) -> torch.Tensor:
        """What the network returns at one time."""
        self.calls += 1
        result = self.net(u, torch.full((len(u),), t, dtype=torch.float64, device=u.device))
        assert isinstance(result, torch.Tensor)
        return result

    def __call__(self, t: float, u: torch.Tensor) -> torch.Tensor:
        return combine(*self.blocks(t), u, self.output(t, u))


def odeint(
    rate: Callable[..., Any],
    start: Any,
    ends: tuple[float, float],
    *,
    rtol: float,
    atol: float,
    method: str,
    options: dict[str, Any] | None,
) -> Any:
    """The solution of `du/ds = rate(s, u)` at ends[1]; arguments as in torchdiffeq.

    Raises ImportError without torchdiffeq.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(
            "the probability flow needs torchdiffeq: pip install 'cldfast[ode]'"
        ) from error
    first = start[0] if isinstance(start, tuple) else start
    times = torch.tensor(ends, dtype=torch.float64, device=first.device)
    path = odeint(rate, start, times, rtol=rtol, atol=atol, method=method, options=options)
    return tuple(part[-1] for part in path) if isinstance(start, tuple) else path[-1]
