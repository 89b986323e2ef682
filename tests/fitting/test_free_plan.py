"""The free numbers of a plan: what they are, what they keep, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exact_x0 import exact_x0

from cldfast.fitting.free_plan import FreePlan
from cldfast.fitting.rollout import rollout, sizes_of_change
from cldfast.kernels import NoiseAddress
from cldfast.planner.law import exact_network
from cldfast.planner.make_plan import make_plan
from cldfast.planner.plan import Plan
from cldfast.process.sde import CLD
from cldfast.sampling.run import initial_state, run

BASES: dict[str, dict[str, Any]] = {
    "em": {}, "multistep": {"order": 3}, "stochastic_multistep": {"order": 3, "churn": 0.5},
    "heun": {}, "sscs2": {}, "dpm3": {},
}  # fmt: skip


def base_plan(name: str, sde: CLD, steps: int = 4) -> Plan:
    return make_plan(sde, name, steps, "logistic", parameterization="x0", **BASES[name])


def perturbed(free: FreePlan, sde: CLD, size: float = 0.05) -> torch.Tensor:
    """A random vector, in units of what the stages change."""
    where = NoiseAddress(3)
    u = initial_state(sde, (64, 2), seed=3, dtype=torch.float64)
    free.scale(sizes_of_change(free, exact_x0(sde), u, where, "auto"))
    generator = torch.Generator().manual_seed(0)
    return size * torch.randn(free.size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", BASES)
def test_the_zero_vector_is_the_base(name: str, sde: CLD) -> None:
    base = base_plan(name, sde)
    free = FreePlan(base)
    same = free.plan(free.zeros())
    u = initial_state(sde, (5, 3), seed=1, dtype=torch.float64)
    made, wanted = (run(plan, exact_x0(sde), u, seed=2) for plan in (same, base))
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(same.grid, base.grid, rtol=0, atol=1e-15)
    assert same.evaluations == base.evaluations and same.solver == f"fitted {name}"


@pytest.mark.parametrize("name", BASES)
def test_what_a_vector_keeps(name: str, sde: CLD) -> None:
    """Descending times between the ends, zeros of noise factors, lower triangles."""
    base = base_plan(name, sde)
    free = FreePlan(base)
    plan = free.plan(perturbed(free, sde, 0.3))
    times = [stage.t for stage in plan.stages if stage.t is not None]
    assert times[0] == base.stages[0].t and all(np.diff(times) <= 0.0) and times[-1] > 0.0
    assert plan.grid[-1] == base.grid[-1] and np.all(np.diff(plan.grid) < 0.0)
    ends = [stage.t_next for stage in plan.stages]
    assert np.all(np.diff(ends) <= 1e-15) and ends[-1] == pytest.approx(base.grid[-1])
    for stage, own in zip(plan.stages, base.stages, strict=True):
        assert np.array_equal(stage.L != 0.0, own.L != 0.0)
        assert stage.t is None or stage.t >= stage.t_next


@pytest.mark.parametrize("name", ["multistep", "stochastic_multistep", "dpm3"])
def test_a_rollout_runs_the_plan_of_its_vector(name: str, sde: CLD) -> None:
    free = FreePlan(base_plan(name, sde))
    vector = perturbed(free, sde)
    u = initial_state(sde, (5, 3), seed=1, dtype=torch.float64)
    made = rollout(free, vector, exact_x0(sde), u, NoiseAddress(2, 7), "auto")
    wanted = run(free.plan(vector), exact_x0(sde), u, seed=2, first_index=7)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["x0", "denoiser", "edm"])
def test_gradients_of_a_rollout(form: str, backend: str) -> None:
    """Against finite differences: coefficients, noise factors and times.

    The planes that a network of y sees, and its argument, are functions of the times.
    """
    if backend == "triton":
        pytest.skip("float64 is not what this backend is for")
    sde = CLD(a=1.0, x_noise=0.25)
    base = make_plan(sde, "stochastic_multistep", 3, "logistic", parameterization=form, order=3)
    free = FreePlan(base)
    u = initial_state(sde, (3, 1), seed=1, dtype=torch.float64, device="cpu")
    net = exact_x0(sde) if form == "x0" else bent
    free.scale(sizes_of_change(free, net, u, NoiseAddress(3), "auto"))
    generator = torch.Generator().manual_seed(0)
    vector = 0.05 * torch.randn(free.size, generator=generator, dtype=torch.float64)
    vector.requires_grad_()
    made, wanted = (
        rollout(free, vector, net, u, NoiseAddress(2), backend),
        run(free.plan(vector), net, u, seed=2, backend=backend),
    )
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)

    def value(vector: torch.Tensor) -> torch.Tensor:
        made = rollout(free, vector, net, u, NoiseAddress(2), backend)
        return (made * torch.arange(1.0, 7.0, dtype=torch.float64).reshape(3, 2)).sum()

    assert torch.autograd.gradcheck(value, (vector,), atol=1e-6)
    (gradient,) = torch.autograd.grad(value(vector), vector)
    assert gradient[-3:].abs().min() > 0.0  # of the gaps after the first time


def bent(y: torch.Tensor, argument: torch.Tensor) -> torch.Tensor:
    """A network that sees y, smooth in both of its arguments."""
    return torch.tanh(y + 0.3 * argument[:, None])


def test_the_unit_of_a_coefficient(sde: CLD) -> None:
    free = FreePlan(base_plan("multistep", sde))
    u = initial_state(sde, (200, 2), seed=3, dtype=torch.float64)
    sizes = sizes_of_change(free, exact_x0(sde), u, NoiseAddress(0), "auto")
    assert [s.shape for s in sizes] == [m.shape for m in free.matrices]
    x, v = u.chunk(2, dim=1)
    made = run(make_plan_of_first_stage(free.base), exact_x0(sde), u, seed=0)
    change, whole = (w.chunk(2, dim=1)[1].square().mean().sqrt() for w in (made - u, made))
    unit = (change * whole).sqrt()
    assert sizes[0][1, 0] == pytest.approx(float(unit / x.square().mean().sqrt()), rel=1e-9)
    assert sizes[0][1, 1] == pytest.approx(float(unit / v.square().mean().sqrt()), rel=1e-9)
    assert sizes[0][1, -1] == pytest.approx(float(unit), rel=1e-9)  # a normal has size 1


def make_plan_of_first_stage(plan: Plan) -> Plan:
    return Plan(
        plan.stages[:1], plan.sde, "first", 1, plan.parameterization, plan.grid[:2]
    )  # fmt: skip


def test_the_law_of_a_vectors_plan(sde: CLD) -> None:
    """`gaussian_law` of fitted coefficients is what samples of a perfect network have."""
    mean, var = 0.4, 0.3
    free = FreePlan(base_plan("stochastic_multistep", sde))
    plan = free.plan(perturbed(free, sde))

    def net(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        gain, shift = exact_network(sde, [float(t[0])], "x0", mean, var)
        x, v = u.chunk(2, dim=1)
        return gain[0, 0, 0] * x + gain[0, 0, 1] * v + shift[0, 0]

    rows = 200_000
    u = run(plan, net, initial_state(sde, (rows, 1), seed=5, dtype=torch.float64), seed=5)
    law = plan.gaussian_law(data_mean=mean, data_var=var)
    # Four standard errors of a mean and of a covariance.
    spread = np.sqrt(np.diag(law.cov))
    assert np.all(np.abs(u.mean(0).numpy() - law.mean) < 4.0 * spread / rows**0.5)
    made = np.cov(u.numpy().T)
    assert np.all(np.abs(made - law.cov) < 4.0 * np.outer(spread, spread) * (2.0 / rows) ** 0.5)


def test_a_base_that_goes_back_in_time_is_refused(sde: CLD) -> None:
    stages = base_plan("em", sde).stages[:2]
    with pytest.raises(ValueError, match="descending times"):
        FreePlan(Plan(stages[::-1], sde, "back", 1, "x0", np.array([1.0, 0.5, 0.1])))
