"""`compat.diffusers`: the scheduler beside `cldfast.run`, and the pipeline example end to end."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import cldfast
from cldfast.fitting.free_plan import FreePlan
from cldfast.planner.plan import Plan
from cldfast.planner.solvers import SOLVERS

# No test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("diffusers")
from cldfast.compat.diffusers import CLDScheduler  # noqa: E402

SDE = cldfast.CLD()
SHAPE = (3, 4, 2, 3)


def network(u: torch.Tensor, t: torch.Tensor, planes: int = 1) -> torch.Tensor:
    """Some smooth function of the state and of t, on [0, 1], (B,)."""
    x, v = u.chunk(2, dim=1)
    phase = torch.cos(3.0 * t.to(u)).reshape(-1, *[1] * (u.dim() - 1))
    first = torch.tanh(0.3 * x - 0.5 * v + phase)
    return first if planes == 1 else torch.cat([first, torch.tanh(x + v - phase)], 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loop(
    scheduler: CLDScheduler,
    sample: torch.Tensor,
    noises: list[torch.Tensor] | None = None,
    begin: int = 0,
    **options: Any,
) -> torch.Tensor:
    """The usual sampling loop."""
    assert scheduler.plan is not None
    planes = scheduler.plan.output_planes[0]
    for k, t in enumerate(scheduler.timesteps):
        if k < begin:
            continue
        state = scheduler.scale_model_input(sample, t)
        output = network(state, (t / 1000.0).expand(len(sample)), planes)
        extra = options if noises is None else options | {"variance_noise": noises[k]}
        sample = scheduler.step(output, t, sample, **extra).prev_sample
    return sample


def first_state(scheduler: CLDScheduler, z: torch.Tensor) -> torch.Tensor:
    state = scheduler.scale_model_input(z, scheduler.timesteps[0])
    scheduler.set_timesteps(scheduler.num_inference_steps)
    return state


@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_are_those_of_the_plan(solver: str) -> None:
    scheduler = CLDScheduler(solver=solver, grid="linear", t_min=0.05)
    scheduler.set_timesteps(5)
    plan = scheduler.plan
    assert plan is not None and len(scheduler.timesteps) == plan.evaluations
    assert scheduler.order == plan.evaluations // 5
    z = torch.randn(SHAPE, dtype=torch.float64)
    noises = [torch.randn(SHAPE, dtype=torch.float64) for _ in scheduler.timesteps]
    u = first_state(scheduler, z)
    found = loop(scheduler, z, noises)
    leading = next(k for k, stage in enumerate(plan.stages) if stage.evaluates)
    rest = Plan(
        plan.stages[leading:], plan.sde, plan.solver, plan.order, plan.parameterization, plan.grid
    )
    by_stage: list[torch.Tensor | None] = []
    at = -1
    for stage in rest.stages:
        at += stage.evaluates
        by_stage.append(noises[at])
    wanted = cldfast.run(rest, network, u, noise=by_stage)
    # Times reach the network through float32 timesteps: 1e-7 of them.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parameterization", ["noise", "mixed", "x0", "full_score", "full_noise"])
def test_parameterizations(parameterization: str) -> None:
    scheduler = CLDScheduler(solver="multistep", parameterization=parameterization, t_min=0.01)
    scheduler.set_timesteps(4)
    plan = scheduler.plan
    assert plan is not None
    planes = plan.output_planes[0]
    z = torch.randn(SHAPE)
    u = first_state(scheduler, z)
    wanted = cldfast.run(plan, lambda u, t: network(u, t, planes), u, seed=0)
    torch.testing.assert_close(loop(scheduler, z), wanted, rtol=1e-4, atol=1e-4)


def factor_of(scheduler: CLDScheduler) -> np.ndarray:
    """The matrix by which the first state comes from unit noise, per coordinate."""
    units = torch.eye(2, dtype=torch.float64)
    return np.asarray(first_state(scheduler, units).T)


@pytest.mark.parametrize("solver", ["em", "sscs"])
@pytest.mark.parametrize("x_noise", [0.0, 0.5])
def test_the_first_state_is_stationary(solver: str, x_noise: float) -> None:
    """Also behind the half-step of SSCS: it is a transition of the stationary process."""
    sde = cldfast.CLD(a=1.0, x_noise=x_noise, beta=cldfast.LinearBeta(2.0, 6.0))
    scheduler = CLDScheduler(sde, solver=solver)
    scheduler.set_timesteps(3)
    F = factor_of(scheduler)
    np.testing.assert_allclose(F @ F.T, sde.prior().cov, atol=1e-12)
    assert scheduler.init_noise_sigma == 1.0


def test_the_first_state_follows_a_leading_drift() -> None:
    """ABOBA begins with `x += h/2 beta a^2 v`."""
    scheduler = CLDScheduler(solver="aboba", grid=[1.0, 0.6, 0.2])
    scheduler.set_timesteps()
    F = factor_of(scheduler)
    # Backwards in time; beta = 4, a = 2, unit variance of x, variance 1/4 of v.
    move = np.array([[1.0, -0.2 * 4.0 * 4.0], [0.0, 1.0]])
    np.testing.assert_allclose(F @ F.T, move @ np.diag([1.0, 0.25]) @ move.T, atol=1e-12)


def test_draws_are_addressed_by_the_generators_seed() -> None:
    scheduler = CLDScheduler(solver="em")
    scheduler.set_timesteps(4)
    assert scheduler.plan is not None
    z = scheduler.initial_noise(SHAPE, generator(7))
    u = first_state(scheduler, z)
    found = loop(scheduler, z, generator=generator(7))
    seed = int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64, generator=generator(7)))
    wanted = cldfast.run(scheduler.plan, network, u, seed=seed)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    prior = cldfast.initial_state(scheduler.sde, (3, 2, 2, 3), seed=seed)
    torch.testing.assert_close(u, prior)


def test_samples_do_not_depend_on_the_batch() -> None:
    scheduler = CLDScheduler(solver="em")

    def draw(rows: int, first_index: int) -> torch.Tensor:
        source = generator(3)
        scheduler.set_timesteps(4)
        shape = (rows, *SHAPE[1:])
        z = scheduler.initial_noise(shape, source, first_index=first_index)
        return loop(scheduler, z, generator=source, first_index=first_index)

    parts = torch.cat([draw(2, 0), draw(1, 2)])
    assert torch.equal(parts, draw(3, 0))


def test_a_generator_per_row() -> None:
    scheduler = CLDScheduler(solver="stochastic_multistep")

    def draw(seeds: list[int]) -> torch.Tensor:
        sources = [generator(seed) for seed in seeds]
        scheduler.set_timesteps(4)
        z = scheduler.initial_noise((len(seeds), *SHAPE[1:]), sources)
        return loop(scheduler, z, generator=sources)

    both = draw([5, 9])
    assert torch.equal(both, torch.cat([draw([5]), draw([9])]))
    assert not torch.equal(both[0], both[1])
    with pytest.raises(ValueError, match="one generator per row, 3, got 1"):
        scheduler.initial_noise(SHAPE, [generator()])


def test_without_a_generator_torchs_seed_governs() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        scheduler = CLDScheduler(solver="em")
        scheduler.set_timesteps(3)
        results.append(loop(scheduler, scheduler.initial_noise(SHAPE)))
    assert torch.equal(*results)


def test_step_returns_a_tuple_on_request_and_keeps_its_input() -> None:
    scheduler = CLDScheduler(solver="em")
    scheduler.set_timesteps(3)
    z = torch.randn(SHAPE)
    kept, t = z.clone(), scheduler.timesteps[0]
    output = network(scheduler.scale_model_input(z, t), t.expand(3))
    (sample,) = scheduler.step(output, t, z, generator(), return_dict=False)
    assert torch.equal(z, kept) and scheduler.step_index == 1
    # From the second step on samples are states.
    assert scheduler.scale_model_input(sample, scheduler.timesteps[1]) is sample


def test_half_precision_outputs_are_taken() -> None:
    scheduler = CLDScheduler(solver="multistep")
    scheduler.set_timesteps(3)
    output = torch.randn(3, 2, 2, 3).bfloat16()
    results = []
    for one in (output, output.float()):
        scheduler.set_timesteps(3)
        z = torch.ones(SHAPE)
        results.append(scheduler.step(one, scheduler.timesteps[0], z).prev_sample)
    assert results[0].dtype == torch.float32 and torch.equal(*results)


def test_noise_is_added_with_the_kernel() -> None:
    sde = cldfast.CLD(x_noise=0.3, beta=cldfast.LinearBeta(1.0, 7.0), T=2.0)
    scheduler = CLDScheduler(sde)
    x0, z = torch.randn(3, 2, 2, 3).double(), torch.randn(SHAPE).double()
    timesteps = torch.tensor([10, 500, 1000])
    found = scheduler.add_noise(x0, z, timesteps)
    kernel = sde.marginal(timesteps.numpy() * 2e-3)
    L = np.linalg.cholesky(kernel.cov)
    for i in range(3):
        x, v = x0[i].numpy(), z[i].numpy().reshape(2, 2, 2, 3)
        wanted = [kernel.mean[i, r] * x + L[i, r, 0] * v[0] + L[i, r, 1] * v[1] for r in (0, 1)]
        np.testing.assert_allclose(found[i].numpy().reshape(2, 2, 2, 3), wanted, atol=1e-12)
    assert torch.equal(scheduler.add_noise(x0, z, torch.tensor(500))[1], found[1])


@pytest.mark.parametrize("solver", ["em", "sscs", "multistep", "unipc", "heun", "dpm3"])
def test_a_run_can_begin_later(solver: str) -> None:
    """From a state at a later timestep, with no history of what came before."""
    scheduler = CLDScheduler(solver=solver, grid="linear", t_min=0.1)
    scheduler.set_timesteps(5)
    begin = 2 * scheduler.order
    u = torch.randn(SHAPE, dtype=torch.float64)
    noises = [torch.randn(SHAPE, dtype=torch.float64) for _ in scheduler.timesteps]
    scheduler.set_begin_index(begin)
    assert scheduler.begin_index == begin and scheduler.step_index is None
    found = loop(scheduler, u, noises, begin)
    if solver == "sscs":
        # Its stages have no memory: the rest of the plan.
        assert scheduler.plan is not None
        plan = scheduler.plan
        later = Plan(plan.stages[3:], plan.sde, solver, 1, "score", plan.grid[2:])
    else:
        grid = scheduler.plan.grid[2:] if scheduler.plan is not None else None
        later = cldfast.make_plan(cldfast.CLD(), solver, grid=grid)
    stages = len(later.stages)
    wanted = cldfast.run(later, network, u, noise=noises[len(noises) - stages :])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # The timestep alone says where to begin, too.
    scheduler.set_timesteps(5)
    if solver != "heun":  # which asks twice at a time
        torch.testing.assert_close(loop(scheduler, u, noises, begin), found)


@pytest.mark.parametrize(
    "sde",
    [
        None,
        cldfast.CLD.from_mass(2.0, 0.1, cldfast.LinearBeta(1.0, 7.0), T=1.5),
        cldfast.PSLD(),
    ],
)
def test_configuration_round_trip(sde: Any, tmp_path: Path) -> None:
    scheduler = CLDScheduler(
        sde, solver="multistep", grid=[1.0, 0.7, 0.25, 0.01], parameterization="x0", denoise=True,
        solver_options={"order": 3}, num_train_timesteps=500,
    )  # fmt: skip
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "CLDScheduler" and saved["sde"]["kind"] in ("cld", "psld")
    again = CLDScheduler.from_pretrained(tmp_path)
    assert dict(again.config) == dict(scheduler.config)
    assert again.sde.config() == scheduler.sde.config() and len(again) == 500
    for one in (scheduler, again):
        one.set_timesteps()
    assert torch.equal(again.timesteps, scheduler.timesteps)
    assert again.plan is not None and scheduler.plan is not None
    for a, b in zip(again.plan.matrices(), scheduler.plan.matrices(), strict=True):
        np.testing.assert_array_equal(a, b)
    # Another solver on the same configuration.
    other = CLDScheduler.from_config(scheduler.config, solver="unipc", grid="auto")
    other.set_timesteps(6)
    assert other.plan is not None and other.plan.solver == "unipc"
    assert other.timesteps[0] == pytest.approx(500.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: CLDScheduler(solver="ddim"), "unknown solver 'ddim'"),
        (lambda s: CLDScheduler(grid="cosine"), "unknown grid 'cosine'"),
        (lambda s: CLDScheduler(num_train_timesteps=0), "num_train_timesteps must be > 0"),
        (lambda s: CLDScheduler({"kind": "ddpm"}), "unknown SDE kind 'ddpm'"),
        (lambda s: s.step(torch.ones(3, 2, 2, 3), 1.0, torch.ones(SHAPE)), "call set_timesteps"),
    ],
)  # fmt: skip
def test_bad_configurations(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(CLDScheduler())


def test_bad_steps() -> None:
    scheduler = CLDScheduler(solver="multistep", solver_options={"order": 3})
    scheduler.set_timesteps(3)
    z, output = torch.randn(SHAPE), torch.randn(3, 2, 2, 3)
    t = scheduler.timesteps
    with pytest.raises(TypeError, match="sample must be float32 or float64"):
        scheduler.step(output, t[0], z.half())
    with pytest.raises(ValueError, match="timestep 123 is none of this run's"):
        scheduler.step(output, 123, z)
    with pytest.raises(ValueError, match=r"model_output must be \(3, r \* 2, 2, 3\)"):
        scheduler.step(torch.randn(2, 2, 2, 3), t[0], z)
    with pytest.raises(
        ValueError, match="'score' needs model_output to have 2 along dimension 1, got 4"
    ):
        scheduler.step(torch.randn(SHAPE), t[0], z)
    scheduler.set_timesteps(3)
    for one in t:
        z = scheduler.step(output, one, z).prev_sample
    with pytest.raises(ValueError, match="all 3 timesteps of this run are done"):
        scheduler.step(output, t[0], z)
    scheduler.set_timesteps(3)
    scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match=r"begin_index must lie in \[0, 3\), got 3"):
        scheduler.step(output, t[0], z)
    halves = CLDScheduler(solver="sscs", solver_options={"merge": False})
    halves.set_timesteps(3)
    later = CLDScheduler(solver="dpm2")
    later.set_timesteps(3)
    later.set_begin_index(1)
    with pytest.raises(ValueError, match="can begin at the start of a step only"):
        later.step(output, t[0], z)


def test_a_timestep_may_draw_twice() -> None:
    """SSCS unmerged: its kick, the half-step after it, and the next one's first half."""
    scheduler = CLDScheduler(solver="sscs", solver_options={"merge": False})
    scheduler.set_timesteps(3)
    z = torch.randn(SHAPE)
    found = [loop(scheduler, z, generator=generator(1))]
    scheduler.set_timesteps(3)
    found.append(loop(scheduler, z, generator=generator(1)))
    assert torch.equal(*found) and bool(torch.isfinite(found[0]).all())
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="draws 2 times"):
        loop(scheduler, z, [z, z, z])


