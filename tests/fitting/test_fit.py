"""Fits on a small mixture with its exact network: better samples, the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_x0 import exact_rows, exact_x0

import cldfast
from cldfast.fitting.fit import FitResult, _Fit, fit_plan
from cldfast.fitting.free_plan import FreePlan
from cldfast.fitting.objective import Objective, objective_weights
from cldfast.fitting.targets import FIT, Source
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.process.sde import CLD

DATA = exact_rows(40_000, 1, 11)
QUICK: dict[str, Any] = {
    "parameterization": "x0", "steps": 40, "batch_size": 1024, "step_size": 0.02, "projections": 1,
}  # fmt: skip


def fit(
    sde: CLD, evaluations: int = 3, data: torch.Tensor | None = DATA, **options: Any
) -> FitResult:
    return fit_plan(exact_x0(sde), sde, data, evaluations, **(QUICK | options))


@pytest.fixture(scope="module")
def fitted() -> FitResult:
    return fit(CLD(a=1.0))


def spread_error(plan: Plan) -> float:
    """W2 between the absolute values of samples and data; chance moves most of what signs say."""
    rows = 20_000
    x = cldfast.sample(exact_x0(plan.sde), plan.sde, (rows, 1), plan=plan, seed=77)
    exact = exact_rows(rows, 1, 78)
    assert isinstance(x, torch.Tensor)
    return float((x.abs().sort(0).values - exact.abs().sort(0).values).square().mean().sqrt())


def test_a_fit_beats_its_base(fitted: FitResult, sde: CLD) -> None:
    """Also by another distance, on rows and noise that no fit has seen."""
    assert fitted.improved and fitted.after < 0.5 * fitted.before
    base = make_plan(
        sde, "stochastic_multistep", 3, "logistic", parameterization="x0", order=3, churn=0.5
    )
    assert spread_error(fitted.plan) < 0.7 * spread_error(base)
    assert fitted.plan.evaluations == 3 and fitted.plan.solver == "fitted stochastic_multistep"
    steps = [step for step, _, _ in fitted.history]
    assert steps == [0, 10, 20, 30, 40] and fitted.seconds > 0.0


def test_a_fit_is_a_function_of_its_seed(fitted: FitResult, sde: CLD) -> None:
    again, other = fit(sde), fit(sde, seed=1)
    for made, wanted in zip(again.plan.matrices(), fitted.plan.matrices(), strict=True):
        assert np.array_equal(made, wanted)
    assert (again.before, again.after) == (fitted.before, fitted.after)
    assert not np.array_equal(other.plan.matrices()[0], fitted.plan.matrices()[0])


def test_a_fitted_plan_is_a_plan_like_any(fitted: FitResult, sde: CLD, tmp_path: Path) -> None:
    """Batches, shards, files and backends give the same samples."""
    net = exact_x0(sde)
    fitted.plan.save(tmp_path / "3.json")
    read = Plan.load(tmp_path / "3.json", sde, "x0")
    whole = cldfast.sample(net, sde, (7, 2), plan=fitted.plan, seed=5)
    assert isinstance(whole, torch.Tensor)
    for options in ({"batch_size": 3}, {"plan": read}):
        same = cldfast.sample(net, sde, (7, 2), **({"plan": fitted.plan, "seed": 5} | options))
        assert torch.equal(same, whole)
    part = cldfast.sample(net, sde, (3, 2), plan=read, seed=5, first_index=4)
    assert torch.equal(part, whole[4:])
    other = cldfast.sample(net, sde, (7, 2), plan=read, seed=5, backend="reference")
    torch.testing.assert_close(other, whole, rtol=1e-4, atol=1e-5)


def test_a_fit_that_does_not_win_returns_its_base(sde: CLD) -> None:
    base = make_plan(sde, "multistep", 3, "auto", parameterization="x0", order=3)
    result = fit(sde, base=base, steps=2, step_size=30.0)
    assert not result.improved and result.plan is base and result.after == result.before


def test_two_passes_give_the_gradient_of_one(sde: CLD) -> None:
    """Sampling first and running again chunk by chunk changes nothing but roundings."""
    base = make_plan(sde, "stochastic_multistep", 3, parameterization="x0", order=3)
    free = FreePlan(base)
    objective = Objective(objective_weights("energy"), 1, None)
    gradients = []
    for chunk in (64, 24):
        source = Source(
            exact_x0(sde), 0, "auto", (1,), torch.float32, torch.device("cpu"), chunk,
            {FIT: DATA[:64]}, {},
        )  # fmt: skip
        run = _Fit(free, source, objective, 64)
        gradients.append(run._gradient(free.zeros().requires_grad_(), 1)[1])
    assert gradients[0].abs().max() > 0.0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_a_teacher_takes_the_place_of_data(sde: CLD) -> None:
    result = fit(sde, data=None, shape=(1,))
    assert result.improved and result.after < 0.5 * result.before


def test_paths_follow_a_teacher(sde: CLD) -> None:
    """The mean squared distance to the teacher's end points, from the same initial states."""
    result = fit(sde, data=None, shape=(1,), objective="paths")
    assert result.improved and result.after < 0.7 * result.before
    net = exact_x0(sde)
    base = make_plan(sde, "multistep", 3, "auto", parameterization="x0", order=3)
    teacher = make_plan(sde, "multistep", 64, "auto", parameterization="x0", order=3)
    ends, old, new = (
        cldfast.sample(net, sde, (5000, 1), plan=p, seed=9) for p in (teacher, base, result.plan)
    )
    assert (new - ends).square().mean() < 0.8 * (old - ends).square().mean()  # type: ignore[operator]
    mixed = fit(sde, objective={"energy": 1.0, "paths": 0.1})
    assert mixed.improved


