"""Fitted plans of a run folder: `plans/8.json` is the one with 8 evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cldfast.app.training_data import training_data
from cldfast.files import PathLike, locked, member
from cldfast.fitting.fit import FitResult, fit_plan
from cldfast.lab.metrics import nearest_ratio
from cldfast.model.run_folder import PLANS, RunConfig, load_run
from cldfast.network import Network
from cldfast.planner.plan import Plan
from cldfast.process.sde import LinearPhaseSDE
from cldfast.sampling.run import sample

# Samples whose nearest rows of the data are looked for.
_LOOKED_AT = 1_024


def plan_path(folder: PathLike, evaluations: int) -> Path:
    """Where a run folder keeps its plan of so many evaluations; ValueError for a link out of it."""
    return member(folder, PLANS, f"{evaluations}.json")


def fit_run(
    folder: PathLike, evaluations: int, *, device: torch.device | None = None, **options: Any
) -> tuple[FitResult, dict[str, Any]]:
    """Fit a plan to the network of a run folder and write it there; returns it with its figures.

    device: of the fit; None is the CPU. options: of `cldfast.fit_plan`. The data are those that
        the run was trained on.

    Raises ValueError for a run without data, options that do not fit, and a folder that another
    process writes.
    """
    loaded, sde, config = load_run(folder)
    with locked(folder):
        return _fit(folder, loaded, sde, config, evaluations, device, options)


def _fit(
    folder: PathLike,
    loaded: nn.Module,
    sde: LinearPhaseSDE,
    config: RunConfig,
    evaluations: int,
    device: torch.device | None,
    options: dict[str, Any],
) -> tuple[FitResult, dict[str, Any]]:
    net: Network = loaded.to(device)
    if config.data is None:
        raise ValueError(f"{folder} says nothing of its data: there is nothing to fit a plan to")
    data = training_data(config.data)
    if config.model.get("classes") is not None and data.labels is not None:
        net = _Labelled(loaded, data.labels).to(device)
    result = fit_plan(
        net, sde, data.rows, evaluations, t_min=config.t_min, parameterization=config.form,
        **options,
    )  # fmt: skip
    shape = (_LOOKED_AT, *config.shape)
    drawn: Any = sample(net, sde, shape, plan=result.plan, batch_size=256, seed=0)
    figures = {
        "evaluations": evaluations, "shape": list(config.shape), "improved": result.improved,
        "base": result.before, "fitted": result.after, "seconds": round(result.seconds, 1),
        "nearest_ratio": nearest_ratio(drawn.cpu(), data.rows, data.held_out),
        "options": {name: value for name, value in options.items() if name != "progress"},
    }  # fmt: skip
    path = plan_path(folder, evaluations)
    path.parent.mkdir(exist_ok=True)
    result.plan.save(path, figures)
    return result, figures


class _Labelled(nn.Module):
    """A network of classes, the rows of each call having the labels of the data's first rows."""

    def __init__(self, net: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.net = net
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        rows = torch.arange(len(u), device=u.device) % len(self.labels)
        made: Tensor = self.net(u, t, self.labels[rows])
        return made


def plan_of_run(
    folder: PathLike, sde: LinearPhaseSDE, config: RunConfig, choice: str | None, steps: int
) -> Plan | None:
    """The plan to sample a run with.

    choice: a file; "none" for no plan; None for the folder's own plan with `steps` evaluations,
        where it has one.

    Raises ValueError for a file that is no plan, or one for another process, parameterisation or
    shape.
    """
    if choice == "none":
        return None
    path = plan_path(folder, steps) if choice is None else Path(choice)
    if choice is None and not path.exists():
        return None
    plan, figures = Plan.load(path, sde, config.form), Plan.figures(path)
    if (shape := figures.get("shape")) not in (None, list(config.shape)):
        raise ValueError(f"{path}: the plan is for samples {shape}, not {list(config.shape)}")
    return plan
