"""Targets averaged over a pool: the same minimiser, less variance, the same rows everywhere."""

import dataclasses
import itertools

import pytest
import torch

import cldfast
from cldfast.lab.models import MLPScore
from cldfast.planner.parameterization import data_form
from cldfast.training import TrainConfig, Trainer
from cldfast.training.pools import Pools
from cldfast.training.reference import Reference

PROCESSES = [
    cldfast.CLD(),
    cldfast.CLD(a=1.0, sigma=2.0**0.5, x_noise=0.5),
    cldfast.PSLD(),
]


@pytest.mark.parametrize("sde", PROCESSES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_mean_target_given_y_is_the_exact_posterior_mean(sde, n):
    """Every pool of three points of unequal weights, enumerated: unbiased for any n."""
    points = torch.tensor([[-1.0], [0.25], [1.5]], dtype=torch.float64)
    share = [0.5, 0.2, 0.3]
    t = torch.tensor([0.3 * sde.T], dtype=torch.float64)
    for y in (-1.3, 0.1, 2.0):
        top = bottom = exact_top = exact_bottom = 0.0
        for own, *others in itertools.product(range(3), repeat=n + 1):
            reference = Reference.at(t, sde, "reweighted", data_form("denoiser"), points[others])
            sigma = float(reference.sigma)
            likelihood = torch.exp(-((y - points[own]) ** 2) / (2.0 * sigma**2)).item()
            weight = likelihood * share[own]
            exact_top, exact_bottom = exact_top + weight * points[own], exact_bottom + weight
            for other in others:
                weight *= share[other]
            seen = torch.tensor([[y]], dtype=torch.float64)
            shift = reference.shift(points[own][None], seen) * sigma
            top, bottom = top + weight * (points[own] + shift), bottom + weight
        assert float(top / bottom) == pytest.approx(float(exact_top / exact_bottom), abs=1e-12)


class Linear(torch.nn.Module):
    """0.3 times the first planes of what the network sees, as many as the data have."""

    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.channels = channels

    def forward(self, seen, t):
        return self.weight * seen[:, : self.channels]


@pytest.mark.parametrize("sde", PROCESSES, ids=str)
@pytest.mark.parametrize("name", ["edm", "denoiser", "data_noise", "x0"])
@pytest.mark.parametrize("weighting", ["reweighted", "edm", "likelihood"])
@pytest.mark.parametrize("shape", [(3,), (2, 3, 1)])
def test_loss_is_that_of_the_mean_over_the_pool(sde, name, weighting, shape):
    generator = torch.Generator().manual_seed(3)
    rows, form = 5, data_form(name)
    x0 = torch.randn(rows, *shape, dtype=torch.float64, generator=generator)
    pool = torch.randn(7, *shape, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.05, 0.9, rows, dtype=torch.float64) * sde.T
    net, seen_at = Linear(shape[0]), {}
    net.register_forward_hook(lambda m, given, o: seen_at.update(seen=given[0], output=o))
    given = {"t": t, "seed": 4, "weighting": weighting, "parameterization": form}
    got = cldfast.hsm_loss(net, sde, x0, reduction="none", reference=pool, **given)
    plain = cldfast.hsm_loss(net, sde, x0, reduction="none", **given)

    marginal = sde.marginal(t)
    column = (-1, *[1] * len(shape))
    sigma, made = marginal.sigma_y, form.coefficients(marginal.sigma_y)
    if form.sees_y:
        y = seen_at["seen"] / made.scale.reshape(column)
    else:
        x, v = seen_at["seen"].chunk(2, dim=1)
        row = marginal.statistic
        y = row[:, 0].reshape(column) * x + row[:, 1].reshape(column) * v
    candidates = torch.cat([pool.expand(rows, *pool.shape), x0[:, None]], 1)
    distance = (y[:, None] - candidates).flatten(2).square().sum(2)
    weights = torch.softmax(-distance / (2.0 * sigma[:, None] ** 2), 1)
    target = (weights.reshape(*weights.shape, *[1] * len(shape)) * candidates).sum(1)
    x_hat = made.keep.reshape(column) * y + made.gain.reshape(column) * seen_at["output"]

    def squared(aim):
        return ((x_hat - aim) / sigma.reshape(column)).square().flatten(1).sum(1)

    # The weight of a row is what the plain loss says it is.
    expected = plain * squared(target) / squared(x0)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_rows_far_apart_leave_the_loss_as_it_is():
    sde, net = cldfast.CLD(), Linear(2)
    x0 = torch.tensor([[100.0, 0.0], [0.0, -100.0]], dtype=torch.float64)
    given = {"t": torch.full((2,), 1e-3, dtype=torch.float64), "seed": 1, "parameterization": "edm"}
    pooled = cldfast.hsm_loss(net, sde, x0, reference=torch.zeros_like(x0), **given)
    assert pooled == cldfast.hsm_loss(net, sde, x0, **given)


def test_gradients_scatter_less():
    """Two modes: the variance of a batch's gradient falls (to 0.68), and its mean stays."""
    sde, net = cldfast.CLD(), Linear(1)
    data = torch.randint(0, 2, (40_000, 1), generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0

    def gradients(pool):
        found = []
        for k in range(150):
            rows = data[k * 64 : (k + 1) * 64].double()
            loss = cldfast.hsm_loss(
                net, sde, rows, t=torch.full((64,), 0.4 * sde.T, dtype=torch.float64), seed=k,
                parameterization="denoiser", reference=pool(k),
            )  # fmt: skip
            (made,) = torch.autograd.grad(loss, net.weight)
            found.append(made)
        return torch.stack(found)

    plain = gradients(lambda k: None)
    pooled = gradients(lambda k: data[20_000 + 128 * k : 20_000 + 128 * (k + 1)].double())
    assert pooled.var() < 0.8 * plain.var()
    error = ((plain.var() + pooled.var()) / 150) ** 0.5
    assert abs(plain.mean() - pooled.mean()) < 4.0 * error


def settings(**more):
    return TrainConfig(
        steps=6, batch_size=8, parameterization="edm", reference=16, warmup=0, **more
    )


def network(**more):
    torch.manual_seed(0)
    return MLPScore(2, 2, width=16, depth=2, in_planes=1, conditioning="c_noise", **more)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(2))
    whole = Trainer(network(), cldfast.CLD(), data, settings()).fit()
    first = Trainer(network(), cldfast.CLD(), data, settings(), folder=tmp_path)
    first.fit(steps=3)
    first.save(tmp_path / "checkpoint.safetensors")
    second = Trainer(network(), cldfast.CLD(), data, settings(), folder=tmp_path, resume=True)
    assert torch.equal(weights(second.fit()), weights(whole))


def test_parts_of_a_batch_and_data_sets_see_the_same_pool():
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(2))
    whole = weights(Trainer(network(), cldfast.CLD(), data, settings()).fit())
    parts = weights(Trainer(network(), cldfast.CLD(), data, settings(accumulate=4)).fit())
    # Sums of eight rows in another order, in float32, over six steps of Adam.
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, index):
            return data[index]

    loaded = weights(Trainer(network(), cldfast.CLD(), Rows(), settings()).fit())
    assert torch.equal(loaded, whole)


