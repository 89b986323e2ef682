"""`CLDScheduler.from_scheduler`: pipelines of diffusers run under CLD, network and loop as they are."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from states_behind import first_covariance, next_seed, state_behind

import cldfast
from cldfast.compat.diffusers_state import SeenPlane
from cldfast.compat.noise_tables import NoiseTable

# No test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
diffusers = pytest.importorskip("diffusers")
from cldfast.compat.diffusers import CLDScheduler  # noqa: E402

DDPM = diffusers.DDPMScheduler
SHAPE = (3, 2, 4, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_unet(out_channels: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    unet: torch.nn.Module = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=out_channels, layers_per_block=1,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4, attention_head_dim=8,
    ).eval()  # fmt: skip
    return unet


class Pointwise(torch.nn.Module):
    """In place of a U-Net: a function of the image and its alpha_bar, which the time selects."""

    def __init__(self, function: Any, ddpm: Any, size: int = 4) -> None:
        super().__init__()
        self.function, self.dtype, self.device = function, torch.float32, torch.device("cpu")
        self.config = SimpleNamespace(sample_size=size, in_channels=1)
        squares = np.cumprod(1.0 - ddpm.betas.double().numpy())
        self.log_levels = 0.5 * np.log((1.0 - squares) / squares)

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        sigma = np.exp(np.interp(float(t), np.arange(len(self.log_levels)), self.log_levels))
        return SimpleNamespace(sample=self.function(z, float(sigma)))


def pipeline_of(unet: Any, scheduler: Any) -> Any:
    pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline: Any, rows: int, steps: int, source: Any = None) -> torch.Tensor:
    """What the pipeline draws, before it clamps the images to [0, 1]."""
    scheduler, last = pipeline.scheduler, []
    step = scheduler.step
    try:
        scheduler.step = lambda *a, **k: last.append(step(*a, **k)) or last[-1]
        pipeline(rows, source, steps, output_type="pt")
    finally:
        del scheduler.step
    return torch.as_tensor(last[-1].prev_sample)


@pytest.mark.parametrize(
    ("prediction", "solver"),
    [("epsilon", "multistep"), ("v_prediction", "multistep"), ("epsilon", "heun")],
)
@torch.no_grad()
def test_a_pipeline_runs_without_retraining(prediction: str, solver: str) -> None:
    """Beside `cldfast.run` of the plan: with the U-Net as it is, and as a denoiser."""
    unet = tiny_unet()
    ddpm = DDPM(prediction_type=prediction)
    pipeline = pipeline_of(unet, ddpm)
    pipeline.scheduler = CLDScheduler.from_scheduler(pipeline.scheduler, solver=solver)
    images = pipeline(batch_size=4, num_inference_steps=20, output_type="np").images
    assert images.shape == (4, 8, 8, 3) and np.isfinite(images).all() and images.std() > 0.01

    found = run(pipeline, 4, 20, generator(5))
    source = generator(5)
    first = torch.randn(4, 3, 8, 8, generator=source).double().numpy()
    plan = pipeline.scheduler.plan
    stage = plan.stages[0]
    u = state_behind(first, stage.seen[0], plan.sde.prior().cov, seed=next_seed(source))
    u = torch.from_numpy(u).float()
    table = NoiseTable.from_betas(ddpm.betas)
    own = cldfast.run(plan, lambda z, sigma: unet(z, table(sigma)[2]).sample, u, seed=0)
    torch.testing.assert_close(found, own.chunk(2, dim=1)[0], rtol=1e-4, atol=1e-4)

    # The same grid, asked of the denoiser; alpha of z is interpolated in its table.
    D = cldfast.from_diffusers(unet, ddpm)
    like = cldfast.make_plan(
        plan.sde, solver, grid=plan.grid, parameterization="denoiser", denoise=True
    )
    x = cldfast.run(like, D, u, seed=0).chunk(2, dim=1)[0]
    torch.testing.assert_close(found, x, rtol=2e-3, atol=2e-3)


MEANS, STD, SHARES = np.array([-0.5, 0.5]), 0.1, np.array([0.3, 0.7])


def of_mixture(z: torch.Tensor, sigma: float) -> torch.Tensor:
    """E[n | z] of data `sum_i w_i N(m_i, s^2)` at every pixel, z = (x0 + sigma n) / scale."""
    y = z.double() * np.sqrt(1.0 + sigma**2)
    var = STD**2 + sigma**2
    gaps = y[..., None] - torch.from_numpy(MEANS)
    weights = torch.softmax(torch.from_numpy(np.log(SHARES)) - gaps**2 / (2 * var), dim=-1)
    return (sigma * (weights * gaps).sum(-1) / var).to(z.dtype)


@pytest.mark.parametrize(
    ("solver", "schedule", "sde"),
    [("multistep", "linear", None), ("stochastic_multistep", "scaled_linear", cldfast.PSLD())],
)
def test_a_mixture_is_sampled(solver: str, schedule: str, sde: Any) -> None:
    """A mixture at every pixel and its exact network: 32,000 numbers of one law."""
    ddpm = DDPM(beta_schedule=schedule, beta_start=1e-4 if schedule == "linear" else 8.5e-4)
    pipeline = pipeline_of(Pointwise(of_mixture, ddpm), ddpm)
    pipeline.scheduler = CLDScheduler.from_scheduler(ddpm, sde, solver)
    x = run(pipeline, 2000, 100, generator(1)).double().flatten()
    share = float((x < 0).double().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / len(x)) ** 0.5
    # The last step is the mean of x0 given y at the first noise level of the betas.
    std = STD / (1.0 + float(ddpm.betas[0]) / STD**2) ** 0.5
    for part, mean in ((x[x < 0], MEANS[0]), (x[x > 0], MEANS[1])):
        error = std / len(part) ** 0.5
        assert abs(float(part.mean()) - mean) < 4 * error
        # The solver's own error is 1 to 2 % here.
        assert float(part.std()) == pytest.approx(std, rel=0.02 + 4 / (2 * len(part)) ** 0.5)


@pytest.mark.parametrize("solver", ["multistep", "sscs", "em", "aboba", "heun"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_the_law_is_that_of_the_plan(solver: str, schedule: str) -> None:
    """Normal data: the law of any plan is known exactly, discretisation included."""
    mean, var = 0.3, 0.2

    def of_normal(z: torch.Tensor, sigma: float) -> torch.Tensor:
        y = z * (1.0 + sigma**2) ** 0.5
        return sigma * (y - mean) / (var + sigma**2)

    ddpm = DDPM(beta_schedule=schedule)
    pipeline = pipeline_of(Pointwise(of_normal, ddpm), ddpm)
    sde = cldfast.CLD(a=1.5, x_noise=0.2, beta=cldfast.LinearBeta(1.0, 9.0))
    pipeline.scheduler = scheduler = CLDScheduler.from_scheduler(ddpm, sde, solver)
    x = run(pipeline, 2000, 12, generator(2)).double()
    plan = scheduler.plan
    leading = next(k for k, stage in enumerate(plan.stages) if stage.evaluates)
    cov, row = first_covariance(plan, leading), plan.stages[leading].seen[0]
    variance = row @ cov @ row
    assert scheduler.init_noise_sigma == pytest.approx(variance**0.5)
    # The pipeline begins with unit noise, whatever init_noise_sigma is.
    pull = cov @ row / variance
    start = cov + (1.0 - variance) * np.outer(pull, pull)
    rest = cldfast.Plan(
        plan.stages[leading:], plan.sde, solver, plan.order, plan.parameterization, plan.grid
    )
    law = rest.gaussian_law(np.zeros(2), start, mean, var)
    n = x.numel()
    assert abs(float(x.mean()) - law.mean[0]) < 4 * (law.cov[0, 0] / n) ** 0.5
    assert float(x.var()) == pytest.approx(law.cov[0, 0], rel=4 * (2 / n) ** 0.5)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_timesteps_and_noise_are_those_of_ddpm(prediction: str, schedule: str) -> None:
    ddpm = DDPM(prediction_type=prediction, beta_schedule=schedule)
    scheduler = CLDScheduler.from_scheduler(ddpm)
    scheduler.set_timesteps(12)
    assert len(scheduler.timesteps) == 13 and len(scheduler) == 1000
    assert float(scheduler.timesteps[-1]) == pytest.approx(0.0, abs=1e-3)
    if schedule == "linear":  # its betas end before the process does
        assert float(scheduler.timesteps[0]) == pytest.approx(999.0, abs=1e-2)
        assert scheduler.sde.T < 1.0
    assert abs(scheduler.init_noise_sigma - 1.0) < 1e-3
    x0, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    t = torch.tensor([0, 123, 998])
    torch.testing.assert_close(
        scheduler.add_noise(x0, noise, t), ddpm.add_noise(x0, noise, t), rtol=1e-4, atol=1e-4
    )
    # At noise level s / alpha of an entry the network is asked at that entry's time.
    squares = np.cumprod(1.0 - ddpm.betas.double().numpy())
    sigma = np.array([s.argument for s in scheduler.plan.stages if s.evaluates])
    level = np.interp(scheduler.timesteps.double(), np.arange(1000), np.log(1 / squares - 1) / 2)
    inside = sigma < np.exp(np.log(1 / squares[-2] - 1) / 2)
    np.testing.assert_allclose(level[inside], np.log(sigma)[inside], atol=1e-5)


def test_other_arguments_have_noise_levels() -> None:
    x0, noise = torch.zeros(SHAPE), torch.randn(SHAPE)
    sigma = torch.tensor(3.0)
    made = CLDScheduler(parameterization="denoiser").add_noise(x0, noise, sigma)
    torch.testing.assert_close(made, 3.0 * noise)
    made = CLDScheduler(parameterization="edm").add_noise(x0, noise, sigma.log() / 4)
    torch.testing.assert_close(made, 3.0 * noise / 10**0.5)


@pytest.mark.parametrize("x_noise", [0.0, 0.3])
@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 1.0])
def test_the_state_behind_y_depends_on_no_data(t: float, x_noise: float) -> None:
    """`u | y ~ N(m y, Sigma - sigma_y^2 m m^T)`, by the conditioning of u on y given any x0."""
    marginal = cldfast.CLD(a=1.0, x_noise=x_noise).marginal(t)
    m, scale = marginal.mean, 0.7
    plane = SeenPlane.of(scale * marginal.statistic, marginal.cov + np.outer(m, m))
    np.testing.assert_allclose(plane.gain, m / scale, rtol=1e-9)
    left = marginal.cov - marginal.sigma_y**2 * np.outer(m, m)
    np.testing.assert_allclose(np.outer(plane.rest, plane.rest), left, rtol=1e-6, atol=1e-15)
    assert plane.std == pytest.approx(scale * (1.0 + marginal.sigma_y**2) ** 0.5, rel=1e-9)
    # A state drawn behind a plane shows it.
    p, z = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    x, v = plane.draw(p, z).chunk(2, dim=1)
    torch.testing.assert_close(plane.row[0] * x + plane.row[1] * v, p)


def steps_of(scheduler: CLDScheduler, sample: torch.Tensor, change: Any = None, **options: Any):
    """A run of `output = tanh(sample)`; `change` acts on the sample before the second step."""
    for k, t in enumerate(scheduler.timesteps):
        if k == 1 and change is not None:
            sample = change(sample)
        sample = scheduler.step(torch.tanh(sample), t, sample, **options).prev_sample
    return sample


def test_the_state_moves_with_a_changed_sample() -> None:
    scheduler = CLDScheduler(solver="em", grid=[1.0, 0.7, 0.4, 0.2], parameterization="epsilon")

    def draw(change: Any) -> torch.Tensor:
        scheduler.set_timesteps()
        first = torch.from_numpy(np.random.default_rng(0).standard_normal(SHAPE))
        noise = torch.ones(3, 4, 4, 4, dtype=torch.float64)
        return steps_of(scheduler, first, change, generator=generator(1), variance_noise=noise)

    plain = draw(None)
    assert torch.equal(plain, draw(lambda sample: sample.clone()))
    delta = torch.from_numpy(np.random.default_rng(1).standard_normal(SHAPE))
    # Also in place, which leaves no other trace.
    found = draw(lambda sample: sample.add_(delta))
    plan = scheduler.plan
    parts = [
        cldfast.Plan(stages, plan.sde, "em", 1, "epsilon", grid)
        for stages, grid in ((plan.stages[:1], plan.grid[:2]), (plan.stages[1:], plan.grid[1:]))
    ]
    first = np.random.default_rng(0).standard_normal(SHAPE)
    seed = next_seed(generator(1))
    u = state_behind(first, plan.stages[0].seen[0], plan.sde.prior().cov, seed)

    def net(z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z)

    noise = [torch.ones(3, 4, 4, 4, dtype=torch.float64)] * 2
    u = cldfast.run(parts[0], net, torch.from_numpy(u), noise=noise[:1])
    marginal = plan.sde.marginal(0.7)
    move = marginal.mean * np.sqrt(1.0 + marginal.sigma_y**2)  # m / scale
    u = u + torch.cat([float(part) * delta for part in move], dim=1)
    wanted = cldfast.run(parts[1], net, u, noise=noise).chunk(2, dim=1)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["multistep", "em"])
def test_a_run_may_begin_later(solver: str) -> None:
    """As image to image does: `add_noise` at a later timestep. Normal data, all noise addressed."""
    var = 0.2
    scheduler = CLDScheduler(
        solver=solver, grid="quadratic", t_min=0.02, parameterization="denoiser"
    )
    scheduler.set_timesteps(40)
    scheduler.set_begin_index(15)
    t = scheduler.timesteps[15:]
    x0 = var**0.5 * torch.randn(4000, 1, 4, 4, generator=generator(3))
    noise = torch.randn(x0.shape, generator=generator(4))
    sample = scheduler.add_noise(x0, noise, t[:1].repeat(4000))
    for sigma in t:
        output = var / (var + sigma**2) * sample
        sample = scheduler.step(output, sigma, sample, generator(5)).prev_sample
    # The law begins exact; the end at t_min has the noise of x there.
    marginal = scheduler.sde.marginal(0.02)
    wanted = var * marginal.mean[0] ** 2 + marginal.cov[0, 0]
    assert float(sample.var()) == pytest.approx(float(wanted), rel=0.1)


def test_images_do_not_depend_on_the_batch() -> None:
    ddpm = DDPM()
    pipeline = pipeline_of(Pointwise(of_mixture, ddpm), ddpm)
    pipeline.scheduler = CLDScheduler.from_scheduler(ddpm, solver="stochastic_multistep")

    def draw(seeds: list[int]) -> torch.Tensor:
        return run(pipeline, len(seeds), 5, [generator(seed) for seed in seeds])

    whole = draw([1, 2, 3, 4])
    assert torch.equal(whole, torch.cat([draw([1, 2, 3]), draw([4])]))
    assert not torch.equal(whole[0], whole[1])

    def numbered(rows: int, first_index: int) -> torch.Tensor:
        source, scheduler = generator(6), pipeline.scheduler
        scheduler.set_timesteps(5)
        first = scheduler.initial_noise((rows, *SHAPE[1:]), source, first_index=first_index)
        return steps_of(scheduler, first, generator=source, first_index=first_index)

    assert torch.equal(numbered(3, 0), torch.cat([numbered(2, 0), numbered(1, 2)]))


@torch.no_grad()
def test_a_pipeline_is_saved_with_its_scheduler(tmp_path: Path) -> None:
    pipeline = pipeline_of(tiny_unet(), DDPM(num_train_timesteps=500))
    sde = cldfast.CLD(beta=cldfast.LinearBeta(1.0, 7.0))
    pipeline.scheduler = CLDScheduler.from_scheduler(pipeline.scheduler, sde, t_min=0.01)
    pipeline.save_pretrained(tmp_path)
    again = CLDScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert dict(again.config) == dict(pipeline.scheduler.config)
    assert len(again) == 500 and again.config.t_min == 0.01
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    # The same weights at other addresses, whose alignment may change the order of a sum.
    found = run(pipeline_of(unet, again), 2, 4, generator(1))
    torch.testing.assert_close(found, run(pipeline, 2, 4, generator(1)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_learned_variance_is_not_read() -> None:
    scheduler = CLDScheduler.from_scheduler(DDPM())
    results = []
    for double in (False, True):
        scheduler.set_timesteps(3)
        sample = torch.ones(SHAPE)
        for t in scheduler.timesteps:
            output = torch.tanh(sample)
            if double:
                output = torch.cat([output, torch.full_like(output, 9.0)], dim=1)
            sample = scheduler.step(output, t, sample, generator(1)).prev_sample
        results.append(sample)
    assert torch.equal(*results)


def test_half_precision_samples_are_rounded_states() -> None:
    """The state is kept in single precision, so rounding does not add up."""
    scheduler = CLDScheduler.from_scheduler(DDPM())
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        scheduler.set_timesteps(30)
        first = torch.randn(SHAPE, generator=generator(3)).bfloat16().to(dtype)
        results.append(steps_of(scheduler, first, generator=generator(1)))
    assert results[1].dtype == torch.bfloat16
    torch.testing.assert_close(results[1].float(), results[0], rtol=0.05, atol=0.05)


def test_what_cannot_be_served_is_said() -> None:
    make = CLDScheduler.from_scheduler
    with pytest.raises(ValueError, match=r"got 'sample'; cldfast\.from_diffusers makes a denoiser"):
        make(DDPM(prediction_type="sample"))
    with pytest.raises(
        ValueError, match="expected one with betas, such as DDPMScheduler, got Flow"
    ):
        make(diffusers.FlowMatchEulerDiscreteScheduler())
    betas = DDPM().betas.tolist()
    with pytest.raises(ValueError, match="trained_betas: expected the parameterization epsilon or"):
        CLDScheduler(trained_betas=betas)
    with pytest.raises(ValueError, match="begins at noise level .* times the largest"):
        CLDScheduler(parameterization="epsilon", trained_betas=betas[:100])
    scheduler = make(DDPM())
    scheduler.set_timesteps(3)
    t = scheduler.timesteps
    with pytest.raises(TypeError, match="sample must be a float tensor"):
        scheduler.step(torch.ones(SHAPE), t[0], torch.ones(SHAPE, dtype=torch.int64))
    with pytest.raises(ValueError, match="sample must be .*, not empty"):
        scheduler.step(torch.ones(SHAPE), t[0], torch.ones(0, 2, 4, 4))
    with pytest.raises(ValueError, match=r"model_output must be \(3, r \* 2, 4, 4\)"):
        scheduler.step(torch.ones(3, 5, 4, 4), t[0], torch.ones(SHAPE))
    scheduler.set_timesteps(3)
    sample = scheduler.step(torch.ones(SHAPE), t[0], torch.ones(SHAPE)).prev_sample
    with pytest.raises(ValueError, match=r"sample must be \(3, 2, 4, 4\) as in the first step"):
        scheduler.step(torch.ones(SHAPE), t[1], sample[:2])
    with pytest.raises(ValueError, match=r"noise: expected \(3, 2, 4, 4\), got \(3, 4, 4, 4\)"):
        scheduler.add_noise(sample, torch.ones(3, 4, 4, 4), t[0])
