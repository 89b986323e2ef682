"""Running a plan with coefficients and times that carry gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cldfast import kernels
from cldfast.fitting.free_plan import FreePlan
from cldfast.kernels import NoiseAddress, StageResult
from cldfast.network import Network, network_dtype
from cldfast.sampling.steps import Outputs, look

# A plane smaller than this part of the largest one that a stage reads counts as of this size.
_LEAST = 1e-6


def rollout(
    free: FreePlan, vector: Tensor, net: Network, u: Tensor, address: NoiseAddress, backend: str
) -> Tensor:
    """The final states (B, 2C, ...) of the plan that a vector stands for, differentiable in it."""
    for _, made in _walk(free, vector, net, u, address, backend):
        u = made.state
    return u


@torch.no_grad()
def sizes_of_change(
    free: FreePlan, net: Network, u: Tensor, address: NoiseAddress, backend: str
) -> list[Tensor]:
    """For each stage a matrix like its own: the change of a coefficient that counts as one unit.

    The unit changes a row by a fixed size: that of the state, `|u'|`, and of what the stage changes
    there, `|u' - u|`, in geometric mean, or that of a history row; all sizes are root mean squares.
    In units of the plane which a coefficient multiplies, a step of an optimiser then means about
    the same for all coefficients, at any noise level and in any parameterisation.
    """
    result = []
    channels = u.shape[1] // 2

    def size(*tensors: Tensor | None) -> Tensor:
        """The root mean square of each plane."""
        planes = [t.double().unflatten(1, (-1, channels)) for t in tensors if t is not None]
        return torch.cat([p.square().transpose(0, 1).flatten(1).mean(1) for p in planes]).sqrt()

    for read, made in _walk(free, free.zeros(), net, u, address, backend):
        below = size(*read)
        below = torch.cat([below.clamp_min(_LEAST * below.max()), below.new_ones(2)])
        moved = (size(made.state) * size(made.state - read[0])).sqrt()
        if made.history is not None:
            moved = torch.cat([moved, size(made.history)])
        result.append((moved[:, None] / below).cpu())
    return result


def _walk(
    free: FreePlan, vector: Tensor, net: Network, u: Tensor, address: NoiseAddress, backend: str
) -> Iterator[tuple[tuple[Tensor, ...], StageResult]]:
    """For each stage the tensors that it reads and what it makes."""
    outputs = Outputs(net, free.base)
    times = free.times(vector)
    rows_seen, arguments = free.inputs(times)
    times, arguments = (t.to(device=u.device, dtype=u.dtype) for t in (times, arguments))
    evaluation = 0
    history: list[Tensor] = []
    for index, (stage, table) in enumerate(zip(free.stages, free.tables(vector), strict=True)):
        given: tuple[Tensor, ...] = ()
        if stage.evaluates:
            seen = u
            if rows_seen is not None:
                seen = look(rows_seen[evaluation].to(u), u, network_dtype(net) or u.dtype)
            t, argument = (numbers[evaluation].expand(len(u)) for numbers in (times, arguments))
            given = outputs(stage, u, t, seen, argument)
            evaluation += 1
        rows = history[: len(stage.H)]
        noise = address.at_stage(index)
        made = kernels.stage(u, given, rows, table, noise=noise, backend=backend)
        yield (u, *given, *rows), made
        u = made.state
        if made.history is not None:
            history.insert(0, made.history)