def test_rows_are_compared_with_rows_of_their_label():
    data = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    pools = Pools(data, cldfast.CLD(), settings(), data_form("edm"), torch.device("cpu"), null=3)
    reference = pools.at(0, torch.full((4,), 0.5, dtype=torch.float64), torch.tensor([0, 2, 3, 1]))
    kinds = (reference.pool[:, 0] / 2).long() % 3
    assert torch.equal(reference.same[2], torch.ones(16, dtype=torch.bool))
    for row, label in ((0, 0), (1, 2), (3, 1)):
        assert torch.equal(reference.same[row], kinds == label)
    assert not torch.equal(reference.pool, pools.at(1, reference.sigma, None).pool)


def test_what_has_no_pool_is_refused():
    sde, x0 = cldfast.CLD(), torch.zeros(2, 3)
    net = Linear(3)
    with pytest.raises(ValueError, match="parameterization of the data, such as 'edm'"):
        cldfast.hsm_loss(net, sde, x0, parameterization="mixed", reference=x0)
    with pytest.raises(ValueError, match=r"expected rows like those of x0, \(n, 3\)"):
        cldfast.hsm_loss(net, sde, x0, parameterization="edm", reference=torch.zeros(2, 4))
    with pytest.raises(TypeError, match="reference: expected a tensor"):
        cldfast.hsm_loss(net, sde, x0, parameterization="edm", reference=64)
    labelled = {"conditions": {"labels": torch.zeros(2).long()}, "parameterization": "edm"}
    with pytest.raises(ValueError, match="without conditions"):
        cldfast.hsm_loss(lambda u, t, labels: u, sde, x0, reference=x0, **labelled)
    with pytest.raises(TypeError, match="reference: expected data whose rows can be drawn"):
        Trainer(network(), sde, lambda step: torch.zeros(8, 2), settings())
    with pytest.raises(ValueError, match="reference: expected at least 0"):
        TrainConfig(reference=-1)


def test_a_pool_of_turned_images_is_turned_as_a_batch_is():
    """Each row is drawn like the row that is noised, or its target would be biased."""
    images = torch.tensor([[0.0, 1.0]]).expand(20, 1, 1, 2)  # turned ones are 1, 0
    turning = dataclasses.replace(settings(), reference=1_000, flip=True)
    pools = Pools(images, cldfast.CLD(), turning, data_form("edm"), torch.device("cpu"), null=None)
    pool = pools.at(0, torch.full((4,), 0.5, dtype=torch.float64), None).pool
    # Five standard deviations of one half among 1,000.
    assert pool[:, 0, 0, 0].mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 1_000**0.5)
