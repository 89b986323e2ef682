"""Pretrained networks as `D(y, sigma)`: tables, predictions and networks of diffusers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from states_behind import first_covariance, next_seed, state_behind

import cldfast
from cldfast.compat.noise_tables import NoiseTable
from cldfast.network import ClassifierFree

BETAS = np.linspace(1e-4, 0.02, 1000)
MEAN, VAR = 0.7, 0.3


def exact(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x0 | y] of data N(0.7, 0.3)."""
    sigma = sigma.reshape(-1, 1)
    return MEAN + VAR / (VAR + sigma**2) * (y - MEAN)


def network(predicts: str, alpha_of, sigma_of):
    """What a perfect network returns at z = alpha x0 + sigma n, by the joint law of x0, n and z."""

    def net(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = alpha_of(t).reshape(-1, 1), sigma_of(t).reshape(-1, 1)
        along = (z - alpha * MEAN) / (alpha**2 * VAR + sigma**2)
        x0, n = MEAN + alpha * VAR * along, sigma * along
        return {
            "x0": x0, "epsilon": n, "v": alpha * n - sigma * x0, "flow": n - x0
        }[predicts]  # fmt: skip

    return net


def rows(low: float, high: float, n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    sigma = torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64)
    y = MEAN + sigma[:, None] * torch.randn(n, 3, dtype=torch.float64)
    return y, sigma


@pytest.mark.parametrize("predicts", ["x0", "epsilon"])
def test_edm_and_ve(predicts: str) -> None:
    """Times are noise levels and z is y."""
    net = network(predicts, torch.ones_like, lambda t: t)
    y, sigma = rows(0.002, 80.0)
    D = cldfast.from_denoiser(net, predicts=predicts)
    torch.testing.assert_close(D(y, sigma), exact(y, sigma), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("predicts", ["x0", "epsilon"])
def test_edm_with_its_own_times(predicts: str) -> None:
    """c_noise = ln(sigma) / 4 is linear in ln sigma, so two entries say all, in either order."""
    ends = np.array([0.002, 80.0])
    net = network(predicts, torch.ones_like, lambda t: (4 * t).exp())
    y, sigma = rows(0.002, 80.0)
    for order in (ends, ends[::-1]):
        D = cldfast.from_denoiser(net, predicts=predicts, sigma=order, times=np.log(order) / 4)
        torch.testing.assert_close(D(y, sigma), exact(y, sigma), rtol=1e-9, atol=1e-9)
        assert D.sigma_range == pytest.approx((0.002, 80.0))


@pytest.mark.parametrize("predicts", ["x0", "epsilon", "flow"])
def test_flow_matching(predicts: str) -> None:
    net = network(predicts, lambda t: 1 - t, lambda t: t)
    y, sigma = rows(1e-3, 1e3)
    if predicts == "flow":
        D = cldfast.from_denoiser(net, predicts=predicts)
        torch.testing.assert_close(D(y, sigma), exact(y, sigma), rtol=1e-8, atol=1e-8)
    t = np.linspace(0.0, 1.0, 4001)
    D = cldfast.from_denoiser(net, predicts=predicts, alpha=1 - t, sigma=t, times=t)
    torch.testing.assert_close(D(y, sigma), exact(y, sigma), rtol=1e-3, atol=1e-3)


def ddpm():
    """alpha and sigma of DDPM at any index, k-th powers apart: their logarithms are looked up."""
    log_alpha = torch.from_numpy(0.5 * np.cumsum(np.log1p(-BETAS)))

    def alpha_of(t: torch.Tensor) -> torch.Tensor:
        low = t.double().floor().long().clamp(0, 998)
        share = t.double() - low
        return torch.lerp(log_alpha[low], log_alpha[low + 1], share).exp()

    return alpha_of, lambda t: (1 - alpha_of(t) ** 2).sqrt()


@pytest.mark.parametrize("predicts", ["x0", "epsilon", "v"])
@pytest.mark.parametrize("discrete", [True, False])
def test_ddpm(predicts: str, discrete: bool) -> None:
    """At the entries exact; between them nearly so, with continuous times."""
    alpha_of, sigma_of = ddpm()
    seen: list[torch.Tensor] = []

    def net(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return network(predicts, alpha_of, sigma_of)(z, t)

    D = cldfast.from_denoiser(net, predicts=predicts, betas=BETAS, discrete=discrete)
    k = torch.tensor([0, 1, 10, 300, 700, 999])
    sigma = sigma_of(k) / alpha_of(k)
    y = MEAN + sigma[:, None] * torch.randn(len(k), 3, dtype=torch.float64)
    torch.testing.assert_close(D(y, sigma), exact(y, sigma), rtol=1e-7, atol=1e-7)
    assert seen[-1].dtype == (torch.int64 if discrete else torch.float64)
    torch.testing.assert_close(seen[-1].double(), k.double(), rtol=0, atol=1e-7)
    y, sigma = rows(0.02, 100.0, 20)
    error = (D(y, sigma) - exact(y, sigma)).abs() / (1 + sigma[:, None])
    assert error.max() < (2e-2 if discrete else 1e-3)


def test_the_table_of_betas_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler()
    table = NoiseTable.from_betas(scheduler.betas)
    products = scheduler.alphas_cumprod.double()
    ends = ((1 - products) / products).sqrt()[[0, -1]].tolist()
    assert table.sigma_range == pytest.approx(ends, rel=1e-4)  # diffusers rounds to float32


def test_outside_of_the_table() -> None:
    net = network("epsilon", torch.ones_like, lambda t: t)
    table = np.array([0.1, 1.0, 10.0])
    D = cldfast.from_denoiser(net, predicts="epsilon", sigma=table, times=table)
    y = torch.randn(4, 3, dtype=torch.float64)
    low, first = torch.full((4,), 1e-3).double(), torch.full((4,), 0.1).double()
    torch.testing.assert_close(D(y, low), exact(y, first))
    # Above, the noise of y is brought down to 10, the last level.
    torch.testing.assert_close(D(5 * y, 5 * 100 * first), exact(y, 100 * first))
    with pytest.raises(
        ValueError, match=r"sigma: expected at most 100, 10 times the largest noise"
    ):
        D(y, torch.full((4,), 101.0).double())


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 4, 4)])
def test_a_shared_noise_level_stays_one(shape: tuple[int, ...]) -> None:
    seen: list[torch.Tensor] = []

    def net(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return z * t.reshape(-1, *[1] * (z.ndim - 1))

    D = cldfast.from_denoiser(net, predicts="epsilon", betas=BETAS)
    y, sigma = torch.randn(shape), torch.tensor([0.5])
    shared, each = D(y, sigma.expand(4)), D(y, sigma.repeat(4))
    assert [t.shape for t in seen] == [(4,), (4,)] and seen[0].stride(0) == 0
    torch.testing.assert_close(shared, each)


def test_a_network_of_half_precision_and_its_conditions() -> None:
    class Net(torch.nn.Linear):
        def forward(self, z, t, labels, *, context):
            assert z.dtype == torch.bfloat16 and t.dtype == torch.float32
            return super().forward(z) * labels[:, None] + context

    D = cldfast.from_denoiser(Net(3, 3).bfloat16(), predicts="epsilon", betas=BETAS)
    y, sigma = torch.randn(2, 3), torch.rand(2) + 1
    out = D(y, sigma, torch.tensor([1, 2]), context=1.0)
    assert out.dtype == torch.float32 and out.shape == (2, 3)
    assert cldfast.network.device_of(D) == torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predicts": "score"}, "predicts: expected one of x0, epsilon, v, flow, got 'score'"),
        ({"alpha": [1.0, 1.0]}, "sigma: expected a table of sigma with alpha, times or discrete"),
        ({"discrete": True}, "sigma: expected a table"),
        ({"betas": BETAS, "sigma": BETAS}, "betas: expected betas, or alpha and sigma, got both"),
        ({"betas": [0.1, 1.5]}, r"betas: expected numbers in \(0, 1\]"),
        ({"sigma": [1.0, 2.0], "times": [1.0]}, "expected one length, got 2, 2, 1"),
        ({"sigma": [[1.0, 2.0]]}, r"sigma: expected finite numbers \(K,\), got shape \(1, 2\)"),
        ({"sigma": [1.0, math.nan]}, "sigma: expected finite numbers"),
        ({"sigma": [1.0, 0.0]}, "expected two or more entries, all > 0"),
        ({"sigma": [1.0, -1.0, 2.0]}, "expected two or more entries, all > 0"),
        ({"sigma": [1.0, 3.0, 2.0]}, "sigma / alpha: expected to rise, or to fall"),
    ],
)
def test_bad_tables_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cldfast.from_denoiser(lambda z, t: z, **options)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(TypeError, match="net must be callable"):
        cldfast.from_denoiser(3)  # type: ignore[arg-type]
    y = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"sigma: expected shape \(4,\), got \(\)"):
        cldfast.from_denoiser(lambda z, t: z)(y, torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"output: expected \(4, 3\), got \(4, 2\)"):
        cldfast.from_denoiser(lambda z, t: z[:, :2])(y, torch.ones(4))
    with pytest.raises(TypeError, match="must be a tensor, got tuple"):
        cldfast.from_denoiser(lambda z, t: (z,))(y, torch.ones(4))


