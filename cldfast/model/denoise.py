"""`E[x0 | u]` from one call of a network, at a time for each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldfast.network import network_dtype
from cldfast.planner.data_forms import DataForm
from cldfast.planner.parameterization import (
    Parameterization,
    input_map,
    output_planes,
    seen_by,
    x0_map,
)
from cldfast.process.sde import LinearPhaseSDE


def data_prediction(
    net: Any, sde: LinearPhaseSDE, parameterization: Parameterization, u: Tensor, t: Tensor
) -> Tensor:
    """The prediction of the data from states u (B, 2d) or (B, 2C, H, W) at times t (B,), float64.

    Differentiable in the state and in the network's parameters.

    Raises ValueError for times at which the network cannot be asked.
    """
    times = t.detach().cpu().numpy()
    made, inputs = x0_map(sde, times, parameterization), input_map(sde, times, parameterization)
    seen, argument = u, t
    if inputs is not None:
        seen = _combined(inputs[0], u).to(network_dtype(net) or u.dtype)
        argument = torch.from_numpy(inputs[1]).to(t.device)
    output = _checked(net(seen, argument.to(u.dtype)), u, output_planes(parameterization))
    return _combined(made.from_output, output) + _combined(made.from_state, u)


def denoised_plane(net: Any, sde: LinearPhaseSDE, form: DataForm, y: Tensor, t: Tensor) -> Tensor:
    """The prediction of the data from `y = x0 + sigma_y n`, (B, d) or (B, C, H, W).

    t (B,), float64: the times at which the process has these noise levels.
    """
    marginal = sde.marginal(t.detach().cpu().numpy())
    made = form.coefficients(marginal.sigma_y)
    _, argument = seen_by(form, marginal)
    assert made.scale is not None  # of a form that sees y
    seen = _rows(made.scale, y) * y
    argument = torch.from_numpy(argument).to(device=y.device, dtype=y.dtype)
    output = net(seen.to(network_dtype(net) or y.dtype), argument)
    output = _checked(output, torch.cat([y, y], dim=1), 1)
    return _rows(made.keep, y) * y + _rows(made.gain, y) * output


def _combined(rows: np.ndarray, planes: Tensor) -> Tensor:
    """`rows @ planes` at each coordinate: rows (B, 1, r), planes (B, rC, ...) to (B, C, ...)."""
    parts = planes.chunk(rows.shape[-1], dim=1)
    terms = [_rows(rows[:, 0, j], part) * part for j, part in enumerate(parts)]
    return torch.stack(terms).sum(0)


def _rows(values: np.ndarray, like: Tensor) -> Tensor:
    """A number for each row, rounded once."""
    made = torch.from_numpy(np.ascontiguousarray(values)).to(like.device, like.dtype)
    return made.reshape(-1, *[1] * (like.ndim - 1))


def _checked(output: Any, u: Tensor, planes: int) -> Tensor:
    """The network's output in the dtype of the state; ValueError for another shape."""
    wanted = (u.shape[0], planes * (u.shape[1] // 2), *u.shape[2:])
    if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the network's output: expected {wanted}, got {got}")
    return output.to(u.dtype)
