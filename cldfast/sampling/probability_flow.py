"""The probability flow by an adaptive ODE solver (torchdiffeq): tolerances instead of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cldfast import kernels
from cldfast.conditions import Conditions, conditioned
from cldfast.extras import extra_module
from cldfast.network import Network, device_of, explain_failure, network_dtype, output_tensor
from cldfast.planner.parameterization import (
    LinearMap,
    Parameterization,
    check_parameterization,
    default_parameterization,
    input_map,
    score_map,
)
from cldfast.process.sde import LinearPhaseSDE
from cldfast.sampling.run import initial_state
from cldfast.sampling.steps import look
from cldfast.training.trained import check_training

# Methods of torchdiffeq that choose their steps.
ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")


def pflow(
    net: Network,
    sde: LinearPhaseSDE,
    shape: Sequence[int] | None = None,
    *,
    parameterization: Parameterization | None = None,
    t_min: float = 1e-3,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    seed: int | None = None,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    init: torch.Tensor | None = None,
    conditions: Conditions | None = None,
    reverse: bool = False,
    return_velocity: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, int]:
    """Solve the probability flow from T to t_min; returns samples and the number of evaluations.

    net, sde, parameterization: as for `cldfast.sample`. shape: (n, d) or (n, C, H, W).
    rtol, atol, method: of `torchdiffeq.odeint`; the error is controlled for all rows together.
    options: its options, e.g. `first_step=0.1` (in log t, which is what is integrated over).
    seed, first_index, generator, device, dtype: of the initial states, see `cldfast.sample`; or
        init: states (n, 2d) or (n, 2C, H, W) to start from instead.
    conditions: further arguments of the network by name, see `cldfast.run`.
    reverse: from t_min up to T (encoding `init`) instead. return_velocity: states x and v together,
        as in `init`; else x alone.

    Source: Song et al. (2021), section 4.3; Dormand and Prince (1980).
    Raises ImportError without torchdiffeq, ValueError for t_min outside (0, T) or missing states.
    """
    check_t_min(sde, t_min)
    if init is None:
        if shape is None or reverse:
            raise ValueError("pflow needs init to start from, or a shape to draw it at T")
        where = device_of(net) if device is None else device
        init = initial_state(
            sde, shape, seed=seed, first_index=first_index, generator=generator, device=where,
            dtype=dtype,
        )  # fmt: skip
    kernels.check_state("init", init)
    flow = Flow(conditioned(net, conditions), sde, parameterization)
    ends = (t_min, sde.T) if reverse else (sde.T, t_min)
    with torch.no_grad():
        u = solve(flow, init, ends, rtol=rtol, atol=atol, method=method, **options)
    return (u if return_velocity else u.chunk(2, dim=1)[0].contiguous()), flow.evaluations


def solve(
    rate: Callable[[torch.Tensor, Any], Any],
    start: Any,
    ends: tuple[float, float],
    *,
    rtol: float,
    atol: float,
    method: str,
    **options: Any,
) -> Any:
    """The state at ends[1] of `du/dt = rate(t, u)` from `start` at ends[0], by torchdiffeq.

    Over log t, in which the flow is about as fast near 0 as elsewhere.

    Raises ImportError without torchdiffeq, ValueError for tolerances that are not > 0.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(value) and value > 0.0):
            raise ValueError(f"{name} must be finite and > 0, got {value}")
    low, high = min(ends), max(ends)

    def over_log_time(at: torch.Tensor, state: Any) -> Any:
        # The solver hands out times in the state's precision; rounding may not leave the interval.
        t = min(max(math.exp(float(at)), low), high)
        result = rate(torch.tensor(t, dtype=torch.float64, device=at.device), state)
        return tuple(t * r for r in result) if isinstance(result, tuple) else t * result

    logs = math.log(ends[0]), math.log(ends[1])
    return odeint(over_log_time, start, logs, method, options or None, rtol=rtol, atol=atol)


