"""Runs that leave the finite numbers, and networks that fail: what is said, and what is left behind."""

from __future__ import annotations

import gc
import traceback
import weakref
from collections.abc import Callable

import pytest
import torch

import cldfast
from cldfast import classical, make_plan, run, sample
from cldfast.sampling.nonfinite import FiniteWatch

SDE = cldfast.CLD()
Tensor = torch.Tensor


def score(u: Tensor, t: Tensor) -> Tensor:
    return -u[:, u.shape[1] // 2 :]


def failing(call: int, fail: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A network that is asked once a stage and fails from one time on."""
    plan_times: list[float] = []

    def net(u: Tensor, t: Tensor) -> Tensor:
        now = float(t[0])
        if now not in plan_times:
            plan_times.append(now)
        return fail(score(u, t)) if plan_times.index(now) >= call else score(u, t)

    return net


def some_nan(o: Tensor) -> Tensor:
    return torch.where(torch.arange(len(o)) < 3, torch.nan, 1.0)[:, None] * o


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("em", {}), ("multistep", {"order": 3}), ("unipc", {}), ("heun", {}), ("sscs2", {}),
        ("stochastic_multistep", {"noise": "brownian"}), ("em", {"batch_size": 8}),
    ],
)  # fmt: skip
def test_the_first_stage_is_named(solver: str, options: dict) -> None:
    given = {"parameterization": "score", **{k: v for k, v in options.items() if k == "order"}}
    plan = make_plan(SDE, solver, 6, **given)
    times = [stage.t for stage in plan.stages]
    index = times.index(sorted({t for t in times if t is not None})[-4])
    words = (
        rf"^3 of 8 samples diverged: in stage {index} of {len(plan.stages)} of solver '{solver}', "
    )
    before = plan.grid[0] if index == 0 else plan.stages[index - 1].t_next
    words += rf"from t = {before:.6g} to {plan.stages[index].t_next:.6g}, the network returned NaN"
    with pytest.raises(ValueError, match=words):
        sample(failing(3, some_nan), SDE, (8, 2), solver, 6, **options)
    kept = sample(failing(3, some_nan), SDE, (8, 2), solver, 6, nonfinite="return", **options)
    assert kept.isnan().any(1).tolist() == [True] * 3 + [False] * 5


def test_a_state_that_grows_too_far_is_told_from_a_network_that_fails() -> None:
    plan = make_plan(SDE, "em", 5)
    with pytest.raises(ValueError, match=r"in stage \d of 5 .* the state grew beyond"):
        run(plan, lambda u, t: 1e38 + 0.0 * score(u, t), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="4 of 4 .* the states to start from are not finite"):
        run(plan, score, torch.full((4, 4), torch.nan))
    with pytest.raises(ValueError, match="nonfinite must be one of raise, return, got 'warn'"):
        run(plan, score, torch.zeros(4, 4), nonfinite="warn")


def test_a_callback_is_called_once_and_sees_finite_states() -> None:
    seen: list[tuple[int, bool]] = []

    def callback(step: int, t: float, u: Tensor) -> None:
        seen.append((step, bool(u.isfinite().all())))

    with pytest.raises(ValueError, match="in stage 3 of 6 .* the network returned NaN"):
        sample(failing(3, some_nan), SDE, (8, 2), "em", 6, callback=callback)
    assert seen == [(0, True), (1, True), (2, True)]
    with pytest.raises(ValueError, match="in stage 1 of 6 .* the network returned NaN"):
        sample(score, SDE, (8, 2), "em", 6, callback=lambda step, t, u: u * torch.nan)
    with pytest.raises(ValueError, match="8 of 8 .* what a callback returned"):
        last = {5: torch.nan}
        sample(score, SDE, (8, 2), "em", 6, callback=lambda step, t, u: u * last.get(step, 1.0))


def test_flags_of_a_device_are_read_at_the_end() -> None:
    """Where a device would have to be waited for, flags are kept and the first one counts."""
    plan = make_plan(SDE, "em", 4)
    watch = FiniteWatch(plan, torch.zeros(2, 4))
    yes, no = torch.tensor(True), torch.tensor(False)
    watch._flags = [(yes, yes), (yes, yes), (no, yes), (no, no)]
    assert "1 of 2 samples diverged: in stage 2 of 4" in str(
        watch.error(torch.tensor([[0.0] * 4, [torch.inf] * 4]))
    )


def test_a_network_that_is_no_function_is_said_to_be_none() -> None:
    calls = iter(range(100))

    def net(u: Tensor, t: Tensor) -> Tensor:
        return some_nan(score(u, t)) if next(calls) == 2 else score(u, t)

    with pytest.raises(ValueError, match=r"the network does not return the same .* net.eval\(\)"):
        sample(net, SDE, (8, 2), "em", 5)


def test_other_samplers_say_so_too() -> None:
    start = torch.zeros(8, 2)
    with pytest.raises(
        ValueError, match="3 of 8 samples diverged: in stage 2 of 4 of solver 'ula'"
    ):
        classical.ula(lambda x, t: some_nan(-x) if t[0] < 0.25 else -x, start, 0.1, 4)
    with pytest.raises(ValueError, match="the log density is not finite for 8 of 8"):
        classical.mala(lambda x: x.sum(1) * torch.nan, start, 0.1, 4)
    pytest.importorskip("torchdiffeq")
    with pytest.raises(
        ValueError, match="the probability flow diverged: at t = 1 the network's out"
    ):
        cldfast.pflow(lambda u, t: score(u, t) * torch.nan, SDE, (8, 2))


@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError, KeyError])
def test_an_error_of_the_network_says_where_and_leaves_nothing(kind: type[Exception]) -> None:
    kept: list[weakref.ref[Tensor]] = []

    def net(u: Tensor, t: Tensor) -> Tensor:
        output = score(u, t).clone()
        kept.extend([weakref.ref(u), weakref.ref(output)])
        if len(kept) == 8:
            raise kind("no more")
        return output

    gc.disable()  # what is left would wait for a collection
    try:
        with pytest.raises(kind) as caught:
            sample(net, SDE, (1_000, 2), "multistep", 8, order=3)
        shown = "".join(traceback.format_exception_only(caught.value))
        assert "no more" in shown
        assert "(1000, 4) float32 in stage 3 of 8 of solver 'multistep', at t = " in shown
        del caught
        assert [ref() for ref in kept] == [None] * 8
    finally:
        gc.enable()