def tiny_unet(diffusers, **options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        **options,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("discrete", [True, False])
@torch.no_grad()
def test_diffusers_schedulers_predict_the_same_data(prediction: str, discrete: bool) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False)
    pipe = diffusers.DDPMPipeline(tiny_unet(diffusers), scheduler)
    D = cldfast.from_diffusers(pipe, discrete=discrete)
    for k in (1, 250, 700, 999):
        z = torch.randn(2, 1, 8, 8)
        output = pipe.unet(z, k).sample
        wanted = scheduler.step(output, k, z).pred_original_sample
        alpha = scheduler.alphas_cumprod[k].sqrt()
        sigma = (1 / alpha**2 - 1).sqrt().expand(2)
        # Times are interpolated in what float32 leaves of the noise level.
        torch.testing.assert_close(
            D(z / alpha, sigma), wanted, rtol=2e-3, atol=2e-3 * sigma[0].item()
        )


@torch.no_grad()
def test_conditions_of_diffusers_networks() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler()
    unet = tiny_unet(diffusers, num_class_embeds=4)
    y, sigma, labels = torch.randn(3, 1, 8, 8), torch.full((3,), 2.0), torch.tensor([0, 1, 2])
    given = cldfast.from_diffusers(unet, scheduler, class_labels=labels)(y, sigma)
    D = cldfast.from_diffusers(unet, scheduler)
    torch.testing.assert_close(D(y, sigma, labels), given)
    torch.testing.assert_close(D(y, sigma, class_labels=labels), given)
    conditional, unconditional = ClassifierFree(D, labels, null=3)(y, sigma)
    torch.testing.assert_close(conditional, given)
    torch.testing.assert_close(unconditional, D(y, sigma, torch.full((3,), 3)))
    one = cldfast.from_diffusers(unet, scheduler, class_labels=labels[1:2])(y, sigma)
    torch.testing.assert_close(one[1], given[1])

    text = torch.randn(3, 2, 4)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=2, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8,), down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=4, attention_head_dim=4,
    ).eval()  # fmt: skip
    out = cldfast.from_diffusers(unet, scheduler, encoder_hidden_states=text)(y, sigma)
    r = torch.tensor(2.0)
    alpha = 1 / (1 + r**2).sqrt()
    k = int((scheduler.alphas_cumprod.sqrt() - alpha).abs().argmin())
    wanted = y - r * unet(alpha * y, torch.tensor(k), text).sample[:, :1]
    torch.testing.assert_close(out, wanted, rtol=0.05, atol=0.05)  # the index is rounded
    assert (
        out - cldfast.from_diffusers(unet, scheduler, encoder_hidden_states=0 * text)(y, sigma)
    ).abs().max() > 1e-3