def test_a_missing_diffusers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "cldfast.compat.diffusers")
    with pytest.raises(ImportError, match=r"pip install 'cldfast\[diffusers\]'"):
        importlib.import_module("cldfast.compat.diffusers")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "diffusers_pipeline.py"
    spec = importlib.util.spec_from_file_location("diffusers_pipeline", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_runs(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "images.png"
    example.main(["--steps", "4", "--out", str(out)])
    assert out.stat().st_size > 0
    assert "4 images, 4 network calls each" in capsys.readouterr().out


def images(pipeline: Any, rows: int, first_index: int = 0) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    (result,) = pipeline(rows, generator(2), 3, first_index, "pt", return_dict=False)
    return torch.as_tensor(result)


def test_the_pipeline_is_reproducible(example: ModuleType) -> None:
    pipeline = example.tiny_pipeline(solver="em")
    three = images(pipeline, 3)
    assert three.shape == (3, 3, 16, 16) and torch.equal(three, images(pipeline, 3))
    assert float(three.std()) > 0.01 and not torch.equal(three[0], three[1])
    # The noise is the same bit for bit; a convolution may round by batch size.
    parts = torch.cat([images(pipeline, 2), images(pipeline, 1, 2)])
    torch.testing.assert_close(parts, three, rtol=0, atol=1e-4)


def test_the_pipeline_saves(example: ModuleType, tmp_path: Path) -> None:
    pipeline = example.tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    again = example.CLDPipeline.from_pretrained(tmp_path, local_files_only=True)
    # The same weights at other addresses, whose alignment may change the order of a sum.
    torch.testing.assert_close(images(again, 2), images(pipeline, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["em", "multistep"])
def test_a_scheduler_may_be_copied_in_the_middle_of_a_run(solver: str) -> None:
    scheduler = CLDScheduler(solver=solver)
    scheduler.set_timesteps(4)
    state = first_state(scheduler, scheduler.initial_noise(SHAPE, generator(7)))
    t = scheduler.timesteps[0]
    state = scheduler.step(network(state, t), t, state, generator(7)).prev_sample
    other = copy.deepcopy(scheduler)
    t = scheduler.timesteps[1]
    made = [one.step(network(state, t), t, state).prev_sample for one in (scheduler, other)]
    assert torch.equal(*made)


def test_initial_noise_needs_two_halves() -> None:
    with pytest.raises(ValueError, match="x half then v half"):
        CLDScheduler().initial_noise((1, 3, 4, 4))


def test_a_plan_that_is_given(tmp_path: Path) -> None:
    """A fitted plan is run as `cldfast.sample` runs it, and the configuration carries it."""
    plan = cldfast.make_plan(
        SDE, "stochastic_multistep", 4, "auto", parameterization="noise", order=3
    )
    plan = FreePlan(plan).plan(torch.full((FreePlan(plan).size,), 1e-2, dtype=torch.float64))
    scheduler = CLDScheduler(SDE, parameterization="noise", plan=plan)
    scheduler.save_pretrained(tmp_path)
    again = CLDScheduler.from_pretrained(tmp_path)
    made = []
    for one in (scheduler, again):
        one.set_timesteps(4)
        assert one.plan.evaluations == 4 and len(one.timesteps) == 4
        x = one.initial_noise((2, 2, 4, 4), torch.Generator().manual_seed(1))
        for t in one.timesteps:
            seen = one.scale_model_input(x, t)
            x = one.step(0.1 * seen[:, 1:], t, x, torch.Generator().manual_seed(2)).prev_sample
        made.append(x)
    assert torch.equal(made[0], made[1]) and bool(made[0].isfinite().all())
    with pytest.raises(ValueError, match="the plan has 4 steps, not 5"):
        scheduler.set_timesteps(5)
    scheduler.set_timesteps()
    scheduler.set_begin_index(2)
    with pytest.raises(ValueError, match="first timestep only"):
        scheduler.step(x[:, 1:], scheduler.timesteps[2], x)
    for sde, parameterization in ((cldfast.CLD(a=1.1), "noise"), (SDE, "score")):
        with pytest.raises(ValueError, match="the plan is for"):
            CLDScheduler(sde, parameterization=parameterization, plan=plan)
