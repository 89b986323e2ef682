"""Networks of every parameterisation, asked as samplers ask them."""

from __future__ import annotations

import numpy as np
import torch

from cldfast import LinearPhaseSDE
from cldfast.planner.parameterization import (
    PARAMETERIZATIONS,
    Parameterization,
    data_form,
    input_map,
)

SEE_Y = tuple(name for name in PARAMETERIZATIONS if (form := data_form(name)) and form.sees_y)
SEE_THE_STATE = tuple(name for name in PARAMETERIZATIONS if name not in SEE_Y)


def question(
    sde: LinearPhaseSDE, t: float, parameterization: Parameterization, u: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a network gets for a state u at time t: u or a plane of it, and t or its argument."""
    inputs = input_map(sde, np.array([t]), parameterization)
    argument = t if inputs is None else float(inputs[1][0])
    if inputs is not None:
        ((on_x, on_v),) = inputs[0][0].tolist()
        x, v = u.chunk(2, dim=1)
        u = on_x * x + on_v * v
    return u, torch.full((1,), argument, dtype=u.dtype).expand(len(u))