@pytest.mark.parametrize("solver", ["multistep", "sscs", "stochastic_multistep"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_a_ddpm_pipeline_runs_under_the_scheduler_of_cld(solver: str, prediction: str) -> None:
    """Its network as it is, in the loop of diffusers; the samples are those of `cldfast.sample`."""
    diffusers = pytest.importorskip("diffusers")
    from cldfast.compat.diffusers import CLDScheduler

    ddpm = diffusers.DDPMScheduler(prediction_type=prediction)
    D = cldfast.from_diffusers(diffusers.DDPMPipeline(tiny_unet(diffusers), ddpm))
    scheduler = CLDScheduler(solver=solver, grid="auto", parameterization="denoiser")
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(0)
    unit = scheduler.initial_noise((3, 1, 8, 8), generator)
    sample = first = scheduler.init_noise_sigma * unit
    noises = [torch.randn(3, 2, 8, 8) for _ in scheduler.timesteps]
    seed_of_run = generator.clone_state()
    for sigma, noise in zip(scheduler.timesteps, noises, strict=True):
        y = scheduler.scale_model_input(sample, sigma)
        output = D(y, sigma.expand(3))
        sample = scheduler.step(output, sigma, sample, generator, variance_noise=noise).prev_sample
    assert sample.shape == (3, 1, 8, 8) and sample.isfinite().all()

    plan = scheduler.plan
    evaluating = [k for k, stage in enumerate(plan.stages) if stage.evaluates]
    stages = plan.stages[evaluating[0] :]
    cov = first_covariance(plan, evaluating[0])
    u = torch.from_numpy(
        state_behind(first.numpy(), stages[0].seen[0], cov, next_seed(seed_of_run))
    ).float()
    rest = cldfast.Plan(stages, plan.sde, plan.solver, plan.order, plan.parameterization, plan.grid)
    at = np.cumsum([stage.evaluates for stage in stages]) - 1
    wanted = cldfast.run(rest, D, u, noise=[noises[k] for k in at]).chunk(2, dim=1)[0]
    torch.testing.assert_close(sample, wanted, rtol=1e-3, atol=1e-3)


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "denoisers.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    torch.testing.assert_close(names["x0"], names["y"] / 17, rtol=0.02, atol=0.02)


def test_other_schedulers_are_refused() -> None:
    diffusers = pytest.importorskip("diffusers")
    unet = tiny_unet(diffusers)
    with pytest.raises(ValueError, match="expected one with alphas_cumprod.* got NoneType"):
        cldfast.from_diffusers(unet)
    with pytest.raises(ValueError, match="got FlowMatchEulerDiscreteScheduler"):
        cldfast.from_diffusers(unet, diffusers.FlowMatchEulerDiscreteScheduler())
    scheduler = diffusers.DDPMScheduler()
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(
        ValueError, match="prediction_type: expected one of epsilon, sample, v_pred"
    ):
        cldfast.from_diffusers(unet, scheduler)
