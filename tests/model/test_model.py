"""`cldfast.Model` against the plain functions, with parameterisation and scale by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cldfast
from cldfast.lab.mixture import GaussianMixture
from cldfast.lab.models import MLPScore
from cldfast.training import TrainConfig, Trainer

SDE = cldfast.CLD(x_noise=0.2)
SCALE = cldfast.DataScale((1.0, -2.0), (3.0, 0.5))
LABELS = torch.tensor([3, 0, 2, 1, 1, 2, 0])
DATA = torch.tensor(SCALE.mean) + torch.randn(7, 2) * torch.tensor(SCALE.std)


def network(planes: int = 1, classes: int | None = 4) -> MLPScore:
    """An MLP of y whose weights say something."""
    net = MLPScore(2, width=16, depth=1, in_planes=planes, conditioning="c_noise", classes=classes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


NET = network()
FORM: dict[str, Any] = {"parameterization": "edm"}


def model(**options: Any) -> cldfast.Model:
    return cldfast.Model(NET, SDE, "edm", SCALE, **({"shape": (2,)} | options)).eval()


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("guided", [False, True])
def test_samples_are_those_of_the_plain_function(batch: int | None, guided: bool) -> None:
    options: dict[str, Any] = {"seed": 4, "batch_size": batch, "order": 2, "solver": "multistep"}
    if guided:
        options["guidance_scale"] = 2.0
    found = model(t_min=0.01).sample(7, 5, labels=LABELS, **options)
    plain = cldfast.sample(
        NET, SDE, (7, 2), steps=5, conditions={"labels": LABELS}, t_min=0.01, **FORM, **options
    )
    assert torch.equal(found, SCALE.restore(plain))


def test_plans_inpainting_velocities_and_callbacks_are_in_their_units() -> None:
    plan = cldfast.make_plan(SDE, "em", 4, **FORM)
    mask = torch.tensor([True, False])
    told: list[cldfast.StepInfo] = []
    x, v = model().sample(
        7, plan=plan, seed=2, labels=1, inpaint=cldfast.Inpainting(DATA, mask),
        return_velocity=True, callback=told.append,
    )  # fmt: skip
    torch.testing.assert_close(x[:, 0], DATA[:, 0])
    inside = [told[-1].state[:, :2], told[-1].state[:, 2:]]
    assert torch.equal(x, SCALE.restore(inside[0])) and torch.equal(v, SCALE.stretch(inside[1]))
    assert told[2].x0 is not None
    torch.testing.assert_close(
        told[3].x0, model().denoise(told[2].state, plan.stages[3].t or 0.0, labels=1)
    )


def test_flow_and_likelihood() -> None:
    options: dict[str, Any] = {"seed": 3, "rtol": 1e-3, "atol": 1e-3}
    found, calls = model().pflow(7, labels=LABELS, first_step=0.1, **options)
    given = {"conditions": {"labels": LABELS}} | FORM | options
    plain, expected = cldfast.pflow(NET, SDE, (7, 2), first_step=0.1, **given)
    assert torch.equal(found, SCALE.restore(plain)) and calls == expected
    bound = model().likelihood(DATA, labels=LABELS, probe="exact", **options)
    inner = cldfast.likelihood(NET, SDE, SCALE.standardise(DATA), probe="exact", **given)
    # A density in other units is divided by the volume of the old unit.
    torch.testing.assert_close(bound.nll, inner.nll + math.log(3.0 * 0.5))


def test_the_likelihood_of_gaussian_data_is_their_own() -> None:
    """N(mean, std^2) by its formula, from the exact network of the standardised data."""
    mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2))
    exact = cldfast.Model(mixture.network(SDE, "full_score"), SDE, "full_score", SCALE, t_min=1e-4)
    found = exact.likelihood(DATA.double(), probe="exact", seed=1, rtol=1e-6, atol=1e-6)
    law = torch.distributions.Normal(*(torch.tensor(v).double() for v in (SCALE.mean, SCALE.std)))
    # The bound looks at y = x0 + sigma n, whose log density differs by about sigma |x0|.
    sigma, size = (
        float(SDE.marginal(1e-4).sigma_y),
        float(SCALE.standardise(DATA).norm(dim=1).max()),
    )
    expected = -law.log_prob(DATA.double()).sum(1)
    torch.testing.assert_close(found.nll, expected, rtol=0, atol=4 * sigma * size)


def test_the_loss_has_the_recipe_of_its_form() -> None:
    inside, given = SCALE.standardise(DATA), {"conditions": {"labels": LABELS}, "seed": 6}
    assert torch.equal(
        model(t_min=0.01).loss(DATA, labels=LABELS, seed=6),
        cldfast.hsm_loss(NET, SDE, inside, "edm", "edm", times="half_log", t_min=0.01, **given),
    )
    plain = cldfast.Model(lambda u, t: u[:, 2:], SDE, "x0")
    assert (plain.weighting, plain.times) == ("edm", "half_log")
    score = cldfast.Model(lambda u, t: -u, SDE, "full_score")
    assert torch.equal(
        score.loss(DATA, seed=1, reduction="none"),
        cldfast.hsm_loss(
            lambda u, t: -u, SDE, DATA, parameterization="full_score", seed=1, reduction="none"
        ),
    )
    assert score.shape == (2,)


def test_a_share_of_the_conditions_is_null_in_training() -> None:
    seen: list[Tensor] = []

    def net(u: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return u[:, :2]

    trained = cldfast.Model(net, SDE, "x0", null={"y": 9}, dropout=0.25)
    x = torch.randn(20_000, 2)
    trained.loss(x, y=torch.zeros(20_000))
    share = float((seen[0] == 9).double().mean())
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 20_000)
    trained.loss(x, y=0)
    assert set(seen[0].tolist()) == set(seen[1].tolist()) == {0, 9}
    trained.eval().loss(x, y=0)
    assert not seen[2].any()


def test_fit_is_the_trainer_on_standardised_data() -> None:
    config = TrainConfig(steps=3, batch_size=4, parameterization="score", seed=2)
    mine, other = network(), network()
    trained = cldfast.Model(mine, SDE, cldfast.Preconditioned(0.9), SCALE, t_min=0.01)
    trainer = trained.fit(DATA, config, labels=LABELS, validation=(DATA, LABELS))
    own = {"parameterization": "edm", "sigma_data": 0.9, "t_min": 0.01, "weighting": "edm"}
    rows = SCALE.standardise(DATA)
    plain = Trainer(
        other, SDE, (rows, LABELS), replace(config, times="half_log", **own),
        validation=(rows, LABELS),
    )  # fmt: skip
    expected = plain.fit()
    for name, value in trained.net.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])
    assert trained.shape == (2,) and trainer.validate() == plain.validate()


@pytest.mark.parametrize(
    "parameterization", ["noise", "full_score", "data_noise", "edm", "denoiser"]
)
def test_denoise_is_the_exact_posterior_mean(parameterization: str) -> None:
    """Of a Gaussian, in the units of the data: mean + std^2 snr/(1 + std^2 snr) (y - mean)."""
    var = 0.3
    mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.full((1, 2), var))
    exact = cldfast.Model(
        mixture.network(SDE, parameterization), SDE, parameterization, SCALE, shape=(2,)
    )
    u, t = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0.01, 0.1, 0.3, 0.7, 1.0]).double()
    marginal = SDE.marginal(t)
    y = marginal.statistic[:, :1] * u[:, :2] + marginal.statistic[:, 1:] * u[:, 2:]
    expected = SCALE.restore(var / (var + marginal.sigma_y[:, None] ** 2) * y)
    torch.testing.assert_close(exact.denoise(u, t), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(exact.denoise(u[:1], 0.01), expected[:1], rtol=1e-6, atol=1e-7)
    if parameterization in ("edm", "denoiser"):
        torch.testing.assert_close(exact.denoise(y, t), expected, rtol=1e-6, atol=1e-7)


def test_a_fitted_plan() -> None:
    options: dict[str, Any] = {"steps": 2, "batch_size": 16, "seed": 1}
    data = DATA.repeat(8, 1)
    found = model().fit_plan(data, 3, labels=2, **options)
    plain = cldfast.fit_plan(
        NET, SDE, SCALE.standardise(data), 3, conditions={"labels": 2}, **FORM, **options
    )
    assert (found.before, found.after) == (plain.before, plain.after)
    assert model().sample(4, plan=found.plan, labels=2).shape == (4, 2)


class Output:
    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


def test_an_output_object_is_taken_by_its_sample() -> None:
    class Wrapped(nn.Module):
        def forward(self, u: Tensor, t: Tensor, labels: Tensor) -> Output:
            return Output(NET(u, t, labels))

    wrapped = cldfast.Model(Wrapped(), SDE, "edm", SCALE, shape=(2,))
    assert torch.equal(
        wrapped.sample(7, 3, labels=LABELS, seed=1), model().sample(7, 3, labels=LABELS, seed=1)
    )
    assert torch.equal(
        wrapped.loss(DATA, labels=LABELS, seed=1), model().loss(DATA, labels=LABELS, seed=1)
    )


def test_sampling_is_in_evaluation_mode_and_leaves_the_mode() -> None:
    net = nn.Sequential(nn.Dropout(0.5))
    seen: list[bool] = []
    trained = cldfast.Model(lambda u, t: seen.append(net.training) or u[:, :2], SDE, "x0")
    trained.net_of_mine = net
    trained.train().sample((3, 2), 2)
    assert seen == [False, False] and net.training


def test_what_depends_on_time_alone_is_computed_once_a_run() -> None:
    free = cldfast.Model(network(classes=None), SDE, "edm", shape=(2,))
    calls: list[Tensor] = []
    free.net.time.features = lambda t: (
        calls.append(t) or type(free.net.time).features(free.net.time, t)
    )
    x = free.sample(3, 4, seed=1)
    assert [len(t) for t in calls] == [4]
    assert torch.equal(x, cldfast.sample(free.net, SDE, (3, 2), steps=4, seed=1, **FORM))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        TypeError, match="'stesp' is no option of sample, and no argument of the net"
    ):
        model().sample(3, stesp=3)
    with pytest.raises(TypeError, match="'label' is no option of hsm_loss, .* takes labels"):
        model().loss(DATA, label=LABELS)
    with pytest.raises(ValueError, match="guidance_scale needs a condition"):
        model().sample(3, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"shape: expected shape=\(d,\)"):
        model(shape=None).sample(3)
    with pytest.raises(TypeError, match="sde must be a process such as cldfast.CLD, got VP"):
        cldfast.Model(NET, cldfast.classical.VP())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scale must be a DataScale"):
        cldfast.Model(NET, SDE, "edm", 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dropout: expected in"):
        cldfast.Model(lambda u, t: u, SDE, "edm", dropout=0.1)
    with pytest.raises(ValueError, match="unknown parameterization"):
        cldfast.Model(NET, SDE, "score_of_mine")


def test_the_code_of_the_document_runs() -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "model.md"
    (code,) = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    x = names["x"]
    # The mean of 1,000 samples is within 30/sqrt(1000) of that of the network's law.
    assert x.shape == (1000, 2) and bool(((x.mean(0) - 100.0).abs() < 10.0).all())
