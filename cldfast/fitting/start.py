"""What a fit starts from: its base plan, and data that are kept apart by what they decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cldfast.fitting.targets import CHOOSE, FIT, JUDGE
from cldfast.planner.make_plan import make_plan
from cldfast.planner.parameterization import Parameterization
from cldfast.planner.plan import Plan
from cldfast.planner.solvers import SOLVERS
from cldfast.process.sde import LinearPhaseSDE

# Of the base "auto": noise mends errors of the network (docs/solvers.md), and its size is fitted.
CHURN = 0.5
# Part of the data that is held out, half of it to choose a plan and half to judge it.
_HELD_OUT = 0.2


def base_plan(
    sde: LinearPhaseSDE,
    base: str | Plan,
    evaluations: int,
    parameterization: Parameterization | None,
    t_min: float,
    *,
    noise: bool,
) -> Plan:
    """The plan that a fit starts from; noise: whether "auto" may have any."""
    if base == "auto":
        settings: dict[str, Any] = {
            "order": min(3, evaluations), "churn": CHURN if noise else 0.0,
        }  # fmt: skip
        return make_plan(
            sde, "stochastic_multistep", evaluations, "logistic", t_min, parameterization,
            **settings,
        )  # fmt: skip
    if isinstance(base, str):
        per_step = SOLVERS[base].evaluations_per_step if base in SOLVERS else 1
        intervals = max(evaluations // per_step, 1)
        base = make_plan(sde, base, intervals, "auto", t_min, parameterization)
    if not isinstance(base, Plan):
        raise TypeError(f"base must be a solver's name or a plan, got {type(base).__name__}")
    base.check_made_for(sde, parameterization)
    if base.evaluations != evaluations:
        raise ValueError(
            f"the base, {base.solver}, has {base.evaluations} evaluations, not {evaluations}"
        )
    return base


def split_rows(data: Tensor, held_out: Tensor | None, seed: int) -> dict[int, Tensor]:
    """The rows that fit, choose and judge."""
    for name, rows in (("data", data), ("held_out", held_out)):
        if rows is not None and (not isinstance(rows, Tensor) or rows.ndim not in (2, 4)):
            raise TypeError(f"{name} must be a tensor (n, d) or (n, C, H, W), got {_said(rows)}")
    if held_out is None:
        order = torch.randperm(
            len(data), generator=torch.Generator().manual_seed(seed), device="cpu"
        )
        data = data[order.to(data.device)]
        kept = len(data) - int(_HELD_OUT * len(data))
        data, held_out = data[:kept], data[kept:]
    elif held_out.shape[1:] != data.shape[1:]:
        raise ValueError(f"held_out must be like data, {_said(data)}, got {_said(held_out)}")
    half = len(held_out) // 2
    if min(half, len(data)) < 2:
        raise ValueError(
            f"a fit needs 2 rows of data and 4 held out, got {len(data)} and {len(held_out)}"
        )
    return {FIT: data, CHOOSE: held_out[:half], JUDGE: held_out[half:]}


def _said(rows: object) -> str:
    return f"{tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__


def has_noise(plan: Plan) -> bool:
    """Whether any stage of a plan adds noise."""
    return any(stage.L.any() for stage in plan.stages)
