"""A budget of evaluations in place of steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cldfast
from cldfast import classical, make_plan
from cldfast.planner.solvers import SOLVERS

SDE = cldfast.CLD()


@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
@pytest.mark.parametrize("denoise", [False, True])
def test_the_most_steps_within_the_budget(solver: str, denoise: bool) -> None:
    costs = {n: make_plan(SDE, solver, n, denoise=denoise).evaluations for n in range(1, 15)}
    for nfe in (1, 2, 3, 4, 7, np.int64(12)):
        within = [n for n, cost in costs.items() if cost <= nfe]
        if within:
            plan = make_plan(SDE, solver, nfe=nfe, denoise=denoise)
            assert plan.steps == max(within) and plan.evaluations <= nfe
        else:
            with pytest.raises(ValueError, match=f"more than nfe = {nfe}"):
                make_plan(SDE, solver, nfe=nfe, denoise=denoise)


def test_budgets_elsewhere() -> None:
    net = lambda u, t: -u[:, 2:]  # noqa: E731
    nfe = make_plan(SDE, "heun", 5).evaluations + 1
    made = cldfast.sample(net, SDE, (4, 2), "heun", nfe=nfe, seed=1)
    assert torch.equal(made, cldfast.sample(net, SDE, (4, 2), "heun", 5, seed=1))
    assert make_plan(classical.VP(), nfe=6, t_min=0.01).evaluations == 6
    long = make_plan(SDE, "dpm3", nfe=1_000)
    assert long.evaluations <= 1_000 < make_plan(SDE, "dpm3", long.steps + 1).evaluations
    for bad in (0, -3, 2.5, True):
        with pytest.raises(ValueError, match="nfe must be an integer >= 1"):
            make_plan(SDE, nfe=bad)
    with pytest.raises(ValueError, match="a grid given as times has its own steps"):
        make_plan(SDE, grid=[1.0, 0.5, 0.1], nfe=4)
    with pytest.raises(ValueError, match="a plan says all of a sampler: leave out nfe"):
        cldfast.sample(net, SDE, (4, 2), plan=long, nfe=4)