def test_features_are_what_is_compared(sde: CLD) -> None:
    """A map that forgets the sign leaves the fit nothing to say about it."""
    seen = []

    def features(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return x.abs()

    assert fit(sde, features=features).improved and (1024, 1) in seen
    with pytest.raises(ValueError, match="features must map"):
        fit(sde, features=lambda x: x.sum())


def test_a_callback_may_end_a_fit(sde: CLD) -> None:
    losses = []
    result = fit(sde, callback=lambda step, loss: losses.append(loss) or step == 7)
    assert len(losses) == 7 and result.history[-1][0] == 7


def test_the_networks_weights_and_gradients_are_left_alone(sde: CLD) -> None:
    net = torch.nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()
    fit_plan(lambda u, t: net(u), sde, DATA, 2, **(QUICK | {"steps": 2}))
    assert torch.equal(net.weight, before) and net.weight.grad is None and net.weight.requires_grad


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"evaluations": 0}, ValueError, "evaluations must be an integer >= 1"),
        ({"batch_size": 1}, ValueError, "batch_size must be an integer >= 2"),
        ({"objective": "fid"}, ValueError, "objective must be one of energy, paths"),
        ({"objective": {"energy": -1.0}}, ValueError, "weight of 'energy' must be a number > 0"),
        ({"data": None}, ValueError, "needs the shape of a sample"),
        ({"data": [1.0]}, TypeError, "data must be a tensor"),
        ({"data": torch.zeros(4, 1)}, ValueError, "4 held out"),
        ({"held_out": torch.zeros(9, 2)}, ValueError, "held_out must be like data"),
        ({"base": 3}, TypeError, "base must be a solver's name or a plan"),
        ({"base": "heun"}, ValueError, "has 2 evaluations, not 3"),
        ({"base": make_plan(CLD(a=2.0), "em", 3)}, ValueError, "another process"),
        ({"base": "em", "objective": "paths"}, ValueError, "without noise"),
        ({"seed": -1}, ValueError, "seed must be"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(options: Any, error: Any, words: str, sde: CLD) -> None:
    with pytest.raises(error) as caught:
        fit(sde, **options)
    assert words in str(caught.value)


def test_sample_refuses_a_plan_for_something_else(fitted: FitResult, sde: CLD) -> None:
    net = exact_x0(sde)
    for options, words in (
        ({"steps": 3}, "leave out steps"),
        ({"solver": "em"}, "leave out solver"),
        ({"t_min": 0.1}, "leave out t_min"),
        ({"parameterization": "score"}, "parameterization 'x0', not 'score'"),
    ):
        with pytest.raises(ValueError, match=words):
            cldfast.sample(net, sde, (2, 1), plan=fitted.plan, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another process"):
        cldfast.sample(net, CLD(a=1.1), (2, 1), plan=fitted.plan)
    with pytest.raises(TypeError, match="must be a cldfast.Plan"):
        cldfast.sample(net, sde, (2, 1), plan="3.json")  # type: ignore[arg-type]
    wide = replace(fitted.plan, parameterization="full_score")
    with pytest.raises(ValueError, match="full_score"):
        cldfast.sample(lambda u, t: u, sde, (2, 1), plan=wide)