def odeint(
    rate: Callable[..., Any],
    start: Any,
    ends: tuple[float, float],
    method: str,
    options: dict[str, Any] | None,
    **tolerances: float,
) -> Any:
    """The solution of `du/ds = rate(s, u)` at ends[1]; other arguments as in torchdiffeq.

    An adaptive method is told to land on the end: it would step past it and interpolate, and there
    may be no score past it.

    Raises ImportError without torchdiffeq.
    """
    first = start[0] if isinstance(start, tuple) else start
    times = torch.tensor(ends, dtype=torch.float64, device=first.device)
    # torchdiffeq makes tensors on the default device: when it is imported, and when it solves.
    with torch.device(first.device):
        solver = extra_module("torchdiffeq", "the probability flow needs torchdiffeq")
        if method in ADAPTIVE:
            options = {"step_t": times[1:], **(options or {})}
        path = solver.odeint(rate, start, times, method=method, options=options, **tolerances)
    return tuple(part[-1] for part in path) if isinstance(start, tuple) else path[-1]


def check_t_min(sde: LinearPhaseSDE, t_min: float) -> None:
    """ValueError unless 0 < t_min < T: the score is singular at 0."""
    if not 0.0 < t_min < sde.T:
        raise ValueError(f"t_min must lie in (0, T) with T = {sde.T}, got {t_min}")


class Flow:
    """`dU/dt = beta (A U - D score / 2)` as a function (t, u), counting its evaluations."""

    def __init__(
        self, net: Network, sde: LinearPhaseSDE, parameterization: Parameterization | None
    ) -> None:
        if parameterization is None:
            parameterization = default_parameterization(sde)
        check_parameterization(parameterization)
        check_training(net, parameterization)
        self.net, self.sde, self.parameterization = net, sde, parameterization
        self.evaluations = 0

    def score(self, times: np.ndarray) -> LinearMap:
        """The score made of output and state at times (n,)."""
        return score_map(self.sde, times, self.parameterization)

    def blocks(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """(2, 2) on the state and (2, r) on the network output."""
        to_score = self.score(np.array([t]))
        beta = float(self.sde.beta(t))
        half = 0.5 * np.diag(self.sde.D)
        state = beta * (self.sde.A - half @ to_score.from_state[0])
        return state, -beta * (half @ to_score.from_output[0])

    def output(self, t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The network's output at one time."""
        self.evaluations += 1
        seen, argument = u, t
        inputs = input_map(self.sde, np.array([float(t)]), self.parameterization)
        if inputs is not None:
            seen = look(inputs[0][0], u, network_dtype(self.net) or u.dtype)
            argument = torch.full_like(t, float(inputs[1][0]))
        try:
            result = self.net(seen, argument.to(u.dtype).expand(u.shape[0]))
        except Exception as error:
            where = f"in the probability flow at t = {float(t):.6g}"
            explain_failure(error, self.net, seen, where)
            raise
        output = output_tensor(result)
        if not bool(output.detach().isfinite().all()):
            cause = "output is" if bool(u.isfinite().all()) else "state and output are"
            raise ValueError(
                f"the probability flow diverged: at t = {float(t):.6g} the network's {cause} not "
                "finite; train it there, or end at a larger t_min"
            )
        return output

    def __call__(self, t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        state, gain = self.blocks(float(t))
        o = self.output(t, u)
        planes = kernels.check_planes("the network's output", o, u, u.shape[1] // 2)
        if planes != (needed := gain.shape[1]):
            what = f"parameterization {str(self.parameterization)!r}"
            raise ValueError(f"{what} needs {needed} output planes, got {planes}")
        return combine(state, gain, u, o)


def combine(state: np.ndarray, gain: np.ndarray, u: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
    """`state u + gain o` per coordinate, in one pass of the stage operation."""
    weights = np.concatenate([state, gain, np.zeros((2, 2))], axis=1)
    rate, _, _ = kernels.stage(u, (o,), (), torch.from_numpy(weights)[None])
    return rate
